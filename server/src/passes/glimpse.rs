//! Reads dumps while they arrive, as far as they go: who panicked is known before the last gigabyte is there.
//!
//! A dump is looked at when it has some bytes, and again whenever it has half as many again, until its panic was seen: all
//! looks together cost no more than three of the whole. What is seen is a glimpse: it is shown, and never judged by.

use super::Next;
use crate::app::AppState;
use crate::db::dump::{self, GlimpseRow};
use crate::error::{AppError, AppResult};
use crate::extract::replace_nul;
use crate::findings;
use crate::ranges::Stored;
use crate::wake::Topic;
use crashyard_protocol::agent::CHUNK_BYTES;
use crashyard_vmcore::{Capsule, Frame};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;

/// Lines of the log's end that are kept.
const LINES: usize = 40;
/// Frames of the panic stack that are kept.
const FRAMES: usize = 40;
/// Characters of a line that are kept.
const LINE: usize = 500;

/// What is kept of a dump that is still arriving.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Glimpse {
    /// `uname -r`.
    pub release: String,
    /// What the panic said.
    pub panic: Option<String>,
    /// The CPU that panicked.
    pub cpu: Option<u32>,
    /// Name and thread id of what ran there.
    pub task: Option<String>,
    /// Its stack, innermost first.
    pub frames: Vec<String>,
    /// The end of the kernel log.
    pub log: Vec<String>,
}

/// Looks at one dump that has grown.
pub async fn tick(state: &AppState) -> AppResult<Next> {
    let Some(grown) = dump::growing(&state.db, CHUNK_BYTES).await? else { return Ok(Next::Woken) };
    let stored = Stored::open_prefix(state, &grown.id).await?;
    let seen = findings::read_capsule(state, stored, true).await?.map(|capsule| Glimpse::of(&capsule));
    let mut body =
        seen.as_ref().map(serde_json::to_value).transpose().map_err(|error| AppError::Internal(error.into()))?;
    // As in every text that comes from a machine: PostgreSQL keeps no NULs.
    body.iter_mut().for_each(replace_nul);
    let settled = seen.as_ref().is_some_and(|seen| seen.panic.is_some() && !seen.frames.is_empty());
    let row =
        GlimpseRow { artifact_id: grown.id, bytes: grown.size, body: body.map(Json), settled, read_at: state.now() };
    let mut tx = state.db.begin().await?;
    dump::set_glimpse(&mut tx, &row).await?;
    tx.commit().await?;
    if let Some(attempt) = grown.attempt_id {
        state.wake.wake(&Topic::Attempt(attempt));
    }
    Ok(Next::Now)
}

impl Glimpse {
    /// What is worth showing of a capsule that may have holes.
    #[must_use]
    pub fn of(capsule: &Capsule) -> Self {
        let cut = |text: &str| text.chars().take(LINE).collect::<String>();
        let cpu = capsule.panic_cpu.and_then(|number| capsule.cpus.iter().find(|cpu| cpu.cpu == number));
        let frames = cpu.and_then(|cpu| capsule.stack(cpu.stack)).map(|stack| stack.frames.as_slice());
        let named = |frame: &Frame| cut(&frame.symbol.clone().unwrap_or_else(|| frame.pc.to_string()));
        Self {
            release: cut(&capsule.release),
            panic: capsule.panic_message.as_deref().map(cut),
            cpu: capsule.panic_cpu,
            task: capsule.panic_task.as_ref().map(|task| cut(&format!("{} ({})", task.comm, task.pid))),
            frames: frames.unwrap_or_default().iter().take(FRAMES).map(named).collect(),
            log: capsule.dmesg[capsule.dmesg.len().saturating_sub(LINES)..]
                .iter()
                .map(|line| cut(&line.stamped()))
                .collect(),
        }
    }
}
