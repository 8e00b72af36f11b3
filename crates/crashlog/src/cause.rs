//! What follows from what: duplicates, consequences, and which crash was asked for.
//!
//! Judged over the finished list, because a later line may say more about an earlier one. Intent comes from the
//! scenario only ([`crate::Intent`]); text alone never makes a crash intended.

use std::collections::BTreeMap;

use crate::model::{Event, EventKind, Kind, Report};
use crate::normal;
use crate::options::Intent;

/// Functions that run only while the kernel is going down. An oops raised below one of them happened on the way.
const CRASH_PATH: &[&str] = &[
    "panic",
    "vpanic",
    "__crash_kexec",
    "crash_kexec",
    "machine_crash_shutdown",
    "native_machine_crash_shutdown",
    "machine_kexec",
    "crash_shutdown",
    "kdump_nmi_shootdown_cpus",
    "crash_nmi_callback",
    "emergency_restart",
    "machine_emergency_restart",
    "native_machine_emergency_restart",
    "oops_end",
    "die",
];

/// Functions that run when a task dies of an oops.
const DYING: &[&str] =
    &["do_exit", "make_task_dead", "rewind_stack_do_exit", "rewind_stack_and_make_dead", "do_group_exit"];

/// Settles duplicates, causes and intent of all reports.
pub fn settle(reports: &mut [Report], events: &[Event], intent: Option<&Intent>) {
    // Where user space of each boot began; it is looked up for every report.
    let mut started: BTreeMap<u32, u64> = BTreeMap::new();
    for e in events.iter().filter(|e| matches!(e.kind, EventKind::InitStarted)) {
        started.entry(e.boot).or_insert(e.start);
    }
    for i in 0..reports.len() {
        let (before, rest) = reports.split_at_mut(i);
        let r = &mut rest[0];
        // Only the recent past is looked at: a console full of reports must not cost the square of their number.
        let from = i.saturating_sub(64);
        let user_space = started.get(&r.boot).is_some_and(|start| *start < r.start);
        if let Some(first) = duplicate(&before[from..], r, user_space) {
            r.duplicate_of = Some(from + first);
            r.why.push(format!("printed before as report {}: same time stamp, header and task", from + first));
            continue;
        }
        if let Some((cause, why)) = cause(&before[from..], r) {
            r.cause = Some(from + cause);
            r.why.push(why.replace("{}", &(from + cause).to_string()));
            // A consequence with its cause at hand is not damaged.
            if is_consequence(r) || r.corrupted_reason.as_deref() == Some("no stack trace") && r.kind == Kind::Panic {
                r.corrupted = false;
                r.corrupted_reason = None;
            }
        }
    }
    if let Some(intent) = intent {
        judge(reports, events, intent);
    }
}

/// The same report printed again, as a second console or a replayed dmesg does. Another kernel's report is replayed
/// by user space only; before that runs, two kernels of one build may well warn in the same microsecond of their boot.
fn duplicate(before: &[Report], r: &Report, user_space: bool) -> Option<usize> {
    r.time.as_ref()?;
    let same = |b: &Report| b.time == r.time && b.header == r.header && b.pid == r.pid && b.kernel == r.kernel;
    before.iter().position(|b| b.duplicate_of.is_none() && same(b) && (b.boot == r.boot || user_space))
}

fn is_consequence(r: &Report) -> bool {
    let Some(reason) = r.title.strip_prefix("kernel panic: ").filter(|_| r.kind == Kind::Panic) else { return false };
    reason.ends_with("panic set")
        || [
            "Fatal exception",
            "panic_on_warn set",
            "hung_task: blocked tasks",
            "softlockup: hung tasks",
            "RCU Stall",
            "Hard LOCKUP",
        ]
        .contains(&reason)
}

