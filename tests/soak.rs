//! Faults of all kinds, one after another: clients that leave and come back, agents that go wrong, swaps, cancellations,
//! `kill -9`. Whatever came of it, the journal is consistent, what clients saw is what it has, and nothing is left over.
//!
//! `BUREAU_SOAK_STEPS` says for how many steps, and `BUREAU_SOAK_SEED` by which seed.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use reqwest::{Method, StatusCode};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{Client, Follower, Started, Stream, TestHost, another_module, header, ids};

/// How many, unless more are asked for.
const STEPS: u64 = 120;

/// Clients at once.
const CLIENTS: usize = 24;

/// Limits that those meet who go wrong, and an idle time that lets instances go.
const CONFIG: &str = "resumptions_at_once = 4\n[instances]\nidle = \"200ms\"\ncancel_grace = \"50ms\"\n\
                      cpu = \"1s\"\nmemory_bytes = \"16 MiB\"";

const AGENTS: [&str; 4] = ["probe", "phoenix", "resume", "rogue"];

/// What goes wrong, in an instance of its own.
const WRONG: [&str; 12] = [
    "panic",
    "trap",
    "spin",
    "eat-memory",
    "panic-after-emit",
    "trap-in-turn",
    "spin-in-turn-after-emit",
    "eat-memory-in-turn",
    "error-after-emit",
    "bad-request-in-turn",
    "chunks-trap",
    "flood?count=2000&size=5000",
];

#[test]
fn whatever_happens_the_journal_is_consistent_and_clients_have_seen_what_it_has() {
    let number = |name, otherwise| match env::var(name) {
        Ok(number) => number.parse().expect("it is a number"),
        Err(_) => otherwise,
    };
    let seed = number("BUREAU_SOAK_SEED", 1);
    let told = Telling(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut soak = Soak::begin(seed);
        for _ in 0..number("BUREAU_SOAK_STEPS", STEPS) {
            soak.step().await;
        }
        soak.end().await;
    });
    drop(told);
}

/// Names the seed by which a thread panics.
struct Telling(u64);

impl Drop for Telling {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was BUREAU_SOAK_SEED={}", self.0);
        }
    }
}

struct Soak {
    rng: Rng,
    host: Option<Started>,
    /// What clients ask, while there is something to ask.
    current: watch::Sender<Option<Client>>,
    reading: Vec<Reading>,
    over: Vec<Follower>,
    wrong: JoinSet<()>,
    /// How many names were given.
    names: u64,
    /// What was counted and answered.
    counted: u64,
}

/// A client, reading.
struct Reading {
    task: JoinHandle<Follower>,
    leave: Arc<Notify>,
    /// The run, once it is known; [`REFUSED`] if there is none.
    run: watch::Receiver<Option<String>>,
    /// Whether the run goes on until it is cancelled.
    endless: bool,
}

const REFUSED: &str = "";

impl Soak {
    fn begin(seed: u64) -> Self {
        let host = TestHost::serving(&AGENTS).config(CONFIG).start();
        let current = watch::Sender::new(Some((*host).clone()));
        Self {
            rng: Rng::with_seed(seed),
            host: Some(host),
            current,
            reading: Vec::new(),
            over: Vec::new(),
            wrong: JoinSet::new(),
            names: 0,
            counted: 0,
        }
    }

    fn host(&self) -> &Started {
        self.host.as_ref().expect("it is down only while it is started again")
    }

    async fn step(&mut self) {
        match self.rng.u8(..100) {
            0..35 => self.follow().await,
            35..47 => self.leave(),
            47..62 => self.go_wrong(),
            62..72 => self.swap().await,
            72..77 => self.roll_back().await,
            77..89 => self.cancel().await,
            89..94 => self.kill(),
            _ => {}
        }
        // A run of which all was seen, after each step: so time goes by, and it is known what the state must be.
        let answer = self.host().get("probe/pace/count?count=3&delay=1").await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.text().await.expect("the stream does not break");
        self.counted += 3;
    }

    fn name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    /// One more client, of a run that ends or of one that does not.
    async fn follow(&mut self) {
        self.gather(|reading| reading.task.is_finished()).await;
        if self.reading.len() >= CLIENTS {
            return;
        }
        let (own, shared) = (self.name(), self.rng.u8(..4));
        let (count, delay, size) = (self.rng.u8(1..60), self.rng.u8(..8), self.rng.u32(..20_000));
        let (path, endless) = match self.rng.u8(..9) {
            0 => (format!("probe/shared-{shared}/count?count={count}&delay={delay}"), false),
            1 => (format!("probe/{own}/emit?count={count}&delay={delay}&size={size}"), false),
            2 => (format!("resume/{own}?total={count}&delay={delay}"), false),
            3 => (format!("phoenix/shared-{shared}/steps?total={count}&delay={delay}"), false),
            4 => (format!("probe/{own}/hang"), true),
            5 => (format!("probe/{own}/cancellable"), true),
            6 => (format!("probe/{own}/emit-until-cancelled?delay=20"), true),
            7 => (format!("phoenix/{own}/stubborn"), true),
            _ => (format!("phoenix/{own}/crash-loop"), true),
        };
        let leave = Arc::new(Notify::new());
        let (tell, run) = watch::channel(None);
        let reading = read(Follower::new(&path), self.current.subscribe(), leave.clone(), tell);
        self.reading.push(Reading { task: tokio::spawn(reading), leave, run, endless });
    }

    /// Takes those out of the readers that satisfy this, and waits for them.
    async fn gather(&mut self, which: impl Fn(&Reading) -> bool) {
        for reading in self.reading.extract_if(.., |reading| which(reading)).collect::<Vec<_>>() {
            self.over.push(reading.task.await.unwrap());
        }
    }

