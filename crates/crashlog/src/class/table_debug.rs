//! Sanitizers, lock checking, memory debugging, hardware errors, and problems that user space and firmware report.

use super::{Class, Group, Pick, Recipe, Source};
use crate::model::Kind as K;

const CAPTURED: Recipe = Recipe { from: &[Source::Capture("func")], pick: Pick::First, skip: &[] };
const HEADER_THEN_TRACE: Recipe =
    Recipe { from: &[Source::Capture("func"), Source::Trace], pick: Pick::First, skip: &[] };
/// The lock's place as lockdep names it; where that is plumbing (`flush_workqueue`, `vprintk_emit`), who called it.
const WANTED: Recipe = Recipe {
    from: &[Source::Capture("func"), Source::Trace],
    pick: Pick::First,
    skip: &["workqueue", "process_one_work", "printk", "console_"],
};
/// For a cycle also where the held lock was taken, and the chain.
const DEADLOCK: Recipe = Recipe {
    from: &[Source::Capture("func"), Source::Capture("held"), Source::Under("-> #"), Source::Trace],
    pick: Pick::First,
    skip: &["workqueue", "process_one_work", "worker_thread", "printk", "console_"],
};
const ORDER: Recipe =
    Recipe { from: &[Source::Under("which became"), Source::Capture("func")], pick: Pick::First, skip: &[] };
const TRACE: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &[] };
const FREES: Recipe = Recipe {
    from: &[Source::Capture("func"), Source::Trace],
    pick: Pick::First,
    skip: &["kmem_", "slab_", "kfree", "vunmap", "vfree", "kvfree", "__kmem", "mempool"],
};
const UBSAN: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["ubsan", "overflow"] };
const RCU_USAGE: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &["rcu", "kmem", "slab", "kmalloc", "vmalloc", "kcalloc", "kzalloc", "might_resched", "__might"],
};
const STATIC_KEY: Recipe =
    Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["stack", "lock", "IRQ", "class_key"] };
const SPIN: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &["spin_", "rwlock", "_lock", "_unlock", "lock_bh", "rwlock_bug"],
};
const SLEEP: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &["might_resched", "kmem_cache_alloc", "kmalloc", "slab_", "lock_sock", "__alloc_pages", "mutex", "rt_spin"],
};
const PREEMPT: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &["preemption", "preempt", "smp_processor_id", "percpu"],
};
const SCHEDULE: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["schedule", "retint", "sched"] };
const LEAK: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &[
        "kmemleak",
        "kmalloc",
        "kcalloc",
        "kzalloc",
        "vmalloc",
        "mmap",
        "kmem",
        "slab",
        "alloc",
        "create_object",
        "idr_get",
        "list_lru_init",
        "kasprintf",
        "kvasprintf",
        "pcpu_create",
        "strdup",
        "strndup",
        "memdup",
        "__kmem",
        "kobject_",
    ],
};
const RACE: Recipe = Recipe { from: &[Source::Race], pick: Pick::First, skip: &[] };
const USB: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &["usb_submit_urb", "usb_start_wait_urb", "usb_bulk_msg", "usb_interrupt_msg", "usb_control_msg"],
};
const IRQ: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::First,
    skip: &[
        "bad_irq",
        "note_interrupt",
        "handle_irq",
        "handle_edge_irq",
        "handle_fasteoi",
        "handle_level",
        "common_interrupt",
    ],
};

const BAD_ACCESS: &[&str] = &["bad-access in {frame}"];
const INVALID_FREE: &[&str] = &["invalid-free in {frame}"];

