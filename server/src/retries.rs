//! What becomes of a job after one of its attempts: done, or another try, and which.
//!
//! Two kinds of failure are told apart. What the lab did not deliver says nothing about the kernel and is tried again
//! within a budget, on another machine where there is one. A kernel that failed may be put to the proof before that is
//! final, as the job's policy says: a known-good kernel on the same machine (if that fails too, the machine or the test
//! is at fault), and the same kernel on another machine (does it depend on this one?). A pure function of the attempts
//! so far; it never hides one of them.

use crashyard_protocol::api::Policy;
use crashyard_protocol::{MachineId, Purpose, StageName, Status};

/// One attempt that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// What it was for.
    pub purpose: Purpose,
    /// Where.
    pub machine: MachineId,
    /// The machine's name.
    pub machine_name: String,
    /// What it showed.
    pub verdict: Status,
    /// Where the contract stopped.
    pub blamed: Option<StageName>,
    /// Why.
    pub reason: Option<String>,
    /// Whether it ended because its machine was wanted by others.
    pub gave_way: bool,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: this is the job's verdict.
    Done {
        /// The verdict.
        status: Status,
        /// Where the contract stopped.
        blamed: Option<StageName>,
        /// Why.
        reason: Option<String>,
        /// A machine that is not to be trusted after this, and why.
        suspect: Option<(MachineId, String)>,
    },
    /// Another attempt.
    Again {
        /// What for.
        purpose: Purpose,
        /// On this machine and no other.
        only: Option<MachineId>,
        /// Not on this machine.
        not: Option<MachineId>,
        /// Why there is another one, for people.
        reason: String,
    },
}

/// Whether the lab failed and not the kernel: no result at all, or an error of machine, agent or network. An error
/// while arming is one of configuration, which is the same everywhere.
#[must_use]
pub fn lab_failed(verdict: Status, blamed: Option<StageName>) -> bool {
    match verdict {
        Status::Miss => true,
        Status::Error => matches!(blamed, Some(StageName::Provisioned | StageName::Triggered | StageName::Dumped)),
        Status::Pass | Status::Fail | Status::Skip | Status::Done => false,
    }
}

impl Tried {
    fn lab_failed(&self) -> bool {
        lab_failed(self.verdict, self.blamed)
    }
}

/// What comes after these attempts, the oldest first. `elsewhere`: whether any machine but the last one's could take it.
#[must_use]
pub fn next(policy: &Policy, tries: u32, tried: &[Tried], elsewhere: bool) -> Next {
    let Some(last) = tried.last() else { return again(Purpose::Test, None, None, "not tried yet".into()) };
    let failed_at = tried.iter().rev().find(|one| one.purpose == Purpose::Test && !one.lab_failed());
    if last.gave_way {
        return again(last.purpose, None, None, format!("gave {} away; waits for its turn again", last.machine_name));
    }
    if last.lab_failed() {
        let spent = tried.iter().filter(|one| one.purpose == last.purpose && one.lab_failed() && !one.gave_way).count();
        if spent < usize::try_from(policy.tries.unwrap_or(tries)).unwrap_or(usize::MAX) {
            return try_again(last, failed_at, elsewhere);
        }
    }
    let Some(test) = failed_at else { return done(last, last.reason.clone(), None) };
    if test.verdict != Status::Fail {
        return done(test, test.reason.clone(), None);
    }
    let was = |purpose| tried.iter().any(|one| one.purpose == purpose);
    let seen = format!("FAIL on {}", test.machine_name);
    if policy.known_good.is_some() && !was(Purpose::KnownGood) {
        let reason = format!("{seen}; the known-good kernel is tried there next");
        return again(Purpose::KnownGood, Some(test.machine.clone()), None, reason);
    }
    let ruled_out = result(tried, Purpose::KnownGood).is_some_and(|one| one.verdict != Status::Pass);
    if policy.elsewhere && elsewhere && !ruled_out && !was(Purpose::Elsewhere) {
        let reason = format!("{seen}; another machine is tried next");
        return again(Purpose::Elsewhere, None, Some(test.machine.clone()), reason);
    }
    conclude(test, tried)
}

/// The verdict of what was tried, without what was still to come.
#[must_use]
pub fn give_up(tried: &[Tried], why: &str) -> Next {
    let test = tried.iter().rev().find(|one| one.purpose == Purpose::Test && !one.lab_failed());
    match (test, tried.last()) {
        (Some(test), _) => match conclude(test, tried) {
            Next::Done { status, blamed, reason, suspect } => {
                let reason = Some(reason.map_or_else(|| why.to_owned(), |reason| format!("{reason}; {why}")));
                Next::Done { status, blamed, reason, suspect }
            }
            again @ Next::Again { .. } => again,
        },
        (None, Some(last)) => done(last, last.reason.clone(), None),
        (None, None) => Next::Done { status: Status::Miss, blamed: None, reason: Some(why.to_owned()), suspect: None },
    }
}

