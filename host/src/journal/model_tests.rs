//! The journal against a model: whatever is done to it, it answers as plain vectors would.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use proptest::prelude::*;

use super::redb::RedbStore;
use super::testing::*;
use super::*;

const INSTANCES: [&str; 3] = ["a", "a0", "\u{1F600}"];

/// What is done. Numbers choose among what there is, and what makes no sense then is passed over.
#[derive(Debug, Clone)]
enum Action {
    Begin { instance: usize },
    Emit { run: usize, events: Vec<(Option<u8>, usize)> },
    End { run: usize },
    State { instance: usize, document: Option<u16> },
    Module { instance: usize, module: u8 },
    Storage { instance: usize, key: u8, value: Option<u8> },
    Read { run: usize, from: usize },
    Find { instance: usize, id: u8 },
    Restart { trim: bool },
}

fn action() -> impl Strategy<Value = Action> {
    let events = proptest::collection::vec((proptest::option::of(0..6_u8), 0..900_usize), 1..8);
    prop_oneof![
        2 => (0..3_usize).prop_map(|instance| Action::Begin { instance }),
        8 => (any::<usize>(), events).prop_map(|(run, events)| Action::Emit { run, events }),
        2 => any::<usize>().prop_map(|run| Action::End { run }),
        2 => (0..3_usize, any::<Option<u16>>())
            .prop_map(|(instance, document)| Action::State { instance, document }),
        1 => (0..3_usize, any::<u8>())
            .prop_map(|(instance, module)| Action::Module { instance, module }),
        2 => (0..3_usize, 0..4_u8, any::<Option<u8>>())
            .prop_map(|(instance, key, value)| Action::Storage { instance, key, value }),
        4 => any::<(usize, usize)>().prop_map(|(run, from)| Action::Read { run, from }),
        2 => (0..3_usize, 0..6_u8).prop_map(|(instance, id)| Action::Find { instance, id }),
        1 => any::<bool>().prop_map(|trim| Action::Restart { trim }),
    ]
}

/// A run as it must be.
struct Run {
    instance: usize,
    tail: Arc<Tail>,
    data: Vec<String>,
    state: RunState,
    trimmed: bool,
}

#[derive(Default)]
struct Model {
    runs: Vec<Run>,
    ids: BTreeMap<(usize, String), (RunId, u64)>,
    states: BTreeMap<usize, String>,
    modules: BTreeMap<usize, Digest>,
    storage: BTreeMap<(usize, String), Bytes>,
}

/// The journal under test, the model, and the way to the one through the other.
struct Pair {
    disk: Disk,
    journal: Journal,
    lanes: Vec<Arc<Lane>>,
    model: Model,
}

impl Pair {
    fn new() -> Self {
        let disk = Disk::default();
        let journal = open(&disk, options());
        let lanes = INSTANCES.map(|name| journal.lane(instance(name))).into();
        Self { disk, journal, lanes, model: Model::default() }
    }

    fn submit(&self, instance: usize, writes: Vec<Write>) {
        self.lanes[instance].submit(Turn(writes));
    }

    async fn settle(&self) {
        for lane in &self.lanes {
            lane.latest().durable().await.unwrap();
        }
    }

