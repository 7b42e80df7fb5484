//! What is found when the files are opened: of an earlier format, closed in order, or left by a crash.

use super::super::tables::{FORMAT, KEYED, META_FORMAT, OLDEST_FORMAT};
use super::*;

#[tokio::test]
async fn a_file_of_an_earlier_format_is_taken_over_with_all_it_has() {
    (OLDEST_FORMAT..FORMAT).for_each(is_taken_over);
}

fn is_taken_over(format: u64) {
    let mut bench = Bench::new(options());
    let tail = bench.tail();
    bench.commit(vec![start(&tail), event(&tail, 1, "x"), set("k", "v")]);
    bench.tend();
    let written = bench.store.with(|opened| {
        let transaction = opened.database.begin_write()?;
        if format < 4 {
            transaction.delete_table(MODULES)?;
            transaction.delete_table(DEPLOYMENTS)?;
        }
        transaction.delete_table(INSTANCE_RUNS)?;
        transaction.delete_table(KEYS)?;
        transaction.delete_table(KEYED)?;
        transaction.delete_table(REPLIES)?;
        transaction.open_table(META)?.insert(META_FORMAT, format)?;
        Ok(transaction.commit()?)
    });
    written.unwrap();
    // Only the log has these.
    bench.commit(vec![event(&tail, 2, "x"), Write::State(Some("{}".into()))]);
    let before = bench.disk.durable();

    let check = |bench: &Bench| {
        assert_eq!(bench.read(&tail, 0), [1, 2]);
        assert_eq!(bench.list(None, 9, 99), "k=v ");
        assert_eq!(bench.store.state(&instance("a")).unwrap().as_deref(), Some("{}"));
        assert_eq!(bench.store.module(&instance("a")).unwrap(), None);
        assert_eq!(bench.store.deployments().unwrap(), []);
        let page = bench.store.runs_of(&instance("a"), None, 9).unwrap();
        assert!(page.records.iter().map(|record| record.run).eq([tail.run()]));
        let format = bench.store.read(|of| number(&of.open_table(META)?, META_FORMAT));
        assert_eq!(format.unwrap(), FORMAT);
    };
    let mut open = |image: Image| {
        bench.disk = Disk::of(image);
        bench.disk.record();
        (bench.store, _) = RedbStore::open(bench.disk.backend(), &bench.options).unwrap();
        check(&bench);
        bench.disk.log()
    };
    let log = open(before.clone());
    each_crash(before, &log, |image, _| drop(open(image)));
    bench.commit(vec![Write::Module(Digest::of(b"1"))]);
    bench.store.deploy(&deployment(1), &[]).unwrap();
    bench.crash();
    assert_eq!(bench.store.module(&instance("a")).unwrap(), Some(Digest::of(b"1")));
    assert_eq!(bench.store.deployments().unwrap(), [deployment(1)]);
}

#[tokio::test]
async fn the_log_of_a_journal_that_was_closed_is_not_looked_through() {
    let bench = Bench::new(options());
    let tail = bench.tail();
    bench.commit(vec![start(&tail)]);
    for seq in 1..=20 {
        bench.commit(vec![event(&tail, seq, "x".repeat(3000))]);
    }
    let read_by_the_next = || {
        let disk = Disk::of(bench.disk.durable());
        let (store, _) = RedbStore::open(disk.backend(), &options()).unwrap();
        let events = store.events(tail.run(), Seq(0), usize::MAX).unwrap();
        assert_eq!(seqs(&events), (1..=20).collect::<Seqs>());
        disk.read(JournalFile::Log)
    };
    assert!(read_by_the_next() > options().limits.log_bytes / 2);
    bench.store.close();
    assert_eq!(read_by_the_next(), 24, "whose log it is");
}

#[tokio::test]
async fn no_crash_has_the_tables_walked_through() {
    let options = within(JournalLimits { retain_bytes: 4000, ..limits() });
    let bench = Bench::new(options);
    let image = bench.disk.record();
    let large = "x".repeat(bench.options.limits.log_bytes);
    for round in 1..=4 {
        let tail = bench.tail();
        bench.commit(vec![start(&tail), event(&tail, 1, "x".repeat(3000)), end(&tail)]);
        bench.tend();
        bench.commit(vec![start(&bench.tail())]);
        bench.commit(vec![set("k", "v"), event(&tail, 2, &*large)]);
        bench.store.deploy(&deployment(round), &[round - 1]).unwrap();
        bench.store.reopen().unwrap();
    }
    bench.store.close();
    let log = bench.disk.log();
    assert!(log.iter().any(|edit| edit.file == JournalFile::Tables as usize));
    each_crash(image, &log, |image, at| {
        let mut builder = Database::builder();
        builder.set_repair_callback(move |_| panic!("the tables are walked through after {at}"));
        let tables = Disk::of(image).hold(JournalFile::Tables).unwrap();
        builder.create_with_backend(tables).unwrap();
    });
}
