//! The components that the tests serve, built from their sources once per test run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The component of an example or of a guest under `tests/guests`.
pub fn guest(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = BUILT.get_or_init(build);
    let of_examples = built.join(format!("{name}.wasm"));
    let of_tests = built.join("examples").join(format!("{name}.wasm"));
    [of_examples, of_tests]
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("there is no guest {name}"))
}

/// The bytes of a guest.
pub fn module(name: &str) -> Vec<u8> {
    std::fs::read(guest(name)).expect("it was built")
}

/// Another build of a guest, which does the same.
pub fn another_module(name: &str, build: u8) -> Vec<u8> {
    let mut module = module(name);
    // A custom section of the name `n`, which says the number.
    module.extend([0, 3, 1, b'n', build]);
    module
}

/// The directory of this build: `target`, unless it was named otherwise.
pub fn target() -> PathBuf {
    // The program under test is `target/debug/bureau`.
    let program = Path::new(env!("CARGO_BIN_EXE_bureau"));
    program.ancestors().nth(2).expect("the program has a directory").to_owned()
}

fn build() -> PathBuf {
    let host = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = host.parent().expect("the host's crate is in the workspace");
    bureau::dev::ensure_target(workspace).expect("the guests' target is there");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--target", "wasm32-wasip2"]);
    cargo.args([
        "-p",
        "api",
        "-p",
        "chat",
        "-p",
        "stream",
        "-p",
        "resume",
        "-p",
        "guests",
        "--lib",
        "--examples",
    ]);
    cargo.arg("--target-dir").arg(target());
    let status = cargo.current_dir(workspace).status().expect("cargo runs the tests, so it runs");
    assert!(status.success(), "the guests do not build");
    target().join("wasm32-wasip2/release")
}
