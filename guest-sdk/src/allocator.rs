//! The memory of an agent: one allocator for its Rust and its C, which writes to few pages of a new instance.
//!
//! **Problem.** A new instance shares its module's pages until it writes to them. Each page that it writes to costs up to 13 us of
//! some 90, and one that it reads first and then writes three times that, as it has to be taken out of the other
//! processors' view. The C library's allocator, which the standard library uses, keeps its state in zeroed statics wherever the
//! linker puts them, in one page or across two, and marks the end of its region, in one page more. An agent paid for
//! three pages or for four, of which two were read first, by the size of its statics.
//!
//! **Mechanism.** `dlmalloc` again, but with a state that no page ends in, and with a [`Region`] that begins where the statics end and
//! is handed out by the kilobyte. So the statics, the state and the first blocks share a page, or have one more for each end of a page
//! among them. [`write_first`] is for the first code that runs in an instance.
//!
//! The C library frees what the host handed to it through `cabi_realloc`, and takes what follows the statics for its own heap, so there
//! can only be one allocator: `malloc` and its kin are defined here too, and the linker then leaves out those of the C library.
//!
//! **Limits.** There is one thread. An agent with a `#[global_allocator]` of its own, or with a `malloc`, turns off the feature
//! `allocator`. `errno` stays as it is when there is no memory. Statics of an agent that are larger than a page may lie
//! between those of the SDK and of the C library, which are then in pages of their own.
//!
//! **Cost.** Half a kilobyte for the state, as much again at most to align it, and no code: it takes the place of the
//! other one. What is freed is used again but not given back, which WebAssembly has no way to do.

#![expect(
    unsafe_code,
    reason = "an allocator is unsafe code; what it could damage is the agent's own memory"
)]

use std::alloc::{GlobalAlloc, Layout};
use std::arch::wasm32::{memory_grow, memory_size};
use std::cell::{Cell, UnsafeCell};
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::{null_mut, with_exposed_provenance_mut};

use dlmalloc::{Allocator, Dlmalloc};

#[cfg(target_feature = "atomics")]
compile_error!("the allocator is for one thread");

/// The alignment of what C asks for without saying so: that of `max_align_t`.
const C_ALIGN: usize = 16;

/// What `posix_memalign` returns when there is no memory.
const ENOMEM: c_int = 48;

/// By how much memory grows.
const WASM_PAGE: usize = 64 << 10;

/// Of the region, this much is handed out at once at first: much less than a page, as the allocator writes to its end.
const GRANULARITY: usize = 1 << 10;

/// Later it is one part of so many of what was handed out already, so that a large heap seldom asks.
const GROWTH: usize = 8;

/// Zeros until it is used: what is not zeros at first lies among the constants, far from where the region begins.
#[global_allocator]
static HEAP: Heap =
    Heap(UnsafeCell::new(State { touched: 0, ready: false, books: MaybeUninit::zeroed() }));

struct Heap(UnsafeCell<State>);

// SAFETY: there is one thread.
unsafe impl Sync for Heap {}

#[repr(align(512))]
struct State {
    touched: u8,
    ready: bool,
    books: MaybeUninit<Dlmalloc<Region>>,
}

// As large as it is aligned, so no page ends in it.
const _: () = assert!(size_of::<State>() == align_of::<State>() && size_of::<State>() <= 4096);

/// Writes to the page of the allocator's state before anything there is read.
pub(crate) fn write_first() {
    // SAFETY: there is one thread, and nothing else uses this byte.
    unsafe { (&raw mut (*HEAP.0.get()).touched).write_volatile(1) }
}

impl Heap {
    /// # Safety
    ///
    /// Nothing else that this returned is in use.
    #[expect(clippy::mut_from_ref, reason = "it is what a static can give")]
    unsafe fn books(&self) -> &mut Dlmalloc<Region> {
        // SAFETY: there is one thread, and `Dlmalloc` calls nothing that allocates, so with what the caller promises
        // this is the only reference.
        let state = unsafe { &mut *self.0.get() };
        if !state.ready {
            state.ready = true;
            let books = state.books.write(Dlmalloc::new_with_allocator(Region::after_statics()));
            books.set_granularity(GRANULARITY);
        }
        // SAFETY: it was written when `ready` was set.
        unsafe { state.books.assume_init_mut() }
    }
}

