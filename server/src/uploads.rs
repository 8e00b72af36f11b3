//! Uploads in chunks: the same for a build's files and for evidence.
//!
//! Chunks come in any order, from several connections, again after a cut connection or a crash on either side. Each
//! one is checked against the hash it was announced with, made durable as a blob, and registered. What the ledger has
//! registered is what the server has: an agent that comes back asks, and sends the rest.

use crate::app::AppState;
use crate::db::artifact::{self, ArtifactRow, Owner, SegmentRow};
use crate::db::chunk::{self, Arrived, ChunkOutcome, Found};
use crate::db::{self, Tx, signed, unsigned};
use crate::error::{AppError, AppResult};
use crate::extract::check_path_name;
use crate::findings;
use crate::judging;
use crate::opener::ToOpen;
use crate::receiver::Registered;
use crate::recorder::{HandedIn, What};
use crate::wake::{Pass, Topic};
use bytes::Bytes;
use crashyard_protocol::agent::{CHUNK_BYTES, Chunk, CompleteRequest, Upload};
use crashyard_protocol::api::DUMP;
use crashyard_protocol::chunk::{chunk_hash, from_hex, hex, is_well_placed, whole_hash};
use crashyard_protocol::{ArtifactId, ArtifactState, AttemptId};
use serde::Deserialize;

/// Where a chunk belongs, and what it must be.
#[derive(Clone, Debug, Deserialize, utoipa::IntoParams)]
pub struct ChunkQuery {
    /// Offset of its first byte; a multiple of 4 MiB.
    pub offset: u64,
    /// Its BLAKE3 chaining value at this offset, lower-case hex.
    pub hash: String,
    /// Bytes of the whole, where the sender knows it: an upload that cannot fit is then refused at its first chunk.
    pub size: Option<u64>,
}

/// Whose file it is.
#[derive(Clone, Debug)]
pub enum Target {
    /// A build's.
    Build(crashyard_protocol::BuildId),
    /// An attempt's, sent under this epoch.
    Attempt {
        /// The attempt.
        attempt: AttemptId,
        /// The epoch.
        epoch: u64,
    },
}

impl Target {
    fn owner(&self) -> Owner {
        match self {
            Self::Build(id) => Owner::Build(id.clone()),
            Self::Attempt { attempt, .. } => Owner::Attempt(attempt.clone()),
        }
    }

    fn epoch(&self) -> Option<u64> {
        match self {
            Self::Build(_) => None,
            Self::Attempt { epoch, .. } => Some(*epoch),
        }
    }

    fn quota(&self, state: &AppState) -> u64 {
        match self {
            Self::Build(_) => state.config.max_build_bytes,
            Self::Attempt { .. } => state.config.max_attempt_bytes,
        }
    }

    async fn check_lease(&self, tx: &mut Tx) -> AppResult<()> {
        if let Self::Attempt { attempt, epoch } = self {
            db::attempt::get_in(tx, attempt).await?.check_epoch(*epoch)?;
        }
        Ok(())
    }

    fn check_name(&self, name: &str) -> AppResult<()> {
        check_path_name("artifact name", name)?;
        if matches!(self, Self::Attempt { .. }) && name.starts_with(artifact::CONSOLE_PREFIX) {
            return Err(AppError::Invalid("consoles are sent to the console path, byte by byte and in order".into()));
        }
        if matches!(self, Self::Attempt { .. }) && name.starts_with(findings::PREFIX) {
            return Err(AppError::Invalid(format!("names that begin with `{}` are the server's", findings::PREFIX)));
        }
        Ok(())
    }
}

/// How far an upload is; opens it if it is new, so that its sender learns its id.
pub async fn progress(state: &AppState, target: &Target, name: &str) -> AppResult<Upload> {
    target.check_name(name)?;
    let artifact = match artifact::find(&state.db, &target.owner(), name).await? {
        Some(found) => found,
        None => open(state, target, name).await?,
    };
    let segments = artifact::segments(&state.db, &artifact.id).await?;
    Ok(Upload {
        artifact: artifact.id,
        complete: artifact.state == ArtifactState::Complete,
        chunks: segments
            .into_iter()
            .map(|segment| Chunk {
                offset: unsigned(segment.start_at),
                length: unsigned(segment.length),
                hash: segment.hash,
            })
            .collect(),
    })
}

/// Looks for a file that is sent, with its chunk at an offset; a lease must hold.
async fn look(state: &AppState, target: &Target, name: &str, offset: Option<u64>) -> AppResult<Option<Found>> {
    let found = chunk::find(&state.db, &target.owner(), target.epoch(), name, offset).await;
    found.map_err(|error| AppError::or_not_found(error, "attempt"))
}

