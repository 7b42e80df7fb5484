//! One path for each thing that an agent may do, and for each that may go wrong with one.
//!
//! Numbers come by the query, see [`Options`]. A path `/x-after-emit` does what `/x` does when an event is
//! durable already, `/x-in-turn` when an event and a state of the same turn are not, and
//! `/x-in-turn-after-emit` when both is so.

use std::cell::{Cell, RefCell};
use std::iter::repeat_n;
use std::rc::Rc;

use bureau_sdk::prelude::*;
use futures_channel::oneshot;
use serde::Deserialize;
use serde_json::Value;

#[derive(Default)]
struct Probe {
    calls: Cell<u64>,
    waiting: Waiting,
    chunks_written: Rc<Cell<u64>>,
    clients_left: Rc<Cell<u64>>,
}

/// Who waits to be released.
type Waiting = Rc<RefCell<Vec<oneshot::Sender<()>>>>;

#[derive(Deserialize)]
#[serde(default)]
struct Options {
    /// How often.
    count: u64,
    /// How many bytes each, at least.
    size: usize,
    /// How many milliseconds between.
    delay: u64,
    key: String,
    prefix: String,
    after: Option<String>,
    limit: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            count: 10,
            size: 0,
            delay: 0,
            key: String::new(),
            prefix: String::new(),
            after: None,
            limit: 100,
        }
    }
}

impl Options {
    /// The number in decimal, padded with dots to the size.
    fn numbered(&self, n: u64) -> String {
        let mut data = n.to_string();
        data.extend(repeat_n('.', self.size.saturating_sub(data.len())));
        data
    }

    async fn pause(&self) {
        if self.delay > 0 {
            sleep(Duration::from_millis(self.delay)).await;
        }
    }
}

impl Agent for Probe {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        let options: Options = request.query()?;
        let path = request.path();
        let after_emit = path.strip_suffix("-after-emit");
        if after_emit.is_some() {
            run.emit("before").await?;
            run.flush().await?;
        }
        let in_turn = after_emit.unwrap_or(path).strip_suffix("-in-turn");
        if in_turn.is_some() {
            run.emit("never seen").await?;
            run.set_state("never seen")?;
        }
        if let Some(path) = in_turn.or(after_emit) {
            return fail(path);
        }
        match path {
            "/echo" => echo(&request),
            "/identity" => Reply::json(&json!({
                "agent": run.agent(),
                "instance": run.instance(),
                "module": run.module(),
                "run": run.id(),
            })),
            "/last-event-id" => Reply::json(&json!({ "lastEventId": run.last_event_id() })),
            "/config" => Reply::json(&json!({ "value": config(&options.key)? })),
            "/reach" => reach(&options),
            "/together" => together().await,
            "/log" => {
                // More than the host takes of it at once.
                let long = ".".repeat(5000);
                println!("a line on stdout {long}");
                eprintln!("a line on stderr {long}");
                Ok(Reply::text("logged"))
            }

            "/present" => {
                run.present_as(match &*options.key {
                    "text" => Format::Text,
                    "lines" => Format::Lines,
                    "document" => Format::Document,
                    "ui-messages" => Format::UiMessages,
                    _ => Format::Events,
                });
                emit_raw(run, request.json()?).await
            }
            "/emit" => emit(run, options).await,
            "/emit-held" => self.emit_held(run, options).await,
            "/emit-late" => {
                self.held().await?;
                run.emit("late").await?;
                Ok(Reply::events())
            }
            "/emit-raw" => emit_raw(run, request.json()?).await,
            "/flood" => Ok(flood(run, &options)),
            "/open-only" => {
                run.open();
                Ok(Reply::events())
            }
            "/open-then" => {
                run.open();
                options.pause().await;
                run.emit("late").await?;
                Ok(Reply::events())
            }
            "/events-nothing" => Ok(Reply::events()),
            "/hang" => {
                run.emit("waiting").await?;
                sleep(Duration::from_secs(3600)).await;
                Ok(Reply::events())
            }
            "/cancellable" => {
                run.emit("waiting").await?;
                run.cancelled().await;
                run.emit("cancelled").await?;
                Err(Error::Cancelled)
            }
            "/emit-until-cancelled" => {
                let mut n = 0;
                while !run.is_cancelled() {
                    n += 1;
                    run.emit(options.numbered(n)).await?;
                    options.pause().await;
                }
                run.emit("the end").await?;
                Ok(Reply::events())
            }
            "/set-when-cancelled" => {
                run.emit("waiting").await?;
                run.cancelled().await;
                let set = run.set_state("set by the old module");
                run.emit(set.map_or_else(|error| error.to_string(), |()| "set".into())).await?;
                Ok(Reply::events())
            }
            "/chunks" => Ok(self.chunks(options)),
            "/chunks-trap" => Ok(chunks_then_trap(options)),
            "/chunks-endless" => Ok(self.endless_chunks(options)),
            "/chunks-told" => Reply::json(&json!({
                "written": self.chunks_written.get(),
                "left": self.clients_left.get(),
            })),

            "/state" => state(run, &request),
            "/count" => count(run, options).await,
            "/storage" => storage(run, &request, options).await,
            "/fill" => fill(run, &options),
            "/storage-list" => storage_list(run, options).await,

            "/memory" => {
                self.calls.update(|calls| calls + 1);
                Reply::json(&json!({ "calls": self.calls.get() }))
            }
            "/wait" => {
                let held = self.held();
                println!("waiting to be released");
                held.await?;
                Ok(Reply::text("released"))
            }
            "/release" => Reply::json(&json!({ "released": release(&self.waiting) })),

            _ => fail(path),
        }
    }
}