/// The same attempt once more, because the lab did not deliver.
fn try_again(last: &Tried, failed_at: Option<&Tried>, elsewhere: bool) -> Next {
    let reason = format!("{} on {}: the lab did not deliver; tried again", last.verdict, last.machine_name);
    let failing = failed_at.map(|test| test.machine.clone());
    match last.purpose {
        Purpose::Test => again(Purpose::Test, None, elsewhere.then(|| last.machine.clone()), reason),
        // The comparison is with the machine where it failed, whatever trouble that makes.
        Purpose::KnownGood => again(Purpose::KnownGood, failing, None, reason),
        Purpose::Elsewhere => again(Purpose::Elsewhere, None, failing, reason),
    }
}

/// The last attempt of a purpose that the lab delivered.
fn result(tried: &[Tried], purpose: Purpose) -> Option<&Tried> {
    tried.iter().rev().find(|one| one.purpose == purpose && !one.lab_failed())
}

/// A `FAIL`, seen in the light of the other attempts.
fn conclude(test: &Tried, tried: &[Tried]) -> Next {
    let was = |purpose| tried.iter().any(|one| one.purpose == purpose);
    let mut words = test.reason.clone().into_iter().collect::<Vec<_>>();
    match result(tried, Purpose::KnownGood) {
        Some(control) if control.verdict != Status::Pass => {
            let found = control.reason.as_deref().unwrap_or("no reason given");
            let why = format!(
                "The known-good kernel does not pass on {} either ({}: {found}), so this says nothing about the kernel",
                test.machine_name, control.verdict
            );
            return Next::Done {
                status: Status::Error,
                blamed: test.blamed,
                suspect: Some((test.machine.clone(), format!("a known-good kernel got {}: {found}", control.verdict))),
                reason: Some(why),
            };
        }
        Some(_) => words.push(format!("the known-good kernel passes on {}", test.machine_name)),
        None if was(Purpose::KnownGood) => words.push("the lab did not deliver the known-good kernel's result".into()),
        None => {}
    }
    match result(tried, Purpose::Elsewhere) {
        Some(other) if other.verdict == Status::Fail => words.push(format!("fails on {} too", other.machine_name)),
        Some(other) => {
            let text = format!("{} on {}: it depends on the machine, or on chance", other.verdict, other.machine_name);
            words.push(text);
        }
        None if was(Purpose::Elsewhere) => words.push("the lab did not deliver another machine's result".into()),
        None => {}
    }
    done(test, (!words.is_empty()).then(|| words.join("; ")), None)
}

fn done(by: &Tried, reason: Option<String>, suspect: Option<(MachineId, String)>) -> Next {
    Next::Done { status: by.verdict, blamed: by.blamed, reason, suspect }
}

