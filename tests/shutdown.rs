//! The host ends when it is told to and loses nothing, and does not start on data that it must not touch.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use redb::{Database, TableDefinition, WriteTransaction};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Event, Started, TestHost, data};

/// Where a journal says its format.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// A table of some other program.
const OTHERS: TableDefinition<&str, u64> = TableDefinition::new("others");

#[tokio::test]
async fn a_host_that_is_told_to_end_finishes_what_is_under_way_and_sends_streams_away() {
    for signal in ["TERM", "INT"] {
        let host = TestHost::serving(&["probe"]).config("[http]\nretry = \"1234ms\"").start();
        host.get("probe/counted/count?count=5").await.text().await.unwrap();
        let reply = tokio::spawn(host.request(Method::GET, "probe/one/wait").send());
        host.logged(|line| line.contains("waiting to be released")).await;
        // Whatever waits in this instance goes on when this client leaves.
        let mut releasing = host.get("probe/one/chunks-endless?delay=5").await;
        releasing.chunk().await.unwrap();
        let mut stream = host.get("probe/one/emit-held?count=2").await;
        let run = stream.headers()["bureau-run"].to_str().unwrap().to_owned();
        read_until(&mut stream, "data: 2\n\n").await;

        host.signal(signal);
        let rest = stream.text().await.expect("the stream does not break off");
        assert_eq!(rest, "retry: 1234\n", "{signal}: the client is told when to come back");
        refuses_connections(&host).await;
        drop(releasing);
        let reply = reply.await.unwrap().expect("a reply under way is finished");
        assert_eq!(reply.text().await.unwrap(), "released", "{signal}");
        let (status, host) = host.ended();
        assert_eq!(status.code(), Some(0), "{signal}");

        let host = host.start();
        assert_eq!(
            host.json("probe/counted/state").await,
            5,
            "{signal}: what was committed is there"
        );
        let rest = host.resume("probe/one/emit-held", &format!("{run}-2")).await.rest().await;
        assert_eq!(data(&rest), ["3", "4"], "{signal}: the run went on without its client");
    }
}

#[tokio::test]
async fn runs_that_outlast_the_grace_are_interrupted_and_handled_at_the_next_start() {
    let host = TestHost::serving(&["probe", "phoenix"]).config("grace = \"100ms\"").start();
    let steps = "phoenix/one/steps?total=10&delay=50";
    let mut hanging = host.stream("probe/one/hang").await;
    let mut going = host.stream(steps).await;
    let (waiting, step) = (hanging.next().await.unwrap(), going.next().await.unwrap());
    let (status, host) = host.terminate();
    assert_eq!(status.code(), Some(0));
    assert_eq!(hanging.rest().await, [], "its stream has ended cleanly");

    let host = host.start();
    let [failed] =
        host.resume("probe/one/hang", &waiting.id).await.rest().await.try_into().unwrap();
    assert_eq!(
        (failed.name.as_str(), &problem(&failed)["code"]),
        ("failed", &json!("interrupted"))
    );
    let rest = host.resume(steps, &step.id).await.rest().await;
    assert_eq!(rest.iter().filter(|event| event.name == "resumed").count(), 1, "{rest:?}");
    let steps = rest.iter().filter(|event| event.name == "step").map(|event| &event.data);
    assert!(steps.eq(&(2..=10).map(|n| format!("{{\"n\":{n}}}")).collect::<Vec<_>>()), "{rest:?}");
}

#[tokio::test]
async fn a_second_host_on_the_same_data_is_refused_and_says_why() {
    let host = TestHost::serving(&["probe"]).start();
    let (status, said) = host.how().refuses();
    assert_eq!(status.code(), Some(1));
    let expected =
        format!("bureau: {} is in use by another host\n", host.how().journal().display());
    assert!(said.ends_with(&expected), "{said}");
    host.get("probe/one/count?count=5").await.text().await.unwrap();
    assert_eq!(host.json("probe/one/state").await, 5, "the first one serves on");
}

#[tokio::test]
async fn a_damaged_or_foreign_journal_is_refused_and_the_host_says_which() {
    let host = TestHost::serving(&["probe"]).start();
    host.get("probe/one/count?count=50").await.text().await.unwrap();
    let host = host.kill();
    let file = host.journal();
    let journal = fs::read(&file).unwrap();
    let other = |fill: fn(&WriteTransaction)| {
        fs::remove_file(&file).unwrap();
        let database = Database::create(&file).unwrap();
        let transaction = database.begin_write().unwrap();
        fill(&transaction);
        transaction.commit().unwrap();
        drop(database);
        fs::read(&file).unwrap()
    };
    let foreign = other(|transaction| drop(transaction.open_table(OTHERS).unwrap()));
    let newer = other(|transaction| {
        transaction.open_table(META).unwrap().insert("format", 6).unwrap();
    });
    let mut zeroed = journal.clone();
    zeroed[4096..].fill(0);
    let refuses = |bytes: &[u8], expected: &str| {
        fs::write(&file, bytes).unwrap();
        let (status, said) = host.refuses();
        assert_eq!(status.code(), Some(1), "{said}");
        let expected = format!("bureau: {} {expected}", file.display());
        assert!(said.contains(&expected), "{said:?}, not {expected:?}");
    };
    for (bytes, expected) in [
        (b"no database".as_slice(), "is not a journal: "),
        (&[b'x'; 1 << 20], "is not a journal: "),
        (&journal[..journal.len() / 2], "is damaged: "),
        (&zeroed, "is damaged: "),
    ] {
        refuses(bytes, expected);
        assert!(fs::read(&file).unwrap() == bytes, "the file was changed");
    }
    // What the database keeps for itself changes when one is opened.
    refuses(&foreign, "is not a journal\n");
    refuses(&newer, "is a journal of format 6, and this version reads formats 3 to 5\n");
    fs::write(&file, journal).unwrap();
    assert_eq!(host.start().json("probe/one/state").await, 50, "the right one is taken");
}

/// Waits until nobody accepts connections any more, while the host is still there.
async fn refuses_connections(host: &Started) {
    let address = host.url.strip_prefix("http://").unwrap();
    while TcpStream::connect(address).err().map(|error| error.kind())
        != Some(ErrorKind::ConnectionRefused)
    {
        // Polling another process: there is nothing to be woken by.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn read_until(response: &mut Response, end: &str) {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        read.extend(response.chunk().await.unwrap().expect("there is more"));
    }
}

fn problem(event: &Event) -> Value {
    serde_json::from_str(&event.data).unwrap()
}

#[tokio::test]
async fn the_data_directory_is_its_owners_alone_also_when_it_was_there_before() {
    use std::os::unix::fs::PermissionsExt;
    let host = TestHost::serving(&[]);
    std::fs::create_dir_all(host.data()).unwrap();
    std::fs::set_permissions(host.data(), PermissionsExt::from_mode(0o755)).unwrap();
    let down = host.start().kill();
    let mode = std::fs::metadata(down.data()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
