//! Readers cost cursors: however long a run is, and however many read it, fast or not at all, what the host holds of it
//! is bounded by its limits, as its own figures say. And a new instance shares its module's pages but for a few.

use std::thread::available_parallelism;

use futures_util::future::join_all;
#[cfg(target_os = "linux")]
use reqwest::Method;

use crate::support::{Connection, TestHost};

const KIB: u64 = 1 << 10;

/// What the host counts of an event beside its data.
const OVERHEAD: u64 = 64;

#[tokio::test]
async fn a_hundred_thousand_events_are_read_late_and_after_a_stall_in_bounded_memory() {
    const EVENTS: u64 = 100_000;
    let host = TestHost::serving(&["probe"])
        .config("journal = { tail_bytes = '64 KiB', page_bytes = '64 KiB' }")
        .config("http.write_stall = '10m'")
        .start();

    // Begins the run, reads a little of it, and then nothing until it is over: the events are more than the kernel
    // takes. HTTP/1.0 has no chunks to put together.
    let mut stalled = Connection::narrow(&host.url).await;
    let path = format!("/agents/probe/long/emit?count={EVENTS}&size=100");
    stalled.send(format!("GET {path} HTTP/1.0\r\n\r\n")).await;
    let head = stalled.until("data: 1.").await;
    let (_, run) = head.split_once("bureau-run: ").unwrap();
    let run = run.lines().next().unwrap().to_owned();
    host.reaches("events_total", |events| events == EVENTS).await;
    host.reaches("live_runs", |runs| runs == 0).await;

    // Begins when the run is over, while the other one goes on.
    let late = async { host.resume("probe/long", &format!("{run}-0")).await.rest().await };
    let (late, stalled) = tokio::join!(late, stalled.rest());
    for (n, event) in (1..=EVENTS).zip(&late) {
        assert_eq!(event.id, format!("{run}-{n}"));
        assert_eq!(event.data, format!("{n:.<100}"));
    }
    assert_eq!(late.len() as u64, EVENTS);
    let (_, wire) = stalled.split_once("retry: 2000\n").unwrap();
    let expected = (1..=EVENTS).map(|n| format!("id: {run}-{n}\ndata: {n:.<100}\n\n"));
    assert!(wire.split_inclusive("\n\n").map(|event| event.trim_start_matches(":\n")).eq(expected));

    // The run's tail, which the stalled one keeps, and a page for each of the two.
    let bound = 64 * KIB + 2 * 64 * KIB;
    let peak = host.metrics().await["buffered_bytes_peak"];
    assert!((64 * KIB..=bound).contains(&peak), "{peak} of {bound}");
    // On its way to each of the two: what hyper gathers before it waits for the socket, and the page that exceeds it.
    let bound = 2 * (64 * KIB + 2 * 64 * KIB);
    let peak = host.metrics().await["sending_bytes_peak"];
    assert!((16 * KIB..=bound).contains(&peak), "{peak} of {bound}");
    assert_eq!(host.metrics().await["sending_bytes"], 0, "all of it has been taken");
}

