//! An agent that uses all that an operator can grant.
//!
//! - `/fetch` sends the request that its body says, see [`Ask`], by `wasi:http` 0.3 or, when the query is `0.2`, by that. It answers with the response, or
//!   with the error as it was told.
//! - `/stream` gets a URL, its body, and passes the response's on as it comes. `/hold` reads only the head, and keeps the rest for as long as the instance
//!   lives.
//! - `/config` answers with the value of the key that is its query.
//! - `/read`, `/list`, `/write`, `/append`, `/remove`, `/make` do so to the path that is its body, and answer with what came of it.

use std::cell::RefCell;
use std::fs;
use std::io;

use bureau_sdk::prelude::*;
use serde::Deserialize;
use wasip2::http as http2;
use wit_bindgen::StreamResult;

use self::wasi::http::client;
use self::wasi::http::types::{
    ErrorCode, Fields, Method as Method3, Request as Request3, Response, Scheme,
};

wit_bindgen::generate!({
    path: ["../../wit/deps/clocks", "../../wit/deps/http"],
    inline: "
        package bureau:granted;

        world granted {
            import wasi:http/client@0.3.0;
        }
    ",
    world: "bureau:granted/granted",
    generate_all,
});

#[derive(Default)]
struct Granted {
    held: RefCell<Vec<Response>>,
}

/// A request to send.
#[derive(Deserialize)]
struct Ask {
    url: String,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    body: Option<String>,
}

impl Ask {
    fn get(url: &str) -> Self {
        Self { url: url.into(), method: None, headers: Vec::new(), body: None }
    }

    /// The scheme, the authority and the path, nothing else looked at.
    fn parts(&self) -> (&str, &str, &str) {
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("https", &self.url));
        let slash = rest.find('/').unwrap_or(rest.len());
        (scheme, &rest[..slash], &rest[slash..])
    }
}

impl Agent for Granted {
    async fn on_request(&self, _: &Run, request: Request) -> Result<Reply> {
        let query = request.uri().query().unwrap_or_default();
        let text = || String::from_utf8_lossy(request.body()).into_owned();
        match request.path() {
            "/fetch" if query == "0.2" => Reply::json(&fetch_by_2(&request.json()?)),
            "/fetch" => Reply::json(&fetch_by_3(&request.json()?).await),
            "/stream" => stream(&text()).await,
            "/hold" => match send(&Ask::get(&text())).await {
                Ok(response) => {
                    self.held.borrow_mut().push(response);
                    Reply::json(&json!({ "held": self.held.borrow().len() }))
                }
                Err(error) => Reply::json(&json!({ "error": error })),
            },
            "/config" => Reply::json(&json!({ "value": config(query)? })),
            path => Reply::json(&on_disk(path, &text())),
        }
    }
}

async fn fetch_by_3(ask: &Ask) -> Value {
    let response = match send(ask).await {
        Ok(response) => response,
        Err(error) => return json!({ "error": error }),
    };
    let status = response.get_status_code();
    let headers = texts(response.get_headers().copy_all());
    let (_, read) = wit_future::new(|| Ok(()));
    let (body, trailers) = Response::consume_body(response, read);
    let body = body.collect().await;
    match trailers.await {
        Ok(_) => {
            json!({ "status": status, "headers": headers, "body": String::from_utf8_lossy(&body) })
        }
        Err(error) => json!({ "error": told(&error), "headers": headers }),
    }
}

async fn send(ask: &Ask) -> Result<Response, String> {
    let fields = Fields::new();
    for (name, value) in &ask.headers {
        fields.append(name, value.as_bytes()).map_err(|error| format!("{error:?}"))?;
    }
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (contents, writing) = match ask.body.clone() {
        None => (None, None),
        Some(text) => {
            let (writer, reader) = wit_stream::new();
            (Some(reader), Some((writer, text)))
        }
    };
    let (request, _) = Request3::new(fields, contents, trailers, None);
    let (scheme, authority, path) = ask.parts();
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.into()),
    };
    let refused = |what: &'static str| move |()| format!("refused: {what}");
    let method = ask.method.clone().map_or(Method3::Get, Method3::Other);
    request.set_method(&method).map_err(refused("method"))?;
    request.set_scheme(Some(&scheme)).map_err(refused("scheme"))?;
    request.set_authority(Some(authority)).map_err(refused("authority"))?;
    request.set_path_with_query(Some(path)).map_err(refused("path"))?;
    let write = async move {
        if let Some((mut writer, text)) = writing {
            writer.write_all(text.into_bytes()).await;
        }
    };
    let (sent, ()) = futures_util::future::join(client::send(request), write).await;
    sent.map_err(|error| told(&error))
}

