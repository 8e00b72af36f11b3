//! Chunks of uploads: what is there of a file, and what is added to it.
//!
//! Chunks come in any order and again, from several connections and at several servers. The file's row is locked while chunks are
//! added, and what they must fit to is read with that lock, in one statement for all.

use super::artifact::{self, Grown, Owner, SegmentRow};
use super::attempt;
use super::given::given;
use super::{Db, DbError, DbResult, Tx, on, on_tx, signed, unsigned};
use crashyard_protocol::agent::CHUNK_BYTES;
use crashyard_protocol::api::DUMP;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, ArtifactState, AttemptId, AttemptState, BuildId, JobId, RunId};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use std::collections::{BTreeMap, HashMap};

/// What became of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkOutcome {
    /// It is new; the file has this many bytes now.
    Added {
        /// Bytes received so far.
        size: u64,
    },
    /// The server had it already.
    Had,
    /// It contradicts what is there; the text says how.
    Contradicts(String),
    /// All files of its owner would have more bytes than they may.
    BeyondQuota,
}

/// A chunk that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct There {
    length: i64,
    hash: String,
}

impl There {
    /// Whether a chunk sent again is the same.
    #[must_use]
    pub fn compare(&self, new: &SegmentRow) -> ChunkOutcome {
        if self.hash == new.hash && self.length == new.length {
            return ChunkOutcome::Had;
        }
        let Self { length, hash } = self;
        let at = new.start_at;
        ChunkOutcome::Contradicts(format!("the server already has other bytes at {at} ({length} bytes, hash {hash})"))
    }
}

/// A file, as somebody finds it who sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub id: ArtifactId,
    /// How far it is.
    pub state: ArtifactState,
    /// The chunk that was asked about.
    pub there: Option<There>,
}

#[derive(FromRow)]
struct FoundRow {
    #[sqlx(default)]
    attempt_state: Option<AttemptState>,
    #[sqlx(default)]
    epoch: Option<i64>,
    id: Option<ArtifactId>,
    state: Option<ArtifactState>,
    length: Option<i64>,
    hash: Option<String>,
}

/// A file that somebody sends, with its chunk at an offset; `None` if it was not opened yet. An attempt's is looked for under an
/// epoch, and must be held under it.
pub async fn find(
    db: &Db,
    owner: &Owner,
    epoch: Option<u64>,
    name: &str,
    start_at: Option<u64>,
) -> DbResult<Option<Found>> {
    let (text, id) = match owner {
        Owner::Build(id) => (
            "SELECT f.id, f.state, s.length, s.hash FROM artifact f \
             LEFT JOIN segment s ON s.artifact_id = f.id AND s.start_at = $3 WHERE f.build_id = $1 AND f.name = $2",
            id.as_str(),
        ),
        Owner::Attempt(id) => (
            "SELECT t.state AS attempt_state, t.epoch, f.id, f.state, s.length, s.hash FROM attempt t \
             LEFT JOIN artifact f ON f.attempt_id = t.id AND f.name = $2 \
             LEFT JOIN segment s ON s.artifact_id = f.id AND s.start_at = $3 WHERE t.id = $1",
            id.as_str(),
        ),
    };
    let row: Option<FoundRow> = on!(db.read(), |c| sqlx::query_as(text)
        .bind(id)
        .bind(name)
        .bind(start_at.map(signed))
        .fetch_optional(c)
        .await)?;
    let Some(row) = row else {
        return if owner.attempt().is_some() { Err(DbError::NotFound) } else { Ok(None) };
    };
    check(row.attempt_state, row.epoch, epoch)?;
    let there = row.length.zip(row.hash).map(|(length, hash)| There { length, hash });
    Ok(row.id.zip(row.state).map(|(id, state)| Found { id, state, there }))
}

/// Whether what was sent under an epoch belongs to the lease that holds now; a build's file needs none.
fn check(state: Option<AttemptState>, has: Option<i64>, epoch: Option<u64>) -> DbResult<()> {
    match (state.zip(has), epoch) {
        (Some((state, has)), Some(epoch)) => attempt::check(state, has, epoch),
        _ => Ok(()),
    }
}

