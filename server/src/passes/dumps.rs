//! Drops full dumps that the policy does not keep. Their capsules, hashes and the reason stay.
//!
//! The order is what keeps promises when a server dies in the middle: the row says `dropped` and why, in one statement
//! that refuses held dumps; only then bytes go, and the segment rows with the last of them. A server that starts finds
//! dumps that are dropped but not yet empty, and goes on. **It must never** remove a byte of a dump whose row does not
//! say so.

use super::{BATCH, Next};
use crate::app::AppState;
use crate::db::artifact::{self, ArtifactRow};
use crate::db::{dump, unsigned};
use crate::error::AppResult;
use crate::findings;
use crashyard_crashlog::RULE_VERSION;
use crashyard_protocol::clock::Timestamp;
use metrics::Label;
use std::time::Duration;

/// Dumps emptied in one tick.
const EMPTIED: i64 = 8;

/// A dump that is not kept, and by which rule.
struct Decision {
    dump: ArtifactRow,
    rule: &'static str,
    reason: String,
}

/// Empties what is dropped, then drops the next ones.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let dropped = dump::dropping(&state.db, EMPTIED).await?;
    for one in &dropped {
        empty(state, one).await?;
    }
    if !dropped.is_empty() {
        return Ok(Next::Now);
    }
    let decisions = decide(state).await?;
    for decision in &decisions {
        record(state, decision).await?;
    }
    if !decisions.is_empty() {
        return Ok(Next::Now);
    }
    let Some(days) = keep_for(state) else { return Ok(Next::Woken) };
    let oldest = dump::oldest(&state.db, findings::version(), Timestamp(i64::MAX)).await?;
    Ok(oldest.and_then(|dump| dump.completed_at).map_or(Next::Woken, |at| Next::At(at.plus(days))))
}

/// How long dumps are kept; `None`: for ever.
fn keep_for(state: &AppState) -> Option<Duration> {
    let days = u64::from(state.config.keep_dumps_days);
    (days > 0).then(|| Duration::from_secs(days * 86_400))
}

/// The next dumps to drop, by the first rule that names any.
async fn decide(state: &AppState) -> AppResult<Vec<Decision>> {
    let (config, readers) = (&state.config, findings::version());
    if let Some(age) = keep_for(state) {
        let until = Timestamp(state.now().0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)));
        if let Some(dump) = dump::oldest(&state.db, readers, until).await? {
            let reason = format!("it is older than {} days (keep_dumps_days)", config.keep_dumps_days);
            return Ok(vec![Decision { dump, rule: "age", reason }]);
        }
    }
    let each = config.keep_dumps_each;
    if each > 0 {
        // Many at once: to find one costs a look at all.
        let surplus = dump::surplus(&state.db, readers, i64::from(RULE_VERSION), each, BATCH).await?;
        if !surplus.is_empty() {
            let reason = format!("{each} others of the same crash are kept (keep_dumps_each)");
            let decision = |dump| Decision { dump, rule: "each", reason: reason.clone() };
            return Ok(surplus.into_iter().map(decision).collect());
        }
    }
    let limit = config.max_dumps_bytes;
    if limit > 0 && dump::kept_bytes(&state.db).await? > limit {
        if let Some(dump) = dump::least(&state.db, readers).await? {
            let reason = format!("all dumps together may have {limit} bytes (max_dumps_bytes)");
            return Ok(vec![Decision { dump, rule: "quota", reason }]);
        }
        tracing::warn!(
            limit,
            "dumps have more bytes than max_dumps_bytes, and none may be dropped: they are held or in use"
        );
    }
    Ok(Vec::new())
}

async fn record(state: &AppState, decision: &Decision) -> AppResult<()> {
    let Decision { dump, rule, reason } = decision;
    let mut tx = state.db.begin().await?;
    if !dump::drop_one(&mut tx, &dump.id, reason, state.now()).await? {
        // Held between the look and the write, or dropped by another server: the next look sees that.
        return Ok(());
    }
    tx.commit().await?;
    let bytes = unsigned(dump.size);
    tracing::info!(artifact.id = %dump.id, bytes, rule, "dump dropped");
    state.metrics.add("crashyard_dumps_dropped_total", vec![Label::new("rule", *rule)], 1);
    state.metrics.add("crashyard_dumps_dropped_bytes_total", Vec::new(), bytes);
    Ok(())
}

/// Removes the bytes of a dump that is written down as dropped. May be done again at any point.
async fn empty(state: &AppState, dump: &ArtifactRow) -> AppResult<()> {
    for segment in artifact::segments(&state.db, &dump.id).await? {
        state.blobs.delete(&segment).await?;
    }
    let mut tx = state.db.begin().await?;
    dump::set_emptied(&mut tx, &dump.id, state.now()).await?;
    tx.commit().await?;
    Ok(())
}