/// Index of the report that `r` follows from, with the reason (`{}` stands for the index).
fn cause(before: &[Report], r: &Report) -> Option<(usize, String)> {
    let mut same_boot = before.iter().enumerate().rev().filter(|(_, b)| b.boot == r.boot && b.duplicate_of.is_none());
    if is_consequence(r) {
        return same_boot.next().map(|(i, _)| (i, "this panic only ends what report {} began".to_owned()));
    }
    if r.header.starts_with("Kernel panic") && (r.kind == Kind::MachineCheck || r.title.contains("hardware error")) {
        let mut errors = same_boot.filter(|(_, b)| matches!(b.kind, Kind::MachineCheck | Kind::HardwareError));
        return errors.next().map(|(i, _)| (i, "the hardware error of report {} is fatal".to_owned()));
    }
    if r.title == "kernel panic: Attempted to kill init!" {
        let mut deaths = same_boot.filter(|(_, b)| fatal(b.kind) && b.pid.is_none_or(|p| p == 1));
        return deaths.next().map(|(i, _)| (i, "init died of report {}".to_owned()));
    }
    let path = r.trace.iter().skip(1).find(|f| CRASH_PATH.contains(&normal::function(&f.function)));
    let dying = r.trace.iter().find(|f| DYING.contains(&normal::function(&f.function)));
    same_boot.find_map(|(i, b)| {
        let fatal = fatal(b.kind);
        let same_task = r.pid.is_some() && b.pid == r.pid && b.comm == r.comm;
        if let Some(p) = path
            && ends(b.kind)
            && own_panic(r) != Some(&p.function)
        {
            return Some((i, format!("raised inside the crash path of report {{}} (below {})", p.function)));
        }
        if let Some(d) = dying
            && fatal
            && same_task
        {
            return Some((i, format!("raised while the task of report {{}} was dying (below {})", d.function)));
        }
        if same_task && close(b, r) && (fatal || related(b, r)) {
            return Some((i, "same task right after report {}".to_owned()));
        }
        None
    })
}

/// A panic's own trace runs through `panic`; that is not another report's crash path.
fn own_panic(r: &Report) -> Option<&String> {
    let own =
        matches!(r.kind, Kind::Panic | Kind::Sysrq | Kind::OutOfMemory | Kind::StackOverflow | Kind::MachineCheck);
    r.trace.iter().find(|f| own && CRASH_PATH.contains(&normal::function(&f.function))).map(|f| &f.function)
}

/// After these the kernel goes down.
fn ends(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Panic | Kind::Sysrq | Kind::MachineCheck | Kind::OutOfMemory | Kind::StackOverflow | Kind::HardLockup
    ) || fatal(kind)
}

/// After these the task is gone.
fn fatal(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::PageFault
            | Kind::NullDereference
            | Kind::GeneralProtection
            | Kind::DivideError
            | Kind::InvalidOpcode
            | Kind::Oops
            | Kind::Bug
            | Kind::ListCorruption
            | Kind::DoubleFault
    )
}

/// At most one second apart, as far as both say when.
fn close(a: &Report, b: &Report) -> bool {
    let seconds = |r: &Report| r.time.as_ref().and_then(|t| t.split('.').next()?.parse::<u64>().ok());
    match (seconds(a), seconds(b)) {
        (Some(a), Some(b)) => b.abs_diff(a) <= 1,
        _ => a.end >= b.start.saturating_sub(4096),
    }
}

/// Share a telling frame.
fn related(a: &Report, b: &Report) -> bool {
    a.fingerprint.frames.iter().take(3).any(|f| b.fingerprint.frames.iter().take(3).any(|g| f == g))
}

/// Marks what the scenario asked for.
fn judge(reports: &mut [Report], events: &[Event], intent: &Intent) {
    let from = match &intent.marker {
        Some(m) => {
            match events.iter().find(|e| matches!(e.kind, EventKind::Marker { .. }) && e.text.contains(m.as_str())) {
                Some(e) => e.start,
                None => u64::MAX,
            }
        }
        None => 0,
    };
    for i in 0..reports.len() {
        let r = &reports[i];
        let mut intended = r.start >= from && intent.matches(&r.header, &r.title);
        let mut why = if intended { Some(format!("intended: the scenario expects {:?}", intent.expect)) } else { None };
        if let Some(first) = r.duplicate_of {
            intended = reports[first].intended == Some(true);
            why = intended.then(|| format!("intended: report {first} printed again"));
        } else if !intended && is_consequence(r) && r.cause.is_some_and(|c| reports[c].intended == Some(true)) {
            intended = true;
            why = Some("intended: it ends an intended crash".to_owned());
        }
        let r = &mut reports[i];
        r.intended = Some(intended);
        r.why.extend(why);
    }
}
