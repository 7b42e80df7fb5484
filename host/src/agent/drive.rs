//! Who polls an instance: a caller that has just sent it a call, its own task, or a thread for those that compute.
//!
//! **Problem.** A call into a live instance takes some two microseconds. Handing it to another task and its
//! answer back takes longer than that, and much longer where a sleeping thread has to be woken. And there are guests that compute. Each
//! gives way after ten milliseconds, but whoever waits has all of them before it, and a worker that goes from one of them to the next sees to its sockets
//! only each sixtieth time: as many of them as there are workers made all others wait for a quarter of a second.
//!
//! **Mechanism.** The instance's actor is a future that anyone may poll, one at a time. A caller takes hold of it
//! before it sends the call, so that the call wakes nobody, and polls it in its own task: most calls are
//! answered when that one poll is over. What is left over is the task's.
//!
//! ```text
//!                 wake: the task is woken
//!   idle ------------------------------------> woken
//!     |  ^                                       |
//!     |  +----------- let go ------------+       |
//!     +---------- taken hold of ------> held <---+   a wake while held: woken when let go
//! ```
//!
//! An actor computes when its guest gave way in its last poll, or when that was [long](LONG), until one is neither. Then no caller takes hold of it, and its task has it
//! polled by a thread that [stands back](crate::wasm::Engine::computing) for those that serve. Who may compute is found by looking at the clock now and then. That
//! is made sure of by what the thread has computed in the next poll, since a poll may also be long for want of a processor.
//!
//! **Limits.** An actor must not be polled by another actor: wasmtime does not let one store's event loop run
//! inside another's. A worker computes the first ten or so polls of an instance that computes. **Cost.** Two atomic operations and an
//! uncontended lock per poll, and a look at the clock for each fourth. For an actor that computes, two hand-overs, and two system calls.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::{ArcWake, AtomicWaker, waker_ref};
use rayon::ThreadPool;
use tokio::runtime::Handle;

use crate::wasm::{take_gave_way, thread_time};

/// Someone polls the actor, or is about to.
const HELD: u8 = 1;
/// The actor has something to do that no poll has seen.
const WOKEN: u8 = 2;
/// In the last poll a guest gave way, or that was long.
const COMPUTES: u8 = 4;
/// A thread for those that compute is about to take hold of it.
const QUEUED: u8 = 8;
/// The last poll may have been long, or the one before it was: the next one is made sure of.
const SUSPECT: u8 = 16;

/// What a poll takes, or has computed, that is long.
const LONG: Duration = Duration::from_millis(1);

/// One of so many polls on a thread is looked at.
const SAMPLED: u8 = 8;

/// How one looks at a poll.
enum Watch {
    Not,
    /// At the time, since when.
    Time(Instant),
    /// At what the thread has computed, from what on; and what it says of the actor if the poll is short.
    Computing {
        from: Duration,
        if_short: u8,
    },
}

impl Watch {
    fn start(state: u8) -> Self {
        thread_local!(static POLLS: Cell<u8> = const { Cell::new(0) });
        if state & (COMPUTES | SUSPECT) != 0 {
            // An actor may be woken for nothing between two long polls.
            let if_short = if state & COMPUTES != 0 { SUSPECT } else { 0 };
            return Self::Computing { from: thread_time(), if_short };
        }
        POLLS.set((POLLS.get() + 1) % SAMPLED);
        if POLLS.get() == 0 { Self::Time(Instant::now()) } else { Self::Not }
    }

    /// What the poll says of the actor.
    fn stop(self) -> u8 {
        match self {
            Self::Time(began) if began.elapsed() >= LONG => SUSPECT,
            Self::Computing { from, if_short } => {
                if thread_time() - from >= LONG {
                    COMPUTES
                } else {
                    if_short
                }
            }
            _ => 0,
        }
    }
}

type Future = Pin<Box<dyn std::future::Future<Output = ()> + Send>>;

/// An actor's future, and whose turn it is to poll it.
pub(super) struct Drive {
    state: AtomicU8,
    /// None while it is polled, and when it is over.
    actor: Mutex<Option<Future>>,
    task: AtomicWaker,
}

