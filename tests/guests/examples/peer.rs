//! The paths of `load` that need no host of agents, in plain `wasi:http` 0.3: what `wasmtime serve` runs beside the host. It keeps
//! nothing, so nobody can come back for its events.
//!
//! - `/plain` replies with a small JSON document.
//! - `/events?n=N&size=S&delay=MS` writes N events of S bytes, one each MS milliseconds from the first on, which begin with the wall
//!   clock in nanoseconds, or as fast as they are taken if there is no delay.
//! - `/hold` opens a stream and waits for ever.

#![expect(unsafe_code, reason = "what is generated here speaks to the host")]

use std::time::SystemTime;

use self::exports::wasi::http::handler::Guest;
use self::wasi::clocks::monotonic_clock::{now, wait_until};
use self::wasi::http::types::{ErrorCode, Fields, Request, Response};
use self::wit_bindgen_rt::spawn;
use wit_bindgen::rt::async_support::StreamWriter;

wit_bindgen::generate!({
    path: "../../wit",
    inline: "
        package bureau:tests;

        world peer {
            import wasi:clocks/monotonic-clock@0.3.0;
            import wasi:http/types@0.3.0;
            export wasi:http/handler@0.3.0;
        }
    ",
    world: "bureau:tests/peer",
    runtime_path: "crate::wit_bindgen_rt",
    generate_all,
});

#[path = "shared/wit_bindgen_rt.rs"]
mod wit_bindgen_rt;

const GREETING: &str = r#"{"status":"ok","message":"a small reply of some bytes"}"#;

struct Peer;

impl Guest for Peer {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Ok(match path.rsplit('/').next().unwrap_or_default() {
            "plain" => {
                let fields = [("content-type", "application/json"), ("content-length", "55")];
                respond(200, &fields, async |mut body| {
                    body.write_all(GREETING.into()).await;
                })
            }
            "events" => {
                let [n, size, delay] = ["n", "size", "delay"].map(|name| number(query, name));
                respond(200, &[("content-type", "text/event-stream")], async move |mut body| {
                    let begun = now();
                    for seq in 1..=n {
                        let data = match delay {
                            0 => ".".repeat(size),
                            _ => {
                                wait_until(begun + (delay * (seq - 1)) as u64 * 1_000_000).await;
                                format!("{:.<size$}", wall_clock())
                            }
                        };
                        let event =
                            format!("id: 01J00000000000000000000000-{seq}\ndata: {data}\n\n");
                        body.write_all(event.into()).await;
                    }
                })
            }
            "hold" => respond(200, &[("content-type", "text/event-stream")], async |mut body| {
                body.write_all(":\n".into()).await;
                std::future::pending().await
            }),
            _ => respond(404, &[], async |_| {}),
        })
    }
}

/// The time in nanoseconds.
fn wall_clock() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos().to_string()
}

/// The number of this name in a query; 0 if there is none.
fn number(query: &str, name: &str) -> usize {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|pair| pair.0 == name).and_then(|pair| pair.1.parse().ok()).unwrap_or(0)
}

/// A response whose body is what this writes.
fn respond<F: Future<Output = ()> + 'static>(
    status: u16,
    fields: &[(&str, &str)],
    write: impl FnOnce(StreamWriter<u8>) -> F + 'static,
) -> Response {
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect();
    let headers = Fields::from_list(&fields).expect("they are fields");
    let (writer, reader) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(headers, Some(reader), trailers);
    response.set_status_code(status).expect("it is a status");
    spawn(write(writer));
    response
}

export!(Peer);
