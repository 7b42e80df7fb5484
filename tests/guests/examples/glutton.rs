//! An agent that takes more than it is given, each path of another thing.
//!
//! What is over for its client returns then, or never, if asked with `?stubborn=true`.

use std::future::Future as _;
use std::time::Instant;

use bureau_sdk::prelude::*;
use serde::Deserialize;

#[derive(Default)]
struct Glutton;

#[derive(Deserialize)]
#[serde(default)]
struct Options {
    stubborn: bool,
    /// How often.
    count: usize,
    /// The number of the first key.
    from: usize,
    /// How many bytes each.
    size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { stubborn: false, count: 10, from: 0, size: 10 }
    }
}

impl Agent for Glutton {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        let options: Options = request.query()?;
        match request.path() {
            "/emit" => {
                while run.emit("x".repeat(options.size)).await.is_ok() {}
                over(run, &options).await
            }
            // All of it in one turn, which then fails.
            "/emit-and-trap" => {
                while run.try_emit("x".repeat(options.size)).is_ok() {}
                std::process::abort()
            }
            "/open" => {
                run.open();
                over(run, &options).await
            }
            "/wait" => over(run, &options).await,
            "/compute" => {
                run.open();
                while !run.is_cancelled() {
                    compute(Duration::from_millis(5));
                    sleep(Duration::from_millis(1)).await;
                }
                over(run, &options).await
            }
            "/spin" => {
                run.open();
                sleep(Duration::from_millis(1)).await;
                loop {
                    compute(Duration::from_secs(1));
                }
            }
            "/chunks" => Ok(Reply::chunks(async move |mut body| {
                while body.write("x".repeat(options.size)).await.is_ok() {
                    sleep(Duration::from_millis(1)).await;
                }
                Ok(())
            })),
            "/handles" => {
                let mut held = Vec::new();
                std::future::poll_fn(|cx| {
                    held.extend((0..options.count).map(|_| {
                        let mut call = Box::pin(sleep(Duration::from_secs(3600)));
                        assert!(call.as_mut().poll(cx).is_pending());
                        call
                    }));
                    std::task::Poll::Pending
                })
                .await
            }
            "/storage" => Ok(storage(run, &options)),
            "/log" => {
                for n in 0..options.count {
                    println!("glutton says {n}");
                }
                Ok(Reply::text("logged"))
            }
            "/forget" => {
                run.storage().delete(&key(options.from))?;
                Ok(Reply::text("forgotten"))
            }
            _ => Ok(Reply::text("well")),
        }
    }
}

/// Waits until the run is over, or for ever.
async fn over(run: &Run, options: &Options) -> Result<Reply> {
    run.cancelled().await;
    if options.stubborn {
        std::future::pending::<()>().await;
    }
    match run.try_emit("too late") {
        Ok(_) => panic!("an event was taken after the end"),
        Err(_) => Ok(Reply::text("nobody gets this")),
    }
}

fn compute(span: Duration) {
    let began = Instant::now();
    while began.elapsed() < span {
        std::hint::spin_loop();
    }
}

fn key(n: usize) -> String {
    format!("{n:04}")
}

/// Stores until the host takes no more, and says how many it took, and why no more.
fn storage(run: &Run, options: &Options) -> Reply {
    let value = vec![b'x'; options.size];
    for n in 0..options.count {
        if let Err(error) = run.storage().set(&key(options.from + n), &value) {
            return Reply::text(format!("{n}: {error}"));
        }
    }
    Reply::text(format!("{}: all", options.count))
}

bureau_sdk::export!(Glutton);
