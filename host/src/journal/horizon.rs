//! What time it is for retention when the clock jumps.
//!
//! **Problem.** A clock that is set forward by mistake makes every run older than what is kept, and what retention has deleted stays
//! deleted when the clock is right again.
//!
//! **Mechanism.** The system's clock is held against one that never jumps. When it is further ahead than before, retention goes on by the
//! time that it would be without the jump, until the clock has stayed there for as long as it takes someone to put it right. A clock that
//! is set back is believed at once: then more is kept.
//!
//! **Limits.** The first time that is seen is believed. After a machine was asleep retention is late by the hold. Runs that end while the
//! clock is behind count as the older ones when [`retain_bytes`](crate::config::JournalLimits::retain_bytes) is full.
//!
//! **Cost.** A subtraction.

use std::time::{Duration, SystemTime};

/// How far the clock may go ahead from one look to the next: it is adjusted all the time, by little.
const TOLERANCE: i128 = 60_000;

/// How long a clock that has jumped must stay there, unless runs are kept for less.
const HOLD: Duration = Duration::from_secs(60 * 60);

/// The time of retention.
#[derive(Debug)]
pub(super) struct Horizon {
    hold: Duration,
    /// The distance of the system's clock, as it is believed, from the one that never jumps, in milliseconds.
    believed: Option<i128>,
    /// Since when the system's clock has been further ahead.
    ahead: Option<Duration>,
}

impl Horizon {
    /// The time of a retention that keeps runs for this long.
    pub(super) fn new(age: Duration) -> Self {
        Self { hold: HOLD.min(age), believed: None, ahead: None }
    }

    /// The time by which runs are too old. `clock` is what the system's clock says, `elapsed` what the other one does.
    pub(super) fn look(&mut self, clock: SystemTime, elapsed: Duration) -> SystemTime {
        let since = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let distance = signed(since) - signed(elapsed);
        let believed = *self.believed.get_or_insert(distance);
        if distance > believed + TOLERANCE {
            let since = *self.ahead.get_or_insert_with(|| {
                let jump = Duration::from_millis((distance - believed).unsigned_abs() as u64);
                tracing::warn!(
                    jump_seconds = jump.as_secs(), hold_seconds = self.hold.as_secs(),
                    "the clock has jumped ahead; if it stays there, retention follows it after the hold"
                );
                elapsed
            });
            if elapsed.saturating_sub(since) < self.hold {
                let millis = u64::try_from(believed + signed(elapsed)).unwrap_or_default();
                return SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            }
        }
        (self.believed, self.ahead) = (Some(distance), None);
        clock
    }
}

fn signed(duration: Duration) -> i128 {
    duration.as_millis() as i128
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + 50 * YEAR
    }

    #[test]
    fn a_clock_that_goes_as_time_does_is_followed() {
        let mut horizon = Horizon::new(YEAR);
        for seconds in [0, 1, 2, 7200, 7201] {
            let clock = start() + seconds * SECOND;
            assert_eq!(horizon.look(clock, 5 * SECOND + seconds * SECOND), clock);
        }
        // Half a minute in one step, and as much again.
        assert_eq!(horizon.look(start() + 7232 * SECOND, 7207 * SECOND), start() + 7232 * SECOND);
        assert_eq!(horizon.look(start() + 7263 * SECOND, 7208 * SECOND), start() + 7263 * SECOND);
    }

    #[test]
    fn a_jump_ahead_is_believed_only_once_it_has_lasted() {
        let mut horizon = Horizon::new(YEAR);
        assert_eq!(horizon.look(start(), SECOND), start());
        let (there, back) = (start() + 4 * YEAR, start() + 3 * SECOND);
        assert_eq!(horizon.look(there, 2 * SECOND), start() + SECOND);
        assert_eq!(
            horizon.look(there + HOLD / 2, 2 * SECOND + HOLD / 2),
            start() + SECOND + HOLD / 2
        );
        // It is put right, and nothing was too old meanwhile; and then it goes wrong again.
        assert_eq!(horizon.look(back + HOLD, 4 * SECOND + HOLD), back + HOLD);
        assert_eq!(horizon.look(there, 5 * SECOND + HOLD), start() + 4 * SECOND + HOLD);
        let later = there + HOLD;
        assert_eq!(horizon.look(later, 5 * SECOND + 2 * HOLD), later);
        assert_eq!(horizon.look(later + SECOND, 6 * SECOND + 2 * HOLD), later + SECOND);
    }

    #[test]
    fn a_clock_that_is_set_back_is_believed_at_once() {
        let mut horizon = Horizon::new(YEAR);
        assert_eq!(horizon.look(start(), SECOND), start());
        let past = SystemTime::UNIX_EPOCH - YEAR;
        for clock in [start() - YEAR, SystemTime::UNIX_EPOCH, past] {
            assert_eq!(horizon.look(clock, 2 * SECOND), clock);
        }
    }

    #[test]
    fn what_is_kept_for_less_than_the_hold_is_held_for_as_long() {
        let mut horizon = Horizon::new(2 * SECOND);
        assert_eq!(horizon.look(start(), SECOND), start());
        assert_eq!(horizon.look(start() + YEAR, SECOND), start());
        assert_eq!(horizon.look(start() + YEAR, 3 * SECOND), start() + YEAR);
    }
}
