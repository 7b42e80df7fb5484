//! Which live store serves an instance: get or start, and retire.
//!
//! **Problem.** Concurrent callers must share one start, a swap must take effect with the next request while
//! old runs go on, and a million instances must fit where a few thousand are live.
//!
//! **Mechanism.** One map from instance to slot. A slot holds the ledger, shared by all stores of the instance, and the
//! mailbox of the current one. A store whose module is no longer current, that sat idle, or that must make
//! room is retired by dropping its mailbox. Each store has a generation, so that an old one's exit cannot
//! remove its successor; the slot goes when its last store is gone and all it wrote is durable. Which one makes room is
//! said by an [`Order`], one of all stores and one of each agent's.
//!
//! **Limits.** [`InstanceLimits::live`] stores of the host, and of each agent; beyond it idle ones go, and when none is
//! idle the caller is refused. A full mailbox or too many runs, of the instance or of the agent, refuse the call: nothing waits without bound.
//!
//! **Cost.** One short lock per request.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::agent::drive::{Drive, Driven, Hold};
use crate::agent::instance::Actor;
use crate::agent::order::{Generation, Order, Seen, Usage};
use crate::agent::registry::{Deployed, Registry};
use crate::config::InstanceLimits;
use crate::fault::Fault;
use crate::id::{AgentName, Digest, InstanceKey, RunId};
use crate::journal::Journal;
use crate::shutdown::Shutdown;
use crate::wasm::{Call, Engine, Feed, Happening, Ledger, Load, Session};

/// All live instances. Clones are the same directory.
#[derive(Clone)]
pub struct Directory(Arc<Inner>);

struct Inner {
    registry: Arc<Registry>,
    journal: Journal,
    feed: Arc<Feed>,
    limits: Arc<InstanceLimits>,
    shutdown: Shutdown,
    began: Instant,
    live: Mutex<Live>,
    left: Notify,
}

#[derive(Default)]
struct Live {
    slots: HashMap<InstanceKey, Slot>,
    generations: u64,
    groups: Groups,
    draining: bool,
}

/// The stores that are current: those on their way out do not count.
#[derive(Default)]
struct Groups {
    all: Order,
    agents: HashMap<AgentName, Group>,
}

/// The stores of one agent.
#[derive(Default)]
struct Group {
    order: Order,
    /// Calls sent and not ended.
    calls: Arc<AtomicUsize>,
    /// How long one that is not used stays.
    idle: Duration,
}

struct Slot {
    ledger: Arc<Ledger>,
    current: Option<Current>,
    /// All stores of the instance that are not gone.
    stores: Vec<Store>,
}

struct Store {
    generation: Generation,
    session: Arc<Session>,
    load: Arc<Load>,
    drive: Arc<Drive>,
    /// Since the directory began.
    started: Duration,
}

struct Current {
    generation: Generation,
    deployed: Arc<Deployed>,
    load: Arc<Load>,
    mailbox: mpsc::Sender<Box<Call>>,
    drive: Arc<Drive>,
    /// Whether it was called after the call that it was started for.
    again: bool,
}

/// A call that was taken. Without more it is served by the instance's task.
pub struct Sent {
    /// The store that made room for it.
    retired: Option<Hold>,
    hold: Option<Hold>,
}

impl Sent {
    /// Serves the call here and now, as far as it goes without waiting, unless the instance is being served
    /// elsewhere. Not for use inside an actor.
    pub fn serve(self) {
        // The retired one first: its place in the pool is the newcomer's, and still in the processor's cache.
        for mut hold in [self.retired, self.hold].into_iter().flatten() {
            // An actor that is over has told the directory.
            let _ = hold.poll();
        }
    }
}

/// A call that was not taken, and why.
pub struct Refused {
    /// The call, unharmed.
    pub call: Box<Call>,
    /// Why it was not taken.
    pub fault: Fault,
}

impl Directory {
    /// A directory without live instances.
    pub fn new(
        registry: Arc<Registry>,
        journal: Journal,
        feed: Arc<Feed>,
        limits: Arc<InstanceLimits>,
        shutdown: Shutdown,
    ) -> Self {
        Self(Arc::new(Inner {
            registry,
            journal,
            feed,
            limits,
            shutdown,
            began: Instant::now(),
            live: Mutex::default(),
            left: Notify::new(),
        }))
    }

    pub(super) fn engine(&self) -> &Engine {
        self.0.registry.engine()
    }

