//! The guest of `guest.S`.

use std::path::Path;
use std::process::Command;

/// What it says when it listens.
pub const GREETING: &str = "the guest listens\r\n";

/// It, as a kernel image.
pub fn guest() -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bochs/guest.S");
    let run = |command: &mut Command| assert!(command.status().expect("gcc and binutils").success(), "{command:?}");
    run(Command::new("gcc").arg("-c").arg("-o").arg(at("guest.o")).arg(source));
    run(Command::new("ld")
        .args(["-Ttext=0", "-e", "start", "--oformat", "binary", "-o"])
        .args([at("guest"), at("guest.o")]));
    std::fs::read(at("guest")).expect("the guest")
}
