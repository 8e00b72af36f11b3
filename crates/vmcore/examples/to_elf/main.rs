//! Rewrites any dump as a sparse ELF core that gdb, crash and drgn open: `to_elf DUMP OUT [EXTRA_GB]`.
//!
//! With EXTRA_GB the file also claims that much memory which is one hole on disk: how the engine is shown not to care about
//! the size of a dump.

mod sparse;

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(input), Some(output)) = (args.next(), args.next()) else {
        return Err("usage: to_elf DUMP OUT [EXTRA_GB]".into());
    };
    let extra: u64 = args.next().and_then(|gb| gb.into_string().ok()).map_or(Ok(0), |gb| gb.parse())?;
    sparse::write(Path::new(&input), Path::new(&output), extra)
}
