//! Signatures: crashes by what they are, and where each was seen.
//!
//! A signature belongs to one version of the crash-log rules. Recording is idempotent, so an attempt may be read again;
//! nothing here ever moves a crash from one signature to another.

use super::{Db, DbResult, Tx, before_or_end, on, on_tx};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, AttemptId, RunId, SignatureId, Status};
use sqlx::FromRow;
use sqlx::types::Json;

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
#[derive(Clone, Debug)]
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

/// Records that a signature was seen in a place. Doing it again changes nothing.
pub async fn record(tx: &mut Tx, signature: &NewSignature, place: &NewPlace) -> DbResult<SignatureId> {
    let id: SignatureId = on_tx!(tx, |c| sqlx::query_scalar(
        "INSERT INTO signature (id, rule_version, fingerprint, title, kind, frame, module, frames, first_seen_at, \
         last_seen_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9) \
         ON CONFLICT (rule_version, fingerprint) DO UPDATE SET \
         first_seen_at = CASE WHEN excluded.first_seen_at < signature.first_seen_at THEN excluded.first_seen_at \
         ELSE signature.first_seen_at END, \
         last_seen_at = CASE WHEN excluded.last_seen_at > signature.last_seen_at THEN excluded.last_seen_at \
         ELSE signature.last_seen_at END RETURNING id",
    )
    .bind(&signature.id)
    .bind(signature.rule_version)
    .bind(&signature.fingerprint)
    .bind(&signature.title)
    .bind(&signature.kind)
    .bind(&signature.frame)
    .bind(&signature.module)
    .bind(Json(&signature.frames))
    .bind(place.seen_at)
    .fetch_one(c)
    .await)?;
    on_tx!(tx, |c| {
        sqlx::query(
        "INSERT INTO signature_attempt (signature_id, artifact_id, attempt_id, source, start_at, line, reports, seen_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
    )
    .bind(&id)
    .bind(&place.artifact_id)
    .bind(&place.attempt_id)
    .bind(&place.source)
    .bind(place.start_at)
    .bind(place.line)
    .bind(place.reports)
    .bind(place.seen_at)
    .execute(c)
    .await
    .map(drop)
    })?;
    Ok(id)
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