#[tokio::test]
async fn two_hundred_readers_of_a_live_run_share_what_is_held_of_it() {
    const READERS: u64 = 200;
    const EVENTS: u64 = 500;
    const SIZE: u64 = KIB;
    let host = TestHost::serving(&["probe"])
        .config("journal = { tail_bytes = '1 MiB', page_bytes = '16 KiB' }")
        .start();
    let path = format!("probe/shared/emit?count={EVENTS}&size={SIZE}&delay=1");
    let first = host.stream(&path).await;
    let run = first.headers["bureau-run"].to_str().unwrap().to_owned();
    let start = format!("{run}-0");
    let others = (1..READERS).map(|_| host.resume("probe/shared", &start));
    let mut streams = join_all(others).await;
    streams.push(first);
    for events in join_all(streams.into_iter().map(|stream| stream.rest())).await {
        assert!(events.iter().map(|event| &event.id).eq(&ids(&run, EVENTS)));
    }

    // The run, all of which its tail holds, and a page for each reader that is served at the same moment.
    let at_once = available_parallelism().unwrap().get() as u64;
    let bound = EVENTS * (SIZE + OVERHEAD) + at_once * 16 * KIB;
    let peak = host.metrics().await["buffered_bytes_peak"];
    assert!((EVENTS * SIZE..=bound).contains(&peak), "{peak} of {bound}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_new_instance_writes_to_few_pages() {
    const INSTANCES: u64 = 8;
    let page = rustix::param::page_size() as u64;
    // The stack's first, and the one with the statics, the allocator's state and its first blocks, or one more for each end of a
    // page that is among them.
    for (agent, path, pages) in [("load", "plain", 3), ("api", "status", 3), ("probe", "echo", 4)] {
        // The second start serves what the first has tried out, and has no instance of that.
        let host = TestHost::serving(&[agent]).start().kill().start();
        for n in 0..INSTANCES {
            host.get(&format!("{agent}/{n}/{path}")).await.bytes().await.unwrap();
        }
        let own = own_memory(host.pid()) / page;
        assert!(own >= INSTANCES, "{own} pages of {agent}, which are not all");
        assert!(own <= INSTANCES * pages, "{own} pages of {INSTANCES} instances of {agent}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_call_that_waits_takes_less_than_a_kilobyte_of_its_instance() {
    const CALLS: u64 = 256;
    let host = TestHost::serving(&["load"]).start();
    let mut streams = Vec::new();
    let mut before = 0;
    for call in 0..2 * CALLS {
        if call == CALLS {
            before = own_memory(host.pid());
        }
        streams.push(host.stream("load/one/hold").await);
    }
    let each = (own_memory(host.pid()) - before) / CALLS;
    assert!((256..=KIB).contains(&each), "{each} bytes");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_large_instance_that_retires_leaves_nothing() {
    const LARGE: usize = 8 << 20;
    // Each makes room for the next one, and all they had would wait for others.
    let host = TestHost::serving(&["probe"])
        .config("instances = { live = 1, request_body_bytes = '8 MiB' }")
        .start();
    let echo = async |instance: u32, size| {
        let request = host.request(Method::POST, &format!("probe/{instance}/echo"));
        let reply = request.body(vec![b'.'; size]).send().await.unwrap();
        assert_eq!(reply.status(), 200);
        own_memory(host.pid()) as usize
    };
    for instance in 0..4 {
        let own = echo(instance, LARGE).await;
        assert!(own >= LARGE, "{own} bytes, which are not all");
    }
    echo(4, 1).await;
    host.reaches("live_instances", |instances| instances == 1).await;
    let left = own_memory(host.pid()) as usize;
    assert!(left < LARGE / 8, "{left} bytes");
}

/// How many bytes a process's instances do not share with their modules' images: of those mappings, and of what lies right before
/// and after each, which is the rest of the instance's memory.
#[cfg(target_os = "linux")]
fn own_memory(pid: u32) -> u64 {
    struct Mapping {
        bounds: [String; 2],
        is_image: bool,
        own: u64,
    }
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap().lines() {
        let (first, rest) = line.split_once(' ').unwrap();
        if let Some((start, end)) = first.split_once('-') {
            let bounds = [start.to_owned(), end.to_owned()];
            let is_image = rest.contains("wasm-memory-image");
            mappings.push(Mapping { bounds, is_image, own: 0 });
        } else if first == "Anonymous:" {
            let kib = rest.trim().strip_suffix(" kB").unwrap();
            mappings.last_mut().unwrap().own = kib.parse::<u64>().unwrap() * KIB;
        }
    }
    let of_instances = mappings.windows(3).filter(|three| {
        let [before, image, after] = three else { unreachable!("there are three") };
        image.is_image && before.bounds[1] == image.bounds[0] && image.bounds[1] == after.bounds[0]
    });
    of_instances.flatten().map(|mapping| mapping.own).sum()
}

fn ids(run: &str, count: u64) -> Vec<String> {
    (1..=count).map(|n| format!("{run}-{n}")).collect()
}