/// The error's name.
fn told(error: &ErrorCode) -> String {
    format!("{error:?}").trim_start_matches("ErrorCode::").into()
}

fn texts(fields: Vec<(String, Vec<u8>)>) -> Vec<(String, String)> {
    let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
    fields.into_iter().map(|(name, value)| (name, text(value))).collect()
}

async fn stream(url: &str) -> Result<Reply> {
    let response = send(&Ask::get(url)).await.map_err(Error::other)?;
    Ok(Reply::chunks(async move |mut to| {
        let (_, read) = wit_future::new(|| Ok(()));
        let (mut body, _) = Response::consume_body(response, read);
        loop {
            let (came, bytes) = body.read(Vec::with_capacity(4096)).await;
            match came {
                StreamResult::Complete(_) => to.write(bytes).await?,
                StreamResult::Dropped | StreamResult::Cancelled => return Ok(()),
            }
        }
    }))
}

fn fetch_by_2(ask: &Ask) -> Value {
    match send_by_2(ask) {
        Ok(answer) => answer,
        Err(error) => json!({ "error": error }),
    }
}

fn send_by_2(ask: &Ask) -> Result<Value, String> {
    use http2::types::{self, OutgoingBody, OutgoingRequest};

    let told =
        |error: types::ErrorCode| format!("{error:?}").trim_start_matches("ErrorCode::").to_owned();
    let fields = types::Fields::new();
    for (name, value) in &ask.headers {
        fields.append(name, value.as_bytes()).map_err(|error| format!("{error:?}"))?;
    }
    let request = OutgoingRequest::new(fields);
    let (scheme, authority, path) = ask.parts();
    let scheme = match scheme {
        "http" => types::Scheme::Http,
        "https" => types::Scheme::Https,
        other => types::Scheme::Other(other.into()),
    };
    let refused = |what: &'static str| move |()| format!("refused: {what}");
    request.set_scheme(Some(&scheme)).map_err(refused("scheme"))?;
    request.set_authority(Some(authority)).map_err(refused("authority"))?;
    request.set_path_with_query(Some(path)).map_err(refused("path"))?;
    let body = request.body().map_err(refused("body"))?;
    let sent = http2::outgoing_handler::handle(request, None).map_err(told)?;
    OutgoingBody::finish(body, None).map_err(told)?;
    sent.subscribe().block();
    let response =
        sent.get().ok_or("it is not there")?.map_err(refused("response"))?.map_err(told)?;
    let (status, headers) = (response.status(), texts(response.headers().entries()));
    let body = response.consume().map_err(refused("body"))?;
    let stream = body.stream().map_err(refused("stream"))?;
    let mut bytes = Vec::new();
    while let Ok(more) = stream.blocking_read(64 << 10) {
        bytes.extend(more);
    }
    Ok(json!({ "status": status, "headers": headers, "body": String::from_utf8_lossy(&bytes) }))
}

fn on_disk(what: &str, path: &str) -> Value {
    let done = match what {
        "/read" => fs::read_to_string(path),
        "/list" => list(path),
        "/write" => fs::write(path, "written by the agent").map(|()| String::new()),
        "/append" => fs::OpenOptions::new().append(true).open(path).map(|_| String::new()),
        "/remove" => fs::remove_file(path).map(|()| String::new()),
        "/make" => fs::create_dir(path).map(|()| String::new()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    };
    match done {
        Ok(text) => json!({ "text": text }),
        Err(error) => json!({ "error": error.kind().to_string() }),
    }
}

fn list(path: &str) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names.join(" "))
}

bureau_sdk::export!(Granted);
