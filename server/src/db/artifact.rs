//! Artifacts and the segments their bytes are kept in.
//!
//! Build files, dumps and consoles are the same thing: a row with a name, and segments that each stand for one
//! immutable object of the blob store, or hold their bytes where these are few. Uploads fill their segments in any order (chunks); consoles only at the end.

use super::attempt;
use super::given::{given, listed, update_in_order};
use super::{Db, DbError, DbResult, Tx, on, on_tx, signed, unsigned};
use crashyard_protocol::api::DUMP;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, ArtifactState, AttemptId, AttemptState, BuildId};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Artifact names of consoles start with this; the rest names the source.
pub const CONSOLE_PREFIX: &str = "console-";

/// What an artifact belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A file of a build.
    Build(BuildId),
    /// Evidence of an attempt.
    Attempt(AttemptId),
}

/// A text with the condition whose files are meant, as `$1`. One text for each owner: for a condition with `OR` PostgreSQL may
/// walk through all artifacts in the order of their ids.
macro_rules! owned {
    ($owner:expr, $before:literal, $after:literal) => {
        match $owner {
            Owner::Build(id) => (concat!($before, "build_id = $1", $after), id.as_str()),
            Owner::Attempt(id) => (concat!($before, "attempt_id = $1", $after), id.as_str()),
        }
    };
}

impl Owner {
    /// The build, if it is one's.
    #[must_use]
    pub fn build(&self) -> Option<&BuildId> {
        match self {
            Self::Build(id) => Some(id),
            Self::Attempt(_) => None,
        }
    }

    /// The attempt, if it is one.
    #[must_use]
    pub fn attempt(&self) -> Option<&AttemptId> {
        match self {
            Self::Attempt(id) => Some(id),
            Self::Build(_) => None,
        }
    }
}

/// A file kept by the server.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct ArtifactRow {
    /// Id.
    pub id: ArtifactId,
    /// The build it belongs to.
    pub build_id: Option<BuildId>,
    /// The attempt it is evidence of.
    pub attempt_id: Option<AttemptId>,
    /// Unique inside its owner.
    pub name: String,
    /// How far it is.
    pub state: ArtifactState,
    /// Bytes received.
    pub size: i64,
    /// BLAKE3 of the whole, once complete.
    pub blake3: Option<String>,
    /// When its first byte came.
    pub created_at: Timestamp,
    /// When its last byte had come.
    pub completed_at: Option<Timestamp>,
    /// When closing it was last refused.
    pub mismatch_at: Option<Timestamp>,
    /// How its bytes differ from what was announced.
    pub mismatch: Option<String>,
    /// Since when a person holds it.
    pub held_at: Option<Timestamp>,
    /// Name of the token it is held with.
    pub held_by: Option<String>,
    /// Why it is held.
    pub held_reason: Option<String>,
    /// When it was dropped.
    pub dropped_at: Option<Timestamp>,
    /// Why it was dropped.
    pub dropped_reason: Option<String>,
}

impl ArtifactRow {
    /// The source, if this is a console.
    #[must_use]
    pub fn console_source(&self) -> Option<&str> {
        self.attempt_id.as_ref().and_then(|_| self.name.strip_prefix(CONSOLE_PREFIX))
    }
}

/// A stretch of an artifact: one object of the blob store, or bytes in the row.
#[derive(Clone, Debug, PartialEq, Eq, FromRow, serde::Serialize)]
pub struct SegmentRow {
    /// Whose.
    pub artifact_id: ArtifactId,
    /// Offset of its first byte.
    pub start_at: i64,
    /// Bytes.
    pub length: i64,
    /// BLAKE3, lower-case hex.
    pub hash: String,
    /// When the server had it.
    pub received_at: Timestamp,
    /// The bytes themselves, of a small one that is no object of its own.
    #[serde(skip)]
    pub bytes: Option<Vec<u8>>,
}

impl SegmentRow {
    /// Offset of the first byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        unsigned(self.start_at) + unsigned(self.length)
    }
}

/// One artifact.
pub async fn get(db: &Db, id: &ArtifactId) -> DbResult<ArtifactRow> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM artifact WHERE id = $1").bind(id).fetch_one(c).await)?)
}

