//! Lists of runs, merged from what the log has and what the tables have.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;

#[tokio::test]
async fn a_page_of_runs_looks_at_no_more_than_its_bound() {
    let bench = Bench::new(options());
    let tail = |number| bench.journal.tail(&instance("a"), RunId::from_u128(number));
    let bound = RUNS_LOOKED_AT as u128;
    bench.commit((1..=bound + 1).map(|number| start(&tail(number))).collect());
    for settled in [false, true] {
        if settled {
            bench.tend();
        }
        let looked_at = Cell::new(0);
        let none = |_: &InstanceKey| {
            looked_at.set(looked_at.get() + 1);
            false
        };
        let page = |before: u128, limit| {
            bench.store.runs(Some(RunId::from_u128(before)), limit, &none).unwrap()
        };
        let next = |number| RunPage { records: Vec::new(), next: number };
        assert_eq!(page(bound + 2, 9), next(Some(RunId::from_u128(2))));
        assert_eq!(looked_at.take(), RUNS_LOOKED_AT);
        assert_eq!(page(2, 9), next(None));
        assert_eq!(page(bound + 1, 9), next(None), "there is none below the last one looked at");
        assert_eq!(page(1, 9), next(None));
        assert_eq!(page(9, 0), next(Some(RunId::from_u128(9))));
    }
}

/// A page of a plain list of runs, the newest first.
fn page_of<'r>(
    runs: impl Iterator<Item = (RunId, &'r Listed)>,
    limit: usize,
    of: [bool; 3],
) -> (Vec<RunId>, Option<RunId>) {
    let (mut page, mut last) = (Vec::new(), None);
    for (looked_at, (run, listed)) in runs.enumerate() {
        if page.len() == limit || looked_at == RUNS_LOOKED_AT {
            return (page, last);
        }
        last = Some(run);
        page.extend(of[listed.instance].then_some(run));
    }
    (page, None)
}

/// A run as the list must have it.
struct Listed {
    instance: usize,
    last: u64,
    over: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn runs_are_listed_as_from_a_plain_list(
        commits in proptest::collection::vec(
            (proptest::collection::vec((0..60_u128, 0..3_usize, 0..4_u64), 1..12), 0..6_u8),
            1..30,
        ),
        limit in 1..12_usize,
        of in any::<[bool; 3]>(),
        below in proptest::option::of(0..70_u128),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let mut bench = Bench::new(options());
        let instances = ["a", "b", "c"].map(instance);
        let mut runs: BTreeMap<RunId, Listed> = BTreeMap::new();
        for (said, fate) in commits {
            let mut turns = Vec::new();
            for (run, at, events) in said {
                let run = RunId::from_u128(run);
                let mut writes = Vec::new();
                let known = runs.contains_key(&run);
                let listed = runs.entry(run).or_insert(Listed { instance: at, last: 0, over: false });
                if listed.over {
                    continue;
                }
                let tail = bench.journal.tail(&instances[listed.instance], run);
                if !known {
                    writes.push(start(&tail));
                }
                writes.extend((1..=events).map(|seq| event(&tail, listed.last + seq, "x")));
                listed.last += events;
                if known && events == 0 {
                    writes.push(end(&tail));
                    listed.over = true;
                }
                let lane = bench.journal.lane(instances[listed.instance].clone());
                turns.push(Submitted { lane, number: 1, turn: Turn(writes) });
            }
            bench.store.commit(&turns, SystemTime::now()).unwrap();
            match fate {
                0 | 1 => bench.rest(),
                2 => drop(bench.tend()),
                3 => bench.crash(),
                _ => {}
            }
            for (at, instance) in instances.iter().enumerate() {
                let mut before = below.map(RunId::from_u128);
                let mut listed = Vec::new();
                loop {
                    let page = bench.store.runs_of(instance, before, limit).unwrap();
                    prop_assert!(page.records.len() <= limit);
                    for record in page.records {
                        listed.push(record.run);
                        prop_assert_eq!(bench.store.run(record.run).unwrap(), Some(record));
                    }
                    before = page.next;
                    if before.is_none() {
                        break;
                    }
                }
                let below = below.map_or(u128::MAX, |below| below);
                let all = runs.iter().rev().filter(|(run, _)| run.as_u128() < below);
                let of_instance = all.filter(|(_, listed)| listed.instance == at);
                prop_assert!(of_instance.map(|(run, _)| *run).eq(listed));
            }
            let mut before = below.map(RunId::from_u128);
            loop {
                let matches = |key: &InstanceKey| {
                    of[instances.iter().position(|instance| instance == key).unwrap()]
                };
                let page = bench.store.runs(before, limit, &matches).unwrap();
                let all = runs.iter().rev().map(|(run, listed)| (*run, listed));
                let expected = all.filter(|(run, _)| before.is_none_or(|before| *run < before));
                let expected = page_of(expected, limit, of);
                let ids: Vec<RunId> = page.records.iter().map(|record| record.run).collect();
                prop_assert_eq!((ids, page.next), expected);
                for record in page.records {
                    let listed = &runs[&record.run];
                    prop_assert_eq!(record.last, Seq(listed.last));
                    prop_assert_eq!(record.state.is_final(), listed.over);
                    prop_assert_eq!(&record.instance, &instances[listed.instance]);
                    prop_assert_eq!(bench.store.run(record.run).unwrap(), Some(record));
                }
                before = page.next;
                if before.is_none() {
                    break;
                }
            }
        }
    }
}
