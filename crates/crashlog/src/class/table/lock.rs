//! Lock checking, and code that runs in the wrong context.

use super::{CAPTURED, HEADER_THEN_TRACE, TRACE, covered, group};
use crate::class::{Class, Group, Pick, Recipe, Source};
use crate::model::Kind as K;

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

/// The five lockdep reports that name the lock somebody wants.
const fn deadlock(head: &'static str, also: &'static [&'static str]) -> Class {
    Class::new(K::Lockdep, head, "possible deadlock in {frame}").also(also).frames(&DEADLOCK)
}

const WANTS: &[&str] = &["is trying to acquire", "at: {func:f}"];

pub const GROUPS: &[Group] = &[
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
        "suspicious rcu_dereference",
        &[],
        &[Class::new(K::RcuUsage, "INFO: suspicious rcu_dereference", "INFO: suspicious RCU usage in {frame}")
            .frames(&RCU_USAGE)],
    ),
    covered(
        "ested lock was not taken",
        &[],
        &[
            Class::new(
                K::LockUsage,
                "WARNING: Nested lock was not taken",
                "WARNING: nested lock was not taken in {frame}",
            )
            .also(&["is trying to lock", "at: {func:f}"])
            .frames(&HEADER_THEN_TRACE),
            Class::new(K::LockUsage, "WARNING: Nested lock was not taken", "WARNING: nested lock was not taken")
                .damaged("the lock is missing"),
        ],
    ),
    covered(
        "bad contention detected",
        &[],
        &[
            Class::new(K::LockUsage, "bad contention detected!", "WARNING: bad contention in {frame}")
                .also(&["is trying to contend lock", "at: {func:f}"])
                .frames(&HEADER_THEN_TRACE),
            Class::new(K::LockUsage, "bad contention detected!", "WARNING: bad contention")
                .damaged("the lock is missing"),
        ],
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
];