/// The artifact of this name.
pub async fn find(db: &Db, owner: &Owner, name: &str) -> DbResult<Option<ArtifactRow>> {
    let (text, id) = owned!(owner, "SELECT * FROM artifact WHERE ", " AND name = $2");
    Ok(on!(db.read(), |c| sqlx::query_as(text).bind(id).bind(name).fetch_optional(c).await)?)
}

/// Every artifact of a build or an attempt, oldest first.
pub async fn list(db: &Db, owner: &Owner) -> DbResult<Vec<ArtifactRow>> {
    let (text, id) = owned!(owner, "SELECT * FROM artifact WHERE ", " ORDER BY id");
    Ok(on!(db.read(), |c| sqlx::query_as(text).bind(id).fetch_all(c).await)?)
}

/// Every artifact of several attempts, those of each oldest first.
pub async fn list_all(db: &Db, attempts: &[&AttemptId]) -> DbResult<Vec<ArtifactRow>> {
    let text = listed!(db.read(), "SELECT * FROM artifact WHERE ", "attempt_id", " ORDER BY id");
    Ok(on!(db.read(), |c| sqlx::query_as(text).bind(Json(attempts)).fetch_all(c).await)?)
}

/// The same, as a transaction sees it.
pub async fn of_attempts(tx: &mut Tx, attempts: &[&AttemptId]) -> DbResult<Vec<ArtifactRow>> {
    let text = listed!(tx, "SELECT * FROM artifact WHERE ", "attempt_id", " ORDER BY id");
    Ok(on_tx!(tx, |c| sqlx::query_as(text).bind(Json(attempts)).fetch_all(c).await)?)
}

/// A file to be opened.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct NewFile<'a> {
    /// Its id.
    pub file: &'a ArtifactId,
    /// The build it is of.
    pub build: Option<&'a BuildId>,
    /// The attempt it is of.
    pub attempt: Option<&'a AttemptId>,
    /// Its name.
    pub called: &'a str,
    /// When.
    pub opened_at: Timestamp,
}

/// Opens files, and returns those that were not there.
pub async fn open_all(tx: &mut Tx, files: &[NewFile<'_>]) -> DbResult<Vec<ArtifactRow>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let text = given!(
        tx,
        insert "artifact (id, build_id, attempt_id, name, state, size, created_at) \
         SELECT file, build, attempt, called, 'open', 0, opened_at FROM ",
        [file text, build text, attempt text, called text, opened_at bigint],
        " WHERE TRUE ON CONFLICT DO NOTHING RETURNING *"
    );
    Ok(on_tx!(tx, |c| sqlx::query_as(text).bind(Json(files)).fetch_all(c).await)?)
}

/// The file of this name.
pub async fn named(tx: &mut Tx, owner: &Owner, name: &str) -> DbResult<ArtifactRow> {
    let (text, id) = owned!(owner, "SELECT * FROM artifact WHERE ", " AND name = $2");
    Ok(on_tx!(tx, |c| sqlx::query_as(text).bind(id).bind(name).fetch_one(c).await)?)
}

/// A file of an attempt all of which is one segment.
#[derive(Clone, Copy, Debug)]
pub struct OnePiece<'a> {
    /// The attempt.
    pub attempt: &'a AttemptId,
    /// Its name.
    pub called: &'a str,
    /// Its bytes; their hash is that of the file.
    pub segment: &'a SegmentRow,
}

#[derive(Serialize)]
struct NewWhole<'a> {
    file: &'a ArtifactId,
    attempt: &'a AttemptId,
    called: &'a str,
    size: i64,
    hash: &'a str,
    at: Timestamp,
}