/// The right to poll an actor. When it goes, what the actor still has to do is its task's.
pub(super) struct Hold {
    drive: Arc<Drive>,
    /// Whether there is nothing left to poll.
    over: bool,
}

impl Drive {
    /// An actor that nobody has polled yet, with the right to do so.
    pub(super) fn start(actor: impl std::future::Future<Output = ()> + Send + 'static) -> Hold {
        let drive = Arc::new(Self {
            state: AtomicU8::new(HELD | WOKEN),
            actor: Mutex::new(Some(Box::pin(actor))),
            task: AtomicWaker::new(),
        });
        Hold { drive, over: false }
    }

    /// Takes hold of the actor unless someone has.
    pub(super) fn hold(self: &Arc<Self>) -> Option<Hold> {
        let before = self.state.fetch_or(HELD, Ordering::AcqRel);
        (before & HELD == 0).then(|| Hold { drive: self.clone(), over: false })
    }

    /// Takes hold of the actor for a call that it is about to get, unless someone has or it computes.
    pub(super) fn hold_for_call(self: &Arc<Self>) -> Option<Hold> {
        if self.computes() { None } else { self.hold() }
    }

    fn computes(&self) -> bool {
        self.state.load(Ordering::Acquire) & COMPUTES != 0
    }

    /// Has the actor polled by its task, or once more by who holds it.
    pub(super) fn wake(drive: &Arc<Self>) {
        Self::wake_by_ref(drive);
    }

    fn swap(&self, actor: Option<Future>) -> Option<Future> {
        // Nothing panics while it holds the lock, so a poisoned one is whole.
        let mut place = self.actor.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *place, actor)
    }
}

impl ArcWake for Drive {
    fn wake_by_ref(drive: &Arc<Self>) {
        let before = drive.state.fetch_or(WOKEN, Ordering::AcqRel);
        if before & HELD == 0 {
            drive.task.wake();
        }
    }
}

impl Hold {
    /// The actor that is held.
    pub(super) fn drive(&self) -> &Arc<Drive> {
        &self.drive
    }

    /// Polls the actor once.
    pub(super) fn poll(&mut self) -> Poll<()> {
        let before = self.drive.state.fetch_and(!(WOKEN | COMPUTES | SUSPECT), Ordering::AcqRel);
        let actor = self.drive.swap(None);
        // Until the actor is back, so that one that panics is over.
        self.over = true;
        let Some(mut actor) = actor else { return Poll::Ready(()) };
        // By one that was polled without us.
        take_gave_way();
        let watch = Watch::start(before);
        let polled = actor.as_mut().poll(&mut Context::from_waker(&waker_ref(&self.drive)));
        if polled.is_pending() {
            let news = watch.stop() | if take_gave_way() { COMPUTES } else { 0 };
            if news != 0 {
                self.drive.state.fetch_or(news, Ordering::AcqRel);
            }
            self.drive.swap(Some(actor));
            self.over = false;
        }
        polled
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let before = self.drive.state.fetch_and(!HELD, Ordering::AcqRel);
        if before & WOKEN != 0 || self.over {
            self.drive.task.wake();
        }
    }
}

/// The actor's own task: sees to it that it is polled whenever it is woken and nobody holds it.
pub(super) struct Driven {
    pub(super) drive: Arc<Drive>,
    /// Who polls it while it computes.
    pub(super) computing: Arc<ThreadPool>,
}

impl Driven {
    /// Has the actor polled by a thread for those that compute.
    fn queue(&self) {
        if self.drive.state.fetch_or(QUEUED, Ordering::AcqRel) & QUEUED != 0 {
            return;
        }
        let (drive, runtime) = (self.drive.clone(), Handle::current());
        self.computing.spawn(move || {
            let _entered = runtime.enter();
            drive.state.fetch_and(!QUEUED, Ordering::AcqRel);
            if let Some(mut hold) = drive.hold() {
                // One that panics is over, and its task is told.
                let _ = catch_unwind(AssertUnwindSafe(|| hold.poll()));
            }
        });
    }
}

