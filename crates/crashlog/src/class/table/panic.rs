//! Panics. Those that only end an earlier report come first.

use super::{FAULT, TRACE, group};
use crate::class::{Class, Group, Pick, Recipe, Source};
use crate::model::Kind as K;

const STACK_CHECK: Recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["stack_chk"] };
const STACK_END: Recipe =
    Recipe { from: &[Source::Trace], pick: Pick::AboveEntry, skip: &["schedule", "retint_kernel", "preempt"] };
const LOST_CAUSE: &str = "the report this panic follows from is not in the log";

pub const GROUPS: &[Group] = &[group(
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
        )
        .frames(&TRACE),
        Class::new(
            K::Panic,
            "Kernel panic - not syncing: Attempted to kill init!",
            "kernel panic: Attempted to kill init!",
        )
        .frames(&TRACE),
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
        Class::new(K::Panic, "Kernel panic - not syncing: {what}panic set ...", "kernel panic: {what}panic set")
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
        Class::new(K::Panic, "Kernel panic - not syncing: {text}", "kernel panic: {text}").frames(&TRACE),
        Class::new(K::Panic, "Kernel panic: {text}", "kernel panic: {text}").frames(&TRACE),
        Class::new(K::Panic, "Kernel panic", "kernel panic").damaged("the header is cut"),
    ],
)];