/// Keeps files that are whole from the start. Where one of that name is there already, that one stays as it is.
pub async fn keep_whole(tx: &mut Tx, files: &[OnePiece<'_>]) -> DbResult<()> {
    if files.is_empty() {
        return Ok(());
    }
    let rows: Vec<NewWhole<'_>> = files
        .iter()
        .map(|OnePiece { attempt, called, segment }| NewWhole {
            file: &segment.artifact_id,
            attempt,
            called,
            size: segment.length,
            hash: &segment.hash,
            at: segment.received_at,
        })
        .collect();
    let text = given!(
        tx,
        insert "artifact (id, attempt_id, name, state, size, blake3, created_at, completed_at) \
         SELECT file, attempt, called, 'complete', size, hash, at, at FROM ",
        [file text, attempt text, called text, size bigint, hash text, at bigint],
        " WHERE TRUE ON CONFLICT DO NOTHING RETURNING id"
    );
    let kept: Vec<ArtifactId> = on_tx!(tx, |c| sqlx::query_scalar(text).bind(Json(&rows)).fetch_all(c).await)?;
    let kept: BTreeSet<ArtifactId> = kept.into_iter().collect();
    let segments = files.iter().map(|file| file.segment).filter(|segment| kept.contains(&segment.artifact_id));
    insert_segments(tx, &segments.collect::<Vec<_>>()).await
}

/// Every segment of several artifacts, those of each in order.
pub async fn segments_of(db: &Db, ids: &[&ArtifactId]) -> DbResult<Vec<SegmentRow>> {
    let text = listed!(db.read(), "SELECT * FROM segment WHERE ", "artifact_id", " ORDER BY artifact_id, start_at");
    Ok(on!(db.read(), |c| sqlx::query_as(text).bind(Json(ids)).fetch_all(c).await)?)
}

/// Every segment of an artifact, in order.
pub async fn segments(db: &Db, id: &ArtifactId) -> DbResult<Vec<SegmentRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT * FROM segment WHERE artifact_id = $1 ORDER BY start_at")
        .bind(id)
        .fetch_all(c)
        .await)?)
}

/// The segments that hold bytes of `from..to`, in order, at most `limit`.
pub async fn segments_in(db: &Db, id: &ArtifactId, from: u64, to: u64, limit: i64) -> DbResult<Vec<SegmentRow>> {
    // Starts at the segment that contains `from`: one step in the primary key, however long the console is.
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT * FROM segment WHERE artifact_id = $1 AND start_at < $3 AND start_at >= COALESCE( \
         (SELECT MAX(start_at) FROM segment WHERE artifact_id = $1 AND start_at <= $2), 0) \
         ORDER BY start_at LIMIT $4",
    )
    .bind(id)
    .bind(signed(from))
    .bind(signed(to))
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// What became of console bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    /// They are the new end.
    Appended,
    /// The console ends elsewhere: at this offset.
    EndsAt(u64),
}

#[derive(FromRow)]
struct ConsoleEnd {
    state: AttemptState,
    epoch: i64,
    console: Option<ArtifactId>,
    size: Option<i64>,
}

/// A console of an attempt that is held under this epoch, and how many bytes it has; `None` before its first byte.
pub async fn console_end(db: &Db, attempt: &AttemptId, epoch: u64, name: &str) -> DbResult<Option<(ArtifactId, u64)>> {
    let end: ConsoleEnd = on!(db.read(), |c| sqlx::query_as(
        "SELECT t.state, t.epoch, f.id AS console, f.size FROM attempt t \
         LEFT JOIN artifact f ON f.attempt_id = t.id AND f.name = $2 WHERE t.id = $1",
    )
    .bind(attempt)
    .bind(name)
    .fetch_one(c)
    .await)?;
    attempt::check(end.state, end.epoch, epoch)?;
    Ok(end.console.zip(end.size.map(unsigned)))
}

/// Console bytes that are durable in the blob store and shall be registered.
#[derive(Clone, Debug)]
pub struct Append {
    /// The attempt they are evidence of.
    pub attempt: AttemptId,
    /// The epoch they were sent with.
    pub epoch: u64,
    /// Where they are.
    pub segment: SegmentRow,
}

/// Where a console ends, and how the lease of its attempt stands.
#[derive(FromRow)]
struct End {
    id: ArtifactId,
    state: ArtifactState,
    size: i64,
    attempt_id: AttemptId,
    epoch: i64,
    attempt_state: AttemptState,
}

impl End {
    /// Takes a piece if the console ends where it begins.
    fn append(&mut self, append: &Append) -> DbResult<AppendOutcome> {
        if self.attempt_id != append.attempt {
            return Err(DbError::NotFound);
        }
        attempt::check(self.attempt_state, self.epoch, append.epoch)?;
        if self.state != ArtifactState::Open || self.size != append.segment.start_at {
            return Ok(AppendOutcome::EndsAt(unsigned(self.size)));
        }
        self.size += append.segment.length;
        Ok(AppendOutcome::Appended)
    }
}