const fn group(literal: &'static str, ignore: &'static [&'static str], classes: &'static [Class]) -> Group {
    Group { literal, covered: false, ignore, classes }
}

/// A group whose lines always carry one of the words that the prefilter knows.
const fn covered(literal: &'static str, ignore: &'static [&'static str], classes: &'static [Class]) -> Group {
    Group { literal, covered: true, ignore, classes }
}

/// The five lockdep reports that name the lock somebody wants.
const fn deadlock(head: &'static str, also: &'static [&'static str]) -> Class {
    Class::new(K::Lockdep, head, "possible deadlock in {frame}").also(also).frames(&DEADLOCK)
}

const WANTS: &[&str] = &["is trying to acquire", "at: {func:f}"];

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
            Class::new(K::Ubsan, "UBSAN: Undefined behaviour in", "UBSAN: undefined-behaviour in {frame}")
                .frames(&UBSAN),
            Class::new(K::Ubsan, "UBSAN: {what:w} in {src:w}", "UBSAN: {what} in {frame}").frames(&UBSAN),
            Class::new(K::Ubsan, "UBSAN: {text}", "UBSAN: {text}").frames(&UBSAN),
        ],
    ),
    // lockdep. "INFO:" is how kernels before 4.11 said it.
    covered(
        "locking dependency detected",
        &[],
        &[
            deadlock(
                "possible circular locking dependency detected",
                &["is trying to acquire", "at: {func:f}", "already holding", "at: {held:f}"],
            ),
            deadlock("possible circular locking dependency detected", WANTS),
            deadlock("possible circular locking dependency detected", &["is trying to acquire", "{func:f}+0x"]),
            Class::new(
                K::Lockdep,
                "WARNING: possible circular locking dependency detected",
                "WARNING: possible circular locking dependency detected",
            )
            .damaged("the wanted lock is missing"),
            Class::new(
                K::Lockdep,
                "possible circular locking dependency detected",
                "INFO: possible circular locking dependency detected",
            )
            .damaged("the wanted lock is missing"),
        ],
    ),
    covered(
        "lock inversion dependency detected",
        &[],
        &[
            deadlock("lock inversion dependency detected", &["just changed the state of lock", "at: {func:f}"]),
            Class::new(
                K::Lockdep,
                "lock inversion dependency detected",
                "WARNING: possible irq lock inversion dependency detected",
            )
            .damaged("the changed lock is missing"),
        ],
    ),
    covered(
        "lock order detected",
        &[],
        &[
            deadlock("lock order detected", WANTS).frames(&ORDER),
            Class::new(K::Lockdep, "lock order detected", "WARNING: unsafe lock order detected")
                .damaged("the wanted lock is missing"),
        ],
    ),
    covered(
        "possible recursive locking",
        &[],
        &[
            deadlock("possible recursive locking detected", WANTS),
            Class::new(K::Lockdep, "possible recursive locking", "WARNING: possible recursive locking detected")
                .damaged("the wanted lock is missing"),
        ],
    ),
    covered(
        "inconsistent lock state",
        &[],
        &[
            Class::new(K::Lockdep, "inconsistent lock state", "inconsistent lock state in {frame}")
                .also(&["takes", "at: {func:f}"])
                .frames(&WANTED),
            Class::new(K::Lockdep, "inconsistent lock state", "inconsistent lock state")
                .damaged("the line that takes the lock is missing"),
        ],
    ),
    group(
        "Invalid wait context",
        &[],
        &[Class::new(K::Lockdep, "BUG: Invalid wait context", "WARNING: locking bug in {frame}").frames(&TRACE)],
    ),
    group(
        "suspicious RCU usage",
        &[],
        &[
            Class::new(K::RcuUsage, "WARNING: suspicious RCU usage", "WARNING: suspicious RCU usage in {frame}")
                .frames(&RCU_USAGE),
            Class::new(K::RcuUsage, "INFO: suspicious RCU usage", "INFO: suspicious RCU usage in {frame}")
                .frames(&RCU_USAGE),
        ],
    ),
    group(
        "non-static key",
        &[],
        &[Class::new(
            K::Lockdep,
            "INFO: trying to register non-static key",
            "INFO: trying to register non-static key in {frame}",
        )
        .frames(&STATIC_KEY)],
    ),
    covered(
        "unlock balance detected",
        &[],
        &[
            Class::new(K::LockUsage, "WARNING: bad unlock balance detected", "WARNING: bad unlock balance in {frame}")
                .also(&["is trying to release lock", "{func:f}+0x"])
                .frames(&CAPTURED),
            Class::new(K::LockUsage, "BUG: bad unlock balance detected", "BUG: bad unlock balance in {frame}")
                .also(&["is trying to release lock", "{func:f}+0x"])
                .frames(&CAPTURED),
            Class::new(K::LockUsage, "bad unlock balance detected", "BUG: bad unlock balance in {frame}")
                .frames(&TRACE)
                .damaged("the released lock is missing"),
        ],
    ),
    group(
        "held lock freed",
        &[],
        &[
            Class::new(K::LockUsage, "WARNING: held lock freed!", "WARNING: held lock freed in {frame}")
                .also(&["at: {func:f}"])
                .frames(&CAPTURED),
            Class::new(K::LockUsage, "BUG: held lock freed!", "BUG: held lock freed in {frame}")
                .also(&["at: {func:f}"])
                .frames(&CAPTURED),
        ],
    ),
    group(
        "still has locks held",
        &[],
        &[
            Class::new(K::LockUsage, "WARNING: {} still has locks held!", "WARNING: still has locks held in {frame}")
                .also(&["at: {func:f}"])
                .frames(&CAPTURED),
            Class::new(K::LockUsage, "BUG: {} still has locks held!", "BUG: still has locks held in {frame}")
                .also(&["at: {func:f}"])
                .frames(&CAPTURED),
        ],
    ),
    group(
        "lock held when returning to user",
        &[],
        &[
            Class::new(
                K::LockUsage,
                "WARNING: lock held when returning to user space",
                "WARNING: lock held when returning to user space in {frame}",
            )
            .also(&["at: {func:f}"])
            .frames(&CAPTURED)
            .traceless(),
            Class::new(
                K::LockUsage,
                "BUG: lock held when returning to user space",
                "BUG: lock held when returning to user space in {frame}",
            )
            .also(&["at: {func:f}"])
            .frames(&CAPTURED)
            .traceless(),
        ],
    ),
    group(
        "BUG: spinlock ",
        &[],
        &[Class::new(K::LockUsage, "BUG: spinlock {what} on CPU", "BUG: spinlock {what} in {frame}").frames(&SPIN)],
    ),
    group(
        "BUG: rwlock ",
        &[],
        &[Class::new(K::LockUsage, "BUG: rwlock {what} on CPU", "BUG: rwlock {what} in {frame}").frames(&SPIN)],
    ),
    group(
        "BUG: MAX_",
        &[],
        &[Class::new(K::Lockdep, "BUG: MAX_{what:w} too low", "BUG: MAX_{what} too low!").traceless()],
    ),
    // Context errors.
    group(
        "called from invalid context",
        &[],
        &[Class::new(
            K::AtomicSleep,
            "BUG: sleeping function called from invalid context",
            "BUG: sleeping function called from invalid context in {frame}",
        )
        .frames(&SLEEP)],
    ),
    group(
        "scheduling while atomic",
        &[],
        &[Class::new(K::AtomicSleep, "BUG: scheduling while atomic", "BUG: scheduling while atomic in {frame}")
            .frames(&SCHEDULE)],
    ),
    group(
        "in preemptible",
        &[],
        &[Class::new(
            K::Preemption,
            "BUG: using {what:w} in preemptible",
            "BUG: using {what} in preemptible code in {frame}",
        )
        .frames(&PREEMPT)],
    ),
    // Memory.
    group(
        "BUG: memory leak",
        &[],
        &[Class::new(K::MemoryLeak, "BUG: memory leak", "memory leak in {frame}").frames(&LEAK)],
    ),
    group(
        "unreferenced object 0x",
        &[],
        &[Class::new(K::MemoryLeak, "^unreferenced object 0x", "memory leak in {frame}").frames(&LEAK).detail()],
    ),
    group(
        "INFO: Freed in",
        &[],
        &[Class::new(K::SlabCorruption, "INFO: Freed in {text}", "INFO: Freed in {text}")
            .damaged("the header of the slab report is missing")],
    ),
    group(
        "INFO: Allocated in",
        &[],
        &[Class::new(K::SlabCorruption, "INFO: Allocated in {text}", "INFO: Allocated in {text}")
            .damaged("the header of the slab report is missing")],
    ),
    group(
        "invoked oom-killer",
        &[],
        &[Class::new(K::OutOfMemory, "^{comm:w} invoked oom-killer", "out of memory: oom-killer invoked").traceless()],
    ),
    group(
        "age allocation failure",
        &[],
        &[
            Class::new(
                K::AllocationFailure,
                "page allocation failure: order:{order:n}",
                "page allocation failure in {frame}",
            )
            .frames(&Recipe {
                from: &[Source::Trace],
                pick: Pick::First,
                skip: &["alloc_pages", "alloc", "kmalloc", "slab", "kmem"],
            }),
            Class::new(K::AllocationFailure, "page allocation failure", "page allocation failure in {frame}").frames(
                &Recipe {
                    from: &[Source::Trace],
                    pick: Pick::First,
                    skip: &["alloc_pages", "alloc", "kmalloc", "slab", "kmem"],
                },
            ),
        ],
    ),
    // Hardware.
    group(
        "nobody cared",
        &[],
        &[Class::new(K::BadIrq, "irq {:n}: nobody cared", "irq: nobody cared in {frame}").frames(&IRQ)],
    ),
    group(
        "Hardware Error]: ",
        &[],
        &[
            Class::new(K::MachineCheck, "[Hardware Error]: {}Machine check", "mce: hardware error").traceless(),
            Class::new(K::MachineCheck, "[Hardware Error]: CPU {:n}: Machine Check", "mce: hardware error").traceless(),
            Class::new(K::HardwareError, "[Hardware Error]: event severity: fatal", "hardware error: fatal")
                .traceless(),
            Class::new(K::HardwareError, "[Hardware Error]: Hardware error from APEI", "hardware error: APEI")
                .traceless(),
        ],
    ),
    group(
        "achine check events logged",
        &[],
        &[Class::new(K::MachineCheck, "achine check events logged", "mce: hardware error").traceless()],
    ),
    group(
        "achine Check Exception",
        &[],
        &[Class::new(K::MachineCheck, "achine Check Exception", "mce: hardware error").traceless()],
    ),
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