    async fn act(&mut self, action: Action) {
        let going = |run: &&mut Run| !run.state.is_final();
        match action {
            Action::Begin { instance: of } => {
                let tail = self.journal.tail(&instance(INSTANCES[of]), RunId::generate());
                self.submit(of, vec![start(&tail)]);
                let (data, state, trimmed) = (Vec::new(), RunState::Running, false);
                self.model.runs.push(Run { instance: of, tail, data, state, trimmed });
            }
            Action::Emit { run, events } => {
                let mut going: Vec<&mut Run> = self.model.runs.iter_mut().filter(going).collect();
                let Some(run) = pick(&mut going, run) else { return };
                let mut writes = Vec::new();
                if run.state == RunState::Interrupted {
                    writes.push(start(&run.tail));
                    run.state = RunState::Running;
                }
                for (id, size) in events {
                    let seq = run.data.len() as u64 + 1;
                    let data = format!("{seq:>size$}");
                    let id = id.map(|id| format!("id-{id}"));
                    writes.push(identified(&run.tail, seq, id.as_deref(), data.clone()));
                    run.data.push(data);
                    if let Some(id) = id {
                        let place = (run.tail.run(), seq);
                        self.model.ids.insert((run.instance, id), place);
                    }
                }
                let instance = run.instance;
                self.submit(instance, writes);
            }
            Action::End { run } => {
                let mut going: Vec<&mut Run> = self.model.runs.iter_mut().filter(going).collect();
                let Some(run) = pick(&mut going, run) else { return };
                run.state = RunState::Finished;
                let (instance, write) = (run.instance, end(&run.tail));
                self.submit(instance, vec![write]);
            }
            Action::State { instance, document } => {
                let document = document.map(|document| document.to_string());
                self.submit(instance, vec![Write::State(document.as_deref().map(Into::into))]);
                match document {
                    Some(document) => self.model.states.insert(instance, document),
                    None => self.model.states.remove(&instance),
                };
            }
            Action::Module { instance, module } => {
                let module = Digest::of(&[module]);
                self.submit(instance, vec![Write::Module(module)]);
                self.model.modules.insert(instance, module);
            }
            Action::Storage { instance, key, value } => {
                let key = format!("key {key}");
                let value = value.map(|value| Bytes::from(vec![value]));
                let write = Write::Storage { key: key.as_str().into(), value: value.clone() };
                self.submit(instance, vec![write]);
                match value {
                    Some(value) => self.model.storage.insert((instance, key), value),
                    None => self.model.storage.remove(&(instance, key)),
                };
            }
            Action::Read { run, from } => {
                self.settle().await;
                if let Some(run) = pick(&mut self.model.runs.iter().collect::<Vec<_>>(), run) {
                    let from = from % (run.data.len() + 2);
                    self.read(run, from).await;
                }
            }
            Action::Find { instance: of, id } => {
                self.settle().await;
                let id = format!("id-{id}");
                let located = self.journal.locate(&instance(INSTANCES[of]), &id).await;
                let found = match located.unwrap() {
                    Located::At(reader) => Some((reader.tail().run(), Some(reader.cursor().0))),
                    Located::CaughtUp(run) => Some((run, None)),
                    Located::Not(why) => {
                        assert_eq!(why, NotResumable::Unknown);
                        None
                    }
                };
                let expected = self.model.ids.get(&(of, id)).map(|(id, seq)| {
                    let run = self.model.runs.iter().find(|run| run.tail.run() == *id).unwrap();
                    let over = run.state.is_final() && run.data.len() as u64 == *seq;
                    (*id, (!over).then_some(*seq))
                });
                assert_eq!(found, expected);
            }
            Action::Restart { trim } => self.restart(trim).await,
        }
    }

    /// Reads a run from a cursor to where it stands, from the store and from its tail.
    async fn read(&self, run: &Run, from: usize) {
        let (id, last) = (run.tail.run(), run.data.len());
        let key = instance(INSTANCES[run.instance]);
        let record = self.journal.run(id).unwrap();
        assert_eq!(record.is_none(), run.trimmed);
        if let Some(record) = record {
            assert_eq!((record.state, record.last.0), (run.state, last as u64));
        }
        let mut reader = match self.journal.locate(&key, &format!("{id}-{from}")).await.unwrap() {
            Located::Not(why) => {
                let expected =
                    if run.trimmed { NotResumable::Expired } else { NotResumable::Future };
                assert!(why == expected && (run.trimmed || from > last));
                return;
            }
            Located::CaughtUp(of) => {
                assert!(of == id && from == last && run.state.is_final());
                return;
            }
            Located::At(reader) => reader,
        };
        assert!(!run.trimmed && from <= last);
        let mut read = Vec::new();
        while from + read.len() < last {
            match reader.next().await {
                Step::Events(page) => read.extend(page.iter().map(|event| event.data.to_string())),
                step => panic!("{step:?} with {} of {last} read", from + read.len()),
            }
        }
        assert_eq!(read, run.data[from..]);
        if run.state.is_final() {
            assert!(matches!(reader.next().await, Step::End(_)));
        }
    }