/// The bytes that those of these files have that are open. Nothing changes them before the transaction ends.
pub async fn lock_open(tx: &mut Tx, ids: &[&ArtifactId]) -> DbResult<HashMap<ArtifactId, i64>> {
    let text = listed!(
        tx,
        "SELECT id, size FROM artifact WHERE ",
        "id",
        " AND state = 'open' ORDER BY id",
        lock " FOR NO KEY UPDATE"
    );
    let open: Vec<(ArtifactId, i64)> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(ids)).fetch_all(c).await)?;
    Ok(open.into_iter().collect())
}

/// A file that has grown.
#[derive(Serialize)]
pub(super) struct Grown<'a> {
    /// Which.
    pub artifact: &'a ArtifactId,
    /// Bytes it has now.
    pub size: i64,
}

/// Appends to consoles. Several pieces of one console are taken in the order given, each where the one before it ends.
pub async fn append_all(tx: &mut Tx, appends: &[Append]) -> DbResult<Vec<DbResult<AppendOutcome>>> {
    let consoles: BTreeSet<&ArtifactId> = appends.iter().map(|append| &append.segment.artifact_id).collect();
    let text = listed!(
        tx,
        "SELECT f.id, f.state, f.size, f.attempt_id, t.epoch, t.state AS attempt_state FROM artifact f \
         JOIN attempt t ON t.id = f.attempt_id WHERE ",
        "f.id",
        " ORDER BY f.id",
        lock " FOR NO KEY UPDATE OF f"
    );
    let ends: Vec<End> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&consoles)).fetch_all(c).await)?;
    let mut ends: BTreeMap<ArtifactId, End> = ends.into_iter().map(|end| (end.id.clone(), end)).collect();
    let mut outcomes = Vec::with_capacity(appends.len());
    let mut appended = Vec::new();
    for append in appends {
        let end = ends.get_mut(&append.segment.artifact_id).ok_or(DbError::NotFound);
        let outcome = end.and_then(|end| end.append(append));
        if matches!(outcome, Ok(AppendOutcome::Appended)) {
            appended.push(&append.segment);
        }
        outcomes.push(outcome);
    }
    if !appended.is_empty() {
        let grown: BTreeSet<&ArtifactId> = appended.iter().map(|segment| &segment.artifact_id).collect();
        let grown: Vec<Grown<'_>> =
            grown.into_iter().filter_map(|id| Some(Grown { artifact: id, size: ends.get(id)?.size })).collect();
        grow(tx, &grown).await?;
        insert_segments(tx, &appended).await?;
    }
    Ok(outcomes)
}

/// Writes how many bytes files have, which are locked.
pub(super) async fn grow(tx: &mut Tx, grown: &[Grown<'_>]) -> DbResult<()> {
    let text = given!(
        tx,
        update "artifact SET size = given.size FROM ",
        [artifact text, size bigint],
        at "artifact.id" = "artifact",
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(grown)).execute(c).await.map(drop))?;
    Ok(())
}

#[derive(Serialize)]
struct NewSegment<'a> {
    #[serde(flatten)]
    segment: &'a SegmentRow,
    /// Where its bytes begin among those of all, counted from 1.
    bytes_at: Option<usize>,
}

pub(super) async fn insert_segments(tx: &mut Tx, segments: &[&SegmentRow]) -> DbResult<()> {
    if segments.is_empty() {
        return Ok(());
    }
    // Bytes are one parameter of their own: as JSON they would be hex digits, which are written and read several times.
    let mut all = Vec::new();
    let mut rows = Vec::with_capacity(segments.len());
    for segment in segments {
        let bytes_at = segment.bytes.as_ref().map(|_| all.len() + 1);
        all.extend_from_slice(segment.bytes.as_deref().unwrap_or_default());
        rows.push(NewSegment { segment, bytes_at });
    }
    let text = given!(
        tx,
        insert "segment (artifact_id, start_at, length, hash, received_at, bytes) SELECT artifact_id, start_at, length, hash, \
         received_at, substr($2, CAST(bytes_at AS INTEGER), CAST(length AS INTEGER)) FROM ",
        [artifact_id text, start_at bigint, length bigint, hash text, received_at bigint, bytes_at bigint],
        ""
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(&rows)).bind(&all).execute(c).await.map(drop))?;
    Ok(())
}

