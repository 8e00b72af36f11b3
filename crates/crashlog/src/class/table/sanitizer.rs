//! Sanitizers.

use super::{BAD_ACCESS, CAPTURED, FAULT, HEADER_THEN_TRACE, TRACE, group};
use crate::class::{Class, Group, Pick, Recipe, Source};
use crate::model::Kind as K;

const FREES: Recipe = Recipe {
    from: &[Source::Capture("func"), Source::Trace],
    pick: Pick::First,
    skip: &["kmem_", "slab_", "kfree", "vunmap", "vfree", "kvfree", "__kmem", "mempool"],
};
const UBSAN: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["ubsan", "overflow"] };
const RACE: Recipe = Recipe { from: &[Source::Race], pick: Pick::First, skip: &[] };
const USB: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &["usb_submit_urb", "usb_start_wait_urb", "usb_bulk_msg", "usb_interrupt_msg", "usb_control_msg"],
};

const INVALID_FREE: &[&str] = &["invalid-free in {frame}"];

pub const GROUPS: &[Group] = &[
    group(
        "KASAN: ",
        &["KASAN: maybe wild", "KASAN: null-ptr-deref in range", "KASAN: probably"],
        &[
            Class::new(
                K::Kasan,
                "BUG: KASAN: double-free or invalid-free in {func:f}",
                "KASAN: invalid-free in {frame}",
            )
            .alts(INVALID_FREE)
            .frames(&FREES),
            Class::new(K::Kasan, "BUG: KASAN: invalid-free in {func:f}", "KASAN: invalid-free in {frame}")
                .alts(INVALID_FREE)
                .frames(&FREES),
            Class::new(K::Kasan, "BUG: KASAN: double-free in {func:f}", "KASAN: invalid-free in {frame}")
                .alts(INVALID_FREE)
                .frames(&FREES),
            Class::new(K::Kasan, "BUG: KASAN: {what:w} in {func:f}", "KASAN: {what} {access} in {frame}")
                .also(&["{access:Read|Write} of size"])
                .alts(BAD_ACCESS)
                .frames(&HEADER_THEN_TRACE),
            Class::new(K::Kasan, "BUG: KASAN: {what:w} in {func:f}", "KASAN: {what} {access} in {frame}")
                .also(&["{access:Read|Write} at addr"])
                .alts(BAD_ACCESS)
                .frames(&HEADER_THEN_TRACE),
            Class::new(K::Kasan, "BUG: KASAN: {what:w} on address", "KASAN: {what} {access}")
                .also(&["{access:Read|Write} of size"]),
            Class::new(K::Kasan, "BUG: KASAN: {what} in {func:f}", "KASAN: {what} in {func}")
                .damaged("the access line is missing"),
            Class::new(K::Kasan, "BUG: KASAN: {text}", "KASAN: {text}").damaged("the header is cut"),
        ],
    ),
    group(
        "KMSAN: ",
        &[],
        &[
            Class::new(
                K::Kmsan,
                "BUG: KMSAN: kernel-usb-infoleak in {func:f}",
                "KMSAN: kernel-usb-infoleak in {frame}",
            )
            .alts(&["KMSAN origin in {origin}"])
            .frames(&USB),
            Class::new(K::Kmsan, "BUG: KMSAN: {what:w} in {func:f}", "KMSAN: {what} in {frame}")
                .alts(BAD_ACCESS)
                .frames(&TRACE),
            Class::new(K::Kmsan, "BUG: KMSAN: {text}", "KMSAN: {text}").damaged("the header is cut"),
        ],
    ),
    group(
        "KCSAN: ",
        &["KCSAN: enabled", "KCSAN: strict", "KCSAN: non-strict", "KCSAN: selftest"],
        &[
            Class::new(K::Kcsan, "BUG: KCSAN: {what} in {func:f} / {other:f}", "KCSAN: {what} in {frame}")
                .frames(&RACE)
                .traceless(),
            Class::new(K::Kcsan, "BUG: KCSAN: {what} in {func:f}", "KCSAN: {what} in {frame}")
                .frames(&CAPTURED)
                .traceless(),
            Class::new(K::Kcsan, "BUG: KCSAN: {text}", "KCSAN: {text}").damaged("the header is cut"),
        ],
    ),
    group(
        "KFENCE: ",
        &[],
        &[
            Class::new(K::Kfence, "BUG: KFENCE: memory corruption in {func:f}", "KFENCE: memory corruption in {frame}")
                .frames(&FREES),
            Class::new(K::Kfence, "BUG: KFENCE: invalid free in {func:f}", "KFENCE: invalid free in {frame}")
                .alts(INVALID_FREE)
                .frames(&FREES),
            Class::new(K::Kfence, "BUG: KFENCE: {what} in {func:f}", "KFENCE: {what} in {frame}")
                .alts(BAD_ACCESS)
                .frames(&HEADER_THEN_TRACE),
            Class::new(K::Kfence, "BUG: KFENCE: {text}", "KFENCE: {text}").damaged("the header is cut"),
        ],
    ),
    group(
        "UBSAN: ",
        &[],
        &[
            // Built to trap, on arm64.
            Class::new(K::Ubsan, "Internal error: UBSAN: {what}: {:w} [#", "UBSAN: {what} in {frame}").frames(&FAULT),
            Class::new(K::Ubsan, "UBSAN: Undefined behaviour in", "UBSAN: undefined-behaviour in {frame}")
                .frames(&UBSAN),
            Class::new(K::Ubsan, "UBSAN: {what:w} in {src:w}", "UBSAN: {what} in {frame}").frames(&UBSAN),
            Class::new(K::Ubsan, "UBSAN: {text}", "UBSAN: {text}").frames(&UBSAN),
        ],
    ),
];