async fn open(state: &AppState, target: &Target, name: &str) -> AppResult<ArtifactRow> {
    let to_open = ToOpen {
        owner: target.owner(),
        epoch: target.epoch(),
        name: name.to_owned(),
        id: ArtifactId::from_ulid(state.ids.next()),
        at: state.now(),
    };
    Ok(state.opener.ask(to_open).await?)
}

/// Takes one chunk.
pub async fn put_chunk(
    state: &AppState,
    target: &Target,
    name: &str,
    query: &ChunkQuery,
    bytes: Bytes,
) -> AppResult<()> {
    target.check_name(name)?;
    let length = bytes.len() as u64;
    check_place(state, query, length)?;
    let wanted =
        from_hex(&query.hash).ok_or_else(|| AppError::Invalid("the parameter `hash` must be 64 hex digits".into()))?;
    let known = look(state, target, name, Some(query.offset)).await?;
    let hashed = bytes.clone();
    let offset = query.offset;
    let found = tokio::task::spawn_blocking(move || chunk_hash(offset, &hashed)).await?;
    if found != wanted {
        return Err(AppError::HashMismatch(format!(
            "the {length} bytes for offset {offset} have hash {}, not {}",
            hex(&found),
            hex(&wanted)
        )));
    }
    let (artifact_id, there) = match known {
        Some(known) => (known.id, known.there),
        None => (open(state, target, name).await?.id, None),
    };
    let segment = SegmentRow {
        artifact_id,
        start_at: signed(offset),
        length: signed(length),
        hash: hex(&found),
        received_at: state.now(),
        bytes: None,
    };
    if let Some(there) = there {
        return outcome(state, target, there.compare(&segment)).map(drop);
    }
    let segment = state.blobs.keep(segment, bytes).await?;
    register(state, target, segment).await
}

fn check_place(state: &AppState, query: &ChunkQuery, length: u64) -> AppResult<()> {
    let end = query.offset.saturating_add(length);
    if !is_well_placed(query.offset, length) {
        return Err(AppError::Invalid(format!(
            "a chunk starts at a multiple of {CHUNK_BYTES} and has 1 to {CHUNK_BYTES} bytes, not {length} bytes at {}",
            query.offset
        )));
    }
    let limit = state.config.max_artifact_bytes;
    if query.size.unwrap_or(0) > limit || end > limit {
        return Err(AppError::TooLarge(format!("a file may have at most {limit} bytes on this server")));
    }
    if query.size.is_some_and(|size| end > size) {
        return Err(AppError::Invalid(format!(
            "this chunk ends at {end}, beyond the declared {} bytes",
            query.size.unwrap_or(0)
        )));
    }
    Ok(())
}

async fn register(state: &AppState, target: &Target, segment: SegmentRow) -> AppResult<()> {
    let length = unsigned(segment.length);
    let arrived = Arrived { owner: target.owner(), epoch: target.epoch(), segment, quota: target.quota(state) };
    let Registered { outcome: became, told } = state.receiver.ask(arrived).await?;
    if outcome(state, target, became)? {
        state.metrics.add("crashyard_upload_bytes_total", Vec::new(), length);
    }
    if let Some(run) = told {
        state.wake.wake(&Topic::Run(run));
        state.wake.wake(&Topic::Pass(Pass::Glimpse));
    }
    Ok(())
}

/// Whether a chunk is new.
fn outcome(state: &AppState, target: &Target, outcome: ChunkOutcome) -> AppResult<bool> {
    match outcome {
        ChunkOutcome::Added { .. } => Ok(true),
        ChunkOutcome::Had => Ok(false),
        ChunkOutcome::Contradicts(how) => Err(AppError::Conflict(how)),
        ChunkOutcome::BeyondQuota => {
            let what = if matches!(target, Target::Build(_)) { "build" } else { "attempt" };
            let quota = target.quota(state);
            Err(AppError::TooLarge(format!("all files of this {what} together may have {quota} bytes")))
        }
    }
}