/// Marks a file complete; `None` if it was no longer open.
pub async fn complete(tx: &mut Tx, id: &ArtifactId, hash: &str, at: Timestamp) -> DbResult<Option<ArtifactRow>> {
    Ok(complete_all(tx, &[Whole { artifact: id, hash, at }]).await?.pop())
}

/// A file all bytes of which are here.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Whole<'a> {
    /// Which.
    pub artifact: &'a ArtifactId,
    /// The BLAKE3 of the whole.
    pub hash: &'a str,
    /// When the last of it came.
    pub at: Timestamp,
}

/// Marks files complete, and returns those that were open until now. A dump waits from then on to be read.
pub async fn complete_all(tx: &mut Tx, files: &[Whole<'_>]) -> DbResult<Vec<ArtifactRow>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let text = update_in_order!(
        tx,
        "artifact" SET "state = 'complete', blake3 = given.hash, completed_at = given.at",
        [artifact text, hash text, at bigint],
        "artifact",
        " AND state = 'open' RETURNING *"
    );
    let done: Vec<ArtifactRow> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(files)).fetch_all(c).await)?;
    let dumps: Vec<Dumped<'_>> = done
        .iter()
        .filter(|file| file.name == DUMP)
        .filter_map(|file| Some(Dumped { attempt: file.attempt_id.as_ref()?, whole_at: file.completed_at }))
        .collect();
    if !dumps.is_empty() {
        let text = given!(
            tx,
            update "attempt SET dump_at = given.whole_at FROM ",
            [attempt text, whole_at bigint],
            at "attempt.id" = "attempt",
            ""
        );
        on_tx!(tx, |c| sqlx::query(text).bind(Json(&dumps)).execute(c).await.map(drop))?;
    }
    Ok(done)
}

#[derive(Serialize)]
struct Dumped<'a> {
    attempt: &'a AttemptId,
    whole_at: Option<Timestamp>,
}

/// Records that an upload was announced with other bytes than came.
pub async fn mark_mismatch(tx: &mut Tx, id: &ArtifactId, text: &str, now: Timestamp) -> DbResult<()> {
    on_tx!(tx, |c| sqlx::query(
        "UPDATE artifact SET mismatch_at = $2, mismatch = $3 WHERE id = $1 AND state = 'open'"
    )
    .bind(id)
    .bind(now)
    .bind(text)
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}

/// Notes that nothing will come into the consoles of these attempts any more.
pub async fn finish_consoles(tx: &mut Tx, attempts: &[&AttemptId]) -> DbResult<()> {
    let text = listed!(
        tx,
        update "artifact SET finished = TRUE WHERE ",
        "attempt_id",
        " AND state = 'open' AND substr(name, 1, 8) = 'console-'"
    );
    on_tx!(tx, |c| sqlx::query(text).bind(Json(attempts)).execute(c).await.map(drop))?;
    Ok(())
}

/// Consoles into which nothing will come any more, and which are still open.
pub async fn finished_consoles(db: &Db, limit: i64) -> DbResult<Vec<ArtifactRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT * FROM artifact WHERE state = 'open' AND finished ORDER BY id LIMIT $1",
    )
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// Puts segments in the place of all that their files have, which are locked ([`lock_open`]) and hold the same bytes; `false` if
/// they are not as many as they were when they were read.
pub async fn exchange_segments(tx: &mut Tx, before: usize, segments: &[&SegmentRow]) -> DbResult<bool> {
    let files: BTreeSet<&ArtifactId> = segments.iter().map(|segment| &segment.artifact_id).collect();
    if !files.is_empty() {
        let text = listed!(tx, "DELETE FROM segment WHERE ", "artifact_id", "");
        let gone =
            on_tx!(tx, |c| sqlx::query(text).bind(Json(&files)).execute(c).await.map(|done| done.rows_affected()))?;
        if gone != before as u64 {
            return Ok(false);
        }
        insert_segments(tx, segments).await?;
    }
    Ok(true)
}