/// A chunk to be registered, whose bytes are durable or come with its row.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Whose file it is of.
    pub owner: Owner,
    /// Of an attempt's: the epoch it was sent under. What the server itself adds needs none.
    pub epoch: Option<u64>,
    /// Where its bytes are.
    pub segment: SegmentRow,
    /// Bytes that all files of the owner may have together.
    pub quota: u64,
}

/// A dump that has grown.
#[derive(Clone, Debug)]
pub struct GrownDump {
    /// The place of its last chunk among those that arrived.
    pub place: usize,
    /// Its attempt.
    pub attempt: AttemptId,
    /// Its attempt's job.
    pub job: JobId,
    /// Its attempt's run.
    pub run: RunId,
    /// Bytes it has.
    pub bytes: u64,
    /// When that was told last.
    pub told_at: Option<Timestamp>,
}

/// What became of chunks.
#[derive(Debug)]
pub struct Registering {
    /// An answer for each, in their order.
    pub answers: Vec<DbResult<ChunkOutcome>>,
    /// Dumps that have grown, one for each attempt, in the order of these.
    pub dumps: Vec<GrownDump>,
}

/// Registers chunks, each after those before it. `Conflict` if another server has registered one of them since it was looked for:
/// then none of them is.
pub async fn add_all(tx: &mut Tx, arrived: &[Arrived]) -> DbResult<Registering> {
    let mut files = lock(tx, arrived).await?;
    let answers: Vec<DbResult<ChunkOutcome>> = arrived.iter().map(|one| files.take(one)).collect();
    let mut added = Vec::new();
    let mut sizes: BTreeMap<&ArtifactId, i64> = BTreeMap::new();
    let mut dumps = BTreeMap::new();
    for (place, (one, answer)) in arrived.iter().zip(&answers).enumerate() {
        let Ok(ChunkOutcome::Added { size }) = answer else { continue };
        added.push(&one.segment);
        sizes.insert(&one.segment.artifact_id, signed(*size));
        if let Some(dump) = files.grown_dump(&one.segment.artifact_id, place, *size) {
            dumps.insert(dump.attempt.clone(), dump);
        }
    }
    if !added.is_empty() {
        artifact::insert_segments(tx, &added).await?;
        let grown: Vec<Grown<'_>> = sizes.into_iter().map(|(artifact, size)| Grown { artifact, size }).collect();
        artifact::grow(tx, &grown).await?;
    }
    Ok(Registering { answers, dumps: dumps.into_values().collect() })
}

#[derive(Serialize)]
struct Wanted<'a> {
    file: &'a ArtifactId,
    chunk_at: i64,
}

/// A file, and one of the chunks that arrived.
#[derive(FromRow)]
struct FileRow {
    id: ArtifactId,
    build_id: Option<BuildId>,
    attempt_id: Option<AttemptId>,
    name: String,
    state: ArtifactState,
    size: i64,
    kept: i64,
    last_at: Option<i64>,
    last_length: Option<i64>,
    chunk_at: i64,
    there_length: Option<i64>,
    there_hash: Option<String>,
    attempt_state: Option<AttemptState>,
    epoch: Option<i64>,
    job_id: Option<JobId>,
    run_id: Option<RunId>,
    told_at: Option<Timestamp>,
}

impl FileRow {
    fn owner(&self) -> Option<Owner> {
        let build = self.build_id.clone().map(Owner::Build);
        build.or_else(|| self.attempt_id.clone().map(Owner::Attempt))
    }

    /// Why a chunk cannot be where it is, next to those that are there.
    fn contradiction(&self, new: &SegmentRow) -> Option<String> {
        if self.state != ArtifactState::Open {
            return Some("the upload is complete and takes no further chunks".into());
        }
        let (last_at, length) = self.last_at.zip(self.last_length)?;
        if last_at < new.start_at && unsigned(length) < CHUNK_BYTES {
            return Some(format!(
                "the chunk at {last_at} is shorter than a full one, so the upload ends at {}; nothing can follow it",
                last_at + length
            ));
        }
        (last_at > new.start_at && unsigned(new.length) < CHUNK_BYTES)
            .then(|| format!("a chunk at {last_at} is there already, so only a full chunk can stand before it"))
    }