/// Closes an upload: every byte must be there, and the whole must be what was announced.
pub async fn complete(
    state: &AppState,
    target: &Target,
    name: &str,
    request: &CompleteRequest,
) -> AppResult<ArtifactRow> {
    target.check_name(name)?;
    let wanted = from_hex(&request.blake3)
        .map(|bytes| hex(&bytes))
        .ok_or_else(|| AppError::Invalid("`blake3` must be 64 hex digits".into()))?;
    if request.size > state.config.max_artifact_bytes {
        let limit = state.config.max_artifact_bytes;
        return Err(AppError::TooLarge(format!("a file may have at most {limit} bytes on this server")));
    }
    let (id, artifact_state) = match look(state, target, name, None).await? {
        Some(known) => (known.id, known.state),
        None => {
            let opened = open(state, target, name).await?;
            (opened.id, opened.state)
        }
    };
    if artifact_state != ArtifactState::Open {
        return same_or_conflict(artifact::get(&state.db, &id).await?, request.size, &wanted);
    }
    let segments = artifact::segments(&state.db, &id).await?;
    let found = match check_whole(state, &segments, request.size).await? {
        Ok(found) => found,
        Err(how) => return Err(refuse(state, target, &id, name, how).await?),
    };
    if found != wanted {
        let how = format!("the {} bytes received have BLAKE3 {found}, announced was {wanted}", request.size);
        return Err(refuse(state, target, &id, name, how).await?);
    }
    match close(state, target, &id, &found).await? {
        Some(done) => Ok(done),
        None => same_or_conflict(artifact::get(&state.db, &id).await?, request.size, &wanted),
    }
}

/// Closes a file; `None` if it was not open any more.
async fn close(
    state: &AppState,
    target: &Target,
    artifact: &ArtifactId,
    blake3: &str,
) -> AppResult<Option<ArtifactRow>> {
    match target {
        Target::Build(_) => {
            let mut tx = state.db.begin().await?;
            let done = artifact::complete(&mut tx, artifact, blake3, state.now()).await?;
            tx.commit().await?;
            Ok(done)
        }
        Target::Attempt { attempt, epoch } => {
            let what = What::File { artifact: artifact.clone(), blake3: blake3.to_owned() };
            let handed_in = HandedIn { attempt: attempt.clone(), epoch: *epoch, at: state.now(), what };
            let done = judging::keep(state, handed_in).await?.file;
            state.wake.wake(&Topic::Pass(Pass::Verify));
            Ok(done)
        }
    }
}

fn same_or_conflict(artifact: ArtifactRow, size: u64, blake3: &str) -> AppResult<ArtifactRow> {
    if unsigned(artifact.size) == size && artifact.blake3.as_deref() == Some(blake3) {
        return Ok(artifact);
    }
    Err(AppError::Conflict(format!(
        "{} is complete with {} bytes and BLAKE3 {}",
        artifact.name,
        artifact.size,
        artifact.blake3.as_deref().unwrap_or("unknown")
    )))
}

/// An announcement that the bytes contradict is recorded: it is evidence about whoever sent them.
async fn refuse(
    state: &AppState,
    target: &Target,
    artifact: &ArtifactId,
    name: &str,
    how: String,
) -> AppResult<AppError> {
    let mut tx = state.db.begin().await?;
    target.check_lease(&mut tx).await?;
    artifact::mark_mismatch(&mut tx, artifact, &how, state.now()).await?;
    tx.commit().await?;
    if let (Target::Attempt { attempt, .. }, DUMP) = (target, name) {
        judging::judge_or_later(state, attempt).await;
    }
    Ok(AppError::HashMismatch(how))
}

/// The hash of the whole from the chunks' hashes. The inner error says how the bytes contradict the announced size;
/// bytes that are only missing are a conflict that names the first missing offset.
async fn check_whole(state: &AppState, segments: &[SegmentRow], size: u64) -> AppResult<Result<String, String>> {
    let mut next = 0;
    let mut values = Vec::with_capacity(segments.len());
    for segment in segments {
        if unsigned(segment.start_at) != next {
            break;
        }
        next = segment.end();
        let Some(value) = from_hex(&segment.hash) else {
            return Err(AppError::Internal(anyhow::anyhow!("a stored hash is not one: {}", segment.hash)));
        };
        values.push(value);
    }
    let received = segments.last().map_or(0, SegmentRow::end);
    if received > size {
        return Ok(Err(format!("{received} bytes were sent, {size} were announced")));
    }
    if next < size {
        return Err(AppError::Conflict(format!("the bytes from offset {next} on are missing")));
    }
    if let Some(hash) = whole_hash(&values) {
        return Ok(Ok(hash.to_hex().to_string()));
    }
    let bytes = match segments.first() {
        Some(only) => state.blobs.read(only, 0..unsigned(only.length)).await?,
        None => Bytes::new(),
    };
    let hash = tokio::task::spawn_blocking(move || blake3::hash(&bytes)).await?;
    Ok(Ok(hash.to_hex().to_string()))
}
