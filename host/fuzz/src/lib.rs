//! The targets of [`bureau::fuzzing`] as programs: see `README.md` beside this crate.

/// The whole of a target's program. Under `cargo fuzz` it is what the fuzzer calls; otherwise it tries out the files that are its arguments,
/// which is how a find is looked into with the toolchain of everything else.
#[macro_export]
macro_rules! target {
    ($target:ident) => {
        #[cfg(fuzzing)]
        ::libfuzzer_sys::fuzz_target!(|input: &[u8]| ::bureau::fuzzing::$target(input));

        #[cfg(not(fuzzing))]
        fn main() -> ::std::io::Result<()> {
            for file in ::std::env::args_os().skip(1) {
                ::bureau::fuzzing::$target(&::std::fs::read(file)?);
            }
            Ok(())
        }
    };
}
