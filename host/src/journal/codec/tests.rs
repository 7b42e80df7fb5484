use proptest::prelude::*;

use super::super::testing::*;
use super::super::{Submitted, Turn};
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
            let bytes = encode_segment(events, total);
            prop_assert!(bytes.len() < 32 << 10 || events.len() == 1);
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
    fn batches_round_trip(
        at_ms in any::<u64>(),
        turns in proptest::collection::vec(
            (
                0..3_usize,
                proptest::collection::vec((0..10_u8, 0..3_usize, 1..5_u64, text(), ".{0,40}"), 0..9),
            ),
            0..9,
        ),
        cut in 0.0..1.0_f64,
        flip in any::<u8>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let journal = open(&Disk::default(), options());
        let lanes = ["a", "b", "\u{1F600}"].map(|name| journal.lane(instance(name)));
        let tails = [(); 3].map(|()| journal.tail(&instance("a"), RunId::generate()));
        let (mut submitted, mut all) = (Vec::new(), Vec::new());
        for (lane, said) in turns {
            let lane = &lanes[lane];
            let write = |(what, run, seq, optional, text): (_, usize, _, Option<String>, String)| {
                let tail = Arc::clone(&tails[run]);
                match what {
                    0 => Write::Start {
                        tail,
                        module: Digest::of(text.as_bytes()),
                        request: optional.map(Bytes::from),
                    },
                    1 | 2 => {
                        let event = Event::new(Seq(seq), optional.clone(), optional, text);
                        Write::Event { tail, event: Arc::new(event) }
                    }
                    3 => Write::End {
                        tail,
                        outcome: Outcome { state: RunState::Failed, code: optional },
                    },
                    4 => Write::State(optional.map(Into::into)),
                    5 => Write::Module(Digest::of(text.as_bytes())),
                    6 => {
                        let fingerprint = Digest::of(text.as_bytes());
                        Write::Key { tail, key: text.into(), fingerprint }
                    }
                    7 => Write::Reply { tail, reply: text.into() },
                    _ => Write::Storage { key: text.into(), value: optional.map(Bytes::from) },
                }
            };
            let turn = Turn(said.into_iter().map(write).collect());
            let ops = turn.0.iter().map(|write| (at_ms, lane.instance().clone(), Op::from(write)));
            all.extend(ops);
            submitted.push(Submitted { lane: Arc::clone(lane), number: 1, turn });
        }
        let decoded = |bytes: &[u8]| {
            let mut decoded = Vec::new();
            decode_batch(bytes, |at_ms, of, op| decoded.push((at_ms, of.clone(), op)))?;
            Ok::<_, Damaged>(decoded)
        };
        let mut bytes = Vec::new();
        encode_batch(&mut bytes, &submitted, at_ms);
        prop_assert_eq!(decoded(&bytes).unwrap(), all);

        let at = (cut * bytes.len() as f64) as usize;
        let _ = decoded(&bytes[..at]);
        prop_assert!(decoded(&[&[bytes[0] + 1], &bytes[1..]].concat()).is_err());
        bytes[at] ^= flip;
        let _ = decoded(&bytes);
    }

    #[test]
    fn deployments_round_trip(
        (generation, at_ms) in any::<(u64, u64)>(),
        module in text(),
        source in ".{0,40}",
        flip in any::<u8>(),
        cut in 0.0..1.0_f64,
    ) {
        let agent: AgentName = "test".parse().unwrap();
        let module = module.map(|module| Digest::of(module.as_bytes()));
        let record = DeploymentRecord { agent, generation, module, at_ms, source };
        let mut bytes = encode_deployment(&record);
        let decoded = |bytes: &[u8]| decode_deployment(record.agent.clone(), generation, bytes);
        prop_assert_eq!(&decoded(&bytes).unwrap(), &record);
        let at = (cut * bytes.len() as f64) as usize;
        prop_assert!(decoded(&bytes[..at]).is_err());
        prop_assert!(decoded(&[&[bytes[0] + 1], &bytes[1..]].concat()).is_err());
        bytes[at] ^= flip;
        let _ = decoded(&bytes);
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