    fn add(&mut self, new: &SegmentRow) {
        self.size += new.length;
        if self.last_at.is_none_or(|last_at| last_at < new.start_at) {
            (self.last_at, self.last_length) = (Some(new.start_at), Some(new.length));
        }
    }
}

/// Files as they are, and come to be with the chunks that are taken.
struct Files {
    files: HashMap<ArtifactId, FileRow>,
    there: HashMap<(ArtifactId, i64), There>,
    /// Bytes of each owner.
    kept: HashMap<Owner, u64>,
}

/// The files of chunks, locked.
async fn lock(tx: &mut Tx, arrived: &[Arrived]) -> DbResult<Files> {
    let wanted: Vec<Wanted<'_>> =
        arrived.iter().map(|one| Wanted { file: &one.segment.artifact_id, chunk_at: one.segment.start_at }).collect();
    let text = given!(
        tx,
        "SELECT f.id, f.build_id, f.attempt_id, f.name, f.state, f.size, \
         CAST(COALESCE((SELECT SUM(o.size) FROM artifact o WHERE o.attempt_id = f.attempt_id), \
         (SELECT SUM(o.size) FROM artifact o WHERE o.build_id = f.build_id)) AS BIGINT) AS kept, \
         (SELECT MAX(s.start_at) FROM segment s WHERE s.artifact_id = f.id) AS last_at, \
         (SELECT s.length FROM segment s WHERE s.artifact_id = f.id ORDER BY s.start_at DESC LIMIT 1) AS last_length, \
         given.chunk_at, \
         (SELECT s.length FROM segment s WHERE s.artifact_id = f.id AND s.start_at = given.chunk_at) AS there_length, \
         (SELECT s.hash FROM segment s WHERE s.artifact_id = f.id AND s.start_at = given.chunk_at) AS there_hash, \
         t.state AS attempt_state, t.epoch, t.job_id, t.run_id, t.progress_event_at AS told_at \
         FROM artifact f LEFT JOIN attempt t ON t.id = f.attempt_id, ",
        [file text, chunk_at bigint],
        at "f.id" = "file",
        " ORDER BY f.id",
        lock " FOR NO KEY UPDATE OF f"
    );
    let rows: Vec<FileRow> = on_tx!(tx, |c| sqlx::query_as(text).bind(Json(&wanted)).fetch_all(c).await)?;
    let mut all = Files { files: HashMap::new(), there: HashMap::new(), kept: HashMap::new() };
    for mut row in rows {
        if let Some((length, hash)) = row.there_length.zip(row.there_hash.take()) {
            all.there.insert((row.id.clone(), row.chunk_at), There { length, hash });
        }
        if let Some(owner) = row.owner() {
            all.kept.insert(owner, unsigned(row.kept));
        }
        all.files.insert(row.id.clone(), row);
    }
    Ok(all)
}

impl Files {
    fn take(&mut self, one: &Arrived) -> DbResult<ChunkOutcome> {
        let new = &one.segment;
        let file = self.files.get_mut(&new.artifact_id).filter(|file| file.owner().as_ref() == Some(&one.owner));
        let file = file.ok_or(DbError::NotFound)?;
        check(file.attempt_state, file.epoch, one.epoch)?;
        let place = (new.artifact_id.clone(), new.start_at);
        if let Some(there) = self.there.get(&place) {
            return Ok(there.compare(new));
        }
        if let Some(how) = file.contradiction(new) {
            return Ok(ChunkOutcome::Contradicts(how));
        }
        let kept = self.kept.entry(one.owner.clone()).or_default();
        let more = kept.saturating_add(unsigned(new.length));
        if more > one.quota {
            return Ok(ChunkOutcome::BeyondQuota);
        }
        *kept = more;
        file.add(new);
        self.there.insert(place, There { length: new.length, hash: new.hash.clone() });
        Ok(ChunkOutcome::Added { size: unsigned(file.size) })
    }

    fn grown_dump(&self, file: &ArtifactId, place: usize, bytes: u64) -> Option<GrownDump> {
        let row = self.files.get(file).filter(|row| row.name == DUMP)?;
        Some(GrownDump {
            place,
            attempt: row.attempt_id.clone()?,
            job: row.job_id.clone()?,
            run: row.run_id.clone()?,
            bytes,
            told_at: row.told_at,
        })
    }
}
