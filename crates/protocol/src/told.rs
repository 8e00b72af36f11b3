//! Events of a run in one line each, for people who follow it at a terminal.

use crate::agent::Report;
use crate::api::EventBody;
use crate::{JobState, Stage, StageState};

/// Longest reason that is shown with a stage.
const REASON: usize = 110;

impl EventBody {
    /// What happened, in one line; `None` for what is not worth one.
    #[must_use]
    pub fn line(&self) -> Option<String> {
        Some(match self {
            Self::AttemptStarted { machine, number } => format!("placed on {machine} (attempt {number})"),
            Self::Stage { stage } => return stage_line(stage),
            Self::Report { report: Report::CaptureStarted { start, .. }, .. } if *start > 1 => {
                format!("capture agent started again (start {start}), upload goes on")
            }
            Self::Report { report: Report::DumpFinished { bytes, sent_bytes, skipped_bytes, .. }, .. } => {
                let [all, sent, skipped] = [bytes, sent_bytes, skipped_bytes].map(|bytes| bytes >> 20);
                format!("dump of {all} MiB: {sent} MiB sent, {skipped} MiB were there already")
            }
            Self::AttemptJudged { verdict, .. } => format!("verdict {verdict}"),
            Self::Job { state: JobState::Done, status } => format!("result {status}"),
            Self::Job { state: JobState::Cancelled, .. } => "withdrawn".to_owned(),
            Self::Job { state: JobState::Queued, .. } => "waits for a machine again".to_owned(),
            _ => return None,
        })
    }
}

fn stage_line(stage: &Stage) -> Option<String> {
    let sign = match stage.state {
        StageState::Proven => '✔',
        StageState::Failed => '✘',
        StageState::Pending | StageState::Active | StageState::Skipped => return None,
    };
    let took = match (stage.started_at, stage.settled_at) {
        (Some(start), Some(end)) => format!("{:.1} s", end.since(start).as_secs_f64()),
        _ => String::new(),
    };
    let reason: String = stage.reason.as_deref().unwrap_or_default().chars().take(REASON).collect();
    Some(format!("{sign} {:<11} {took:>7}  {reason}", stage.name.as_str()).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::{StageName, Status};

    #[test]
    fn a_settled_stage_says_what_it_took_and_why_and_an_open_one_says_nothing() {
        let stage = Stage {
            name: StageName::Captured,
            state: StageState::Failed,
            status: Some(Status::Fail),
            started_at: Some(Timestamp(1_000)),
            deadline_at: None,
            settled_at: Some(Timestamp(3_500)),
            reason: Some("the crash path died".into()),
            proofs: Vec::new(),
        };
        let line = |stage: Stage| EventBody::Stage { stage }.line();
        assert_eq!(line(stage.clone()).as_deref(), Some("✘ captured      2.5 s  the crash path died"));
        let proven = Stage { state: StageState::Proven, reason: None, ..stage.clone() };
        assert_eq!(line(proven).as_deref(), Some("✔ captured      2.5 s"));
        assert_eq!(line(Stage { state: StageState::Active, ..stage }), None);
    }

    #[test]
    fn a_job_is_told_when_it_is_over_or_goes_back_to_wait() {
        let line = |state, status| EventBody::Job { state, status }.line();
        assert_eq!(line(JobState::Done, Status::Pass).as_deref(), Some("result PASS"));
        assert_eq!(line(JobState::Queued, Status::Miss).as_deref(), Some("waits for a machine again"));
        assert_eq!(line(JobState::Leased, Status::Miss), None, "the attempt says more");
    }
}
