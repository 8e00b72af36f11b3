//! One small log of our own for each sort of problem: its title, its kind, and its frame.
//!
//! These are the smallest inputs that make a class; functions and files are invented. A new class adds a case here.

use crashyard_crashlog::{Kind, Options, parse};

/// `(header and other lines, trace below "Call Trace:", title, kind)`. Lines get time stamps; functions get offsets.
type Case = (&'static [&'static str], &'static [&'static str], &'static str, Kind);

const TASK: &str = "CPU: 1 UID: 0 PID: 42 Comm: own task Not tainted 7.3.4-own #1 PREEMPT";

const CASES: &[Case] = &[
    (
        &["BUG: unable to handle page fault for address: ffff8880deadb000", TASK, "RIP: 0010:own_read+0x1/0x2 [own]"],
        &["own_open"],
        "BUG: unable to handle kernel paging request in own_read",
        Kind::PageFault,
    ),
    (
        &["BUG: kernel NULL pointer dereference, address: 0000000000000008", TASK, "RIP: 0010:memcpy+0x1/0x2"],
        &["own_copy", "own_open"],
        "BUG: unable to handle kernel NULL pointer dereference in own_copy",
        Kind::NullDereference,
    ),
    (
        &[
            "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010",
            "Internal error: Oops: 0000000096000004 [#1] SMP",
            TASK,
            "pc : own_read+0x1/0x2 [own]",
            "lr : own_open+0x1/0x2",
        ],
        &["own_read", "own_open"],
        "BUG: unable to handle kernel NULL pointer dereference in own_read",
        Kind::NullDereference,
    ),
    (
        &[
            "general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP",
            TASK,
            "RIP: 0010:own_walk+0x1/0x2",
        ],
        &["own_open"],
        "general protection fault in own_walk",
        Kind::GeneralProtection,
    ),
    (
        &["divide error: 0000 [#1] SMP", TASK, "RIP: 0010:own_div+0x1/0x2"],
        &["own_open"],
        "divide error in own_div",
        Kind::DivideError,
    ),
    (
        &["kernel BUG at drivers/own/own.c:12!", "invalid opcode: 0000 [#1] SMP", TASK, "RIP: 0010:own_check+0x1/0x2"],
        &["own_open"],
        "kernel BUG in own_check",
        Kind::Bug,
    ),
    (
        &[
            "list_add corruption. prev->next should be next",
            "kernel BUG at lib/list_debug.c:29!",
            TASK,
            "RIP: 0010:__list_add_valid_or_report+0x1/0x2",
        ],
        &["own_enqueue", "own_open"],
        "BUG: corrupted list in own_enqueue",
        Kind::ListCorruption,
    ),
    (
        &[
            "WARNING: CPU: 1 PID: 42 at drivers/own/own.c:12 own_check+0x1/0x2 [own]",
            TASK,
            "RIP: 0010:own_check+0x1/0x2 [own]",
        ],
        &["own_open"],
        "WARNING in own_check",
        Kind::Warning,
    ),
    (
        &["WARNING: drivers/own/own.c:12 at own_check+0x1/0x2, CPU#1: own/42", TASK, "RIP: 0010:own_check+0x1/0x2"],
        &["own_open"],
        "WARNING in own_check",
        Kind::Warning,
    ),
    (
        &[
            "WARNING: CPU: 1 PID: 42 at lib/refcount.c:28 refcount_warn_saturate+0x1/0x2",
            TASK,
            "RIP: 0010:refcount_warn_saturate+0x1/0x2",
        ],
        &["own_put", "own_release"],
        "WARNING: refcount bug in own_put",
        Kind::Refcount,
    ),
    (
        &[
            "BUG: KASAN: slab-use-after-free in own_read+0x1/0x2",
            "Read of size 8 at addr ffff888012345678 by task own/42",
            TASK,
        ],
        &["dump_stack_lvl", "kasan_report", "own_read"],
        "KASAN: slab-use-after-free Read in own_read",
        Kind::Kasan,
    ),
    (
        &["BUG: KASAN: double-free in kfree+0x1/0x2", "Free of addr ffff888012345678 by task own/42", TASK],
        &["dump_stack_lvl", "kfree", "own_free"],
        "KASAN: invalid-free in own_free",
        Kind::Kasan,
    ),
    (
        &["BUG: KMSAN: uninit-value in own_read+0x1/0x2"],
        &["own_read", "own_open"],
        "KMSAN: uninit-value in own_read",
        Kind::Kmsan,
    ),
    (&["BUG: KCSAN: data-race in own_write / own_read"], &[], "KCSAN: data-race in own_read / own_write", Kind::Kcsan),
    (
        &["BUG: KFENCE: use-after-free read in own_read+0x1/0x2"],
        &["own_read", "own_open"],
        "KFENCE: use-after-free read in own_read",
        Kind::Kfence,
    ),
    (
        &["UBSAN: array-index-out-of-bounds in drivers/own/own.c:12:3", "index 9 is out of range", TASK],
        &["dump_stack_lvl", "__ubsan_handle_out_of_bounds", "own_index"],
        "UBSAN: array-index-out-of-bounds in own_index",
        Kind::Ubsan,
    ),
    (
        &[
            "WARNING: possible circular locking dependency detected",
            "own/42 is trying to acquire lock:",
            "ffff888012345678 (&a){+.+.}-{3:3}, at: own_lock_both+0x1/0x2",
            "stack backtrace:",
        ],
        &["dump_stack_lvl", "lock_acquire", "own_lock_both"],
        "possible deadlock in own_lock_both",
        Kind::Lockdep,
    ),
    (
        &["WARNING: suspicious RCU usage", "drivers/own/own.c:12 suspicious rcu_dereference_check() usage!"],
        &["dump_stack_lvl", "lockdep_rcu_suspicious", "own_lookup"],
        "WARNING: suspicious RCU usage in own_lookup",
        Kind::RcuUsage,
    ),
    (
        &["BUG: sleeping function called from invalid context at mm/own.c:12", TASK],
        &["dump_stack_lvl", "__might_resched", "own_alloc"],
        "BUG: sleeping function called from invalid context in own_alloc",
        Kind::AtomicSleep,
    ),
    (
        &["BUG: scheduling while atomic: own/42/0x00000002", TASK],
        &["dump_stack_lvl", "__schedule_bug", "__schedule", "schedule", "own_wait"],
        "BUG: scheduling while atomic in own_wait",
        Kind::AtomicSleep,
    ),
    (
        &["INFO: task own:42 blocked for more than 143 seconds."],
        &["__schedule", "schedule", "wait_for_completion", "own_flush"],
        "INFO: task hung in own_flush",
        Kind::HungTask,
    ),
    (
        &["watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [own:42]", TASK, "RIP: 0010:own_spin+0x1/0x2"],
        &["own_loop", "own_ioctl", "__x64_sys_ioctl", "do_syscall_64"],
        "BUG: soft lockup in own_ioctl",
        Kind::SoftLockup,
    ),
    (
        &["watchdog: Watchdog detected hard LOCKUP on cpu 1", TASK, "RIP: 0010:own_spin+0x1/0x2"],
        &["own_loop", "process_one_work"],
        "BUG: hard lockup in own_loop",
        Kind::HardLockup,
    ),
    (
        &["rcu: INFO: rcu_preempt self-detected stall on CPU"],
        &["rcu_sched_clock_irq", "asm_sysvec_apic_timer_interrupt", "own_loop", "own_worker", "process_one_work"],
        "INFO: rcu detected stall in own_worker",
        Kind::RcuStall,
    ),
    (
        &["BUG: workqueue lockup - pool cpus=1 node=0 flags=0x0 nice=0 stuck for 33s!"],
        &[],
        "BUG: workqueue lockup",
        Kind::WorkqueueStall,
    ),
    (
        &["BUG: memory leak", "unreferenced object 0xffff888012345678 (size 64):", "  backtrace (crc 1234abcd):"],
        &[],
        "memory leak in corrupted",
        Kind::MemoryLeak,
    ),
    (
        &["PANIC: double fault, error_code: 0x0", TASK, "RIP: 0010:own_recurse+0x1/0x2"],
        &["own_recurse"],
        "PANIC: double fault in own_recurse",
        Kind::DoubleFault,
    ),
    (
        &["BUG: Bad page state in process own  pfn:12345"],
        &["dump_stack_lvl", "bad_page", "free_unref_page", "own_release"],
        "BUG: Bad page state in own_release",
        Kind::BadPage,
    ),
    (
        &["irq 11: nobody cared (try booting with the \"irqpoll\" option)", TASK],
        &["dump_stack_lvl", "__report_bad_irq", "note_interrupt", "handle_irq_event", "own_irq_path"],
        "irq: nobody cared in own_irq_path",
        Kind::BadIrq,
    ),
    (
        &["own invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER), order=0, oom_score_adj=0"],
        &[],
        "out of memory: oom-killer invoked",
        Kind::OutOfMemory,
    ),
    (
        &["mce: [Hardware Error]: CPU 1: Machine Check: 0 Bank 4: b200000000070f0f"],
        &[],
        "mce: hardware error",
        Kind::MachineCheck,
    ),
    (
        &["Kernel panic - not syncing: sysrq triggered crash", TASK],
        &["dump_stack_lvl", "panic", "sysrq_handle_crash"],
        "kernel panic: sysrq triggered crash",
        Kind::Sysrq,
    ),
    (
        &["Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)", TASK],
        &["dump_stack_lvl", "panic", "mount_root"],
        "kernel panic: VFS: Unable to mount root fs on unknown-block(NUM,NUM)",
        Kind::Panic,
    ),
    (
        &["unregister_netdevice: waiting for own0 to become free. Usage count = 2"],
        &[],
        "unregister_netdevice: waiting for DEV to become free",
        Kind::NetworkDevice,
    ),
    (
        &["BUG kmalloc-64 (Tainted: G    B  ): Redzone overwritten", TASK],
        &["dump_stack_lvl", "check_bytes_and_report", "check_object", "free_debug_processing", "own_free"],
        "BUG: Redzone overwritten in own_free",
        Kind::SlabCorruption,
    ),
    (
        &[
            "BUG own_cache(17:own) (Not tainted): Poison overwritten",
            "INFO: Allocated in own_open age=1 cpu=0 pid=42",
            "\town_open+0x1/0x2",
            "\town_enter+0x1/0x2",
            "INFO: Freed in own_close age=1 cpu=0 pid=42",
            "\town_close+0x1/0x2",
            TASK,
        ],
        &["dump_stack_lvl", "object_err", "alloc_debug_processing", "own_use"],
        "BUG: Poison overwritten in own_use",
        Kind::SlabCorruption,
    ),
    (
        &[
            "BUG: Bad page state in process own  pfn:12345",
            "page_owner tracks the page as allocated",
            "page last allocated via order 0, migratetype Unmovable, gfp_mask 0xcc0(GFP_KERNEL), pid 42",
            " get_page_from_freelist+0x1/0x2",
            " alloc_pages+0x1/0x2",
            " own_allocates+0x1/0x2",
            "page last free pid 42 stack trace:",
            " free_unref_page+0x1/0x2",
            " own_freed_before+0x1/0x2",
            TASK,
        ],
        &["dump_stack_lvl", "bad_page", "free_unref_page", "own_release"],
        "BUG: Bad page state in own_allocates",
        Kind::BadPage,
    ),
    (&["int3: 0000 [#1] SMP", TASK, "RIP: 0010:own_probe+0x1/0x2"], &["own_open"], "int3 in own_probe", Kind::Oops),
    (
        &[
            "illegal operation: 0001 ilc:1 [#1] SMP",
            TASK,
            "Krnl PSW : 0704c00180000000 0000000000123456 (own_oops+0x1/0x2 [own])",
        ],
        &["own_open", "own_enter", "Last Breaking-Event-Address:", "own_jump"],
        "illegal operation in own_oops",
        Kind::Oops,
    ),
    (
        &["Kernel bug detected[#1]:", TASK, "epc   : 80123456 own_check+0x1/0x2"],
        &["own_open", "own_enter"],
        "kernel BUG in own_check",
        Kind::Bug,
    ),
    (
        &["Reserved instruction in kernel code[#1]:", TASK, "epc   : 80123456 own_check+0x1/0x2"],
        &["own_open", "own_enter"],
        "Reserved instruction in own_check",
        Kind::Oops,
    ),
    (
        &["[ INFO: suspicious rcu_dereference_check() usage. ]", "drivers/own.c:1 invoked without protection!", TASK],
        &["lockdep_rcu_dereference", "own_lookup", "own_open"],
        "INFO: suspicious RCU usage in own_lookup",
        Kind::RcuUsage,
    ),
    (
        &[
            "WARNING: Nested lock was not taken",
            "own/42 is trying to lock:",
            "ffff888012345678 (&a){+.+.}-{3:3}, at: own_both+0x1/0x2",
        ],
        &["dump_stack_lvl", "lock_acquire", "own_both"],
        "WARNING: nested lock was not taken in own_both",
        Kind::LockUsage,
    ),
    (
        &["watchdog: CPU 2 detected hard LOCKUP on other CPUs 0", TASK],
        &["own_loop", "own_step", "process_one_work"],
        "BUG: hard lockup in own_step",
        Kind::HardLockup,
    ),
    (
        &["Badness at drivers/own/own.c:12", "NIP: c000000000123450 LR: c000000000123456 CTR: 0", TASK],
        &["own_check", "own_open"],
        "WARNING in own_check",
        Kind::Warning,
    ),
    (
        &["RTNL: assertion failed at net/own/own.c (12)", TASK],
        &["dump_stack_lvl", "own_change", "own_open"],
        "RTNL: assertion failed in own_change",
        Kind::Warning,
    ),
    (
        &["own0 (own): NETDEV WATCHDOG: CPU: 1: transmit queue 0 timed out 5000 ms"],
        &[],
        "WARNING: transmit queue timed out in dev_watchdog",
        Kind::NetworkDevice,
    ),
    (
        &["EDAC MC0: 1 UE memory read error on CPU_SrcID#0 (channel:0)"],
        &[],
        "hardware error: uncorrected memory error",
        Kind::HardwareError,
    ),
    (
        &["pcieport 0000:00:01.0: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer"],
        &[],
        "hardware error: fatal PCIe bus error",
        Kind::HardwareError,
    ),
    (&["CPU 0: Machine Check Exception: 4 Bank 0: b200000000070f0f"], &[], "mce: hardware error", Kind::MachineCheck),
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

/// The log of a case, each line behind `prefix`.
fn log(case: &Case, prefix: impl Fn(usize) -> String, end: &str) -> String {
    let mut lines: Vec<String> = case.0.iter().map(ToString::to_string).collect();
    if !case.1.is_empty() {
        lines.push("Call Trace:".to_owned());
        lines.extend(case.1.iter().map(|f| format!(" {f}+0x1/0x2")));
    }
    lines.iter().enumerate().map(|(i, l)| format!("{}{l}{end}", prefix(i))).collect()
}

fn stamped(i: usize) -> String {
    format!("[    1.{i:06}] ")
}

#[test]
fn each_class_has_its_title_and_kind() {
    let wrong = CASES.iter().filter_map(|case| {
        let o = parse(log(case, stamped, "\n").as_bytes(), Options::default());
        let got: Vec<_> = o.reports.iter().map(|r| (r.title.clone(), r.kind)).collect();
        (got != [(case.2.to_owned(), case.3)]).then(|| format!("{:?}\n  gives {got:?}\n  not {:?}", case.0, case.2))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn titles_do_not_depend_on_what_stands_before_the_lines() {
    type Prefix = fn(usize) -> String;
    let prefixes: &[Prefix] = &[
        |_| String::new(),
        |i| format!("<4>[    1.{i:06}] "),
        |i| format!("[    1.{i:06}][   T42] "),
        |i| format!("Nov 23 10:11:12 box kernel: [    1.{i:06}] "),
        |_| "Nov 23 10:11:12 box kernel: ".to_owned(),
        |i| format!("2026-11-23T10:11:12.{i:06}+01:00 box kernel: "),
        |i| format!("2026-11-23T10:11:12.{i:06}Z "),
        |_| "[2026-11-23 10:11:12] ".to_owned(),
        |i| format!("[Mon Nov 23 10:11:12 2026] [    1.{i:06}] "),
        |i| format!("kern  :warn  : [    1.{i:06}] "),
        |i| format!("\u{1b}[0;33m[    1.{i:06}]\u{1b}[0m "),
        |i| format!("4,{i},17623341,-;"),
        |i| format!("ttyS0| 10:11:12.123 [    1.{i:06}] "),
    ];
    for case in CASES {
        for prefix in prefixes {
            for end in ["\n", "\r\n", " \r\r\n"] {
                let text = log(case, prefix, end);
                let o = parse(text.as_bytes(), Options::default());
                assert_eq!(o.reports.first().map(|r| r.title.as_str()), Some(case.2), "{text}");
            }
        }
    }
}

#[test]
fn interleaved_reports_come_apart_by_caller_id() {
    for (a, b) in CASES.iter().zip(CASES.iter().rev()) {
        let one = log(a, |i| format!("[    1.{i:06}][   T42] "), "\n");
        let two = log(b, |i| format!("[    1.{i:06}][   C3] "), "\n");
        let (mut x, mut y) = (one.split_inclusive('\n'), two.split_inclusive('\n'));
        let mut mixed = String::new();
        loop {
            let pair = (x.next(), y.next());
            mixed.extend(pair.0.into_iter().chain(pair.1));
            if pair == (None, None) {
                break;
            }
        }
        let o = parse(mixed.as_bytes(), Options::default());
        let mut got: Vec<_> = o.reports.iter().map(|r| r.title.as_str()).collect();
        let mut want = [a.2, b.2];
        got.sort_unstable();
        want.sort_unstable();
        assert_eq!(got, want, "{mixed}");
    }
}

#[test]
fn quiet_logs_have_no_reports() {
    for line in [
        "systemd[1]: Started own.service - BUG: tracker",
        "echo \"Kernel panic - not syncing: test\" > /tmp/x",
        "rcu: RCU restricting CPUs from NR_CPUS=8 to nr_cpu_ids=1.",
        "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
        "Kernel command line: panic=-1 softlockup_panic=1 oops=panic",
        "own: DEBUG: nothing to see",
        "INFO: lockdep is turned off.",
        "[Firmware Bug]: TSC_DEADLINE disabled due to Errata",
        "WARNING: Caches not enabled",
    ] {
        let o = parse(format!("[    1.000000] {line}\n{line}\n").as_bytes(), Options::default());
        assert!(o.reports.is_empty(), "{line}: {:?}", o.reports[0].title);
    }
}
