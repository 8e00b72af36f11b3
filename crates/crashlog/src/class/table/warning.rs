//! Warnings, by what they warn of and then by function; and whatever else calls itself a bug.

use super::{LIST, POINTER_OR_HEADER, TRACE, USERCOPY, group};
use crate::class::{Class, Group, Pick, Recipe, Source};
use crate::model::Kind as K;

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

pub const GROUPS: &[Group] = &[
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
    group(
        "Badness at ",
        &[],
        &[Class::new(K::Warning, "^Badness at {src:w}", "WARNING in {frame}").frames(&POINTER_OR_HEADER)],
    ),
    group(
        "RTNL: assertion failed",
        &[],
        &[Class::new(K::Warning, "^RTNL: assertion failed at", "RTNL: assertion failed in {frame}").frames(&TRACE)],
    ),
    // Before 6.5 part of a warning, since then a line of its own.
    group(
        " WATCHDOG: ",
        &[],
        &[Class::new(K::NetworkDevice, "NETDEV WATCHDOG: ", "WARNING: transmit queue timed out in dev_watchdog")
            .detail()
            .traceless()],
    ),
    group(
        "duling from the idle",
        &[],
        &[Class::new(K::AtomicSleep, "^bad: scheduling from the idle thread", "bad: scheduling from the idle thread")],
    ),
    // Anything else that calls itself a bug, last.
    group(
        "BUG: ",
        &["BUG: no syscalls", "DEBUG", "_BUG"],
        &[Class::new(K::Bug, "^BUG: {text}", "BUG: {text}").traceless().at_start()],
    ),
];
