//! The way out: where a client stands, and what follows.
//!
//! **Problem.** A client may be at the first event of a run that ended yesterday, or at the last of one
//! that goes on now, and moves from the one to the other; it must see no gap, no duplicate, and the end
//! only after the data.
//!
//! **Mechanism.** A [`Reader`] is a cursor and a tail. [`Reader::next`] asks the tail what follows the
//! cursor; where the tail no longer has it, it reads a page from the store; where there is nothing, it
//! leaves its waker with the tail. Replay and live are one loop, and as only durable events reach a tail, the
//! two sources never disagree. The events of a run are numbered without a gap, so a reader that finds one
//! (retention deleted the run under it) knows it and says [`Step::Broken`]. A store that fails is opened
//! again by the writer; a reader that needs it meanwhile waits, as it does for events.
//!
//! **Limits.** A page is at most [`JournalLimits::page_bytes`](crate::config::JournalLimits::page_bytes), or one event. The first
//! from the store is small and each next one twice as large, so that a crowd of readers that comes back at once has its first events soon.
//!
//! **Cost.** An idle reader is an `Arc` pair, two numbers and a waker; an event that it waited for, one wake-up. A page from the store is one
//! short transaction on a blocking thread.

use std::fmt;
use std::future::poll_fn;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;

use super::handle::Shared;
use super::tail::{Buffered, Following, Gauge, Place, Seat};
use super::{Event, Health, Located, NotResumable, Outcome, RunRecord, StoreError, Tail};
use crate::event;
use crate::id::{Cursor, InstanceKey, Seq};

/// What the first page from the store holds.
const FIRST_PAGE: usize = 16 << 10;

/// Reads a run from a cursor on.
pub struct Reader {
    shared: Arc<Shared>,
    tail: Arc<Tail>,
    cursor: Seq,
    seat: Seat,
    /// What the next page from the store may hold.
    fetch_bytes: usize,
    /// A page on its way from the store.
    fetching: Option<Fetching>,
}

type Fetching = Pin<Box<dyn Future<Output = Result<Page, Step>> + Send>>;

/// What a [`Reader`] comes to next.
#[derive(Debug)]
pub enum Step {
    /// More events, in order.
    Events(Page),
    /// The run is over and all of it has been read.
    End(Outcome),
    /// The reader cannot go on; the message says why. Another one may, from the same cursor.
    Broken(String),
}

/// Events in a row, at least one. They count as buffered for as long as the page lives.
#[derive(Debug)]
pub struct Page {
    events: Vec<Arc<Event>>,
    sending: Arc<Gauge>,
    _buffered: Buffered,
}

impl Page {
    fn new(events: Vec<Arc<Event>>, shared: &Shared) -> Self {
        let bytes = events.iter().map(|event| event.size()).sum();
        let sending = Arc::clone(&shared.sending);
        Self { events, sending, _buffered: shared.gauge.buffered(bytes) }
    }

    /// Bytes made of this page, counted as being sent for as long as anyone holds them.
    pub fn sending(&self, bytes: Vec<u8>) -> Bytes {
        let counted = self.sending.buffered(bytes.len());
        Bytes::from_owner(Sending { bytes, _counted: counted })
    }
}

struct Sending {
    bytes: Vec<u8>,
    _counted: Buffered,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Deref for Page {
    type Target = [Arc<Event>];

    fn deref(&self) -> &Self::Target {
        &self.events
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, tail: Arc<Tail>, after: Seq) -> Self {
        let fetch_bytes = FIRST_PAGE.min(shared.page_bytes);
        Self { shared, tail, cursor: after, seat: Seat::default(), fetch_bytes, fetching: None }
    }

    /// A reader of the same run, from its first event on.
    pub fn from_start(self) -> Self {
        Self::new(self.shared.clone(), self.tail.clone(), Seq::ZERO)
    }

    /// The run that is read.
    pub fn tail(&self) -> &Arc<Tail> {
        &self.tail
    }

    /// The last event read.
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// Waits for what follows. A call that is dropped has read nothing.
    pub async fn next(&mut self) -> Step {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// What follows, as soon as something does.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let page = match ready!(self.poll_page(cx)) {
            Ok(page) => page,
            Err(step) => return Poll::Ready(step),
        };
        let expected = (self.cursor.0 + 1)..;
        let whole = expected.zip(&*page).all(|(seq, event)| event.seq == Seq(seq));
        let Some(last) = page.last().filter(|_| whole) else {
            return Poll::Ready(Step::Broken("the run is no longer kept".into()));
        };
        self.cursor = last.seq;
        Poll::Ready(Step::Events(page))
    }

