//! Whether a machine is trusted with jobs, from how its last attempts ended.
//!
//! What counts against a machine is only what the lab did not deliver ([`lab_failed`]) and a return that its controller
//! calls unhealthy; a kernel that crashes wrongly is what the farm is for. A quarantine ends by itself after a while: the
//! machine comes back on probation, where one more failure sends it away for twice as long, and one attempt that went
//! well clears it. A pure function; the time is an argument.

use crate::retries::lab_failed;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{StageName, Status};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest quarantine that ends by itself.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// When a machine is quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// So many failures; 0 never quarantines for them.
    pub failures: u32,
    /// Among so many of its last attempts.
    pub window: u32,
    /// How long the first quarantine lasts.
    pub probation: Duration,
}

/// How an attempt on it ended.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Outcome {
    /// What it showed.
    pub verdict: Status,
    /// Where the contract stopped.
    pub blamed_stage: Option<StageName>,
    /// Whether its machine was wanted by others.
    pub gave_way: bool,
}

impl Outcome {
    /// Whether the lab did what it was to do: then the attempts before say nothing more about the machine.
    #[must_use]
    pub fn went_well(&self) -> bool {
        !self.gave_way && !lab_failed(self.verdict, self.blamed_stage)
    }
}

/// What follows for the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Nothing.
    Keep,
    /// It has proven itself; its probation is over.
    Proven,
    /// It is not trusted any more, and why.
    Quarantine(String),
}

impl Rule {
    /// What these attempts say, the newest first, of a machine that was quarantined `times` times since it last proved
    /// itself.
    #[must_use]
    pub fn look(&self, times: i64, attempts: &[Outcome]) -> Trust {
        let window = usize::try_from(self.window).unwrap_or(usize::MAX);
        let counted: Vec<&Outcome> = attempts.iter().filter(|one| !one.gave_way).take(window).collect();
        let failed: Vec<&&Outcome> = counted.iter().filter(|one| lab_failed(one.verdict, one.blamed_stage)).collect();
        let Some(newest) = counted.first() else { return Trust::Keep };
        let newest_failed = lab_failed(newest.verdict, newest.blamed_stage);
        let enough = if times > 0 { 1 } else { self.failures as usize };
        if self.failures == 0 || !newest_failed || failed.len() < enough {
            return if times > 0 && !newest_failed { Trust::Proven } else { Trust::Keep };
        }
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for one in &failed {
            let at = one.blamed_stage.map_or_else(String::new, |stage| format!(" at {stage}"));
            *kinds.entry(format!("{}{at}", one.verdict)).or_default() += 1;
        }
        let kinds: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
        let on_probation = if times > 0 { "On probation: " } else { "" };
        Trust::Quarantine(format!(
            "{on_probation}{} of its last {} attempts failed without a kernel's doing ({})",
            failed.len(),
            counted.len(),
            kinds.join(", ")
        ))
    }

    /// Until when a quarantine lasts that begins now; each in a row lasts twice as long as the one before, up to a day.
    #[must_use]
    pub fn until(&self, times: i64, now: Timestamp) -> Timestamp {
        let doubled = u32::try_from(times.clamp(0, 16)).unwrap_or(0);
        now.plus(self.probation.saturating_mul(1 << doubled).min(LONGEST.max(self.probation)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { failures: 3, window: 5, probation: Duration::from_secs(3600) };

    fn outcomes(words: &str) -> Vec<Outcome> {
        let outcome = |letter| match letter {
            'M' => (Status::Miss, Some(StageName::Provisioned), false),
            'D' => (Status::Error, Some(StageName::Dumped), false),
            'F' => (Status::Fail, Some(StageName::Captured), false),
            'w' => (Status::Miss, None, true),
            _ => (Status::Pass, None, false),
        };
        words
            .chars()
            .map(outcome)
            .map(|(verdict, blamed_stage, gave_way)| Outcome { verdict, blamed_stage, gave_way })
            .collect()
    }

    #[test]
    fn failures_of_the_lab_add_up_and_those_of_kernels_do_not() {
        for (words, bad) in
            [("MMM", true), ("MDpM", true), ("MM", false), ("FFFFF", false), ("MFFFF", false), ("pMMM", false)]
        {
            let found = RULE.look(0, &outcomes(words));
            assert_eq!(matches!(found, Trust::Quarantine(_)), bad, "{words}: {found:?}");
        }
        let Trust::Quarantine(why) = RULE.look(0, &outcomes("MDpM")) else { panic!() };
        let wanted =
            "3 of its last 4 attempts failed without a kernel's doing (1 × ERROR at dumped, 2 × MISS at provisioned)";
        assert_eq!(why, wanted);
    }

    #[test]
    fn what_is_long_ago_or_gave_way_does_not_count() {
        assert_eq!(RULE.look(0, &outcomes("MppppMM")), Trust::Keep);
        assert_eq!(RULE.look(0, &outcomes("MwwM")), Trust::Keep);
        assert_eq!(RULE.look(0, &outcomes("wMM")), Trust::Keep);
    }

    #[test]
    fn probation_ends_with_one_attempt_for_better_or_worse() {
        assert_eq!(RULE.look(1, &outcomes("p")), Trust::Proven);
        assert_eq!(RULE.look(1, &outcomes("F")), Trust::Proven, "a kernel's failure proves the machine");
        assert!(
            matches!(RULE.look(1, &outcomes("M")), Trust::Quarantine(why) if why.starts_with("On probation: 1 of"))
        );
        assert_eq!(RULE.look(1, &outcomes("w")), Trust::Keep);
    }

    #[test]
    fn after_one_that_went_well_those_before_change_nothing() {
        for words in ["p", "F", "pMMMM", "FMM", "pwM", "FDDDDD"] {
            let all = outcomes(words);
            assert!(all[0].went_well());
            for times in 0..3 {
                assert_eq!(RULE.look(times, &all), RULE.look(times, &all[..1]), "{words} after {times} quarantines");
            }
        }
        assert!(outcomes("MDw").iter().all(|one| !one.went_well()));
    }

    #[test]
    fn each_quarantine_in_a_row_lasts_twice_as_long_up_to_a_day() {
        let hours = |times| RULE.until(times, Timestamp(0)).0 / 3_600_000;
        assert_eq!([hours(0), hours(1), hours(2), hours(9), hours(60)], [1, 2, 4, 24, 24]);
    }

    #[test]
    fn a_rule_of_zero_failures_quarantines_nobody() {
        assert_eq!(Rule { failures: 0, ..RULE }.look(0, &outcomes("MMMMM")), Trust::Keep);
    }
}
