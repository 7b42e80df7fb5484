//! An agent that is plain `wasi:http` 0.3, and but for one path knows nothing of the host.
//!
//! - `/sse` writes an event stream by hand, in pieces that cut its lines.
//! - `/echo` sends the body back as it comes, with its trailers.
//! - `/pass` hands the body back without a look at it.
//! - `/ticks` writes a line every few milliseconds until nobody takes it, and says so.
//! - `/silence` writes a line and then waits for ever.
//! - `/late` waits for ever before it answers.
//! - `/trap` writes a line and traps; `/memory` writes a line and takes all the memory there is; `/spin` never gives way.
//! - `/count` reads the whole body and answers with its length, or with what is wrong with it.
//! - `/head` answers with what it was asked; `/status/{status}` and `/length/{said}/{written}` with what HTTP may not carry.
//! - `/remember/{count}` counts, and keeps each number as its state before it writes it.
//! - `/error` answers with an error.

#![expect(unsafe_code, reason = "what is generated here speaks to the host")]

use std::time::Duration;

use self::bureau::agent::state;
use self::exports::wasi::http::handler::Guest;
use self::wasi::clocks::monotonic_clock::wait_for;
use self::wasi::http::types::{ErrorCode, Fields, Request, Response};
use self::wit_bindgen_rt::spawn;
use wit_bindgen::StreamResult;
use wit_bindgen::rt::async_support::{StreamReader, StreamWriter};

wit_bindgen::generate!({
    path: ["../../wit", "wit"],
    world: "bureau:tests/service",
    runtime_path: "crate::wit_bindgen_rt",
    generate_all,
});

#[path = "shared/wit_bindgen_rt.rs"]
mod wit_bindgen_rt;

struct Service;

/// A response whose body and trailers are what this comes to.
fn streaming<F>(
    status: u16,
    fields: &[(&str, &str)],
    write: impl FnOnce(StreamWriter<u8>) -> F + 'static,
) -> Response
where
    F: Future<Output = Option<Fields>>,
{
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect();
    let headers = Fields::from_list(&fields).expect("they are fields");
    let (writer, reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(headers, Some(reader), trailers_reader);
    response.set_status_code(status).expect("it is a status");
    spawn(async move {
        let last = write(writer).await;
        // Nobody may be there to read them.
        let _ = trailers.write(Ok(last)).await;
    });
    response
}

fn text(status: u16, text: impl Into<String>) -> Response {
    let text = text.into();
    streaming(status, &[("content-type", "text/plain")], async move |mut body| {
        body.write_all(text.into_bytes()).await;
        None
    })
}

/// The next piece of a body.
async fn piece(body: &mut StreamReader<u8>) -> Option<Vec<u8>> {
    let (result, bytes) = body.read(Vec::with_capacity(16 << 10)).await;
    match result {
        StreamResult::Dropped if bytes.is_empty() => None,
        _ => Some(bytes),
    }
}

/// What is asked for in a request of `wasi:http`.
async fn answer(request: Request) -> Result<Response, ErrorCode> {
    let path = request.get_path_with_query().unwrap_or_default();
    let mut parts = path.trim_start_matches('/').split(['/', '?']);
    let mut number = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    Ok(match path.split(['/', '?']).nth(1).unwrap_or_default() {
        "sse" => {
            let fields = [("content-type", "text/event-stream"), ("x-accel-buffering", "no")];
            streaming(200, &fields, async |mut body| {
                for piece in [
                    "retry: 10\n",
                    "\nid: 1\r\nda",
                    "ta: one\r\n\r\n",
                    ": still here\n\n",
                    "data: two\rdata: \u{e9}\r\r",
                ] {
                    body.write_all(piece.into()).await;
                    wait_for(5_000_000).await;
                }
                None
            })
        }
        "echo" => {
            let (_, result) = wit_future::new(|| Ok(()));
            let (mut received, trailers) = Request::consume_body(request, result);
            streaming(200, &[("trailer", "x-sum")], async move |mut body| {
                while let Some(bytes) = piece(&mut received).await {
                    if !body.write_all(bytes).await.is_empty() {
                        println!("nobody takes the echo");
                        return None;
                    }
                }
                trailers.await.ok().flatten().map(|trailers| trailers.clone())
            })
        }
        "pass" => {
            let (_, result) = wit_future::new(|| Ok(()));
            let (received, trailers) = Request::consume_body(request, result);
            let fields = [("trailer".to_owned(), b"x-sum".to_vec())];
            let headers = Fields::from_list(&fields).expect("they are fields");
            Response::new(headers, Some(received), trailers).0
        }
        "ticks" => streaming(200, &[], async |mut body| {
            while body.write_all(b"tick\n".into()).await.is_empty() {
                wait_for(2_000_000).await;
            }
            println!("nobody takes the ticks");
            None
        }),
        "silence" => streaming(200, &[], async |mut body| {
            body.write_all(b"hush\n".into()).await;
            std::future::pending().await
        }),
        "late" => {
            println!("late");
            wait_for(u64::try_from(Duration::from_secs(3600).as_nanos()).unwrap_or(u64::MAX)).await;
            text(200, "at last")
        }
        "trap" => streaming(200, &[], async |mut body| {
            body.write_all(b"so far\n".into()).await;
            wait_for(20_000_000).await;
            panic!("on purpose")
        }),
        "memory" => streaming(200, &[], async |mut body| {
            body.write_all(b"so far\n".into()).await;
            wait_for(20_000_000).await;
            let mut kept: Vec<Vec<u8>> = Vec::new();
            loop {
                kept.push(vec![1; 1 << 20]);
            }
        }),
        "spin" => {
            println!("spinning");
            loop {
                std::hint::spin_loop();
            }
        }
        "count" => {
            let (_, result) = wit_future::new(|| Ok(()));
            let (mut received, trailers) = Request::consume_body(request, result);
            let mut count = 0;
            while let Some(bytes) = piece(&mut received).await {
                count += bytes.len();
            }
            match trailers.await {
                Ok(_) => text(200, count.to_string()),
                Err(error) => {
                    println!("the body broke off: {error:?}");
                    text(400, "broken off")
                }
            }
        }
        "head" => {
            let fields = request.get_headers().copy_all();
            let fields =
                fields.iter().map(|(name, value)| format!("{name}: {}\n", value.escape_ascii()));
            let fields: String = fields.collect();
            let (method, scheme) = (request.get_method(), request.get_scheme());
            let authority = request.get_authority().unwrap_or_default();
            text(200, format!("{method:?} {scheme:?} {authority} {path}\n{fields}"))
        }
        "status" => {
            number();
            let status = number();
            if status >= 200 {
                text(u16::try_from(status).unwrap_or(0), "")
            } else {
                streaming(u16::try_from(status).unwrap_or(0), &[], async |_| None)
            }
        }
        "length" => {
            number();
            let (said, written) = (number().to_string(), number());
            streaming(200, &[("content-length", &said)], async move |mut body| {
                body.write_all(vec![b'x'; written]).await;
                None
            })
        }
        "remember" => {
            number();
            let count = number();
            streaming(200, &[], async move |mut body| {
                for n in 1..=count {
                    state::set(&n.to_string()).expect("a number is a document");
                    body.write_all(format!("{n}\n").into_bytes()).await;
                }
                None
            })
        }
        "error" => return Err(ErrorCode::InternalError(Some("on purpose".into()))),
        _ => text(404, "not here"),
    })
}

impl Guest for Service {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        answer(request).await
    }
}

export!(Service);
