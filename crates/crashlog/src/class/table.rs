//! Faults, BUGs, panics and warnings. See the module above for what a class is.

use super::{Class, Group, Pick, Recipe, Source, table_debug, table_stall};
use crate::model::Kind as K;

/// All groups, in the order in which their literals are tried on a line.
pub const TABLES: &[&[Group]] = &[table_stall::GROUPS, table_debug::GROUPS, GROUPS];

const FAULT: Recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::First, skip: &[] };
const TRACE: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &[] };
const POINTER_OR_HEADER: Recipe =
    Recipe { from: &[Source::Pointer, Source::Trace, Source::Capture("func")], pick: Pick::First, skip: &[] };
const USERCOPY: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["usercopy", "__check"] };
/// Deep recursion: the frame at the top is chance, the way in is not.
const OVERFLOW: Recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::AboveEntry, skip: &[] };
const STACK_CHECK: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["stack_chk"] };
const STACK_END: Recipe =
    Recipe { from: &[Source::Trace], pick: Pick::AboveEntry, skip: &["schedule", "retint_kernel", "preempt"] };
const BAD_PAGE: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &[
        "bad_page",
        "free_pages",
        "free_unref",
        "free_frozen",
        "__free_page",
        "free_page",
        "put_page",
        "rmqueue",
        "get_page_from_freelist",
        "alloc_page",
        "alloc_frozen",
        "alloc_slab",
        "new_slab",
        "slab",
        "folio_put",
        "kfree",
        "check_new_page",
        "post_alloc",
        "release_pages",
        "pagevec",
        "folio_batch",
        "kmem_cache",
        "kmalloc",
        "_put_page",
        "vmalloc",
        "folio_add_lru",
        "lru_add",
        "page_frag_free",
        "page_pool",
        "extract_iter",
        "folio_alloc",
        "folios_put",
        "__get_free_pages",
        "vfree",
        "alloc_",
    ],
};
const KMALLOC: Recipe = Recipe {
    from: &[Source::Pointer, Source::Trace],
    pick: Pick::First,
    skip: &[
        "kmalloc",
        "kcalloc",
        "kzalloc",
        "krealloc",
        "vmalloc",
        "vzalloc",
        "slab",
        "kmem",
        "alloc_pages",
        "alloc_frozen",
        "kmemdup",
        "memdup_user",
        "kvmalloc",
    ],
};
const USB_URB: Recipe = Recipe {
    from: &[Source::Pointer, Source::Trace],
    pick: Pick::First,
    skip: &[
        "usb_submit_urb",
        "usb_start_wait_urb",
        "usb_bulk_msg",
        "usb_interrupt_msg",
        "usb_control_msg",
        "usb_internal_control",
    ],
};
const REFCOUNT: Recipe =
    Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::First, skip: &["refcount", "kobject_", "kref_"] };
const KOBJECT: Recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::First, skip: &["kobject_"] };
const PROC: Recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::First, skip: &["proc_"] };
const LOCKING: Recipe = Recipe {
    from: &[Source::Pointer, Source::Trace],
    pick: Pick::First,
    skip: &["lock_sock", "release_sock", "lock_release", "lock_acquire"],
};
const ODEBUG: Recipe = Recipe {
    from: &[Source::Pointer, Source::Trace],
    pick: Pick::First,
    skip: &[
        "debug_",
        "rcu",
        "hrtimer_",
        "timer_",
        "work_",
        "percpu_",
        "kmem_",
        "slab_",
        "kfree",
        "vunmap",
        "vfree",
        "__free_",
        "kobject_",
        "free_pages",
        "free_frozen",
        "kvfree",
        "free_unref",
    ],
};
const VMALLOC: Recipe =
    Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::First, skip: &["vmalloc", "vzalloc", "kvmalloc"] };
/// LIST: debug checks of lists report themselves, not who broke the list.
const LIST: Recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::First, skip: &["__list_", "list_"] };

const PAGING: &str = "BUG: unable to handle kernel paging request in {frame}";
const NULL: &str = "BUG: unable to handle kernel NULL pointer dereference in {frame}";
const BAD_ACCESS: &[&str] = &["bad-access in {frame}"];
const LOST_CAUSE: &str = "the report this panic follows from is not in the log";

