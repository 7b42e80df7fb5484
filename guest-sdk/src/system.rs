//! What the standard library asks of the system by way of C: where an agent's prints go, its environment, and its sudden end.
//!
//! **Problem.** The C library is ready for files, terminals and pipes, and for programs that are started with an environment and end with a status.
//! For what an agent prints, and the message with which it panics, it has nineteen imports, and a new instance pays for each: an import takes some
//! 800 of its instructions.
//!
//! **Mechanism.** The functions of it that the standard library calls are defined here, with four imports, and the linker then leaves out those of the C
//! library with all that they need.
//!
//! **Limits.** `write` is for standard output and standard error: nothing else can be open for writing in an agent. Agents have no
//! environment; what the operator gives them is [configuration](crate::config).
//!
//! **Cost.** One call of the host for each line, or 4 KiB.

#![expect(unsafe_code, reason = "C calls these functions, one with a pointer and a length")]

use std::arch::wasm32::unreachable;
use std::cell::OnceCell;
use std::ffi::{c_char, c_int};
use std::mem::ManuallyDrop;
use std::ptr::null_mut;
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
/// C's: `bytes` are so many that can be read.
#[unsafe(no_mangle)]
unsafe extern "C" fn write(descriptor: c_int, bytes: *const u8, count: usize) -> isize {
    const FAILED: isize = -1;
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

/// C's `getenv`: no variable is set.
#[unsafe(no_mangle)]
extern "C" fn getenv(_name: *const c_char) -> *mut c_char {
    null_mut()
}

/// C's `abort`, by which a panic ends the instance.
#[unsafe(no_mangle)]
extern "C" fn abort() -> ! {
    unreachable()
}
