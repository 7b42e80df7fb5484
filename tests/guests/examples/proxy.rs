//! An agent that is plain `wasi:http` 0.2, and but for one path knows nothing of the host. Its paths do what those of `service` do; `/nothing`
//! gives no response.

use std::io::Write as _;

use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{OutputStream, StreamError};

use self::bureau::agent::state;

wit_bindgen::generate!({
    path: "../../wit",
    inline: "
        package bureau:tests;

        world keeping {
            import bureau:agent/state@0.1.0;
        }
    ",
    world: "bureau:tests/keeping",
    generate_all,
});

struct Proxy;

/// The response's head; returns the way for its body.
fn begin(out: ResponseOutparam, status: u16, fields: &[(&str, &str)]) -> OutgoingBody {
    let headers = Fields::new();
    for (name, value) in fields {
        headers.append(name, value.as_bytes()).expect("they are fields");
    }
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("it is a status");
    let body = response.body().expect("it is asked for once");
    ResponseOutparam::set(out, Ok(response));
    body
}

fn write(stream: &OutputStream, bytes: &[u8]) -> Result<(), StreamError> {
    bytes.chunks(4096).try_for_each(|bytes| stream.blocking_write_and_flush(bytes))
}

fn wait(milliseconds: u64) {
    subscribe_duration(milliseconds * 1_000_000).block();
}

fn text(out: ResponseOutparam, status: u16, text: &str) {
    stream(out, status, &[("content-type", "text/plain")], |body| write(body, text.as_bytes()));
}

fn stream(
    out: ResponseOutparam,
    status: u16,
    fields: &[(&str, &str)],
    fill: impl FnOnce(&OutputStream) -> Result<(), StreamError>,
) {
    let body = begin(out, status, fields);
    let stream = body.write().expect("it is asked for once");
    let filled = fill(&stream);
    drop(stream);
    if filled.is_ok() {
        // What is wrong with it the client sees.
        let _ = OutgoingBody::finish(body, None);
    } else {
        println!("nobody takes the body");
    }
}

impl Guest for Proxy {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let number = |at| path.split('/').nth(at).and_then(|part| part.parse().ok()).unwrap_or(0);
        match path.split(['/', '?']).nth(1).unwrap_or_default() {
            "sse" => {
                let fields = [("content-type", "text/event-stream"), ("x-accel-buffering", "no")];
                stream(out, 200, &fields, |body| {
                    for piece in [
                        "retry: 10\n",
                        "\nid: 1\r\nda",
                        "ta: one\r\n\r\n",
                        ": still here\n\n",
                        "data: two\rdata: \u{e9}\r\r",
                    ] {
                        write(body, piece.as_bytes())?;
                        wait(5);
                    }
                    Ok(())
                });
            }
            "echo" => {
                let body = request.consume().expect("it is asked for once");
                let received = body.stream().expect("it is asked for once");
                stream(out, 200, &[], |body| {
                    while let Ok(bytes) = received.blocking_read(16 << 10) {
                        write(body, &bytes)?;
                    }
                    Ok(())
                });
            }
            "ticks" => stream(out, 200, &[], |body| {
                loop {
                    write(body, b"tick\n")?;
                    wait(2);
                }
            }),
            "silence" => stream(out, 200, &[], |body| {
                write(body, b"hush\n")?;
                wait(3_600_000);
                Ok(())
            }),
            "trap" => stream(out, 200, &[], |body| {
                write(body, b"so far\n")?;
                wait(20);
                panic!("on purpose")
            }),
            "count" => {
                let body = request.consume().expect("it is asked for once");
                let received = body.stream().expect("it is asked for once");
                let mut count = 0;
                let end = loop {
                    match received.blocking_read(16 << 10) {
                        Ok(bytes) => count += bytes.len(),
                        Err(end) => break end,
                    }
                };
                match end {
                    StreamError::Closed => text(out, 200, &count.to_string()),
                    StreamError::LastOperationFailed(_) => {
                        println!("the body broke off");
                        text(out, 400, "broken off");
                    }
                }
            }
            "head" => {
                let (method, scheme) = (request.method(), request.scheme());
                let authority = request.authority().unwrap_or_default();
                let mut told = Vec::new();
                // Memory takes all that is written to it.
                let _ = writeln!(told, "{method:?} {scheme:?} {authority} {path}");
                for (name, value) in request.headers().entries() {
                    let _ = writeln!(told, "{name}: {}", value.escape_ascii());
                }
                text(out, 200, &String::from_utf8_lossy(&told));
            }
            "status" => stream(out, number(2), &[], |_| Ok(())),
            "length" => {
                let said = number(2).to_string();
                stream(out, 200, &[("content-length", &said)], |body| {
                    write(body, &vec![b'x'; usize::from(number(3))])
                });
            }
            "remember" => stream(out, 200, &[], |body| {
                (1..=number(2)).try_for_each(|n| {
                    state::set(&n.to_string()).expect("a number is a document");
                    write(body, format!("{n}\n").as_bytes())
                })
            }),
            "nothing" => {}
            _ => text(out, 404, "not here"),
        }
    }
}

wasip2::http::proxy::export!(Proxy);
