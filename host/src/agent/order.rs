//! Which idle store makes room for another one.
//!
//! **Problem.** A few thousand live stores stand for all instances. Names that are used once, by the thousand, must not push out
//! those in use. And a store is made in the memory of the one that goes: that of the one idle for longest has long left the processor's
//! caches, and a start there costs a quarter more than where one has just been.
//!
//! **Mechanism.** 2Q, of Johnson and Shasha (VLDB 1994). A store for which another one had to go is a *newcomer* until it is called
//! again; all others are *regulars*. Where room is needed and there are [`NEWCOMERS`], the one of them that is idle for longest goes,
//! and otherwise the one of all. So a store that found room stays for as long as an idle one may, and those that find none
//! share a few places. A newcomer that went is remembered for a while, by its name only: if it is called then, it is a regular at
//! once. Both kinds stand in the order in which they were last *seen* to be used: being used moves nothing, and one that comes to
//! the front is put where it belongs.
//!
//! **Limits.** Which stores there are and how they are used is the caller's to know. One that is gone may stand in the order until it comes to the
//! front, but as many as that are no more than those that are there, and a few. Half as many names are remembered as there are stores.
//!
//! **Cost.** The logarithm of the live ones for each that goes, and as much again for each that was used
//! since it was last seen. When all are busy, a look at each. A name that is remembered takes some 20 bytes.

use std::cmp::Reverse;
use std::collections::binary_heap::{BinaryHeap, PeekMut};
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use crate::id::InstanceKey;

/// Few enough that a processor's own caches have room for most of what they leave.
const NEWCOMERS: usize = 16;

/// Which start of a store, counted over the host's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Generation(pub(super) u64);

/// A store, and since when it had not been used when it was last looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    pub(super) since: Duration,
    pub(super) generation: Generation,
    pub(super) key: InstanceKey,
}

/// How a store is used that is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Since when it has no calls, if it has none.
    pub(super) idle_since: Option<Duration>,
    /// Whether it was called after the call that it was started for.
    pub(super) again: bool,
}

/// The stores of the host, or of one agent, in the order in which they make room.
#[derive(Debug, Default)]
pub(super) struct Order {
    live: usize,
    newcomers: Line,
    regulars: Line,
    remembered: Names,
}

/// Those first that were idle for longest when they were last seen.
type Line = BinaryHeap<Reverse<Seen>>;

impl Order {
    /// How many stores there are.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// A store is starting, and another one had to go for it or not. `usage` knows those that are there.
    pub(super) fn started(
        &mut self,
        store: Seen,
        had_to_go: bool,
        usage: impl Fn(&Seen) -> Option<Usage>,
    ) {
        self.live += 1;
        let is_newcomer = had_to_go && !self.remembered.take(&store.key);
        let line = if is_newcomer { &mut self.newcomers } else { &mut self.regulars };
        if line.len() > 2 * self.live + NEWCOMERS {
            line.retain(|store| usage(&store.0).is_some());
        }
        // Not before: it is not there yet.
        line.push(Reverse(store));
    }

    /// Takes the store that is to go next out of the order, of those that are idle since before `horizon`. It still counts as live.
    pub(super) fn take(
        &mut self,
        horizon: Duration,
        usage: impl Fn(&Seen) -> Option<Usage>,
    ) -> Option<InstanceKey> {
        let Self { newcomers, regulars, .. } = self;
        let newcomer = longest_idle(newcomers, horizon, |store| {
            let of = usage(store)?;
            if of.again {
                regulars.push(Reverse(store.clone()));
            }
            (!of.again).then_some(of.idle_since)
        });
        let crowded = newcomer.is_some() && newcomers.len() >= NEWCOMERS;
        let regular = (!crowded)
            .then(|| longest_idle(regulars, horizon, |store| Some(usage(store)?.idle_since)))
            .flatten();
        let oldest_is_regular = match (newcomer, regular) {
            (None, None) => return None,
            (Some(newcomer), Some(regular)) => regular < newcomer,
            (_, regular) => regular.is_some(),
        };
        let line = if oldest_is_regular { regulars } else { newcomers };
        let Reverse(Seen { key, .. }) = line.pop()?;
        if !oldest_is_regular {
            self.remembered.add(&key, self.live / 2);
        }
        Some(key)
    }

    /// A store is there no longer.
    pub(super) fn left(&mut self) {
        self.live -= 1;
    }

