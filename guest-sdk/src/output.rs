//! What an agent prints: the way from `println!` and a panic's message to the host's log.
//!
//! **Problem.** The C library, which the standard library prints with, is ready for files, terminals and pipes. For what an agent prints
//! it has seventeen imports, and a new instance pays for each: an import takes some 800 of its instructions.
//!
//! **Mechanism.** Its function `write` is defined here, with four imports, and the linker then leaves out that of the C library with all that it needs.
//!
//! **Limits.** It writes to standard output and standard error. Nothing else can be open for writing in an agent. When it fails, `errno` stays
//! as it is.
//!
//! **Cost.** One call of the host for each line, or 4 KiB.

#![expect(unsafe_code, reason = "C calls this function, with a pointer and a length")]

use std::cell::OnceCell;
use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::thread::LocalKey;

use wasip2::cli::{stderr, stdout};
use wasip2::io::streams::OutputStream;

/// What the host takes at once, by what WASI says of `blocking-write-and-flush`.
const AT_ONCE: usize = 4096;

/// A stream from its first use to the instance's end, never dropped, as that would be one more import.
type Stream = OnceCell<ManuallyDrop<OutputStream>>;

thread_local! {
    static STDOUT: Stream = const { OnceCell::new() };
    static STDERR: Stream = const { OnceCell::new() };
}

/// C's `write`, which may take less than it is given.
///
/// # Safety
///
/// C's: `bytes` are so many that can be read, and may be null if they are none.
#[unsafe(no_mangle)]
unsafe extern "C" fn write(descriptor: c_int, bytes: *const u8, count: usize) -> isize {
    const FAILED: isize = -1;
    if count == 0 {
        return 0;
    }
    // SAFETY: the caller's promise; fewer than there are.
    let bytes = unsafe { std::slice::from_raw_parts(bytes, count.min(AT_ONCE)) };
    let (stream, get): (&LocalKey<Stream>, fn() -> OutputStream) = match descriptor {
        1 => (&STDOUT, stdout::get_stdout),
        2 => (&STDERR, stderr::get_stderr),
        _ => return FAILED,
    };
    stream.with(|stream| {
        let stream = stream.get_or_init(|| ManuallyDrop::new(get()));
        stream.blocking_write_and_flush(bytes).map_or(FAILED, |()| bytes.len().cast_signed())
    })
}
