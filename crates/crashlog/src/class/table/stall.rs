//! Stalls, hangs and lockups.

use super::group;
use crate::class::{Class, Group, Pick, Recipe, Source};
use crate::model::Kind as K;

const STALL: Recipe = Recipe { from: &[Source::Interrupted], pick: Pick::AboveEntry, skip: &["rcu"] };
const LOCKUP: Recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::AboveEntry, skip: &[] };
const HUNG: Recipe = Recipe {
    from: &[Source::Trace],
    pick: Pick::Waiter,
    skip: &[
        "sched",
        "_lock",
        "_slowlock",
        "down",
        "completion",
        "kthread",
        "wait",
        "synchronize",
        "context_switch",
        "__switch_to",
        "cancel_delayed_work",
        "rcu_barrier",
        "cancel_work",
        "flush_work",
    ],
};

const RCU: &str = "INFO: rcu detected stall in {frame}";

pub const GROUPS: &[Group] = &[
    group(
        " more than",
        &[],
        &[
            Class::new(K::HungTask, "INFO: task {} blocked for more than {:n} seconds", "INFO: task hung in {frame}")
                .alts(&["hang in {frame}"])
                .frames(&HUNG),
            Class::new(K::HungTask, "INFO: task {} blocked for more than", "INFO: task hung in {frame}")
                .alts(&["hang in {frame}"])
                .frames(&HUNG),
            // A task's name may contain line breaks.
            Class::new(K::HungTask, ":{:n} blocked for more than {:n} seconds.", "INFO: task hung in {frame}")
                .alts(&["hang in {frame}"])
                .frames(&HUNG),
        ],
    ),
    group(
        "blocked in I/O wait for more than",
        &[],
        &[Class::new(K::HungTask, "INFO: task {} blocked in I/O wait for more than", "INFO: task hung in {frame}")
            .alts(&["hang in {frame}"])
            .frames(&HUNG)],
    ),
    group(
        "can't die for more than",
        &[],
        &[Class::new(K::HungTask, "INFO: task {} can't die for more than", "INFO: task can't die in {frame}")
            .alts(&["hang in {frame}"])
            .frames(&HUNG)],
    ),
    group(
        "soft lockup",
        &["soft lockup timeout", "softlockup_panic"],
        &[Class::new(K::SoftLockup, "BUG: soft lockup", "BUG: soft lockup in {frame}")
            .alts(&["stall in {frame}"])
            .frames(&LOCKUP)],
    ),
    group(
        " LOCKUP",
        &["Kernel panic", "hard LOCKUP threshold"],
        &[
            Class::new(K::HardLockup, "Watchdog detected hard LOCKUP", "BUG: hard lockup in {frame}")
                .alts(&["stall in {frame}"])
                .frames(&LOCKUP)
                .detail(),
            Class::new(K::HardLockup, "CPU {:n} Hard LOCKUP", "BUG: hard lockup in {frame}")
                .alts(&["stall in {frame}"])
                .frames(&LOCKUP),
            Class::new(K::HardLockup, "CPU {:n} detected hard LOCKUP on other CPUs", "BUG: hard lockup in {frame}")
                .alts(&["stall in {frame}"])
                .frames(&LOCKUP),
            Class::new(K::HardLockup, "self-detected hard LOCKUP", "BUG: hard lockup in {frame}")
                .alts(&["stall in {frame}"])
                .frames(&LOCKUP),
        ],
    ),
    group(
        "detected stall",
        &["RCU Stall"],
        &[
            Class::new(K::RcuStall, "INFO: rcu_{}detected stall", RCU).alts(&["stall in {frame}"]).frames(&STALL),
            Class::new(K::RcuStall, "INFO: {}detected stall", RCU).alts(&["stall in {frame}"]).frames(&STALL),
        ],
    ),
    group(
        "detected expedited stall",
        &[],
        &[Class::new(K::RcuStall, "INFO: rcu_{}detected expedited stall", RCU)
            .alts(&["stall in {frame}"])
            .frames(&STALL)],
    ),
    group(
        "workqueue lockup",
        &[],
        &[Class::new(K::WorkqueueStall, "BUG: workqueue lockup", "BUG: workqueue lockup").traceless()],
    ),
    group(
        "workqueue leaked",
        &[],
        &[
            Class::new(K::LockUsage, "BUG: workqueue leaked", "BUG: workqueue leaked lock or atomic in {frame}")
                .also(&["last function: {func:f}"])
                .frames(&Recipe { from: &[Source::Capture("func")], pick: Pick::First, skip: &[] })
                .traceless(),
            Class::new(K::LockUsage, "BUG: workqueue leaked", "BUG: workqueue leaked lock or atomic")
                .damaged("the line that names the function is missing"),
        ],
    ),
    group(
        "unregister_netdevice: waiting for",
        &[],
        &[Class::new(
            K::NetworkDevice,
            "unregister_netdevice: waiting for {} to become free",
            "unregister_netdevice: waiting for DEV to become free",
        )
        .traceless()],
    ),
];
