//! That the keys of the tables are in the order in which they are read.

use std::collections::BTreeSet;

use super::*;

/// Lets the tables of a new journal be written to, and then takes it all back.
fn with_tables(body: impl FnOnce(&mut Tables<'_>)) {
    let (store, _) = RedbStore::open(Disk::default().backend(), &options()).unwrap();
    let written = store.with(|opened| {
        let transaction = opened.database.begin_write()?;
        body(&mut Tables::new(&transaction));
        Ok(transaction.abort()?)
    });
    written.unwrap();
}

type Name = (String, String, String);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn keys_are_in_the_order_of_what_they_stand_for(
        events: BTreeSet<(u128, u64)>,
        names: BTreeSet<Name>,
    ) {
        with_tables(|tables| {
            let table = tables.events.open().unwrap();
            // From the far end, so that the order cannot be that of coming.
            for key in events.iter().rev() {
                table.insert(*key, &[][..]).unwrap();
            }
            let sorted = table.iter().unwrap().map(|row| row.unwrap().0.value());
            assert!(sorted.eq(events));
            let table = tables.storage.open().unwrap();
            for (agent, instance, key) in names.iter().rev() {
                table.insert((&**agent, &**instance, &**key), &[][..]).unwrap();
            }
            let sorted = table.iter().unwrap().map(|row| {
                let key = row.unwrap().0;
                let (agent, instance, key) = key.value();
                (agent.to_owned(), instance.to_owned(), key.to_owned())
            });
            assert!(sorted.eq(names));
        });
    }
}

#[test]
fn keys_sort_as_what_they_stand_for() {
    with_tables(|tables| {
        let mut keys = Vec::new();
        for run in [0, 1, 255, 256, 1 << 64, u128::MAX] {
            for seq in [1, 2, 255, 256, 1 << 32, u64::MAX] {
                keys.push((run, seq));
                tables.events.open().unwrap().insert((run, seq), &[][..]).unwrap();
                tables.ended.open().unwrap().insert((seq, run), 0).unwrap();
            }
        }
        let sorted = tables.events.open().unwrap().iter().unwrap();
        let sorted: Vec<_> = sorted.map(|row| row.unwrap().0.value()).collect();
        assert_eq!(sorted, keys);
        keys.sort_by_key(|(run, seq)| (*seq, *run));
        let sorted = tables.ended.open().unwrap().iter().unwrap();
        let sorted: Vec<_> = sorted.map(|row| row.unwrap().0.value()).collect();
        let swapped = sorted.into_iter().map(|(seq, run)| (run, seq));
        assert!(swapped.eq(keys));
    });
}
