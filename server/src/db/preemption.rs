//! Attempts that give way to what is more urgent: before they are armed, never after.

use super::attempt::AttemptRow;
use super::event::{self, About};
use super::{Db, DbResult, Tx, on, on_tx};
use crashyard_protocol::api::EventBody;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, SelectorId, Status};

/// Takes the machine of an attempt that is not armed yet for somebody who comes first; `false` if it is too late for that.
pub async fn give_way(tx: &mut Tx, id: &AttemptId, why: &str, now: Timestamp) -> DbResult<bool> {
    let gone: Option<AttemptRow> = on_tx!(tx, |c| {
        sqlx::query_as(
            "UPDATE attempt SET state = 'collecting', verdict = 'MISS', reason = $2, judged_at = $3, gave_way = TRUE WHERE id = $1 AND state = 'running' AND judged_at IS NULL AND NOT EXISTS \
         (SELECT 1 FROM stage WHERE attempt_id = $1 AND name = 'armed' AND state IN ('proven', 'failed')) RETURNING *",
        )
        .bind(id)
        .bind(why)
        .bind(now)
        .fetch_optional(c)
        .await
    })?;
    let Some(gone) = gone else { return Ok(false) };
    let about = About { run: &gone.run_id, job: Some(&gone.job_id), attempt: Some(&gone.id) };
    let told = EventBody::AttemptJudged { verdict: Status::Miss, blamed_stage: None, reason: Some(why.to_owned()) };
    event::append(tx, about, now, told).await?;
    Ok(true)
}

/// Attempts that would give way to jobs of a class on the machines of a selector, the newest first: they lose least.
pub async fn preemptible(db: &Db, selector: &SelectorId, class: i64, limit: i64) -> DbResult<Vec<AttemptId>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_scalar(
            "SELECT a.id FROM machine_selector ms JOIN attempt a ON a.machine_id = ms.machine_id \
         JOIN job j ON j.id = a.job_id JOIN flow f ON f.id = j.flow_id WHERE ms.selector_id = $1 \
         AND a.state = 'running' AND j.state = 'leased' AND j.preemptible AND f.class > $2 \
         AND NOT EXISTS (SELECT 1 FROM stage s \
         WHERE s.attempt_id = a.id AND s.name = 'armed' AND s.state IN ('proven', 'failed')) \
         ORDER BY a.id DESC LIMIT $3",
        )
        .bind(selector)
        .bind(class)
        .bind(limit)
        .fetch_all(c)
        .await
    })?)
}

/// The job of an attempt, if it may be preempted.
pub async fn is_preemptible(db: &Db, id: &AttemptId) -> DbResult<bool> {
    Ok(on!(db.read(), |c| sqlx::query_scalar(
        "SELECT COUNT(*) FROM attempt a JOIN job j ON j.id = a.job_id WHERE a.id = $1 AND j.preemptible",
    )
    .bind(id)
    .fetch_one(c)
    .await
    .map(|count: i64| count > 0))?)
}
