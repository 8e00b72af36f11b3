//! Which machine fails differently from the others that ran the same tests.
//!
//! The same kernel and scenario is a stratum; inside it, machines can be compared. For a machine and a kind of failure, the
//! failures seen in all strata are set against those that the other machines lead one to expect (Cochran, Mantel and
//! Haenszel). A kernel that fails everywhere cancels out; a machine that fails alone stands out. Pure.

use crashyard_protocol::{MachineId, StageName, Status};
use std::collections::{BTreeMap, BTreeSet};

/// Standard deviations beyond which chance is no explanation: about one in ten thousand, as many are compared.
const SIGMAS: f64 = 3.7;

/// Failures below which nothing is said.
const AT_LEAST: i64 = 3;

/// How often something came out of one test on one machine.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Count {
    /// The machine.
    pub machine_id: MachineId,
    /// The kernel.
    pub build_id: String,
    /// The scenario's name.
    pub scenario: String,
    /// What came out.
    pub verdict: Status,
    /// Where the contract stopped.
    pub blamed_stage: Option<StageName>,
    /// How often.
    pub times: i64,
}

type Kind = (Status, Option<StageName>);

/// One test, and what came of it on each machine.
#[derive(Default)]
struct Stratum<'a> {
    attempts: BTreeMap<&'a MachineId, i64>,
    outcomes: BTreeMap<(Kind, &'a MachineId), i64>,
}

/// The machines that stand out, each with how, in words.
#[must_use]
pub fn different(counts: &[Count]) -> BTreeMap<MachineId, String> {
    let mut strata: BTreeMap<(&str, &str), Stratum<'_>> = BTreeMap::new();
    let mut kinds: BTreeSet<(Kind, &MachineId)> = BTreeSet::new();
    for count in counts {
        let stratum = strata.entry((&count.build_id, &count.scenario)).or_default();
        *stratum.attempts.entry(&count.machine_id).or_default() += count.times;
        if matches!(count.verdict, Status::Fail | Status::Error | Status::Miss) {
            let key = ((count.verdict, count.blamed_stage), &count.machine_id);
            *stratum.outcomes.entry(key).or_default() += count.times;
            kinds.insert(key);
        }
    }
    let mut found: BTreeMap<MachineId, (f64, String)> = BTreeMap::new();
    for (kind, machine) in kinds {
        let Some((sigmas, text)) = stands_out(kind, machine, strata.values()) else { continue };
        let known = found.entry(machine.clone()).or_insert((0.0, String::new()));
        if sigmas > known.0 {
            *known = (sigmas, text);
        }
    }
    found.into_iter().map(|(machine, (_, text))| (machine, text)).collect()
}

fn stands_out<'a>(
    kind: Kind,
    machine: &MachineId,
    strata: impl Iterator<Item = &'a Stratum<'a>>,
) -> Option<(f64, String)> {
    let (mut seen, mut expected, mut variance) = (0, 0.0, 0.0);
    let (mut own, mut theirs, mut their_failures) = (0, 0, 0);
    for stratum in strata {
        let mine = stratum.attempts.get(machine).copied().unwrap_or(0);
        let all: i64 = stratum.attempts.values().sum();
        if mine == 0 || all == mine {
            continue;
        }
        let failed: i64 = stratum.outcomes.iter().filter(|((k, _), _)| *k == kind).map(|(_, times)| times).sum();
        let failed_here = stratum.outcomes.iter().find(|((k, m), _)| *k == kind && *m == machine);
        let failed_here = failed_here.map_or(0, |(_, times)| *times);
        let [n, total, f] = [mine, all, failed].map(|count| count as f64);
        seen += failed_here;
        expected += n * f / total;
        variance += n * (total - n) * f * (total - f) / (total * total * (total - 1.0));
        (own, theirs, their_failures) = (own + mine, theirs + all - mine, their_failures + failed - failed_here);
    }
    if seen < AT_LEAST || variance <= 0.0 {
        return None;
    }
    let sigmas = (seen as f64 - expected) / variance.sqrt();
    let (verdict, stage) = kind;
    let at = stage.map_or_else(String::new, |stage| format!(" at {stage}"));
    let text =
        format!("{verdict}{at} in {seen} of {own} attempts; others in {their_failures} of {theirs} at the same tests");
    (sigmas >= SIGMAS).then_some((sigmas, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(number: u64) -> MachineId {
        MachineId::from_ulid(ulid::Ulid::from_parts(number, 0))
    }

    fn count(on: u64, build: &str, verdict: Status, times: i64) -> Count {
        let blamed_stage = (verdict != Status::Pass).then_some(StageName::Captured);
        Count {
            machine_id: machine(on),
            build_id: build.into(),
            scenario: "sysrq-c".into(),
            verdict,
            blamed_stage,
            times,
        }
    }

    #[test]
    fn a_machine_that_fails_alone_stands_out_and_says_how() {
        let mut counts = vec![count(1, "a", Status::Fail, 6), count(1, "a", Status::Pass, 4)];
        counts.extend((2..=5).map(|on| count(on, "a", Status::Pass, 10)));
        counts.push(count(5, "a", Status::Fail, 1));
        let found = different(&counts);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[&machine(1)], "FAIL at captured in 6 of 10 attempts; others in 1 of 41 at the same tests");
    }

    #[test]
    fn a_kernel_that_fails_everywhere_points_at_nobody() {
        let mut counts: Vec<_> = (1..=5).map(|on| count(on, "broken", Status::Fail, 10)).collect();
        counts.extend((2..=5).map(|on| count(on, "good", Status::Pass, 10)));
        assert_eq!(different(&counts), BTreeMap::new(), "machine 1 was only given the broken kernel");
    }

    #[test]
    fn chance_and_machines_without_siblings_point_at_nobody() {
        let few = [count(1, "a", Status::Fail, 2), count(2, "a", Status::Pass, 50)];
        assert_eq!(different(&few), BTreeMap::new());
        let alone = [count(1, "a", Status::Miss, 20), count(2, "b", Status::Pass, 20)];
        assert_eq!(different(&alone), BTreeMap::new());
        let usual = [(1, 4), (2, 2), (3, 3)]
            .map(|(on, times)| [count(on, "a", Status::Fail, times), count(on, "a", Status::Pass, 10 - times)]);
        assert_eq!(different(&usual.concat()), BTreeMap::new());
        assert_eq!(different(&[]), BTreeMap::new());
    }

    #[test]
    fn small_differences_in_many_tests_add_up() {
        let builds: Vec<String> = (0..12).map(|number| format!("b{number}")).collect();
        let counts: Vec<_> = builds
            .iter()
            .flat_map(|build| {
                let others = (2..=4).map(|on| count(on, build, Status::Pass, 1));
                others.chain([count(1, build, Status::Fail, 1)])
            })
            .collect();
        assert_eq!(different(&counts).keys().collect::<Vec<_>>(), [&machine(1)], "one attempt at each kernel");
    }
}
