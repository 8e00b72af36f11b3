//! Writes a judgement: stages, verdict and events in one transaction, idempotently.
//!
//! A judgement is made from evidence that was read before the transaction. So that one made from older evidence never
//! overwrites a newer one, it names the judgement it was made on top of (`judgement_seq`); if another came between,
//! nothing is written and the caller judges again.

use super::attempt::AttemptRow;
use super::event::{self, About};
use super::given::{Kept, given};
use super::{DbResult, Tx, on_tx};
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, AttemptState, Purpose, Stage, StageName, StageState, Status};
use serde::Serialize;
use sqlx::types::Json;

/// What shall be written.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The eight stages as they are now.
    pub stages: Vec<Stage>,
    /// Verdict, where the contract stopped, and why; `None` while the contract is being worked through.
    pub verdict: Option<(Status, Option<StageName>, Option<String>)>,
    /// Title of the crash that nobody asked for.
    pub signature: Option<String>,
    /// Whether the crash is judged and only the machine's return is owed.
    pub collecting: bool,
    /// When to judge again if nothing arrives until then.
    pub check_at: Option<Timestamp>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Something changed.
    Changed,
    /// Everything was as judged already.
    Same,
    /// Another judgement came between; judge again.
    Stale,
}

#[derive(Serialize)]
struct NewStage<'a> {
    attempt: &'a AttemptId,
    name: StageName,
    ordinal: i64,
    state: StageState,
    body: Kept<'a, Stage>,
}

/// Writes the first stages of attempts whose leases are given.
pub async fn open_all(tx: &mut Tx, attempts: &[(AttemptId, Vec<Stage>)]) -> DbResult<()> {
    let mut rows = Vec::new();
    for (attempt, stages) in attempts {
        rows.extend(stages.iter().map(|stage| NewStage {
            attempt,
            name: stage.name,
            ordinal: ordinal(stage.name),
            state: stage.state,
            body: Kept(tx.kind(), stage),
        }));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let text = given!(
        tx,
        "INSERT INTO stage (attempt_id, name, ordinal, state, body) SELECT attempt, name, ordinal, state, body FROM ",
        [attempt text, name text, ordinal bigint, state text, body jsonb],
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&rows)).execute(c).await.map(drop))?;
    Ok(())
}

/// Writes a judgement made on top of `before` (the attempt's row and stages the judge saw).
pub async fn apply(
    tx: &mut Tx,
    before: &AttemptRow,
    stages_before: &[Stage],
    judged: &Verdict,
    now: Timestamp,
) -> DbResult<Applied> {
    let changed: Vec<&Stage> = judged.stages.iter().filter(|stage| !stages_before.contains(stage)).collect();
    let state = match before.state {
        AttemptState::Running if judged.collecting => AttemptState::Collecting,
        other => other,
    };
    let newly_judged = before.judged_at.is_none() && judged.verdict.is_some();
    if changed.is_empty() && state == before.state && !newly_judged && judged.check_at == before.check_at {
        return Ok(Applied::Same);
    }
    let (verdict, blamed, reason) = match &judged.verdict {
        Some((verdict, blamed, reason)) if newly_judged => (*verdict, *blamed, reason.clone()),
        _ => (before.verdict, before.blamed_stage, before.reason.clone()),
    };
    let written = on_tx!(tx, |c| {
        sqlx::query(
        "UPDATE attempt SET judgement_seq = judgement_seq + 1, state = CASE WHEN state = 'running' THEN $3 ELSE state END, \
         verdict = $4, blamed_stage = $5, reason = $6, judged_at = $7, check_at = $8, \
         signature = COALESCE(signature, $9) WHERE id = $1 AND judgement_seq = $2",
    )
    .bind(&before.id)
    .bind(before.judgement_seq)
    .bind(if state == AttemptState::Collecting { AttemptState::Collecting } else { AttemptState::Running })
    .bind(verdict)
    .bind(blamed)
    .bind(&reason)
    .bind(if newly_judged { Some(now) } else { before.judged_at })
    .bind(judged.check_at)
    .bind(&judged.signature)
    .execute(c)
    .await
    .map(|done| done.rows_affected())
    })?;
    if written == 0 {
        return Ok(Applied::Stale);
    }
    let about = About { run: &before.run_id, job: Some(&before.job_id), attempt: Some(&before.id) };
    for stage in changed {
        put_stage(tx, &before.id, stage).await?;
        event::append(tx, about, now, EventBody::Stage { stage: stage.clone() }).await?;
    }
    if newly_judged {
        if before.purpose == Purpose::Test {
            show_in_job(tx, before, verdict, blamed, reason.as_deref()).await?;
        }
        event::append(tx, about, now, EventBody::AttemptJudged { verdict, blamed_stage: blamed, reason }).await?;
    }
    Ok(Applied::Changed)
}

/// The verdict is shown on the job at once; the job is done when its machine is back.
async fn show_in_job(
    tx: &mut Tx,
    attempt: &AttemptRow,
    verdict: Status,
    blamed: Option<StageName>,
    reason: Option<&str>,
) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query(
        "UPDATE job SET status = $2, blamed_stage = $3, reason = $4 WHERE id = $1 AND state = 'leased'",
    )
    .bind(&attempt.job_id)
    .bind(verdict)
    .bind(blamed)
    .bind(reason)
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}

fn ordinal(stage: StageName) -> i64 {
    let place = StageName::ALL.iter().position(|name| *name == stage).unwrap_or(StageName::ALL.len());
    i64::try_from(place).unwrap_or(i64::MAX)
}

async fn put_stage(tx: &mut Tx, attempt: &AttemptId, stage: &Stage) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query(
        "INSERT INTO stage (attempt_id, name, ordinal, state, body) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (attempt_id, name) DO UPDATE SET state = excluded.state, body = excluded.body",
    )
    .bind(attempt)
    .bind(stage.name)
    .bind(ordinal(stage.name))
    .bind(stage.state)
    .bind(Json(stage))
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}
