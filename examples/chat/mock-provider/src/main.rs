//! A server that speaks the protocol of chat completions and knows nothing: for a chat on a machine that has no account anywhere.
//!
//!     cargo run -p mock-provider -- 127.0.0.1:8790
//!
//! It repeats what it is told, a word each 50 ms, and calls the tool `time` when it is asked for the time. The model says what else it does:
//!
//! - `error-429-then-ok` refuses every other request for a second; `error-500` fails;
//! - `error-mid-stream` fails after three words, `cut` breaks off there, and `stall` says nothing more;
//! - `split` sends every byte by itself.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const WORD: Duration = Duration::from_millis(50);

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What is sent next.
enum Piece {
    Event(Value),
    Done,
    Cut,
    Stall,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8790".into());
    let listener = TcpListener::bind(&address).await?;
    println!("mock-provider: base_url = \"http://{}/v1\"", listener.local_addr()?);
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        tokio::spawn(async {
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(connection), service_fn(answer))
                .await;
            if let Err(error) = served {
                eprintln!("mock-provider: {error}");
            }
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    static REFUSED: AtomicBool = AtomicBool::new(false);
    if request.uri().path() != "/v1/chat/completions" {
        return Ok(error(404, "there is only POST /v1/chat/completions"));
    }
    let asked = match request.into_body().collect().await {
        Ok(body) => serde_json::from_slice::<Value>(&body.to_bytes()),
        Err(_) => return Ok(error(400, "the request broke off")),
    };
    let Ok(asked) = asked else { return Ok(error(400, "the request is not JSON")) };
    let model = asked["model"].as_str().unwrap_or_default().to_owned();
    match &*model {
        "error-500" => return Ok(error(500, "this model always fails")),
        "error-429-then-ok" if !REFUSED.fetch_xor(true, Ordering::Relaxed) => {
            let mut refused = error(429, "too many requests");
            refused.headers_mut().insert("retry-after", 1.into());
            return Ok(refused);
        }
        _ => {}
    }
    let mut response = Response::new(body(pieces(&model, &asked), model == "split"));
    let event_stream = hyper::header::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert("content-type", event_stream);
    Ok(response)
}

fn error(status: u16, message: &str) -> Response<Body> {
    let said = json!({ "error": { "message": message, "type": "mock", "code": null } });
    let body = Full::from(said.to_string()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status.try_into().expect("it is a status");
    response
}

/// All that is said to this request.
fn pieces(model: &str, asked: &Value) -> Vec<Piece> {
    let chunk = |delta: Value, finish: Option<&str>| {
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
        Piece::Event(
            json!({ "object": "chat.completion.chunk", "model": model, "choices": [choice] }),
        )
    };
    let last = asked["messages"].as_array().and_then(|messages| messages.last());
    let (role, said) = last.map_or(("", ""), |last| {
        (last["role"].as_str().unwrap_or_default(), last["content"].as_str().unwrap_or_default())
    });
    let has_tools = asked["tools"].as_array().is_some_and(|tools| !tools.is_empty());
    let mut pieces = vec![chunk(json!({ "role": "assistant", "content": "" }), None)];
    if role == "user" && has_tools && said.to_lowercase().contains("time") {
        let call = json!({
            "index": 0,
            "id": "call-time",
            "type": "function",
            "function": { "name": "time", "arguments": "{}" },
        });
        pieces.push(chunk(json!({ "tool_calls": [call] }), None));
        pieces.push(chunk(json!({}), Some("tool_calls")));
    } else {
        let answer = match role {
            "tool" => format!("The tool says: {said}."),
            _ => format!("You said: {said}. I am no model, so that is all I know."),
        };
        let words = answer.split_inclusive(' ');
        pieces.extend(words.map(|word| chunk(json!({ "content": word }), None)));
        pieces.push(chunk(json!({}), Some("stop")));
    }
    let usage = json!({ "prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30 });
    pieces.push(Piece::Event(json!({ "choices": [], "usage": usage })));
    pieces.push(Piece::Done);
    let end = match model {
        "error-mid-stream" => {
            Piece::Event(json!({ "error": { "message": "the model fell over", "code": "mock" } }))
        }
        "cut" => Piece::Cut,
        "stall" => Piece::Stall,
        _ => return pieces,
    };
    pieces.truncate(4);
    pieces.push(end);
    pieces
}

fn body(pieces: Vec<Piece>, split: bool) -> Body {
    let sent = stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(WORD).await;
        let text = match piece {
            Piece::Event(event) => format!("data: {event}\n\n"),
            Piece::Done => "data: [DONE]\n\n".into(),
            Piece::Cut => return vec![Err(io::Error::other("cut"))],
            Piece::Stall => std::future::pending().await,
        };
        let size = if split { 1 } else { text.len() };
        text.as_bytes().chunks(size).map(|bytes| Ok(Bytes::copy_from_slice(bytes))).collect()
    });
    let frames = sent.flat_map(stream::iter).map(|bytes| bytes.map(Frame::data));
    StreamBody::new(frames).boxed_unsync()
}