    /// A client leaves, and is back at once.
    fn leave(&mut self) {
        if let Some(reading) = self.rng.choice(&self.reading) {
            reading.leave.notify_one();
        }
    }

    /// Something goes wrong, and is answered as far as the host lives.
    fn go_wrong(&mut self) {
        let name = self.name();
        let wrong = self.rng.choice(WRONG).expect("there are some");
        let rogue = self.host().request(Method::POST, &format!("rogue/wrong-{name}/reply"));
        let request = match self.rng.u8(..6) {
            0 => rogue.body(r#"{"status": 42, "headers": [["x y", "\n"]]}"#),
            1 => rogue.body("not what it takes"),
            _ => self.host().request(Method::GET, &format!("probe/wrong-{name}/{wrong}")),
        };
        self.wrong.spawn(async move {
            let Ok(answer) = request.send().await else { return };
            let (status, headers) = (answer.status(), answer.headers().clone());
            let is_problem = header(&headers, "content-type") == "application/problem+json";
            assert!(status == StatusCode::OK || is_problem, "{wrong}: {status} {headers:?}");
            // It may break off, by the guest's doing or by the host's end.
            drop(answer.bytes().await);
        });
    }

    async fn swap(&mut self) {
        let agent = self.rng.choice(AGENTS).expect("there are some");
        let module = another_module(agent, self.rng.u8(..4));
        let answer = self.host().put_module(agent, module).await;
        assert!(answer.status().is_success(), "{agent}: {}", answer.text().await.unwrap());
    }

    async fn roll_back(&mut self) {
        let agent = self.rng.choice(AGENTS).expect("there are some");
        let answer = self.host().admin(Method::POST, &format!("/v1/agents/{agent}/rollback")).await;
        // There may be nothing to go back to.
        assert!(!answer.status().is_server_error(), "{agent}: {}", answer.text().await.unwrap());
    }

    async fn cancel(&mut self) {
        let endless: Vec<_> = self.reading.iter().filter(|reading| reading.endless).collect();
        let Some(reading) = self.rng.choice(endless) else { return };
        let run = reading.run.borrow().clone().unwrap_or_default();
        cancel(self.host(), &run).await;
    }

    /// `kill -9`, sometimes again while it starts.
    fn kill(&mut self) {
        self.current.send_replace(None);
        let mut down = self.host.take().expect("it is up").kill();
        down.assert_consistent();
        if self.rng.bool() {
            down = down.kill_while_starting(Duration::from_micros(self.rng.u64(..60_000)));
            down.assert_consistent();
        }
        let host = down.start();
        self.current.send_replace(Some((*host).clone()));
        self.host = Some(host);
    }

    async fn end(mut self) {
        for reading in &mut self.reading {
            let run = reading.run.wait_for(Option::is_some).await;
            // One that has ended tells no more.
            let run = run.map_or(String::new(), |run| run.clone().unwrap_or_default());
            if reading.endless {
                cancel(self.host.as_ref().expect("it is up"), &run).await;
            }
        }
        self.gather(|_| true).await;
        while let Some(joined) = self.wrong.join_next().await {
            joined.unwrap();
        }
        let host = self.host.take().expect("it is up");
        assert_eq!(host.json("probe/pace/state").await, self.counted, "what was answered is there");
        for gauge in ["live_runs", "calls", "live_instances", "buffered_bytes", "sending_bytes"] {
            host.reaches(gauge, |now| now == 0).await;
        }
        let mut seen = 0;
        for client in self.over.iter().filter(|client| client.run.is_some()) {
            let journal = client.replay(&host).await;
            client.saw(&journal);
            let run = client.run.as_deref().unwrap_or_default();
            let expected: Vec<_> = (1..=journal.len()).map(|seq| format!("{run}-{seq}")).collect();
            assert_eq!(ids(&journal), expected, "{}", client.path);
            seen += journal.len();
        }
        assert!(seen > 0, "nothing was emitted");
        let (status, down) = host.terminate();
        assert_eq!(status.code(), Some(0));
        down.assert_consistent();
    }
}

/// Reads a run to its end, from one host after the other.
async fn read(
    mut client: Follower,
    mut current: watch::Receiver<Option<Client>>,
    leave: Arc<Notify>,
    tell: watch::Sender<Option<String>>,
) -> Follower {
    while !client.ended {
        // The sender goes when a test has failed.
        let Ok(host) = current.wait_for(Option::is_some).await.map(|host| host.clone()) else {
            break;
        };
        let Some(host) = host else { continue };
        let Ok(stream) = Stream::try_open(client.request(&host)).await else {
            // It is down, or about to be told that it is.
            drop(current.changed().await);
            continue;
        };
        if client.run.is_none() && stream.status.is_server_error() {
            // As when the module was swapped under it. The fault is the run's, which has a name.
            assert_ne!(header(&stream.headers, "bureau-run"), "", "{}", client.path);
            tell.send_replace(Some(REFUSED.into()));
            return client;
        }
        client.opened(stream);
        tell.send_replace(client.run.clone());
        tokio::select! {
            () = client.rest(|| {}) => {}
            () = leave.notified() => {}
        }
    }
    client
}

/// Asks for the end of a run, which may have ended.
async fn cancel(host: &Client, run: &str) {
    if run == REFUSED {
        return;
    }
    let answer = host.admin(Method::POST, &format!("/v1/runs/{run}/cancel")).await;
    let status = answer.status();
    assert!(!status.is_server_error(), "{run}: {status} {}", answer.text().await.unwrap());
}
