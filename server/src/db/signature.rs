//! Signatures: crashes by what they are, and where each was seen.
//!
//! A signature belongs to one version of the crash-log rules. Recording is idempotent, so an attempt may be read again;
//! nothing here ever moves a crash from one signature to another.

use super::given::{Kept, given};
use super::{Db, DbError, DbResult, Tx, before_or_end, on, on_tx};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, AttemptId, RunId, SignatureId, Status};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::{BTreeMap, HashMap};

/// A signature as it is recorded.
#[derive(Clone, Debug)]
pub struct NewSignature {
    /// Its id, if it is new.
    pub id: SignatureId,
    /// Version of the rules.
    pub rule_version: i64,
    /// Hash of title and frames.
    pub fingerprint: String,
    /// Title.
    pub title: String,
    /// Class of the problem.
    pub kind: String,
    /// Function it is filed under.
    pub frame: Option<String>,
    /// Module of that function.
    pub module: Option<String>,
    /// Functions that identify it.
    pub frames: Vec<String>,
}

/// Where it was seen.
#[derive(Clone, Debug, Serialize)]
pub struct NewPlace {
    /// The console.
    pub artifact_id: ArtifactId,
    /// The console's attempt.
    pub attempt_id: AttemptId,
    /// The console's source.
    pub source: String,
    /// First byte of the first report.
    pub start_at: i64,
    /// Its line, from 1.
    pub line: i64,
    /// Reports of the signature on this console.
    pub reports: i64,
    /// When the attempt began.
    pub seen_at: Timestamp,
}

/// A signature with how often it was seen.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct SignatureRow {
    /// Id.
    pub id: SignatureId,
    /// Version of the rules.
    pub rule_version: i64,
    /// Title.
    pub title: String,
    /// Class of the problem.
    pub kind: String,
    /// Function it is filed under.
    pub frame: Option<String>,
    /// Module of that function.
    pub module: Option<String>,
    /// Functions that identify it.
    pub frames: Json<Vec<String>>,
    /// When the first attempt began that showed it.
    pub first_seen_at: Timestamp,
    /// When the last one began.
    pub last_seen_at: Timestamp,
    /// Attempts that showed it.
    pub attempts: i64,
    /// Reports of it.
    pub reports: i64,
}

/// A place where a signature was seen.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct PlaceRow {
    /// The signature.
    pub signature_id: SignatureId,
    /// The attempt.
    pub attempt_id: AttemptId,
    /// Its run.
    pub run_id: RunId,
    /// Its number inside its job.
    pub number: i64,
    /// Its machine's name.
    pub machine_name: String,
    /// What it showed.
    pub verdict: Status,
    /// The console's source.
    pub source: String,
    /// First byte of the first report.
    pub start_at: i64,
    /// Its line.
    pub line: i64,
    /// Reports of the signature on this console.
    pub reports: i64,
    /// When the attempt began.
    pub seen_at: Timestamp,
}

#[derive(Serialize)]
struct Recorded<'a> {
    id: &'a SignatureId,
    rules: i64,
    fingerprint: &'a str,
    title: &'a str,
    kind: &'a str,
    frame: Option<&'a str>,
    module: Option<&'a str>,
    frames: Kept<'a, Vec<String>>,
    first_at: Timestamp,
    last_at: Timestamp,
}

#[derive(Serialize)]
struct Shown<'a> {
    signature: &'a SignatureId,
    #[serde(flatten)]
    place: &'a NewPlace,
}

/// Records that signatures were seen in places; for each its id. Doing it again changes nothing.
pub async fn record_all(tx: &mut Tx, seen: &[&(NewSignature, NewPlace)]) -> DbResult<Vec<SignatureId>> {
    if seen.is_empty() {
        return Ok(Vec::new());
    }
    let ids = put_signatures(tx, seen).await?;
    let id = |signature: &NewSignature| ids.get(&(signature.rule_version, signature.fingerprint.clone()));
    let ids: Option<Vec<&SignatureId>> = seen.iter().map(|(signature, _)| id(signature)).collect();
    let ids = ids.ok_or(DbError::NotFound)?;
    let places: Vec<Shown<'_>> =
        ids.iter().zip(seen).map(|(signature, (_, place))| Shown { signature, place }).collect();
    let text = given!(
        tx,
        insert "signature_attempt (signature_id, artifact_id, attempt_id, source, start_at, line, reports, seen_at) \
         SELECT signature, artifact_id, attempt_id, source, start_at, line, reports, seen_at FROM ",
        [
            signature text, artifact_id text, attempt_id text, source text, start_at bigint, line bigint,
            reports bigint, seen_at bigint
        ],
        " WHERE TRUE ON CONFLICT DO NOTHING"
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&places)).execute(c).await.map(drop))?;
    Ok(ids.into_iter().cloned().collect())
}