    /// The module that serves the agent of an instance now.
    pub(super) fn current(&self, key: &InstanceKey) -> Option<Arc<Deployed>> {
        self.0.registry.current(key.agent())
    }

    /// Why an instance finds no place.
    pub(super) fn full(&self) -> Fault {
        Fault::HostBusy { limit: self.0.limits.live }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Nothing below panics while it holds the lock, so a poisoned one is whole.
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a call to the instance, starting it if it is not live on this module or a later one. `call` is made
    /// with the instance's ledger.
    pub fn send(
        &self,
        key: &InstanceKey,
        deployed: &Arc<Deployed>,
        call: impl FnOnce(&Arc<Ledger>) -> Call,
    ) -> Result<Sent, Refused> {
        let mut live = self.live();
        let live = &mut *live;
        let draining = live.draining;
        let slot = match live.slots.entry(key.clone()) {
            MapEntry::Occupied(slot) => slot.into_mut(),
            MapEntry::Vacant(slot) => slot.insert(Slot {
                ledger: Arc::new(Ledger::new(
                    self.0.journal.clone(),
                    self.0.feed.clone(),
                    key.clone(),
                )),
                current: None,
                stores: Vec::new(),
            }),
        };
        let call = Box::new(call(&slot.ledger));
        if draining {
            live.remove_if_unused(key);
            return Err(Refused { call, fault: Fault::Draining });
        }
        let stale = |current: &Current| {
            current.deployed.version < deployed.version || current.mailbox.is_closed()
        };
        if slot.current.take_if(|current| stale(current)).is_some() {
            live.groups.left(key.agent());
        }
        let (mut retired, mut hold) = (None, None);
        let current = if let Some(current) = &mut slot.current {
            current.again = true;
            slot.current.as_ref()
        } else {
            match self.room(live, key.agent(), &deployed.limits) {
                Ok(idle) => {
                    // Held, so that it is seen off by who takes its place.
                    retired = idle.as_ref().and_then(|idle| idle.drive.hold());
                    hold = self.start(live, key, deployed, idle.is_some());
                }
                Err(fault) => {
                    live.remove_if_unused(key);
                    return Err(Refused { call, fault });
                }
            }
            live.slots.get(key).and_then(|slot| slot.current.as_ref())
        };
        let limits = &deployed.limits;
        let busy = |limit| Fault::InstanceBusy { limit };
        let Some(current) = current else {
            return Err(Refused { call, fault: Fault::Internal });
        };
        if current.load.in_flight() >= limits.runs {
            return Err(Refused { call, fault: busy(limits.runs) });
        }
        if current.load.of_agent() >= limits.runs_per_agent {
            return Err(Refused { call, fault: Fault::AgentBusy { limit: limits.runs_per_agent } });
        }
        // Counted before the actor can end it, and under the lock that retiring takes, so that a store with
        // a call on its way is never idle.
        current.load.sent();
        let hold = hold.or_else(|| current.drive.hold_for_call());
        match current.mailbox.try_send(call) {
            Ok(()) => Ok(Sent { retired, hold }),
            Err(refused) => {
                current.load.ended();
                Err(Refused { call: refused.into_inner(), fault: busy(limits.mailbox) })
            }
        }
    }

    /// Sees to it that there is room for one more store of an agent, and returns the one that had to go for it.
    fn room(
        &self,
        live: &mut Live,
        agent: &AgentName,
        limits: &InstanceLimits,
    ) -> Result<Option<Current>, Fault> {
        let now = self.0.now();
        let of_agent = live.groups.agents.get(agent).map_or(0, |group| group.order.live());
        if of_agent >= limits.live && limits.live < self.0.limits.live {
            let full = Fault::AgentFull { limit: limits.live };
            live.take_idle_of(agent, now).ok_or(full).map(Some)
        } else if live.groups.all.live() >= self.0.limits.live {
            live.take_idle(now).ok_or_else(|| self.full()).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Starts a store, for which another one had to go or not.
    fn start(
        &self,
        live: &mut Live,
        key: &InstanceKey,
        deployed: &Arc<Deployed>,
        had_to_go: bool,
    ) -> Option<Hold> {
        let Live { slots, generations, groups: Groups { all, agents }, .. } = live;
        *generations += 1;
        let generation = Generation(*generations);
        let started = self.0.now();
        let of_agent = agents.entry(key.agent().clone()).or_default();
        let load = Arc::new(Load::new(self.0.began, of_agent.calls.clone()));
        of_agent.idle = deployed.limits.idle;
        for order in [&mut of_agent.order, all] {
            let store = Seen { since: started, generation, key: key.clone() };
            order.started(store, had_to_go, |store| usage(slots, store));
        }
        let slot = slots.get_mut(key)?;
        let limits = deployed.limits.clone();
        let (ledger, running) = (slot.ledger.clone(), deployed.running());
        let session = Arc::new(Session::new(ledger, running, limits, load.clone()));
        let (mailbox, receiver) = mpsc::channel(deployed.limits.mailbox);
        let actor = Actor {
            directory: self.clone(),
            generation,
            deployed: deployed.clone(),
            session: session.clone(),
            mailbox: receiver,
        };
        let force = self.0.shutdown.force.begun();
        let hold = Drive::start(async move {
            tokio::select! {
                biased;
                () = force => {}
                () = actor.run() => {}
            }
        });
        let drive = hold.drive().clone();
        slot.stores.push(Store {
            generation,
            session,
            load: load.clone(),
            drive: drive.clone(),
            started,
        });
        if self.0.feed.is_watched() {
            let (instance, module) = (key.clone(), running.module);
            self.0.feed.tell(None, Happening::InstanceStarted { instance, module });
        }
        let computing = self.engine().computing().clone();
        self.0.shutdown.tasks.spawn(Driven { drive: drive.clone(), computing });
        let deployed = deployed.clone();
        slot.current = Some(Current { generation, deployed, load, mailbox, drive, again: false });
        Some(hold)
    }

    /// Runs a chore of an instance beside it.
    pub(super) fn attend(
        &self,
        chore: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.0.shutdown.attend(chore, work);
    }

    /// Retires an idle instance because the pool is full. Whether any store is, or was already, on its way out.
    pub(super) fn make_room(&self) -> bool {
        let mut live = self.live();
        let stores: usize = live.slots.values().map(|slot| slot.stores.len()).sum();
        live.take_idle(self.0.now()).is_some() || stores > live.groups.all.live()
    }

    /// Wakes when a store is gone.
    pub(super) fn left(&self) -> Notified<'_> {
        self.0.left.notified()
    }

    /// Retires instances that had no call for the idle time, again and again.
    pub async fn sweep(self) {
        loop {
            let mut every = Duration::from_secs(1);
            {
                let (mut live, now) = (self.live(), self.0.now());
                let agents: Vec<_> = live
                    .groups
                    .agents
                    .iter()
                    .map(|(agent, group)| (agent.clone(), group.idle))
                    .collect();
                for (agent, idle) in agents {
                    every = every.min(idle);
                    let horizon = now.saturating_sub(idle);
                    while live.take_idle_of(&agent, horizon).is_some() {}
                }
            }
            tokio::time::sleep(every.max(Duration::from_millis(20))).await;
        }
    }

    /// Takes no more calls, and lets each instance go when its runs have ended.
    pub fn drain(&self) {
        let mut live = self.live();
        live.draining = true;
        for group in live.groups.agents.values_mut() {
            group.order.clear();
        }
        live.groups.all.clear();
        for slot in live.slots.values_mut() {
            slot.current = None;
        }
    }

    /// A store has failed: it takes no more calls.
    pub(super) fn forget(&self, key: &InstanceKey, generation: Generation) {
        let mut live = self.live();
        let Some(slot) = live.slots.get_mut(key) else { return };
        if slot.current.take_if(|current| current.generation == generation).is_some() {
            live.groups.left(key.agent());
        }
    }

    /// A store is gone, and what it wrote is durable.
    pub(super) fn gone(&self, key: &InstanceKey, generation: Generation) {
        self.forget(key, generation);
        let mut live = self.live();
        let mut module = None;
        if let Some(slot) = live.slots.get_mut(key)
            && let Some(at) = slot.stores.iter().position(|store| store.generation == generation)
        {
            module = Some(slot.stores.swap_remove(at).session.module());
        }
        live.remove_if_unused(key);
        drop(live);
        self.0.left.notify_waiters();
        if let Some(module) = module.filter(|_| self.0.feed.is_watched()) {
            self.0.feed.tell(None, Happening::InstanceEnded { instance: key.clone(), module });
        }
    }

    /// Asks a run to end, and sees to it that it does. Whether it was in flight.
    pub fn cancel(&self, run: RunId) -> bool {
        let live = self.live();
        let mut stores = live.slots.values().flat_map(|slot| &slot.stores);
        let asked = stores.find_map(|store| Some((store.session.cancel(run)?, &store.drive)));
        let asked = asked.map(|(first, drive)| (first, drive.clone()));
        drop(live);
        if let Some((true, drive)) = &asked {
            // Its watchdog has news.
            Drive::wake(drive);
        }
        asked.is_some()
    }

    /// The stores of an agent, or of all, with those on their way out.
    pub fn instances(&self, agent: Option<&AgentName>) -> Vec<LiveInstance> {
        let (live, now) = (self.live(), self.0.now());
        let slots = live.slots.iter().filter(|(key, _)| agent.is_none_or(|of| key.agent() == of));
        let stores = slots.flat_map(|(key, slot)| slot.stores.iter().map(move |of| (key, of)));
        let instances = stores.map(|(instance, store)| LiveInstance {
            instance: instance.clone(),
            module: store.session.module(),
            runs: store.load.in_flight(),
            age: now.saturating_sub(store.started),
            idle: store.load.idle_since().map(|since| now.saturating_sub(since)),
        });
        instances.collect()
    }

    /// The runs in flight, on record or not.
    pub fn runs(&self) -> Vec<LiveRun> {
        let live = self.live();
        let stores = live
            .slots
            .iter()
            .flat_map(|(key, slot)| slot.stores.iter().map(move |store| (key, &store.session)));
        let runs = stores.flat_map(|(instance, session)| {
            session.runs().into_iter().map(|run| LiveRun {
                run,
                instance: instance.clone(),
                module: session.module(),
            })
        });
        runs.collect()
    }

    /// How many calls there are, in flight or on their way.
    pub fn calls(&self) -> usize {
        self.live().groups.agents.values().map(|group| group.calls.load(Ordering::Relaxed)).sum()
    }

    /// How many stores there are, with those on their way out.
    pub fn stores(&self) -> usize {
        self.live().slots.values().map(|slot| slot.stores.len()).sum()
    }
}

/// A store, as an operator sees it.
pub struct LiveInstance {
    pub instance: InstanceKey,
    pub module: Digest,
    /// In flight or on their way.
    pub runs: usize,
    pub age: Duration,
    /// For how long it has had no runs, if it has none.
    pub idle: Option<Duration>,
}

/// A run in flight.
pub struct LiveRun {
    pub run: RunId,
    pub instance: InstanceKey,
    pub module: Digest,
}

impl Inner {
    /// A time after which no store can have been used yet.
    fn now(&self) -> Duration {
        // Stores tell the time in whole microseconds, rounded down.
        self.began.elapsed() + Duration::from_micros(1)
    }
}

impl Groups {
    /// A store of an agent is no longer current.
    fn left(&mut self, agent: &AgentName) {
        self.all.left();
        if let Some(of_agent) = self.agents.get_mut(agent) {
            of_agent.order.left();
        }
    }
}

/// How a store is used, if it is still current.
fn usage(slots: &HashMap<InstanceKey, Slot>, store: &Seen) -> Option<Usage> {
    let current = slots.get(&store.key)?.current.as_ref()?;
    (current.generation == store.generation)
        .then(|| Usage { idle_since: current.load.idle_since(), again: current.again })
}

impl Live {
    /// Takes the store that is to make room, if it was not used since `horizon`.
    fn take_idle(&mut self, horizon: Duration) -> Option<Current> {
        let Self { groups, slots, .. } = self;
        let key = groups.all.take(horizon, |store| usage(slots, store))?;
        self.take(&key)
    }

    /// Takes the store of an agent that is to make room, if it was not used since `horizon`.
    fn take_idle_of(&mut self, agent: &AgentName, horizon: Duration) -> Option<Current> {
        let Self { groups, slots, .. } = self;
        let order = &mut groups.agents.get_mut(agent)?.order;
        let key = order.take(horizon, |store| usage(slots, store))?;
        self.take(&key)
    }

    fn take(&mut self, key: &InstanceKey) -> Option<Current> {
        let current = self.slots.get_mut(key)?.current.take()?;
        self.groups.left(key.agent());
        Some(current)
    }

    fn remove_if_unused(&mut self, key: &InstanceKey) {
        if let MapEntry::Occupied(slot) = self.slots.entry(key.clone())
            && slot.get().stores.is_empty()
        {
            slot.remove();
        }
    }
}