fn again(purpose: Purpose, only: Option<MachineId>, not: Option<MachineId>, reason: String) -> Next {
    Next::Again { purpose, only, not, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(number: u64) -> MachineId {
        MachineId::from_ulid(ulid::Ulid::from_parts(number, 0))
    }

    fn tried(purpose: Purpose, on: u64, verdict: Status, blamed: Option<StageName>) -> Tried {
        Tried {
            purpose,
            machine: machine(on),
            machine_name: format!("m{on}"),
            verdict,
            blamed,
            reason: Some(format!("reason {on}")),
            gave_way: false,
        }
    }

    fn test(on: u64, verdict: Status) -> Tried {
        tried(Purpose::Test, on, verdict, (verdict != Status::Pass).then_some(StageName::Captured))
    }

    fn careful() -> Policy {
        let good = crashyard_protocol::BuildId::from_ulid(ulid::Ulid::from_parts(9, 9));
        Policy { known_good: Some(good), elsewhere: true, ..Policy::default() }
    }

    fn is_again(next: &Next, wanted: Purpose, wanted_only: Option<u64>, wanted_not: Option<u64>) -> bool {
        matches!(next, Next::Again { purpose, only, not, .. }
            if *purpose == wanted && *only == wanted_only.map(machine) && *not == wanted_not.map(machine))
    }

    fn verdict(next: &Next) -> (Status, String) {
        match next {
            Next::Done { status, reason, .. } => (*status, reason.clone().unwrap_or_default()),
            Next::Again { .. } => panic!("{next:?}"),
        }
    }

    #[test]
    fn what_the_lab_did_not_deliver_is_tried_elsewhere_within_the_budget() {
        let mut all = vec![tried(Purpose::Test, 1, Status::Miss, Some(StageName::Provisioned))];
        assert!(is_again(&next(&Policy::default(), 2, &all, true), Purpose::Test, None, Some(1)));
        assert!(is_again(&next(&Policy::default(), 2, &all, false), Purpose::Test, None, None), "there is only one");
        all.push(tried(Purpose::Test, 2, Status::Error, Some(StageName::Dumped)));
        assert_eq!(verdict(&next(&Policy::default(), 2, &all, true)).0, Status::Error);
        let patient = Policy { tries: Some(3), ..Policy::default() };
        assert!(is_again(&next(&patient, 2, &all, true), Purpose::Test, None, Some(2)));
    }

    #[test]
    fn an_error_of_configuration_is_the_same_everywhere_and_not_tried_again() {
        let all = [tried(Purpose::Test, 1, Status::Error, Some(StageName::Armed))];
        assert_eq!(verdict(&next(&Policy::default(), 5, &all, true)).0, Status::Error);
    }

    #[test]
    fn without_a_policy_a_fail_is_final() {
        assert_eq!(
            verdict(&next(&Policy::default(), 2, &[test(1, Status::Fail)], true)),
            (Status::Fail, "reason 1".into())
        );
    }

    #[test]
    fn a_fail_is_compared_with_a_known_good_kernel_there_and_with_another_machine() {
        let mut all = vec![test(1, Status::Fail)];
        assert!(is_again(&next(&careful(), 2, &all, true), Purpose::KnownGood, Some(1), None));
        all.push(tried(Purpose::KnownGood, 1, Status::Pass, None));
        assert!(is_again(&next(&careful(), 2, &all, true), Purpose::Elsewhere, None, Some(1)));
        let alone = verdict(&next(&careful(), 2, &all, false));
        assert_eq!(alone, (Status::Fail, "reason 1; the known-good kernel passes on m1".into()));
        all.push(tried(Purpose::Elsewhere, 2, Status::Fail, Some(StageName::Captured)));
        let (status, why) = verdict(&next(&careful(), 2, &all, true));
        assert_eq!(
            (status, why.as_str()),
            (Status::Fail, "reason 1; the known-good kernel passes on m1; fails on m2 too")
        );
        all[2].verdict = Status::Pass;
        let (status, why) = verdict(&next(&careful(), 2, &all, true));
        assert!(
            status == Status::Fail && why.ends_with("PASS on m2: it depends on the machine, or on chance"),
            "{why}"
        );
    }

    #[test]
    fn a_machine_on_which_the_known_good_kernel_fails_too_is_suspect_and_the_kernel_is_not() {
        let all = [test(1, Status::Fail), tried(Purpose::KnownGood, 1, Status::Fail, Some(StageName::Captured))];
        let found = next(&careful(), 2, &all, true);
        let Next::Done { status: Status::Error, suspect: Some((suspect, _)), .. } = &found else { panic!("{found:?}") };
        assert_eq!(suspect, &machine(1));
    }

    #[test]
    fn the_labs_trouble_with_the_comparison_is_told_and_does_not_change_the_verdict() {
        let mut all = vec![test(1, Status::Fail), tried(Purpose::KnownGood, 1, Status::Miss, None)];
        assert!(is_again(&next(&careful(), 2, &all, true), Purpose::KnownGood, Some(1), None), "on the same machine");
        all.push(tried(Purpose::KnownGood, 1, Status::Miss, None));
        assert!(is_again(&next(&careful(), 2, &all, true), Purpose::Elsewhere, None, Some(1)), "its own budget");
        all.push(tried(Purpose::Elsewhere, 3, Status::Miss, None));
        assert!(is_again(&next(&careful(), 2, &all, true), Purpose::Elsewhere, None, Some(1)));
        all.push(tried(Purpose::Elsewhere, 3, Status::Miss, None));
        let (status, why) = verdict(&next(&careful(), 2, &all, true));
        assert!(status == Status::Fail && why.contains("known-good kernel's result"), "{why}");
        assert!(why.contains("another machine's result"), "{why}");
    }

    #[test]
    fn giving_way_costs_no_try() {
        let away = Tried { gave_way: true, ..test(1, Status::Miss) };
        let all = [away.clone(), away.clone(), away];
        assert!(is_again(&next(&Policy::default(), 1, &all, true), Purpose::Test, None, None));
    }

    #[test]
    fn a_comparison_that_cannot_be_made_leaves_the_fail_and_says_so() {
        let (status, why) = verdict(&give_up(&[test(1, Status::Fail)], "m1 is retired"));
        assert_eq!((status, why.as_str()), (Status::Fail, "reason 1; m1 is retired"));
    }
}
