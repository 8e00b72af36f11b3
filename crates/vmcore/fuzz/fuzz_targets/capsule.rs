//! Any bytes at all, read as a dump: `cargo +nightly fuzz run capsule`.
//!
//! `corpus.tar.zst` holds what was found so far (`tar --zstd -xf corpus.tar.zst -C corpus`; the tests read all of it). Good seeds
//! are small dumps; `CRASHYARD_SEEDS=DIR cargo test -p crashyard-vmcore --test hostile` writes one of each container. To keep what
//! a run found, minimise it and pack it again, because all of it is a few dumps changed:
//! `cargo +nightly fuzz run capsule min corpus -- -set_cover_merge=1`, and
//! `tar --sort=name --owner=0 --group=0 --mtime=@0 -C min -c . | zstd -19 --long=27 >corpus.tar.zst`.

#![no_main]

use crashyard_vmcore::{Dump, Kernel, Limits, Options, ReadAt, capsule, dmesg_only, rearranged, summarise};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = Limits::default();
    let _ = capsule(&data, &Options { partial: true, ..Options::default() });
    let _ = summarise(&data, &limits);
    let _ = dmesg_only(&data, &limits);
    // A dump in two parts, which need not belong together.
    let (first, second) = data.split_at(data.len() / 2);
    let _ = Dump::open_split(&[&first, &second], &limits);
    // What `--type` does.
    if let Ok(dump) = Dump::open_partial(&data, &limits)
        && let Ok(kernel) = Kernel::open(dump, &limits, None)
        && let Some(task) = kernel.symbol("init_task").and_then(|at| kernel.object("task_struct", at))
    {
        let _ = task.render(3);
    }
    // What `vmcore open` does with a flattened dump; holes make it as large as it likes, so only a part is read.
    if let Ok(Some(flat)) = rearranged(&data, &limits) {
        let mut buffer = [0u8; 4096];
        for at in [0, flat.len() / 2, flat.len().saturating_sub(1), u64::MAX] {
            assert!(flat.read_at(at, &mut buffer).is_ok_and(|count| count <= buffer.len()));
        }
    }
});