const fn group(literal: &'static str, ignore: &'static [&'static str], classes: &'static [Class]) -> Group {
    Group { literal, covered: false, ignore, classes }
}

const GROUPS: &[Group] = &[
    // x86 page faults.
    group(
        "nable to handle",
        &["nable to handle kernel paging request for unknown", "echo "],
        &[
            Class::new(K::PageFault, "BUG: unable to handle kernel paging request", PAGING)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::PageFault, "BUG: unable to handle page fault for address", PAGING)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::NullDereference, "BUG: unable to handle kernel NULL pointer dereference", NULL)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::PageFault, "BUG: Unable to handle kernel data access", PAGING)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::PageFault, "BUG: Unable to handle kernel instruction fetch", PAGING)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::PageFault, "BUG: unable to handle kernel", "BUG: unable to handle kernel")
                .damaged("the header is cut"),
            Class::new(K::PageFault, "BUG: Unable to handle kernel", "BUG: unable to handle kernel")
                .damaged("the header is cut"),
            // arm, arm64, riscv, powerpc, mips.
            Class::new(K::NullDereference, "Unable to handle kernel NULL pointer dereference", NULL)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::NullDereference, "Unable to handle kernel pointer dereference", NULL)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::PageFault, "Unable to handle kernel ", PAGING).alts(BAD_ACCESS).frames(&FAULT),
        ],
    ),
    group(
        "ernel NULL pointer dereference",
        &[],
        &[
            Class::new(K::NullDereference, "BUG: kernel NULL pointer dereference", NULL)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
            Class::new(K::NullDereference, "BUG: Kernel NULL pointer dereference", NULL)
                .alts(BAD_ACCESS)
                .frames(&FAULT),
        ],
    ),
    group(
        "neral protection fault",
        &["traps: ", "error:0 in", "trap_type", "general protection fault ip:", "general protection ip:"],
        &[Class::new(K::GeneralProtection, "general protection fault", "general protection fault in {frame}")
            .alts(BAD_ACCESS)
            .frames(&FAULT)],
    ),
    group(
        "stack segment: ",
        &[],
        &[Class::new(K::GeneralProtection, "stack segment: ", "stack segment fault in {frame}")
            .alts(BAD_ACCESS)
            .frames(&FAULT)],
    ),
    group(
        "divide error: ",
        &[],
        &[Class::new(K::DivideError, "divide error: ", "divide error in {frame}").frames(&FAULT)],
    ),
    group(
        "invalid opcode: ",
        &[],
        &[Class::new(K::InvalidOpcode, "invalid opcode: ", "invalid opcode in {frame}").frames(&FAULT).detail()],
    ),
    group(
        "Unhandled fault: ",
        &[],
        &[Class::new(K::Oops, "Unhandled fault: ", "Unhandled fault in {frame}").alts(BAD_ACCESS).frames(&FAULT)],
    ),
    group(
        "Alignment trap: ",
        &[],
        &[Class::new(K::Oops, "Alignment trap: ", "Alignment trap in {frame}").frames(&FAULT)],
    ),
    group(
        "Internal error: ",
        &[],
        &[
            Class::new(K::Bug, "Internal error: Oops - BUG", "kernel BUG in {frame}").frames(&FAULT).detail(),
            Class::new(K::Oops, "Internal error: ", "Internal error in {frame}")
                .alts(BAD_ACCESS)
                .frames(&FAULT)
                .detail(),
        ],
    ),
    // An oops whose first line is lost, and architectures that print nothing before it.
    group(
        "Oops",
        &["Oops: retry", "kernel.panic_on_oops"],
        &[
            Class::new(K::Oops, "^Oops: {} [#", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
            Class::new(K::Oops, "^Oops - {what} [#", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
            Class::new(K::Oops, "Oops[#", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
            Class::new(K::Oops, "^Oops [#", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
            Class::new(K::Oops, "Kernel Oops", "Oops in {frame}").alts(BAD_ACCESS).frames(&FAULT).detail(),
        ],
    ),
    group(
        "double fault",
        &[],
        &[
            Class::new(K::DoubleFault, "PANIC: double fault", "PANIC: double fault in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&FAULT),
            Class::new(K::DoubleFault, "^double fault: ", "PANIC: double fault in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&FAULT),
        ],
    ),
    group(
        "stack guard page was hit",
        &[],
        &[
            Class::new(K::StackOverflow, "BUG: stack guard page was hit", "BUG: stack guard page was hit in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&OVERFLOW)
                .traceless(),
            Class::new(
                K::StackOverflow,
                "BUG: TASK stack guard page was hit",
                "BUG: stack guard page was hit in {frame}",
            )
            .alts(&["stack-overflow in {frame}"])
            .frames(&OVERFLOW)
            .traceless(),
            Class::new(K::StackOverflow, "stack guard page was hit", "BUG: stack guard page was hit in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&OVERFLOW)
                .traceless(),
        ],
    ),
    group(
        "Insufficient stack space",
        &[],
        &[Class::new(
            K::StackOverflow,
            "Insufficient stack space to handle exception",
            "BUG: stack guard page was hit in {frame}",
        )
        .alts(&["stack-overflow in {frame}"])
        .frames(&OVERFLOW)],
    ),
    group(
        "stack overflow",
        &[],
        &[
            Class::new(K::StackOverflow, "^Kernel stack overflow", "kernel stack overflow in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&FAULT),
            Class::new(K::StackOverflow, "BUG: {} stack overflow", "kernel stack overflow in {frame}")
                .alts(&["stack-overflow in {frame}"])
                .frames(&FAULT),
        ],
    ),
    // BUG() and what it is used for.
    group(
        "ernel BUG ",
        &["Kernel BUG at %"],
        &[
            Class::new(K::Usercopy, "kernel BUG at mm/usercopy.c", "BUG: bad usercopy in {frame}").frames(&USERCOPY),
            Class::new(K::ListCorruption, "kernel BUG at lib/list_debug.c", "BUG: corrupted list in {frame}")
                .frames(&LIST),
            // Rust panics print their message first and end in BUG().
            Class::new(K::Bug, "kernel BUG at rust/helpers/", "kernel BUG in {frame}")
                .frames(&POINTER_OR_HEADER)
                .detail(),
            Class::new(K::Bug, "kernel BUG at {}:", "kernel BUG in {frame}").frames(&POINTER_OR_HEADER),
            Class::new(K::Bug, "Kernel BUG at {}", "kernel BUG in {frame}").frames(&POINTER_OR_HEADER),
            Class::new(K::Bug, "kernel BUG ", "kernel BUG in {frame}").frames(&POINTER_OR_HEADER),
        ],
    ),
    // Panics. Those that only end an earlier report come first.
    group(
        "ernel panic",
        &["panic_on_oops", "kernel.panic", "not_a_panic", "end Kernel panic"],
        &[
            Class::new(
                K::StackOverflow,
                "Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: {func:f}+0x",
                "kernel panic: stack is corrupted in {frame}",
            )
            .frames(&Recipe { from: &[Source::Capture("func")], pick: Pick::First, skip: &[] })
            .traceless(),
            Class::new(
                K::StackOverflow,
                "Kernel panic - not syncing: stack-protector:",
                "kernel panic: stack is corrupted in {frame}",
            )
            .frames(&STACK_CHECK),
            Class::new(
                K::StackOverflow,
                "Kernel panic - not syncing: corrupted stack end",
                "kernel panic: corrupted stack end in {frame}",
            )
            .alts(&["stack-overflow in {frame}"])
            .frames(&STACK_END),
            Class::new(
                K::StackOverflow,
                "Kernel panic - not syncing: kernel stack overflow",
                "kernel stack overflow in {frame}",
            )
            .alts(&["stack-overflow in {frame}"])
            .frames(&FAULT),
            Class::new(
                K::Sysrq,
                "Kernel panic - not syncing: sysrq triggered crash",
                "kernel panic: sysrq triggered crash",
            ),
            Class::new(
                K::Panic,
                "Kernel panic - not syncing: Attempted to kill init!",
                "kernel panic: Attempted to kill init!",
            ),
            Class::new(
                K::Panic,
                "Kernel panic - not syncing: Couldn't open N_TTY ldisc",
                "kernel panic: Couldn't open N_TTY ldisc",
            ),
            Class::new(K::Panic, "Kernel panic - not syncing: Fatal exception", "kernel panic: Fatal exception")
                .damaged(LOST_CAUSE)
                .consequence(),
            Class::new(K::Panic, "Kernel panic - not syncing: Oops - ", "kernel panic: Fatal exception")
                .damaged(LOST_CAUSE)
                .consequence(),
            Class::new(
                K::Panic,
                "Kernel panic - not syncing: Aiee, killing interrupt handler",
                "kernel panic: Fatal exception",
            )
            .damaged(LOST_CAUSE)
            .consequence(),
            Class::new(K::Panic, "Kernel panic - not syncing: {}panic_on_warn set", "kernel panic: panic_on_warn set")
                .damaged(LOST_CAUSE)
                .consequence(),
            Class::new(
                K::Panic,
                "Kernel panic - not syncing: hung_task: blocked tasks",
                "kernel panic: hung_task: blocked tasks",
            )
            .damaged(LOST_CAUSE)
            .consequence(),
            Class::new(
                K::Panic,
                "Kernel panic - not syncing: softlockup: hung tasks",
                "kernel panic: softlockup: hung tasks",
            )
            .damaged(LOST_CAUSE)
            .consequence(),
            Class::new(K::Panic, "Kernel panic - not syncing: RCU Stall", "kernel panic: RCU Stall")
                .damaged(LOST_CAUSE)
                .consequence(),
            Class::new(
                K::Panic,
                "Kernel panic - not syncing: scheduling while atomic",
                "kernel panic: scheduling while atomic",
            )
            .damaged(LOST_CAUSE)
            .consequence(),
            Class::new(K::Panic, "Kernel panic - not syncing: Hard LOCKUP", "kernel panic: Hard LOCKUP")
                .damaged(LOST_CAUSE)
                .consequence(),
            Class::new(K::OutOfMemory, "Kernel panic - not syncing: Out of memory{}", "kernel panic: Out of memory"),
            Class::new(
                K::OutOfMemory,
                "Kernel panic - not syncing: System is deadlocked on memory",
                "kernel panic: System is deadlocked on memory",
            ),
            Class::new(
                K::MachineCheck,
                "Kernel panic - not syncing: {text}achine check",
                "kernel panic: Fatal machine check",
            )
            .traceless(),
            Class::new(
                K::Panic,
                "Kernel panic - not syncing: VFS: Unable to mount root fs on {text}",
                "kernel panic: VFS: Unable to mount root fs on {text}",
            ),
            Class::new(K::Panic, "Kernel panic - not syncing: {text}", "kernel panic: {text}"),
            Class::new(K::Panic, "Kernel panic: {text}", "kernel panic: {text}"),
            Class::new(K::Panic, "Kernel panic", "kernel panic").damaged("the header is cut"),
        ],
    ),
    // Warnings by what they warn of, then by function.
    group(
        "WARNING: ",
        &[
            "WARNING: /etc/ssh/moduli",
            "WARNING: workqueue cpumask: online intersect",
            "WARNING: You are running",
            "[WARNING: ",
        ],
        &[
            Class::new(K::DebugObjects, "WARNING: {}lib/debugobjects.c{}debug_", "WARNING: ODEBUG bug in {frame}")
                .frames(&ODEBUG),
            Class::new(K::Usercopy, "WARNING: {}mm/usercopy.c{}usercopy_warn", "WARNING: bad usercopy in {frame}")
                .frames(&USERCOPY),
            Class::new(K::Warning, "WARNING: {}lib/kobject.c{}kobject_", "WARNING: kobject bug in {frame}")
                .frames(&KOBJECT),
            Class::new(
                K::Warning,
                "WARNING: {}fs/proc/generic.c{}proc_register",
                "WARNING: proc registration bug in {frame}",
            )
            .frames(&PROC),
            Class::new(K::Refcount, "WARNING: {}lib/refcount.c{}refcount_", "WARNING: refcount bug in {frame}")
                .frames(&REFCOUNT),
            Class::new(K::Lockdep, "WARNING: {}kernel/locking/lockdep.c{}lock", "WARNING: locking bug in {frame}")
                .frames(&LOCKING),
            Class::new(K::ListCorruption, "WARNING: {}lib/list_debug.c", "WARNING: corrupted list in {frame}")
                .frames(&LIST),
            Class::new(K::Warning, "WARNING: {}mm/vmalloc.c{}vmalloc", "WARNING: zero-size vmalloc in {frame}")
                .frames(&VMALLOC),
            Class::new(K::Warning, "WARNING: {}mm/vmalloc.c{}vzalloc", "WARNING: zero-size vmalloc in {frame}")
                .frames(&VMALLOC),
            Class::new(K::Warning, "WARNING: {}mm/{}.c{} k{}alloc", "WARNING: kmalloc bug in {frame}").frames(&KMALLOC),
            Class::new(K::Warning, "WARNING: {} usb_submit_urb", "WARNING in {frame}/usb_submit_urb").frames(&USB_URB),
            Class::new(
                K::NetworkDevice,
                "WARNING: {}at net/sched/sch_generic.c:{} dev_watchdog",
                "WARNING: transmit queue timed out in dev_watchdog",
            ),
            Class::new(K::Warning, "WARNING: {} at {src:w} {func:f}+0x", "WARNING in {frame}")
                .frames(&POINTER_OR_HEADER),
            // The blank may be lost where old loggers wrapped lines.
            Class::new(K::Warning, "WARNING: at{src:w} {func:f}+0x", "WARNING in {frame}").frames(&POINTER_OR_HEADER),
            Class::new(K::Warning, "WARNING: at {src:w} {func:f}", "WARNING in {frame}").frames(&POINTER_OR_HEADER),
            Class::new(K::Warning, "WARNING: {} at {src:w} ", "WARNING in {frame}")
                .frames(&POINTER_OR_HEADER)
                .at_start(),
            Class::new(K::Warning, "WARNING: at {src:w}", "WARNING in {frame}").frames(&POINTER_OR_HEADER).at_start(),
            Class::new(K::Warning, "WARNING: CPU: ", "WARNING in {frame}").frames(&POINTER_OR_HEADER),
            Class::new(
                K::Warning,
                "WARNING: kernel stack regs at {} in {} has bad '{what}' value",
                "WARNING: kernel stack regs has bad '{what}' value",
            )
            .traceless(),
            Class::new(
                K::Warning,
                "WARNING: kernel stack frame pointer at {} in {} has bad value",
                "WARNING: kernel stack frame pointer has bad value",
            )
            .traceless(),
        ],
    ),
    group(
        "Bad page ",
        &[],
        &[
            Class::new(K::BadPage, "BUG: Bad page state", "BUG: Bad page state in {frame}").frames(&BAD_PAGE),
            Class::new(K::BadPage, "BUG: Bad page map", "BUG: Bad page map"),
        ],
    ),
    group(
        "Bad rss-counter state",
        &[],
        &[Class::new(K::BadPage, "BUG: Bad rss-counter state", "BUG: Bad rss-counter state").traceless()],
    ),
    group(
        "BUG: non-zero ",
        &[],
        &[
            Class::new(K::BadPage, "BUG: non-zero {what:w} on freeing mm", "BUG: non-zero {what} on freeing mm")
                .traceless(),
            Class::new(
                K::BadPage,
                "BUG: non-zero pgtables_bytes on freeing mm",
                "BUG: non-zero pgtables_bytes on freeing mm",
            )
            .traceless(),
        ],
    ),
    group(
        "BUG: Dentry ",
        &[],
        &[Class::new(K::Filesystem, "BUG: Dentry {} still in use", "BUG: Dentry still in use in {frame}")
            .frames(&TRACE)
            .alts(&["BUG: Dentry still in use [unmount of {fs}]"])],
    ),
    group(
        "VFS: ",
        &["VFS: Disk quotas", "VFS: Mounted", "VFS: Finished", "VFS: Can't find", "VFS: Unable to mount"],
        &[
            Class::new(
                K::Filesystem,
                "^VFS: Busy inodes after unmount",
                "VFS: Busy inodes after unmount (use-after-free)",
            )
            .traceless(),
            Class::new(K::Filesystem, "^VFS: Close: file count is", "VFS: Close: file count is zero (use-after-free)")
                .traceless(),
        ],
    ),
    // Anything else that calls itself a bug, last.
    group(
        "BUG: ",
        &["BUG: no syscalls", "DEBUG", "_BUG"],
        &[Class::new(K::Bug, "^BUG: {text}", "BUG: {text}").traceless().at_start()],
    ),
    group(
        "ad mode in ",
        &[],
        &[Class::new(K::Oops, "ad mode in {what} handler", "kernel panic: bad mode")
            .alts(&["bad-access in {frame}"])
            .frames(&FAULT)],
    ),
];