/// The ids of signatures by what tells them apart: the version of their rules and their fingerprint.
async fn put_signatures(
    tx: &mut Tx,
    seen: &[&(NewSignature, NewPlace)],
) -> DbResult<HashMap<(i64, String), SignatureId>> {
    let kind = tx.kind();
    // One row for each, and in one order everywhere: two servers that record the same ones do not wait for each other in a ring.
    let mut rows: BTreeMap<(i64, &str), Recorded<'_>> = BTreeMap::new();
    for (new, NewPlace { seen_at, .. }) in seen {
        let row = rows.entry((new.rule_version, &new.fingerprint)).or_insert_with(|| Recorded {
            id: &new.id,
            rules: new.rule_version,
            fingerprint: &new.fingerprint,
            title: &new.title,
            kind: &new.kind,
            frame: new.frame.as_deref(),
            module: new.module.as_deref(),
            frames: Kept(kind, &new.frames),
            first_at: *seen_at,
            last_at: *seen_at,
        });
        row.first_at = row.first_at.min(*seen_at);
        row.last_at = row.last_at.max(*seen_at);
    }
    let text = given!(
        tx,
        insert "signature (id, rule_version, fingerprint, title, kind, frame, module, frames, first_seen_at, \
         last_seen_at) SELECT id, rules, fingerprint, title, kind, frame, module, frames, first_at, last_at FROM ",
        [
            id text, rules bigint, fingerprint text, title text, kind text, frame text, module text, frames jsonb,
            first_at bigint, last_at bigint
        ],
        " WHERE TRUE ON CONFLICT (rule_version, fingerprint) DO UPDATE SET \
         first_seen_at = CASE WHEN excluded.first_seen_at < signature.first_seen_at THEN excluded.first_seen_at \
         ELSE signature.first_seen_at END, \
         last_seen_at = CASE WHEN excluded.last_seen_at > signature.last_seen_at THEN excluded.last_seen_at \
         ELSE signature.last_seen_at END RETURNING rule_version, fingerprint, id"
    );
    let rows: Vec<_> = rows.into_values().collect();
    let ids: Vec<(i64, String, SignatureId)> =
        on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&rows)).fetch_all(c).await)?;
    Ok(ids.into_iter().map(|(rules, fingerprint, id)| ((rules, fingerprint), id)).collect())
}

/// One page of the signatures of a version of the rules, the newest first.
pub async fn list(db: &Db, rule_version: i64, before: Option<&str>, limit: i64) -> DbResult<Vec<SignatureRow>> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
        "SELECT s.*, (SELECT COUNT(DISTINCT p.attempt_id) FROM signature_attempt p WHERE p.signature_id = s.id) AS attempts, \
         (SELECT CAST(COALESCE(SUM(p.reports), 0) AS BIGINT) FROM signature_attempt p WHERE p.signature_id = s.id) AS reports \
         FROM signature s WHERE s.rule_version = $1 AND s.id < $2 ORDER BY s.id DESC LIMIT $3",
    )
    .bind(rule_version)
    .bind(before_or_end(before))
    .bind(limit)
    .fetch_all(c)
    .await
    })?)
}

/// The newest places of each signature on that page, at most `each` of one.
pub async fn places(
    db: &Db,
    rule_version: i64,
    before: Option<&str>,
    limit: i64,
    each: i64,
) -> DbResult<Vec<PlaceRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT * FROM (SELECT p.*, a.run_id, a.number, a.verdict, m.name AS machine_name, ROW_NUMBER() OVER \
         (PARTITION BY p.signature_id ORDER BY p.seen_at DESC, p.artifact_id DESC) AS place FROM signature_attempt p \
         JOIN attempt a ON a.id = p.attempt_id JOIN machine m ON m.id = a.machine_id WHERE p.signature_id IN \
         (SELECT id FROM signature WHERE rule_version = $1 AND id < $2 ORDER BY id DESC LIMIT $3)) AS newest \
         WHERE place <= $4 ORDER BY signature_id DESC, place",
    )
    .bind(rule_version)
    .bind(before_or_end(before))
    .bind(limit)
    .bind(each)
    .fetch_all(c)
    .await)?)
}

/// One signature, whatever version of the rules it is of.
pub async fn get(db: &Db, id: &SignatureId) -> DbResult<SignatureRow> {
    Ok(on!(db.read(), |c| {
        sqlx::query_as(
        "SELECT s.*, (SELECT COUNT(DISTINCT p.attempt_id) FROM signature_attempt p WHERE p.signature_id = s.id) AS attempts, \
         (SELECT CAST(COALESCE(SUM(p.reports), 0) AS BIGINT) FROM signature_attempt p WHERE p.signature_id = s.id) AS reports \
         FROM signature s WHERE s.id = $1",
    )
    .bind(id)
    .fetch_one(c)
    .await
    })?)
}

/// The newest places of one signature.
pub async fn places_of(db: &Db, id: &SignatureId, limit: i64) -> DbResult<Vec<PlaceRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT p.*, a.run_id, a.number, a.verdict, m.name AS machine_name FROM signature_attempt p \
         JOIN attempt a ON a.id = p.attempt_id JOIN machine m ON m.id = a.machine_id WHERE p.signature_id = $1 \
         ORDER BY p.seen_at DESC, p.artifact_id DESC LIMIT $2",
    )
    .bind(id)
    .bind(limit)
    .fetch_all(c)
    .await)?)
}
