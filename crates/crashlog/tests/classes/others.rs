//! The same classes in the words of newer kernels and of other architectures, and rarer ones.

use crate::{Case, TASK};
use crashyard_crashlog::Kind;

pub const CASES: &[Case] = &[
    // Words of kernels since 6.10, which put "Oops: " in front of every exception.
    (
        &["Oops: Oops: 0002 [#1] SMP NOPTI", TASK, "RIP: 0010:own_write+0x1/0x2"],
        &["own_open", "own_enter"],
        "Oops in own_write",
        Kind::Oops,
    ),
    (
        &["Oops: int3: 0000 [#1] SMP NOPTI", TASK, "RIP: 0010:own_probe+0x1/0x2"],
        &["own_open", "own_enter"],
        "int3 in own_probe",
        Kind::Oops,
    ),
    (
        &["Oops: divide error: 0000 [#1] SMP NOPTI", TASK, "RIP: 0010:own_div+0x1/0x2"],
        &["own_open", "own_enter"],
        "divide error in own_div",
        Kind::DivideError,
    ),
    (
        &["Oops: bounds: 0000 [#1] SMP NOPTI", TASK, "RIP: 0010:own_bound+0x1/0x2"],
        &["own_open", "own_enter"],
        "bounds in own_bound",
        Kind::Oops,
    ),
    (
        &["Oops: segment not present: 0018 [#1] SMP NOPTI", TASK, "RIP: 0010:own_seg+0x1/0x2"],
        &["own_open", "own_enter"],
        "segment not present in own_seg",
        Kind::Oops,
    ),
    (
        &[
            "Oops: general protection fault, kernel NULL pointer dereference 0x8: 0000 [#1] SMP",
            TASK,
            "RIP: 0010:own_walk+0x1/0x2",
        ],
        &["own_open"],
        "general protection fault in own_walk",
        Kind::GeneralProtection,
    ),
    (
        &[
            "CFI failure at own_call+0x1/0x2 [own] (target: own_target+0x0/0x2 [own]; expected type: 0x12345678)",
            "Oops: invalid opcode: 0000 [#1] SMP",
            TASK,
            "RIP: 0010:own_call+0x1/0x2 [own]",
        ],
        &["own_open", "own_enter"],
        "CFI failure in own_call",
        Kind::Bug,
    ),
    (
        &[
            "Missing ENDBR: own_target+0x1/0x2",
            "kernel BUG at arch/x86/kernel/cet.c:1!",
            TASK,
            "RIP: 0010:own_gate+0x1/0x2",
        ],
        &["own_open", "own_enter"],
        "kernel BUG in own_gate",
        Kind::Bug,
    ),
    // Without the file name, for kernels without verbose bug reports.
    (
        &["WARNING: CPU: 1 PID: 42 at own_check+0x1/0x2 [own]", TASK, "RIP: 0010:own_check+0x1/0x2 [own]"],
        &["own_open"],
        "WARNING in own_check",
        Kind::Warning,
    ),
    (
        &["WARNING: at own_check+0x1/0x2, CPU#1: own/42", TASK, "RIP: 0010:own_check+0x1/0x2"],
        &["own_open"],
        "WARNING in own_check",
        Kind::Warning,
    ),
    (
        &["Kernel BUG at own_check+0x1/0x2 [verbose debug info unavailable]", TASK, "RIP: 0010:own_check+0x1/0x2"],
        &["own_open"],
        "kernel BUG in own_check",
        Kind::Bug,
    ),
    // Other architectures.
    (
        &[
            "Unable to handle kernel access to user memory outside uaccess routines at virtual address 0000000000000010",
            "Mem abort info:",
            "  ESR = 0x0000000096000004",
            "Internal error: Oops: 0000000096000004 [#1] SMP",
            TASK,
            "pc : own_read+0x1/0x2 [own]",
            "lr : own_open+0x1/0x2",
        ],
        &["own_read", "own_open"],
        "BUG: unable to handle kernel paging request in own_read",
        Kind::PageFault,
    ),
    (
        &["Internal error: synchronous external abort: 0000000096000210 [#1] SMP", TASK, "pc : own_mmio+0x1/0x2"],
        &["own_mmio", "own_open"],
        "Internal error in own_mmio",
        Kind::Oops,
    ),
    (
        &[
            "Unable to handle kernel paging request at virtual address dead000000000108",
            "Oops [#1]",
            TASK,
            "epc : own_read+0x1/0x2",
            " ra : own_open+0x1/0x2",
        ],
        &["own_read", "own_open"],
        "BUG: unable to handle kernel paging request in own_read",
        Kind::PageFault,
    ),
    (
        &["Oops - illegal instruction [#1]", TASK, "epc : own_check+0x1/0x2", " ra : own_open+0x1/0x2"],
        &["own_check", "own_open"],
        "Oops in own_check",
        Kind::Oops,
    ),
    (
        &[
            "Kernel attempted to read user page (8) - exploit attempt? (uid: 0)",
            "BUG: Kernel NULL pointer dereference on read at 0x00000008",
            "Faulting instruction address: 0xc000000000123450",
            "Oops: Kernel access of bad area, sig: 11 [#1]",
            TASK,
            "NIP:  c000000000123450 LR: c000000000123400 CTR: c000000000001000",
            "NIP [c000000000123450] own_read+0x1/0x2 [own]",
            "LR [c000000000123400] own_open+0x1/0x2 [own]",
        ],
        &["own_open", "own_enter"],
        "BUG: unable to handle kernel NULL pointer dereference in own_read",
        Kind::NullDereference,
    ),
    (
        &[
            "BUG: Unable to handle kernel data access on write at 0xdead000000000108",
            "Faulting instruction address: 0xc000000000123450",
            "Oops: Kernel access of bad area, sig: 11 [#1]",
            TASK,
            "NIP [c000000000123450] own_write+0x1/0x2",
        ],
        &["own_open", "own_enter"],
        "BUG: unable to handle kernel paging request in own_write",
        Kind::PageFault,
    ),
    (
        &[
            "kernel BUG at drivers/own/own.c:12!",
            "Oops: Exception in kernel mode, sig: 5 [#1]",
            TASK,
            "NIP [c000000000123450] own_check+0x1/0x2",
        ],
        &["own_open", "own_enter"],
        "kernel BUG in own_check",
        Kind::Bug,
    ),
    (
        &[
            "Unable to handle kernel pointer dereference in virtual kernel address space",
            "Failing address: 0000000000000000 TEID: 0000000000000483",
            "Fault in home space mode while using kernel ASCE.",
            "Oops: 0004 ilc:2 [#1] SMP",
            TASK,
            "Krnl PSW : 0704c00180000000 000003ff80123456 (own_read+0x1/0x2 [own])",
        ],
        &["own_open", "own_enter"],
        "BUG: unable to handle kernel NULL pointer dereference in own_read",
        Kind::NullDereference,
    ),
    (
        &[
            "kernel BUG at drivers/own/own.c:12!",
            "monitor event: 0040 ilc:2 [#1] SMP",
            TASK,
            "Krnl PSW : 0704c00180000000 0000000000123456 (own_check+0x1/0x2)",
        ],
        &["own_open", "own_enter"],
        "kernel BUG in own_check",
        Kind::Bug,
    ),
    (
        &[
            "CPU 0 Unable to handle kernel paging request at virtual address 00000010, epc == 80123456, ra == 80123400",
            "Oops[#1]:",
            TASK,
            "epc   : 80123456 own_read+0x1/0x2",
            "ra    : 80123400 own_open+0x1/0x2",
        ],
        &["own_read", "own_open"],
        "BUG: unable to handle kernel paging request in own_read",
        Kind::PageFault,
    ),
    (
        &[
            "CPU 1 Unable to handle kernel paging request at virtual address 0000000000000010, era == 9000000000221abc, ra == 9000000000221a00",
            "Oops[#1]:",
            TASK,
            "   ERA: 9000000000221abc own_read+0x14/0x20 [own]",
            "    RA: 9000000000221a00 own_open+0x14/0x20 [own]",
        ],
        &["own_open", "own_enter"],
        "BUG: unable to handle kernel paging request in own_read",
        Kind::PageFault,
    ),
    (
        &[
            "8<--- cut here ---",
            "Unable to handle kernel NULL pointer dereference at virtual address 00000010 when read",
            "[00000010] *pgd=00000000",
            "Internal error: Oops: 5 [#1] SMP ARM",
            TASK,
            "PC is at own_read+0x1/0x2 [own]",
            "LR is at own_open+0x1/0x2 [own]",
        ],
        &[],
        "BUG: unable to handle kernel NULL pointer dereference in own_read",
        Kind::NullDereference,
    ),
    (
        &[
            "Internal error: UBSAN: array index out of bounds: 00000000f2005512 [#1] SMP",
            TASK,
            "pc : own_index+0x1/0x2",
        ],
        &["own_index", "own_open"],
        "UBSAN: array index out of bounds in own_index",
        Kind::Ubsan,
    ),
    // Stalls.
    (
        &["watchdog: CPU1: Watchdog detected hard LOCKUP on cpu 1", TASK, "RIP: 0010:own_spin+0x1/0x2"],
        &["own_loop", "process_one_work"],
        "BUG: hard lockup in own_loop",
        Kind::HardLockup,
    ),
    (
        &["INFO: rcu_tasks detected stalls on tasks:", TASK],
        &["__schedule", "asm_sysvec_apic_timer_interrupt", "own_loop", "own_worker", "process_one_work"],
        "INFO: rcu detected stall in own_worker",
        Kind::RcuStall,
    ),
    (
        &["INFO: task own:42 blocked in I/O wait for more than 143 seconds."],
        &["__schedule", "schedule", "io_schedule", "folio_wait_bit_common", "own_read"],
        "INFO: task hung in own_read",
        Kind::HungTask,
    ),
    // Memory.
    (
        &["BUG: Bad page cache in process own  pfn:12345", TASK],
        &["dump_stack_lvl", "filemap_unaccount_folio", "own_release"],
        "BUG: Bad page cache",
        Kind::BadPage,
    ),
    (
        &["BUG: Bad page map in process own  pte:8000000012345025 pmd:12345067", TASK],
        &["dump_stack_lvl", "print_bad_pte", "own_unmap"],
        "BUG: Bad page map",
        Kind::BadPage,
    ),
    (
        &["BUG: Bad rss-counter state mm:ffff888012345678 type:MM_ANONPAGES val:1"],
        &[],
        "BUG: Bad rss-counter state",
        Kind::BadPage,
    ),
    (
        &[
            "own: page allocation failure: order:9, mode:0x40dc0(GFP_KERNEL|__GFP_COMP|__GFP_ZERO), nodemask=(null)",
            TASK,
        ],
        &["dump_stack_lvl", "warn_alloc", "__alloc_pages", "own_grow", "own_open"],
        "page allocation failure in own_grow",
        Kind::AllocationFailure,
    ),
    (
        &[
            "detected buffer overflow in memcpy",
            "kernel BUG at lib/string_helpers.c:1!",
            "Oops: invalid opcode: 0000 [#1] SMP",
            TASK,
            "RIP: 0010:fortify_panic+0x1/0x2",
        ],
        &["own_copy", "own_open"],
        "kernel BUG in own_copy",
        Kind::Bug,
    ),
    (
        &[
            "memcpy: detected buffer overflow: 8 byte write of buffer size 4",
            "WARNING: CPU: 1 PID: 42 at lib/string_helpers.c:1 __fortify_report+0x1/0x2",
            TASK,
            "RIP: 0010:__fortify_report+0x1/0x2",
        ],
        &["__fortify_panic", "own_copy", "own_open"],
        "WARNING in own_copy",
        Kind::Warning,
    ),
    (
        &[
            "kernel BUG at fs/xfs/xfs_message.c:1!",
            "invalid opcode: 0000 [#1] SMP",
            TASK,
            "RIP: 0010:assfail+0x1/0x2 [xfs]",
        ],
        &["own_trans", "own_open"],
        "kernel BUG in own_trans",
        Kind::Bug,
    ),
    (
        &[
            "mce: [Hardware Error]: CPU 3: Machine Check Exception: 5 Bank 0: b200000000070005",
            "mce: [Hardware Error]: RIP !INEXACT! 10:<ffffffff81234567> {own_idle+0x10/0x20}",
            "mce: [Hardware Error]: Machine check: Processor context corrupt",
        ],
        &[],
        "mce: hardware error",
        Kind::MachineCheck,
    ),
    (
        &[
            "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 1",
            "{1}[Hardware Error]: event severity: fatal",
            "{1}[Hardware Error]:  Error 0, type: fatal",
        ],
        &[],
        "hardware error: fatal",
        Kind::HardwareError,
    ),
    // Panics that only end what was reported before them, with nothing before them.
    (
        &["Kernel panic - not syncing: kmsan.panic set ...", TASK],
        &["dump_stack_lvl", "panic", "own_open"],
        "kernel panic: kmsan.panic set",
        Kind::Panic,
    ),
    (
        &["Kernel panic - not syncing: kasan.fault=panic set ...", TASK],
        &["dump_stack_lvl", "panic", "own_open"],
        "kernel panic: kasan.fault=panic set",
        Kind::Panic,
    ),
    (
        &["Kernel panic - not syncing: Asynchronous SError Interrupt", TASK],
        &["dump_stack_lvl", "panic", "nmi_panic", "arm64_serror_panic", "own_open"],
        "kernel panic: Asynchronous SError Interrupt",
        Kind::Panic,
    ),
];
