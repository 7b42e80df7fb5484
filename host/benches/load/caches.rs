//! Whether others on the machine leave the caches alone.
//!
//! **Problem.** A virtual machine shares caches, and often cores, with others that it cannot see. When they are busy, a line
//! that the next cache had in 17 ns takes 150. Who touches more memory for a request suffers more, so that ratios change too.
//!
//! **Mechanism.** A walk through as much memory as 64 live instances have, from line to line in random order, while nobody is
//! under load: before each round, and after the last one. A round is *quiet* if in the walks before and after it a line took
//! hardly longer than in the quickest of the program. Until enough were, there are more of them, as long as there is time, and in the end
//! those count with the quietest caches. How a server did in a round has no say in that, so it favours none.
//!
//! **Limits.** Who comes and goes within a round is not seen, nor who is there from beginning to end. **Cost.** 0.1 s a round.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What is walked through.
const BYTES: usize = 3 << 20;

/// How much longer than the quickest walk one may take that found the caches quiet.
const QUIET: f64 = 1.5;

/// How long it is walked in circles for a look, and how long before until the lines are where they stay.
const LOOK: Duration = Duration::from_millis(100);
const BEFORE: Duration = Duration::from_millis(20);

/// How long the quickest walk is looked for at first.
const FIRST: Duration = Duration::from_secs(2);

/// Memory to walk through.
pub struct Caches {
    /// In each the index of the next one; together they are one circle.
    lines: Vec<Line>,
    /// Seconds a line, of the quickest walk so far.
    quickest: Cell<f64>,
}

/// A line of the caches, whose first word counts.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line(u32);

impl Caches {
    pub fn new() -> Self {
        let mut lines: Vec<_> = (0..BYTES / size_of::<Line>()).map(|n| Line(n as u32)).collect();
        // Sattolo's shuffle makes one circle of all of them.
        let mut random = 1_u64;
        for last in (1..lines.len()).rev() {
            // Knuth's constants of a linear generator, whose upper bits are the good ones.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            lines.swap(last, (random >> 33) as usize % last);
        }
        let caches = Self { lines, quickest: Cell::new(f64::INFINITY) };
        caches.walk_for(FIRST);
        caches
    }

    /// The seconds that a line takes just now.
    pub fn look(&self) -> f64 {
        self.walk_for(BEFORE);
        self.walk_for(LOOK)
    }

    /// The most seconds that a line takes where nobody disturbs the caches.
    pub fn quiet(&self) -> f64 {
        self.quickest.get() * QUIET
    }

    /// Walks in circles for so long, and returns the seconds that a line took.
    fn walk_for(&self, duration: Duration) -> f64 {
        let start = Instant::now();
        let mut lines = 0;
        while start.elapsed() < duration {
            let start = Instant::now();
            let around = |at: u32, _| self.lines[at as usize].0;
            black_box(self.lines.iter().fold(black_box(0), around));
            let line = start.elapsed().as_secs_f64() / self.lines.len() as f64;
            self.quickest.update(|quickest| quickest.min(line));
            lines += self.lines.len();
        }
        start.elapsed().as_secs_f64() / lines as f64
    }
}