// SAFETY: `Dlmalloc` keeps this contract, each reference to it ends with the call that it was made for, and what callers promise
// is what it asks for. In line, each of these would be there hundreds of times: a tenth of a module.
unsafe impl GlobalAlloc for Heap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { self.books().c_memalign(layout.align(), layout.size()) }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { self.books().calloc(layout.size(), layout.align()) }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        unsafe { self.books().c_free(block) }
    }

    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe { self.books().realloc(block, layout.size(), layout.align(), size) }
    }
}

/// The allocator under the names that C has for it.
///
/// # Safety
///
/// C's: what is given back was handed out here, by whichever function, and is no longer in use.
mod c {
    use super::{C_ALIGN, ENOMEM, HEAP, c_int, null_mut};

    #[unsafe(no_mangle)]
    unsafe extern "C" fn malloc(size: usize) -> *mut u8 {
        unsafe { HEAP.books().c_memalign(C_ALIGN, size) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut u8 {
        match count.checked_mul(size) {
            Some(size) => unsafe { HEAP.books().calloc(size, C_ALIGN) },
            None => null_mut(),
        }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn realloc(block: *mut u8, size: usize) -> *mut u8 {
        unsafe { HEAP.books().c_realloc(block, size) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn free(block: *mut u8) {
        unsafe { HEAP.books().c_free(block) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut u8 {
        unsafe { HEAP.books().c_memalign(align, size) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn posix_memalign(to: *mut *mut u8, align: usize, size: usize) -> c_int {
        let block = unsafe { HEAP.books().c_memalign(align, size) };
        if block.is_null() {
            return ENOMEM;
        }
        unsafe { to.write(block) };
        0
    }
}

/// What follows the module's statics, from the lowest address on, and the memory that is added to it.
struct Region {
    next: Cell<usize>,
    end: Cell<usize>,
    handed_out: Cell<usize>,
}

impl Region {
    fn after_statics() -> Self {
        unsafe extern "C" {
            static __heap_base: u8;
            static __heap_end: u8;
        }
        Self {
            next: Cell::new((&raw const __heap_base).expose_provenance()),
            end: Cell::new((&raw const __heap_end).addr()),
            handed_out: Cell::new(0),
        }
    }

    /// At least so many bytes, from where to where.
    fn take(&self, size: usize) -> Option<Range<usize>> {
        let upto = |start: usize| start.checked_add(size)?.checked_next_multiple_of(GRANULARITY);
        let (mut start, mut end) = (self.next.get(), upto(self.next.get())?);
        if end > self.end.get() {
            // Memory may have grown by other hands, and then what is new does not follow upon what we have.
            let grown_from = memory_size(0) * WASM_PAGE;
            if grown_from != self.end.get() {
                (start, end) = (grown_from, upto(grown_from)?);
            }
            let more = (end - grown_from).next_multiple_of(WASM_PAGE);
            let new_end = grown_from.checked_add(more)?;
            if memory_grow(0, more / WASM_PAGE) == usize::MAX {
                return None;
            }
            self.end.set(new_end);
        }
        self.next.set(end);
        self.handed_out.update(|so_far| so_far + (end - start));
        Some(start..end)
    }
}

// SAFETY: what `take` returned it does not return again, and nobody else has it: the linker leaves what follows the
// statics to the allocator, and what memory grows by is whose who let it grow.
unsafe impl Allocator for Region {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let ahead = size.max(self.handed_out.get() / GROWTH);
        match self.take(ahead).or_else(|| self.take(size)) {
            Some(taken) => (with_exposed_provenance_mut(taken.start), taken.len(), 0),
            None => (null_mut(), 0, 0),
        }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        WASM_PAGE
    }
}
