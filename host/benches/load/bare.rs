//! What the disk and redb do with nothing around them: the floor of all that is durable, measured in the same rounds.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use redb::{Database, TableDefinition};

use crate::measure::Latencies;

/// Rows of a commit of the bare loop.
const BATCH: u64 = 4096;

const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");

/// A file whose blocks are there already, and are written to and synced one after the other.
pub struct Blocks {
    file: File,
    next: u64,
}

impl Blocks {
    const BLOCK: [u8; 4096] = [1; 4096];
    const COUNT: u64 = 200;

    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        (0..Self::COUNT).try_for_each(|n| file.write_all_at(&Self::BLOCK, n * 4096))?;
        file.sync_all()?;
        Ok(Self { file, next: 0 })
    }

    /// How long it takes to write and sync a block.
    pub fn sync(&mut self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        self.file.write_all_at(&Self::BLOCK, self.next * 4096)?;
        self.file.sync_data()?;
        self.next = (self.next + 1) % Self::COUNT;
        Ok(start.elapsed())
    }
}

/// The time, in seconds, of a sync among many in a row. It is that which one in ten stays
/// within: where processors are busy, most of the others wait for one of them and not for the disk.
pub fn sync(directory: &Path) -> anyhow::Result<f64> {
    let mut blocks = Blocks::new(directory)?;
    let mut latencies = Latencies::default();
    for _ in 0..Blocks::COUNT {
        latencies.add(blocks.sync()?);
    }
    Ok(latencies.quantile(0.1))
}

/// How many rows a second redb makes durable, with keys in order and values of this size.
pub fn redb(directory: &Path, rows: u64, size: usize) -> anyhow::Result<f64> {
    let directory = tempfile::tempdir_in(directory)?;
    let database = Database::create(directory.path().join("bare.redb"))?;
    let value = vec![b'.'; size];
    let start = Instant::now();
    for batch in (0..rows).step_by(BATCH as usize) {
        let transaction = database.begin_write()?;
        let mut events = transaction.open_table(EVENTS)?;
        for row in batch..rows.min(batch + BATCH) {
            events.insert(row, value.as_slice())?;
        }
        drop(events);
        transaction.commit()?;
    }
    Ok(rows as f64 / start.elapsed().as_secs_f64())
}