/// What may go wrong; the rest is not found.
fn fail(path: &str) -> Result<Reply> {
    match path {
        "/bad-request" => Err(Error::bad_request("the probe was asked to blame you")),
        "/bad-request-at-length" => Err(Error::bad_request("\u{e9}".repeat(1 << 20))),
        "/other-error" | "/error" => Err(Error::other("the probe was asked to fail")),
        "/cancelled" => Err(Error::Cancelled),
        "/panic" => panic!("the probe was asked to panic"),
        "/trap" => std::process::abort(),
        "/spin" => {
            println!("spinning");
            loop {
                std::hint::spin_loop();
            }
        }
        "/eat-memory" => {
            let mut eaten = Vec::new();
            loop {
                eaten.push(vec![1_u8; 1 << 20]);
            }
        }
        "/reply" => Ok(Reply::text("a reply")),
        _ => Ok(Reply::text("Not found").with_status(StatusCode::NOT_FOUND)),
    }
}

fn echo(request: &Request) -> Result<Reply> {
    let headers = request.headers().iter();
    let headers: Vec<_> = headers
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    Reply::json(&json!({
        "method": request.method().as_str(),
        "url": request.uri().to_string(),
        "path": request.path(),
        "headers": headers,
        "body": String::from_utf8_lossy(request.body()),
    }))
}

/// What a program may try to reach; the answer says what it got, or why not. `?key=ADDRESS` is one that listens.
fn reach(options: &Options) -> Result<Reply> {
    let said = |failure: std::io::Error| failure.to_string();
    let connected = std::net::TcpStream::connect(&options.key).map(|_| "connected").map_err(said);
    let listed = std::fs::read_dir("/").map(|_| "listed").map_err(said);
    let written = std::fs::write("probe.txt", "mine").map(|()| "written").map_err(said);
    Reply::json(&json!({
        "network": connected.ok(),
        "files": listed.ok(),
        "own files": written.ok(),
        "environment": std::env::vars().count(),
        "arguments": std::env::args().count(),
    }))
}

/// Waits for several things in one call: all of two, then the first of two.
async fn together() -> Result<Reply> {
    let moment = || sleep(Duration::from_millis(1));
    let later = async |word: &'static str| {
        moment().await;
        word
    };
    let both = join(later("one"), later("two")).await;
    let first = match select(later("short"), std::future::pending::<()>()).await {
        Either::Left(word) => word,
        Either::Right(()) => "never",
    };
    Reply::json(&json!({ "both": both, "first": first }))
}

async fn emit(run: &Run, options: Options) -> Result<Reply> {
    for n in 1..=options.count {
        run.emit(options.numbered(n)).await?;
        options.pause().await;
    }
    Ok(Reply::events())
}

#[derive(Deserialize)]
struct RawEvent {
    name: Option<String>,
    id: Option<String>,
    data: String,
}

