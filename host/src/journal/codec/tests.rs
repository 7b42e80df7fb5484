use proptest::prelude::*;

use super::super::testing::*;
use super::*;

fn text() -> impl Strategy<Value = Option<String>> {
    proptest::option::of(".{0,40}")
}

proptest! {
    #[test]
    fn segments_round_trip(
        first in 1..1_000_000_u64,
        texts in proptest::collection::vec((text(), text(), ".{0,40}", 0..20_000_usize), 1..20),
        before in 0..1_000_000_u64,
        cut in 0.0..1.0_f64,
        flip in any::<u8>(),
    ) {
        let events: Vec<Event> = (first..)
            .zip(texts)
            .map(|(seq, (name, id, data, size))| {
                Event::new(Seq(seq), name, id, data + &"x".repeat(size))
            })
            .collect();
        let events: Vec<&Event> = events.iter().collect();
        let mut decoded = Vec::new();
        let mut total = before;
        for events in split(&events) {
            let size: usize = events.iter().map(|event| event.size()).sum();
            prop_assert!(size <= 64 << 10 || events.len() == 1);
            let bytes = encode_segment(events, total);
            total += bytes.len() as u64;
            let last = events.last().unwrap().seq;
            let segment = Segment::open(last, &bytes).unwrap();
            prop_assert_eq!(segment.total(), total);
            decoded.extend(segment.map(|stored| stored.unwrap().to_event()));

            let at = (cut * bytes.len() as f64) as usize;
            let whole = |bytes: &[u8]| Segment::open(last, bytes)?.try_for_each(|event| event.map(|_| ()));
            prop_assert!(whole(&bytes[..at]).is_err());
            let newer = [&[bytes[0] + 1], &bytes[1..]].concat();
            prop_assert!(whole(&newer).is_err());
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            let _ = whole(&changed);
        }
        prop_assert!(decoded.iter().map(|event| &**event).eq(events));
    }

    #[test]
    fn rows_of_the_log_round_trip(
        sections in proptest::collection::vec(
            (any::<u128>(), 1..1_000_000_u64, proptest::collection::vec((0..3_u64, text(), ".{0,40}"), 1..9)),
            1..9,
        ),
        cut in 0.0..1.0_f64,
        flip in any::<u8>(),
    ) {
        let mut row = Vec::new();
        let mut all = Vec::new();
        for (run, mut seq, texts) in sections {
            let mut events = Vec::new();
            for (gap, id, data) in texts {
                seq += 1 + gap;
                events.push(Arc::new(Event::new(Seq(seq), None, id, data)));
            }
            let run = RunId::from_u128(run);
            encode_sections(&mut row, run, &events);
            all.extend(events.into_iter().map(|event| (run, event)));
        }
        prop_assert_eq!(decode_row(&row).unwrap(), all);

        let at = (cut * row.len() as f64) as usize;
        let _ = decode_row(&row[..at]);
        prop_assert!(decode_row(&row[..row.len() - 1]).is_err());
        prop_assert!(decode_row(&[&[row[0] + 1], &row[1..]].concat()).is_err());
        row[at] ^= flip;
        let _ = decode_row(&row);
    }

    #[test]
    fn run_records_round_trip(
        name in "[^\\p{C}]{1,40}",
        state in 0..5_usize,
        code in text(),
        started_ms in any::<u64>(),
        ended_ms in proptest::option::of(any::<u64>()),
        (last, interruptions, interrupted_at) in any::<(u64, u32, u64)>(),
    ) {
        let states = [
            RunState::Running,
            RunState::Finished,
            RunState::Failed,
            RunState::Interrupted,
            RunState::Cancelled,
        ];
        let record = RunRecord {
            run: RunId::generate(),
            instance: instance(&name),
            module: Digest::of(name.as_bytes()),
            state: states[state],
            code,
            started_ms,
            ended_ms,
            last: Seq(last),
            interruptions,
            interrupted_at: Seq(interrupted_at),
        };
        let bytes = encode_run(&record);
        prop_assert!(decode_run(record.run, &bytes[..bytes.len() - 1]).is_err());
        prop_assert!(decode_run(record.run, &[&[bytes[0] + 1], &bytes[1..]].concat()).is_err());
        prop_assert_eq!(decode_run(record.run, &bytes).unwrap(), record);
    }
}
