//! Damaged and hostile dumps: always an answer or an error, never a panic, an endless loop or memory without bound.
//!
//! Real dumps are mutated, not noise: headers stay valid often enough that the damage reaches the deep parts.

#[expect(dead_code, reason = "each test binary uses a part of the shared fixture")]
mod synthetic;

use crashyard_vmcore::{Limits, Options, capsule, dmesg_only, summarise};
use proptest::prelude::*;
use std::io::Read as _;
use std::sync::LazyLock;
use synthetic::dump::{self, PACKINGS};
use synthetic::{PLAIN, Shape, Symbols, world};

static DUMPS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let contents = |shape| {
        let mut world = world(shape);
        synthetic::watched(&mut world);
        world.contents
    };
    let plain = contents(PLAIN);
    let modern = Shape { symbols: Symbols::PlaceRelative, five_levels: true, renumbered: true, ..PLAIN };
    let modern = contents(Shape { graph_words: true, ..modern });
    let mut dumps = vec![dump::elf(&plain, false), dump::elf(&modern, true), dump::flatten(&dump::elf(&plain, false))];
    dumps.extend(PACKINGS.map(|packing| dump::kdump(&modern, packing, None)));
    dumps
});

/// Offsets where something lives; most of a page is zero and damage there tells nothing.
static LIVE: LazyLock<Vec<Vec<usize>>> = LazyLock::new(|| {
    let live = |d: &Vec<u8>| (0..d.len()).filter(|&i| d[i] != 0).collect();
    DUMPS.iter().map(live).collect()
});

fn read_all(bytes: &[u8]) {
    let options = Options { partial: true, ..Options::default() };
    if let Ok(capsule) = capsule(&bytes, &options) {
        let json = serde_json::to_vec(&capsule).unwrap();
        assert!(json.len() < 16 << 20, "a capsule of {} bytes from a dump of {}", json.len(), bytes.len());
    }
    let _ = summarise(&bytes, &Limits::default());
    let _ = dmesg_only(&bytes, &Limits::default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn damaged_dumps_never_panic_or_hang(
        which in 0..8usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(0xffu8), Just(0u8), Just(0x80), any::<u8>()]), 1..24),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = DUMPS[which].clone();
        let live = &LIVE[which];
        for (at, value) in damage {
            bytes[live[at.index(live.len())]] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_all(&bytes);
    }

    #[test]
    fn words_of_all_ones_and_large_numbers_never_panic_or_hang(
        which in 0..8usize,
        at in any::<prop::sample::Index>(),
        value in prop_oneof![Just(u64::MAX), Just(i64::MAX as u64), Just(1u64 << 63), Just(0xffff_ffff), Just(0x7fff_ffff), any::<u64>()],
    ) {
        let mut bytes = DUMPS[which].clone();
        let live = &LIVE[which];
        let at = live[at.index(live.len())].min(bytes.len() - 8) & !3;
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        read_all(&bytes);
    }

    #[test]
    fn noise_behind_a_magic_never_panics(magic in 0..3usize, noise in prop::collection::vec(any::<u8>(), 0..20_000)) {
        let magics: [&[u8]; 3] = [b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0", b"KDUMP   \x06\0\0\0", b"makedumpfile\0\0\0\0"];
        read_all(&[magics[magic], &noise].concat());
    }
}

#[test]
fn every_single_byte_of_the_headers_may_be_wrong() {
    // One of each container; changed in place, because copying a dump costs more than reading its log.
    for which in [0, 2, 7] {
        let mut bytes = DUMPS[which].clone();
        for at in 0..600 {
            let good = bytes[at];
            for value in [0, 0xff] {
                bytes[at] = value;
                let _ = dmesg_only(&bytes, &Limits::default());
            }
            bytes[at] = good;
        }
    }
}

/// What the fuzzer found to reach new code, one after another: a tar archive, packed because all of it is a few dumps changed.
fn corpus() -> Vec<Vec<u8>> {
    const BLOCK: usize = 512;
    let packed = std::fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus.tar.zst")).unwrap();
    let mut unpack = zstd::Decoder::new(packed).unwrap();
    unpack.window_log_max(27).unwrap();
    let mut tar = Vec::new();
    unpack.read_to_end(&mut tar).unwrap();
    let mut found = Vec::new();
    let mut rest = &tar[..];
    while rest.first().is_some_and(|name| *name != 0) {
        let size = std::str::from_utf8(&rest[124..135]).unwrap();
        let size = usize::from_str_radix(size, 8).unwrap();
        let is_file = rest[156] == b'0';
        found.extend(is_file.then(|| rest[BLOCK..BLOCK + size].to_vec()));
        rest = &rest[BLOCK + size.next_multiple_of(BLOCK)..];
    }
    found
}

#[test]
fn what_the_fuzzer_found_is_read_without_a_panic() {
    let found = corpus();
    assert!(found.len() > 500, "{} inputs", found.len());
    found.iter().for_each(|bytes| read_all(bytes));
}

#[test]
fn seeds_for_the_fuzzer_are_readable_dumps() {
    for (i, bytes) in DUMPS.iter().enumerate() {
        let got = capsule(bytes, &Options::default()).unwrap();
        assert_eq!(got.tasks.len(), 3);
        let asleep =
            got.tasks.iter().find(|task| task.comm == "sleeper").and_then(|task| got.stack(task.stack)).unwrap();
        assert!(asleep.frames.len() == 4 && asleep.frames.iter().all(|frame| !frame.guess), "{asleep:?}");
        if let Some(dir) = std::env::var_os("CRASHYARD_SEEDS") {
            std::fs::write(std::path::Path::new(&dir).join(format!("{i}.dump")), bytes).unwrap();
        }
    }
}