    /// Events, or the step in place of events.
    fn poll_page(&mut self, cx: &mut Context<'_>) -> Poll<Result<Page, Step>> {
        loop {
            if let Some(fetching) = &mut self.fetching {
                let page = ready!(fetching.as_mut().poll(cx));
                self.fetching = None;
                return Poll::Ready(page);
            }
            let shared = &self.shared;
            let page_bytes = shared.page_bytes;
            match self.tail.following(self.cursor, page_bytes, &mut self.seat, cx.waker()) {
                Following::Events(events) => return Poll::Ready(Ok(Page::new(events, shared))),
                Following::End(outcome) => return Poll::Ready(Err(Step::End(outcome))),
                Following::Stored => {
                    let (shared, tail) = (Arc::clone(shared), Arc::clone(&self.tail));
                    let page = fetch(shared, tail, self.cursor, self.fetch_bytes);
                    self.fetching = Some(Box::pin(page));
                    self.fetch_bytes = (2 * self.fetch_bytes).min(page_bytes);
                }
                // A journal that dies says so before it wakes who waits.
                Following::Nothing => {
                    return match &*shared.health.borrow() {
                        Health::Dead(reason) => Poll::Ready(Err(Step::Broken(reason.clone()))),
                        Health::Good | Health::Failing(_) => Poll::Pending,
                    };
                }
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tail.leave(&self.seat);
    }
}

/// Reads a page from the store, again after a failure that passes.
async fn fetch(
    shared: Arc<Shared>,
    tail: Arc<Tail>,
    after: Seq,
    max_bytes: usize,
) -> Result<Page, Step> {
    let mut health = shared.health.subscribe();
    loop {
        // Before the read, so that news that comes after it is not missed.
        health.mark_unchanged();
        let (shared, run) = (Arc::clone(&shared), tail.run());
        let page = blocking(move || {
            let events = shared.store.events(run, after, max_bytes)?;
            Ok(Page::new(events, &shared))
        });
        match page.await {
            Ok(page) => return Ok(page),
            Err(_) if may_pass(&mut health).await => {}
            Err(error) => return Err(Step::Broken(error.to_string())),
        }
    }
}

/// How long a failure to read may precede the news that the store has failed: an idle writer looks at the
/// store less often than every second, but not by much.
const NEWS: Duration = Duration::from_secs(2);

/// Waits until a read that has failed may succeed, as the store was opened again; false when it will not.
async fn may_pass(health: &mut watch::Receiver<Health>) -> bool {
    let now = health.borrow().clone();
    match now {
        Health::Dead(_) => false,
        Health::Failing(_) => health.changed().await.is_ok(),
        // What the writer does not meet too is not the store's failure but the damage of these events.
        Health::Good => timeout(NEWS, health.changed()).await.is_ok(),
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("tail", &self.tail)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

/// Finds where the client stands that has seen the event `id` of this instance last.
pub(super) async fn locate(
    shared: &Arc<Shared>,
    instance: &InstanceKey,
    id: &str,
) -> Result<Located, StoreError> {
    let cursor = id.parse().ok();
    if let Some(cursor) = cursor
        && let Some(located) = locate_live(shared, instance, cursor)
    {
        return Ok(located);
    }
    // What no agent may give an event, such as half a megabyte, need not be looked for.
    if cursor.is_none() && event::check(None, Some(id)).is_err() {
        return Ok(Located::Not(NotResumable::Unknown));
    }
    let (shared, instance, id) = (Arc::clone(shared), instance.clone(), id.to_owned());
    blocking(move || match cursor {
        Some(cursor) => locate_cursor(&shared, &instance, cursor),
        None => locate_id(&shared, &instance, &id),
    })
    .await
}

/// The client's place in a run that goes on, if this is one, of this instance.
fn locate_live(shared: &Arc<Shared>, instance: &InstanceKey, cursor: Cursor) -> Option<Located> {
    let tail = shared.live.get(cursor.run)?;
    (tail.instance() == instance).then(|| place(shared, tail, cursor.seq))
}

fn locate_cursor(
    shared: &Arc<Shared>,
    instance: &InstanceKey,
    cursor: Cursor,
) -> Result<Located, StoreError> {
    if let Some(located) = locate_run(shared, instance, cursor)? {
        return Ok(located);
    }
    // A run of another instance gets the answer that a run would get that never was.
    let expired = cursor.run.timestamp_ms() <= shared.store.trimmed_until_ms()?;
    Ok(Located::Not(if expired { NotResumable::Expired } else { NotResumable::Unknown }))
}

fn locate_id(
    shared: &Arc<Shared>,
    instance: &InstanceKey,
    id: &str,
) -> Result<Located, StoreError> {
    match shared.store.find_id(instance, id)? {
        Some(cursor) => locate_cursor(shared, instance, cursor),
        None => Ok(Located::Not(NotResumable::Unknown)),
    }
}

/// The client's place in a run of this instance, if the journal has it.
fn locate_run(
    shared: &Arc<Shared>,
    instance: &InstanceKey,
    cursor: Cursor,
) -> Result<Option<Located>, StoreError> {
    let of_instance = |record: &RunRecord| record.instance == *instance;
    // A run is among the live ones before the store has it and until the store has its end. So one that is
    // in the store, without an end, and not live, has just ended, and the next round finds its end.
    loop {
        let Some(record) = shared.store.run(cursor.run)?.filter(of_instance) else {
            return Ok(None);
        };
        if record.state.is_final() {
            let tail = Tail::ended(record, shared.limits, &shared.gauge);
            return Ok(Some(place(shared, Arc::new(tail), cursor.seq)));
        }
        if let Some(located) = locate_live(shared, instance, cursor) {
            return Ok(Some(located));
        }
    }
}

fn place(shared: &Arc<Shared>, tail: Arc<Tail>, seq: Seq) -> Located {
    match tail.place(seq) {
        Place::Within => Located::At(Reader::new(Arc::clone(shared), tail, seq)),
        Place::AtEnd => Located::CaughtUp(tail.run()),
        Place::Beyond => Located::Not(NotResumable::Future),
    }
}

/// Runs what may touch the disk where it holds up no one else.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|error| Err(StoreError(format!("a read did not finish: {error}"))))
}