impl std::future::Future for Driven {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Before looking whether someone holds the actor, who otherwise would let go of it unseen.
        self.drive.task.register(cx.waker());
        if self.drive.computes() {
            self.queue();
            return Poll::Pending;
        }
        let Some(mut hold) = self.drive.hold() else { return Poll::Pending };
        hold.poll()
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        // The wakers that an actor has left behind keep its place; they must not keep the actor too.
        drop(self.drive.swap(None));
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicU32};
    use std::task::Waker;

    use super::*;
    use crate::wasm::give_way;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Count(AtomicU32);

    impl ArcWake for Count {
        fn wake_by_ref(count: &Arc<Self>) {
            count.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An actor that shows its waker and counts its polls, and is over at the third.
    #[derive(Clone, Default)]
    struct Actor {
        polls: Arc<AtomicU32>,
        waker: Arc<Mutex<Option<Waker>>>,
    }

    impl Actor {
        fn start(&self) -> Hold {
            let Self { polls, waker } = self.clone();
            Drive::start(std::future::poll_fn(move |cx| {
                *waker.lock().unwrap() = Some(cx.waker().clone());
                match polls.fetch_add(1, Ordering::Relaxed) {
                    0 | 1 => Poll::Pending,
                    _ => Poll::Ready(()),
                }
            }))
        }

        fn polls(&self) -> u32 {
            self.polls.load(Ordering::Relaxed)
        }

        fn wake(&self) {
            self.waker.lock().unwrap().as_ref().unwrap().wake_by_ref();
        }
    }

    /// The actor's task, with how often it was woken.
    fn task(hold: &Hold) -> (Driven, Arc<Count>) {
        let computing = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let task = Driven { drive: hold.drive().clone(), computing: Arc::new(computing) };
        let (mut task, count) = (task, Arc::new(Count::default()));
        assert!(poll(&mut task, &count).is_pending(), "someone holds the actor");
        (task, count)
    }

    fn poll(task: &mut Driven, count: &Arc<Count>) -> Poll<()> {
        Pin::new(task).poll(&mut Context::from_waker(&waker_ref(count)))
    }

    fn woken(count: &Count) -> u32 {
        count.0.load(Ordering::Relaxed)
    }

    #[test]
    fn a_caller_polls_in_the_tasks_place_and_wakes_nobody() {
        let actor = Actor::default();
        let mut hold = actor.start();
        let (_task, count) = task(&hold);
        assert!(hold.poll().is_pending());
        drop(hold);
        assert_eq!((actor.polls(), woken(&count)), (1, 0));
    }

    #[test]
    fn what_a_holder_leaves_is_the_tasks() {
        let actor = Actor::default();
        let hold = actor.start();
        let (mut task, count) = task(&hold);
        drop(hold);
        assert_eq!((actor.polls(), woken(&count)), (0, 1), "it was never polled");
        assert!(poll(&mut task, &count).is_pending());
        assert_eq!((actor.polls(), woken(&count)), (1, 1));

        let mut hold = task.drive.hold().expect("nobody holds it");
        assert!(task.drive.hold().is_none());
        actor.wake();
        assert_eq!(woken(&count), 1, "the holder will look");
        assert!(hold.poll().is_pending());
        actor.wake();
        drop(hold);
        assert_eq!((actor.polls(), woken(&count)), (2, 2), "it was woken after the poll");
        assert!(poll(&mut task, &count).is_ready());
    }

    #[test]
    fn a_wake_while_nobody_holds_the_actor_is_the_tasks() {
        let actor = Actor::default();
        let mut hold = actor.start();
        let (mut task, count) = task(&hold);
        assert!(hold.poll().is_pending());
        drop(hold);
        actor.wake();
        assert_eq!(woken(&count), 1);
        assert!(poll(&mut task, &count).is_pending());
        assert_eq!(actor.polls(), 2);
    }

    #[test]
    fn a_task_ends_with_an_actor_that_a_caller_saw_end() {
        let actor = Actor::default();
        let mut hold = actor.start();
        let (mut task, count) = task(&hold);
        assert!(hold.poll().is_pending());
        assert!(hold.poll().is_pending());
        assert!(hold.poll().is_ready());
        drop(hold);
        assert_eq!(woken(&count), 1);
        assert!(poll(&mut task, &count).is_ready());
    }

    #[test]
    fn a_task_ends_with_an_actor_that_panicked_under_a_caller() {
        let mut hold = Drive::start(std::future::poll_fn(|_| panic!("on purpose")));
        let (mut task, count) = task(&hold);
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _ = hold.poll();
        }));
        assert!(panicked.is_err());
        assert_eq!(woken(&count), 1);
        assert!(poll(&mut task, &count).is_ready());
    }

    #[test]
    fn an_actor_goes_with_its_task_whoever_keeps_its_waker() {
        let (actor, kept) = (Actor::default(), Arc::new(()));
        let mut hold = {
            let (actor, kept) = (actor.clone(), kept.clone());
            Drive::start(std::future::poll_fn(move |cx| {
                *actor.waker.lock().unwrap() = Some(cx.waker().clone());
                let _ = &kept;
                Poll::Pending
            }))
        };
        let (task, _count) = task(&hold);
        assert!(hold.poll().is_pending());
        drop(hold);
        drop(task);
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    /// An actor whose guest gives way in its first poll, and its task once it was polled.
    fn computing(mut next: impl FnMut() -> Poll<()> + Send + 'static) -> (Driven, Arc<Count>) {
        let mut polls = 0;
        let mut hold = Drive::start(std::future::poll_fn(move |cx| {
            polls += 1;
            if polls > 1 {
                return next();
            }
            give_way();
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        let task = task(&hold);
        assert!(hold.poll().is_pending());
        task
    }

    #[tokio::test]
    async fn an_actor_that_computes_is_polled_by_a_thread_for_that_until_it_does_not() {
        let (polled, by) = std::sync::mpsc::channel();
        let (mut task, count) = computing(move || {
            polled.send(std::thread::current().id()).unwrap();
            Poll::Pending
        });
        assert_eq!(woken(&count), 1, "it goes on");
        assert!(task.drive.hold_for_call().is_none());
        assert!(poll(&mut task, &count).is_pending());
        let thread = task.computing.install(|| std::thread::current().id());
        assert_eq!(by.try_recv(), Ok(thread));
        assert!(task.drive.hold_for_call().is_some());
        assert!(poll(&mut task, &count).is_pending());
        assert_eq!(by.try_recv(), Ok(std::thread::current().id()));
    }

    #[tokio::test]
    async fn a_task_ends_with_an_actor_that_panicked_while_it_computed() {
        let (mut task, count) = computing(|| panic!("on purpose"));
        assert!(poll(&mut task, &count).is_pending());
        task.computing.install(|| ());
        assert_eq!(woken(&count), 2);
        assert!(poll(&mut task, &count).is_ready());
    }

    #[test]
    fn an_actor_whose_polls_are_long_computes_before_long_and_again_after_a_short_one() {
        let is_short = Arc::new(AtomicBool::new(false));
        let short = is_short.clone();
        let mut hold = Drive::start(std::future::poll_fn(move |_| {
            let began = thread_time();
            while !short.load(Ordering::Relaxed) && thread_time() - began < LONG {
                std::hint::spin_loop();
            }
            Poll::Pending
        }));
        let (_task, _count) = task(&hold);
        let mut poll = || {
            assert!(hold.poll().is_pending());
            hold.drive().computes()
        };
        // One that is looked at, and the next to make sure.
        assert!((0..=SAMPLED).map(|_| poll()).last().unwrap());
        is_short.store(true, Ordering::Relaxed);
        assert!(!poll());
        is_short.store(false, Ordering::Relaxed);
        assert!(poll());
        is_short.store(true, Ordering::Relaxed);
        assert!(!poll() && !poll());
        is_short.store(false, Ordering::Relaxed);
        assert!(!poll(), "one that is short is no longer watched");
    }
}