    /// All runs, page by page.
    fn check_list(&self) {
        let (mut listed, mut before) = (Vec::new(), None);
        loop {
            let page = self.journal.runs(before, 3, &|_| true).unwrap();
            let brief = |of: RunRecord| (of.run, of.instance, of.state, of.last.0);
            listed.extend(page.records.into_iter().map(brief));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        let kept = self.model.runs.iter().filter(|run| !run.trimmed);
        let mut kept: Vec<_> = kept
            .map(|run| {
                let instance = instance(INSTANCES[run.instance]);
                (run.tail.run(), instance, run.state, run.data.len() as u64)
            })
            .collect();
        kept.sort_by_key(|(run, ..)| std::cmp::Reverse(*run));
        assert_eq!(listed, kept);
    }

    /// Closes and opens the journal, and lets retention take all ended runs in between if so told.
    async fn restart(&mut self, trim: bool) {
        self.journal.close().await;
        if trim {
            let options = within(JournalLimits { retain_bytes: 0, ..limits() });
            let (store, _) = RedbStore::open(self.disk.backend(), &options).unwrap();
            tend(&store, SystemTime::now());
            store.close();
            let Model { runs, ids, .. } = &mut self.model;
            for run in runs.iter_mut().filter(|run| run.state.is_final()) {
                run.trimmed = true;
                ids.retain(|_, (of, _)| *of != run.tail.run());
            }
        }
        assert_consistent(&self.disk);
        let (journal, unfinished) = Journal::open_on(self.disk.backend(), options()).unwrap();
        self.lanes = INSTANCES.map(|name| journal.lane(instance(name))).into();
        self.journal = journal;
        let mut tails: BTreeMap<RunId, Arc<Tail>> =
            unfinished.into_iter().map(|run| (run.record.run, run.tail)).collect();
        for run in self.model.runs.iter_mut().filter(|run| !run.state.is_final()) {
            run.state = RunState::Interrupted;
            run.tail = tails.remove(&run.tail.run()).unwrap();
        }
        assert!(tails.is_empty());
    }

    /// Everything, from every run's start, and all of state and storage.
    async fn check(&self) {
        self.settle().await;
        for run in &self.model.runs {
            self.read(run, 0).await;
        }
        self.check_list();
        for (of, name) in INSTANCES.into_iter().enumerate() {
            let state = self.journal.state(&instance(name)).unwrap();
            assert_eq!(state.as_deref(), self.model.states.get(&of).map(String::as_str));
            let module = self.journal.module(&instance(name)).unwrap();
            assert_eq!(module, self.model.modules.get(&of).copied());
            let listed = self.journal.list(&instance(name), "key", None, 99, 9999);
            let listed = listed.unwrap().into_iter().map(|(key, value)| (key.into(), value));
            let stored = self.model.storage.iter().filter(|((instance, _), _)| *instance == of);
            assert!(listed.eq(stored.map(|((_, key), value)| (key.clone(), value.clone()))));
        }
    }
}

fn pick<T>(among: &mut [T], number: usize) -> Option<&mut T> {
    let count = among.len();
    among.get_mut(number.checked_rem(count)?)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn the_journal_answers_as_its_model(actions in proptest::collection::vec(action(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut pair = Pair::new();
            for action in actions {
                pair.act(action).await;
            }
            pair.check().await;
            pair.restart(false).await;
            pair.check().await;
            pair.restart(true).await;
            pair.check().await;
        });
    }
}