    /// None is there any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The names of those that went last, each as a hash that nobody outside can foresee.
#[derive(Debug, Default)]
struct Names {
    hasher: RandomState,
    known: HashSet<u64>,
    /// Those that are known and some that were, the oldest first.
    order: VecDeque<u64>,
}

impl Names {
    /// Knows this name, and of those before it the last ones, so many with it.
    fn add(&mut self, key: &InstanceKey, most: usize) {
        let name = self.hasher.hash_one(key);
        self.known.insert(name);
        self.order.push_back(name);
        while self.order.len() > most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// Whether it is known. It no longer is.
    fn take(&mut self, key: &InstanceKey) -> bool {
        self.known.remove(&self.hasher.hash_one(key))
    }
}

/// Brings the store to the front that is idle for longest, and says since when, if that is before `horizon`. `idle_since` is
/// `None` for one that has no place in this line.
fn longest_idle(
    line: &mut Line,
    horizon: Duration,
    mut idle_since: impl FnMut(&Seen) -> Option<Option<Duration>>,
) -> Option<Duration> {
    while let Some(mut first) = line.peek_mut().filter(|first| first.0.since < horizon) {
        match idle_since(&first.0) {
            None => {
                PeekMut::pop(first);
            }
            Some(Some(used)) if used == first.0.since => return Some(used),
            Some(Some(used)) => first.0.since = used,
            // Behind all that are idle.
            Some(None) => first.0.since = horizon,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::id::AgentName;

    /// Stores that start and are used at different times, where there is room for so many.
    struct Stores {
        room: usize,
        clock: Duration,
        generations: u64,
        live: HashMap<InstanceKey, (Generation, Usage)>,
        order: Order,
    }

    fn key(name: &str) -> InstanceKey {
        let agent: AgentName = "agent".parse().unwrap();
        InstanceKey::new(agent, name).unwrap()
    }

    impl Stores {
        fn with_room_for(room: usize) -> Self {
            let (clock, generations) = (Duration::ZERO, 0);
            Self { room, clock, generations, live: HashMap::new(), order: Order::default() }
        }

        fn time(&mut self) -> Duration {
            self.clock += Duration::from_micros(1);
            self.clock
        }

        fn usage(
            live: &HashMap<InstanceKey, (Generation, Usage)>,
        ) -> impl Fn(&Seen) -> Option<Usage> {
            |seen| live.get(&seen.key).filter(|of| of.0 == seen.generation).map(|of| of.1)
        }

        /// Starts it with its first call, or calls it again, after which it is idle. Who had to make room.
        fn call(&mut self, name: &str) -> Option<String> {
            let made_room = self.begin(name);
            self.end(name);
            made_room
        }

        fn begin(&mut self, name: &str) -> Option<String> {
            if let Some((_, usage)) = self.live.get_mut(&key(name)) {
                *usage = Usage { idle_since: None, again: true };
                return None;
            }
            let gone = (self.order.live() >= self.room).then(|| self.take().expect("one is idle"));
            let had_to_go = gone.is_some();
            let since = self.time();
            self.generations += 1;
            let generation = Generation(self.generations);
            let store = Seen { since, generation, key: key(name) };
            self.order.started(store, had_to_go, Self::usage(&self.live));
            let usage = Usage { idle_since: None, again: false };
            self.live.insert(key(name), (generation, usage));
            gone
        }

        fn end(&mut self, name: &str) {
            let now = self.time();
            self.live.get_mut(&key(name)).unwrap().1.idle_since = Some(now);
        }

        fn take(&mut self) -> Option<String> {
            let horizon = self.time();
            self.take_before(horizon)
        }

        fn take_before(&mut self, horizon: Duration) -> Option<String> {
            let key = self.order.take(horizon, Self::usage(&self.live))?;
            self.fail(key.name());
            Some(key.name().to_owned())
        }

        fn fail(&mut self, name: &str) {
            assert!(self.live.remove(&key(name)).is_some(), "{name} was there");
            self.order.left();
        }

        fn has(&self, name: &str) -> bool {
            self.live.contains_key(&key(name))
        }
    }

    #[test]
    fn those_that_found_room_stay_and_names_beyond_it_share_what_the_last_ones_have() {
        let mut stores = Stores::with_room_for(100);
        for n in 0..100 {
            assert_eq!(stores.call(&format!("early-{n}")), None);
        }
        for n in 0..1000 {
            let gone = stores.call(&format!("late-{n}")).unwrap();
            let expected = match n {
                ..NEWCOMERS => format!("early-{n}"),
                _ => format!("late-{}", n - NEWCOMERS),
            };
            assert_eq!(gone, expected);
        }
        assert!((NEWCOMERS..100).all(|n| stores.has(&format!("early-{n}"))));
    }

    #[test]
    fn one_that_went_and_is_called_soon_is_a_regular_at_once() {
        let mut stores = Stores::with_room_for(100);
        for n in 0..100 {
            stores.call(&format!("early-{n}"));
        }
        let others = |stores: &mut Stores, round: &str, count| {
            for n in 0..count {
                stores.call(&format!("{round}-{n}"));
            }
        };
        stores.call("soon");
        stores.call("late");
        others(&mut stores, "others", NEWCOMERS + 1);
        assert!(!stores.has("soon") && !stores.has("late"));
        stores.call("soon");
        others(&mut stores, "more", 1000);
        assert!(stores.has("soon"));
        // It was one of a thousand, and half as many are remembered as there are stores.
        stores.call("late");
        others(&mut stores, "last", NEWCOMERS);
        assert!(!stores.has("late"));
    }

    #[test]
    fn one_that_is_called_again_is_a_regular_for_which_the_regular_idle_for_longest_goes() {
        let mut stores = Stores::with_room_for(100);
        for n in 0..100 {
            stores.call(&format!("early-{n}"));
        }
        stores.call("early-0");
        assert_eq!(stores.call("late").as_deref(), Some("early-1"));
        assert_eq!(stores.call("late"), None);
        // Its place among the newcomers is free once it is seen that it left it.
        for n in 0..NEWCOMERS {
            assert_eq!(stores.call(&format!("later-{n}")), Some(format!("early-{}", 2 + n)));
        }
        assert_eq!(stores.call("last").as_deref(), Some("later-0"));
        assert!(stores.has("late") && stores.has("early-0"));
    }

    #[test]
    fn where_few_are_new_the_one_idle_for_longest_goes() {
        let mut stores = Stores::with_room_for(3);
        for name in ["a", "b", "c", "b", "a"] {
            assert_eq!(stores.call(name), None);
        }
        assert_eq!(stores.call("d").as_deref(), Some("c"));
        assert_eq!(stores.call("e").as_deref(), Some("b"));
        assert_eq!(stores.call("d"), None);
        assert_eq!(stores.call("f").as_deref(), Some("a"));
        assert_eq!(stores.call("g").as_deref(), Some("e"));
    }

    #[test]
    fn one_at_work_never_goes_and_one_whose_work_has_ended_is_the_last_to() {
        let mut stores = Stores::with_room_for(3);
        for name in ["a", "b", "c"] {
            stores.begin(name);
        }
        assert_eq!(stores.take(), None);
        stores.end("b");
        stores.end("a");
        assert_eq!(stores.take().as_deref(), Some("b"));
        stores.begin("a");
        assert_eq!(stores.take(), None);
    }

    #[test]
    fn those_used_since_the_horizon_stay() {
        let mut stores = Stores::with_room_for(200);
        for n in 0..100 {
            stores.call(&n.to_string());
        }
        let horizon = stores.time();
        for n in 0..100 {
            stores.call(&(2 * n).to_string());
        }
        let gone: Vec<_> = std::iter::from_fn(|| stores.take_before(horizon)).collect();
        assert_eq!(gone.len(), 50);
        assert!((0..100).all(|n| stores.has(&(2 * n).to_string())));
    }

    #[test]
    fn what_failed_does_not_stay_in_the_order() {
        let mut stores = Stores::with_room_for(200);
        for n in 0..170 {
            stores.call(&n.to_string());
        }
        for n in 170..2000 {
            // Regulars and newcomers fail, and none that is in front of its line.
            stores.call(&n.to_string());
            stores.fail(&(n - [10, 100][n % 2]).to_string());
            let lines = [&stores.order.newcomers, &stores.order.regulars];
            assert!(lines.iter().all(|line| line.len() <= 2 * 171 + NEWCOMERS + 1));
            let started = key(&n.to_string());
            assert!(lines.into_iter().flatten().any(|store| store.0.key == started));
        }
    }
}
