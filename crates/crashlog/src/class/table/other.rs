//! Others that talk on a kernel's console: firmware, Rust panics, programs of a test farm.

use super::{TRACE, group};
use crate::class::{Class, Group};
use crate::model::Kind as K;

pub const GROUPS: &[Group] = &[
    // Others that talk on a kernel's console.
    group(
        "trusty: panic",
        &[],
        &[
            Class::new(K::Firmware, "trusty: panic {}ASSERT FAILED at {}): {text}", "trusty: ASSERT FAILED: {text}")
                .traceless(),
            // The message comes in pieces, each with its own time stamp.
            Class::new(K::Firmware, "trusty: panic (caller", "trusty: ASSERT FAILED: {text}")
                .also(&["ASSERT FAILED at {}): {text}"])
                .traceless(),
            Class::new(K::Firmware, "trusty: panic {}ASSERT FAILED", "trusty: ASSERT FAILED:")
                .damaged("the assertion is missing"),
            Class::new(K::Firmware, "trusty: panic (caller {}): {text}", "trusty: panic: {text}").traceless(),
            Class::new(K::Firmware, "trusty: panic (caller", "trusty: ASSERT FAILED:")
                .also(&["ASSERT FAILED"])
                .damaged("the assertion is missing"),
            Class::new(K::Firmware, "trusty: panic (caller", "trusty: panic: {text}").also(&["): {text}"]).traceless(),
            Class::new(K::Firmware, "trusty: panic", "trusty: ASSERT FAILED:").damaged("the assertion is missing"),
        ],
    ),
    group(
        "rust_kernel: panicked at",
        &[],
        &[Class::new(K::RustPanic, "rust_kernel: panicked at", "{text} in {frame}").also(&["^{text}"]).frames(&TRACE)],
    ),
    // Programs that a test farm runs on the machine and that report their own death on the console.
    group(
        "SYZF",
        &[],
        &[
            Class::new(K::Userspace, "^SYZFATAL: {text}", "SYZFATAL: {text}").alts(&["SYZFATAL"]).traceless(),
            Class::new(K::Userspace, "^SYZFAIL: {text}", "SYZFAIL: {text}").traceless(),
        ],
    ),
    group(
        "panic: ",
        &["rnel panic: "],
        &[Class::new(K::Userspace, "^panic: {text}", "panic: {text}").also(&["goroutine "]).traceless().whole()],
    ),
    group(
        "fatal error: ",
        &[],
        &[
            Class::new(K::Userspace, "^fatal error: {text}", "go runtime error")
                .also(&["goroutine "])
                .traceless()
                .whole(),
            Class::new(K::Userspace, "^fatal error: {text}", "go runtime error")
                .also(&["runtime stack:"])
                .traceless()
                .whole(),
        ],
    ),
];
