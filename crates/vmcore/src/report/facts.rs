//! Single facts: banner, command line, taint, memory use.

use crate::capsule::{MemoryUse, Taint};
use crate::kernel::Kernel;

/// Taint letters by bit (Documentation/admin-guide/tainted-kernels.rst); bit 0 unset would print `G`.
const LETTERS: &[u8] = b"PFSRMBUDAWCIOELKXTNJ";

pub(super) fn banner(kernel: &Kernel) -> Option<String> {
    let text = kernel.memory().cstr(kernel.symbol("linux_banner")?, 512).ok()?;
    Some(text.trim_end().to_owned())
}

/// What the kernel's clock showed at its last tick, in seconds since 1970: of a dump taken from outside, when it crashed.
pub(super) fn wall_clock(kernel: &Kernel) -> Option<i64> {
    // Before 6.13 the copy that the tick works on is a variable of its own, since then it lies beside the original.
    let alone = kernel.symbol("shadow_timekeeper").and_then(|at| kernel.object("timekeeper", at));
    let seconds = match alone {
        Some(clock) => clock.number("xtime_sec"),
        None => {
            let data = kernel.symbol("timekeeper_data").or_else(|| kernel.symbol("tk_core"))?;
            kernel.object("tk_data", data)?.number("timekeeper.xtime_sec")
        }
    };
    seconds.ok().map(u64::cast_signed).filter(|&seconds| seconds > 0)
}

pub(super) fn command_line(kernel: &Kernel) -> Option<String> {
    let at = kernel.memory().u64(kernel.symbol("saved_command_line")?).ok()?;
    kernel.memory().cstr(at, 4096).ok()
}

pub(super) fn taint(kernel: &Kernel) -> Option<Taint> {
    let bits = kernel.memory().u64(kernel.symbol("tainted_mask")?).ok()?;
    Some(Taint { bits, letters: taint_letters(bits) })
}

pub(super) fn taint_letters(bits: u64) -> String {
    (0..LETTERS.len()).filter(|b| bits >> b & 1 == 1).map(|b| char::from(LETTERS[b])).collect()
}

pub(super) fn memory(kernel: &Kernel) -> Option<MemoryUse> {
    const PAGE_KIB: u64 = 4;
    let btf = kernel.btf()?;
    let counter = |table: &str, list: &str, name: &str| {
        let index = btf.enumerators(btf.find(crate::btf::Kind::Enum, list)?).into_iter().find(|(n, _)| n == name)?.1;
        let at = kernel.symbol(table)?.wrapping_add(u64::try_from(index).ok()? * 8);
        // Per-CPU remainders can make a small global counter negative.
        kernel.memory().u64(at).ok().map(|v| v.cast_signed().max(0).cast_unsigned())
    };
    let kib = |pages: Option<u64>| pages.and_then(|p| p.checked_mul(PAGE_KIB));
    let node = |name| counter("vm_node_stat", "node_stat_item", name);
    let total = kernel.symbol("_totalram_pages").and_then(|at| kernel.memory().u64(at).ok());
    Some(MemoryUse {
        total_kib: kib(total),
        free_kib: kib(counter("vm_zone_stat", "zone_stat_item", "NR_FREE_PAGES")),
        anonymous_kib: kib(node("NR_ANON_MAPPED")),
        file_kib: kib(node("NR_FILE_PAGES")),
        shmem_kib: kib(node("NR_SHMEM")),
        slab_reclaimable_kib: kib(node("NR_SLAB_RECLAIMABLE_B")),
        slab_unreclaimable_kib: kib(node("NR_SLAB_UNRECLAIMABLE_B")),
        kernel_stack_kib: node("NR_KERNEL_STACK_KB"),
        page_tables_kib: kib(node("NR_PAGETABLE")),
        dirty_kib: kib(node("NR_FILE_DIRTY")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taint_letters_follow_the_kernel_documentation() {
        assert_eq!(taint_letters(0), "");
        assert_eq!(taint_letters(1 << 7 | 1 << 9 | 1 << 12), "DWO");
    }
}
