//! What is fuzzed of the rows.

use super::*;

/// Any bytes are a row or an error, and what is read as a row is written as one that is read as the same. The first byte says
/// of what kind the others are.
pub(crate) fn row(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    let _: Result<(), Damaged> = match kind % 4 {
        0 => segment(bytes),
        1 => run(bytes),
        2 => deployment(bytes),
        _ => decode_batch(bytes, |_, _, _| ()),
    };
}

/// The number of the last event, which is in the row's key, and the row.
fn segment(bytes: &[u8]) -> Result<(), Damaged> {
    let (last, row) = bytes.split_first_chunk().ok_or(Damaged)?;
    let last = Seq(u64::from_le_bytes(*last));
    let events = |row| {
        Segment::open(last, row)?
            .map(|stored| Ok(stored?.to_event()))
            .collect::<Result<Vec<_>, _>>()
    };
    let read = events(row)?;
    let written = encode_segment(&read, 0);
    assert_eq!(events(&written)?, read);
    Ok(())
}

fn run(row: &[u8]) -> Result<(), Damaged> {
    let run = RunId::from_u128(7);
    let read = decode_run(run, row)?;
    assert_eq!(decode_run(run, &encode_run(&read))?, read);
    Ok(())
}

fn deployment(row: &[u8]) -> Result<(), Damaged> {
    let agent: AgentName = "agent".parse().map_err(|_| Damaged)?;
    let read = decode_deployment(agent.clone(), 1, row)?;
    assert_eq!(decode_deployment(agent, 1, &encode_deployment(&read))?, read);
    Ok(())
}
