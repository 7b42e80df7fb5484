//! Journals that look as if a host had kept them for years.
//!
//! What fills them is the host's own journal, in this process and while no host has the file: requests would take
//! minutes for what it does in seconds. It is told what an agent's turns would have told it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bureau::config::JournalLimits;
use bureau::id::{AgentName, Digest, InstanceKey, RunId, Seq};
use bureau::journal::{Event, Journal, Options, Outcome, RunState, Ticket, Turn, Write};

/// Bytes that are handed over before it is waited for them.
const AHEAD: usize = 16 << 20;

/// A journal that is being filled.
pub struct Filling {
    journal: Journal,
    agent: AgentName,
    module: Digest,
    handed_over: usize,
}

impl Filling {
    /// Opens the journal in this file.
    pub fn open(file: &Path) -> anyhow::Result<Self> {
        let limits = JournalLimits { retain_bytes: u64::MAX, ..JournalLimits::default() };
        let (journal, _) = Journal::open(Options { file: file.into(), limits })?;
        let (agent, module) = ("load".parse()?, Digest::of(b""));
        Ok(Self { journal, agent, module, handed_over: 0 })
    }

    /// Adds an instance that has a state and had a run, with these events in a turn each. Returns the run.
    pub async fn instance(
        &mut self,
        name: &str,
        state: &str,
        turns: usize,
        events: &[&str],
    ) -> anyhow::Result<RunId> {
        let key = InstanceKey::new(self.agent.clone(), name)?;
        let (lane, run) = (self.journal.lane(key.clone()), RunId::generate());
        let tail = self.journal.tail(&key, run);
        let mut seq = Seq::ZERO;
        let mut writes = vec![
            Write::State(Some(state.into())),
            Write::Start { tail: tail.clone(), module: self.module, request: None },
        ];
        for _ in 0..turns {
            for &data in events {
                seq = seq.next();
                let event = Arc::new(Event::new(seq, None, None, data.into()));
                writes.push(Write::Event { tail: tail.clone(), event });
            }
            let turn = Turn(std::mem::take(&mut writes));
            self.hand_over(turn, |turn| lane.submit(turn)).await?;
        }
        let outcome = Outcome { state: RunState::Finished, code: None };
        writes.push(Write::End { tail, outcome });
        self.hand_over(Turn(writes), |turn| lane.submit(turn)).await?;
        Ok(run)
    }

    async fn hand_over(
        &mut self,
        turn: Turn,
        submit: impl FnOnce(Turn) -> Ticket,
    ) -> anyhow::Result<()> {
        self.handed_over += turn.size();
        let ticket = submit(turn);
        if self.handed_over >= AHEAD {
            self.handed_over = 0;
            ticket.settled().await.context("the journal cannot be filled")?;
        }
        Ok(())
    }

    /// Waits until all of it is on disk.
    pub async fn close(self) {
        self.journal.close().await;
    }
}
