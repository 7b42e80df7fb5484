//! Waiting for another process, which may never do what is waited for: then the test fails, and says so, instead of hanging.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What takes this long will not happen.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How often to look where there is nothing to be woken by.
const LOOK: Duration = Duration::from_millis(5);

/// The lines that a process prints, as they come.
pub struct Lines(Receiver<String>);

impl Lines {
    /// Those of one of its outputs.
    pub fn of(output: impl Read + Send + 'static) -> Self {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // Read to the end also when nobody listens any more: a process with a full pipe stands still.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self(lines)
    }
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the process prints a line, or ends"),
        }
    }
}

/// Waits until a process has ended.
pub fn ended(child: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("the process is ours") {
            return status;
        }
        assert!(began.elapsed() < PATIENCE, "the process ends");
        std::thread::sleep(LOOK);
    }
}

/// Waits until there is something to see.
pub async fn seen<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(began.elapsed() < PATIENCE, "never seen: {what}");
        tokio::time::sleep(LOOK).await;
    }
}