/// Emits what the client says, unchecked. The first event that is not taken is answered with the reason.
async fn emit_raw(run: &Run, events: Vec<RawEvent>) -> Result<Reply> {
    for RawEvent { name, id, data } in events {
        let mut event = Event::data(data);
        if let Some(name) = name {
            event = event.name(name);
        }
        if let Some(id) = id {
            event = event.id(id);
        }
        if let Err(error) = run.emit(event).await {
            return Reply::json(&json!({ "error": error.to_string() }));
        }
    }
    Ok(Reply::events())
}

/// Emits without ever waiting, whatever the host says to it.
fn flood(run: &Run, options: &Options) -> Reply {
    for n in 1..=options.count {
        let _ = run.try_emit(options.numbered(n));
    }
    Reply::events()
}

fn chunks_then_trap(options: Options) -> Reply {
    Reply::chunks(async move |mut body| {
        for n in 1..=options.count {
            body.write(options.numbered(n) + "\n").await?;
        }
        std::process::abort()
    })
}

impl Probe {
    /// Resolves when `/release` is called or a client of `/chunks-endless` leaves, from now on.
    fn held(&self) -> oneshot::Receiver<()> {
        let (release, released) = oneshot::channel();
        self.waiting.borrow_mut().push(release);
        released
    }

    /// Emits, waits to be released, and emits as much again.
    async fn emit_held(&self, run: &Run, options: Options) -> Result<Reply> {
        let held = self.held();
        for n in 1..=options.count {
            run.emit(options.numbered(n)).await?;
        }
        held.await?;
        for n in options.count + 1..=2 * options.count {
            run.emit(options.numbered(n)).await?;
        }
        Ok(Reply::events())
    }

    fn chunks(&self, options: Options) -> Reply {
        let written = Rc::clone(&self.chunks_written);
        Reply::chunks(async move |mut body| {
            for n in 1..=options.count {
                body.write(options.numbered(n) + "\n").await?;
                written.update(|written| written + 1);
                options.pause().await;
            }
            Ok(())
        })
    }

    fn endless_chunks(&self, options: Options) -> Reply {
        let (clients_left, waiting) = (Rc::clone(&self.clients_left), Rc::clone(&self.waiting));
        Reply::chunks(async move |mut body| {
            while body.write(options.numbered(0) + "\n").await.is_ok() {
                options.pause().await;
            }
            clients_left.update(|left| left + 1);
            release(&waiting);
            Ok(())
        })
    }
}

/// Lets all go on who wait; returns how many did.
fn release(waiting: &Waiting) -> usize {
    waiting.take().into_iter().filter_map(|wait| wait.send(()).ok()).count()
}

fn state(run: &Run, request: &Request) -> Result<Reply> {
    if request.method() == Method::PUT {
        run.set_state(&request.json::<Value>()?)?;
    }
    Reply::json(&run.state::<Value>()?)
}

/// Counts in the state and emits each number, both in one turn.
async fn count(run: &Run, options: Options) -> Result<Reply> {
    for _ in 0..options.count {
        let n = run.state::<u64>()? + 1;
        run.emit(Event::json(&json!({ "n": n }))?).await?;
        run.set_state(&n)?;
        sleep(Duration::from_millis(options.delay)).await;
    }
    Ok(Reply::events())
}

async fn storage(run: &Run, request: &Request, options: Options) -> Result<Reply> {
    let (storage, key) = (run.storage(), &options.key);
    match *request.method() {
        Method::PUT => storage.set(key, request.body())?,
        Method::DELETE => storage.delete(key)?,
        _ => {}
    }
    let value = storage.get(key).await?;
    Reply::json(
        &json!({ "value": value.map(|value| String::from_utf8_lossy(&value).into_owned()) }),
    )
}

/// Stores without ever waiting.
fn fill(run: &Run, options: &Options) -> Result<Reply> {
    for n in 1..=options.count {
        run.storage().set(&n.to_string(), options.numbered(n).as_bytes())?;
    }
    Ok(Reply::text("filled"))
}

async fn storage_list(run: &Run, options: Options) -> Result<Reply> {
    let after = options.after.as_deref();
    let pairs = run.storage().list(&options.prefix, after, options.limit).await?;
    let text =
        |(key, value): (String, Vec<u8>)| (key, String::from_utf8_lossy(&value).into_owned());
    Reply::json(&pairs.into_iter().map(text).collect::<Vec<_>>())
}

bureau_sdk::export!(Probe);
