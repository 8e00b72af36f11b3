//! Any bytes at all, read as a dump: `cargo +nightly fuzz run capsule`.
//!
//! Good seeds are small dumps; `CRASHYARD_SEEDS=DIR cargo test -p crashyard-vmcore --test hostile` writes one of each container.

#![no_main]

use crashyard_vmcore::{Limits, Options, capsule, dmesg_only, summarise};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let options = Options { partial: true, ..Options::default() };
    let _ = capsule(&data, &options);
    let _ = summarise(&data, &Limits::default());
    let _ = dmesg_only(&data, &Limits::default());
});
