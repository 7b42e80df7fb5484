//! Where the program's memory comes from, and how it goes back.
//!
//! **Problem.** Requests and events are made on one thread and freed on another, where the system's allocator takes locks. `mimalloc` takes
//! none, but looks for memory to give back to the system only when it frees a page of its own; a host that has come to rest after many
//! streams or instances frees none, and would keep what they had.
//!
//! **Mechanism.** A block so large that it is a page of its own is taken and freed now and then, untouched. With it goes what has been free for a
//! second.
//!
//! **Limits.** What is free within pages that have something else in them stays, for whoever comes next. **Cost.** Some microseconds each second.

use std::hint::black_box;
use std::time::Duration;

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const NOW_AND_THEN: Duration = Duration::from_secs(1);

/// Bytes of a block that shares its page with no other.
const BLOCK: usize = 2 << 20;

/// Has what nobody uses go back to the system, also while nothing else happens. It never ends.
pub async fn give_back() {
    loop {
        tokio::time::sleep(NOW_AND_THEN).await;
        drop(black_box(Vec::<u8>::with_capacity(BLOCK)));
    }
}
