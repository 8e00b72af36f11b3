//! The eight stages of the crash contract, and the proof each one keeps.

use crate::clock::Timestamp;
use crate::{ArtifactId, Status, text_enum};
use serde::{Deserialize, Serialize};

text_enum! {
    /// One stage of the crash contract, in the order in which it is owed.
    StageName {
        /// The kernel under test runs on the machine.
        Provisioned = "provisioned",
        /// The crash kernel is loaded and the scenario's VMX state is reached.
        Armed = "armed",
        /// The marker is written; the next thing is the crash.
        Triggered = "triggered",
        /// The *intended* panic is on the console.
        Panicked = "panicked",
        /// The capture kernel booted and its agent called in.
        Captured = "captured",
        /// Every byte of the vmcore is with the server.
        Dumped = "dumped",
        /// The vmcore is of this kernel, of this crash, and complete.
        Verified = "verified",
        /// The machine is healthy again.
        Returned = "returned",
    }
}

text_enum! {
    /// How far a stage is.
    StageState {
        /// Not its turn yet.
        Pending = "pending",
        /// Being waited for; its deadline counts.
        Active = "active",
        /// Proven.
        Proven = "proven",
        /// Blamed: the contract stopped here.
        Failed = "failed",
        /// Never reached, because an earlier stage failed.
        Skipped = "skipped",
    }
}

/// One stage of an attempt as judged so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stage {
    /// Which stage.
    pub name: StageName,
    /// How far it is.
    pub state: StageState,
    /// What its failure means; `None` until it is settled.
    pub status: Option<Status>,
    /// When it became active.
    pub started_at: Option<Timestamp>,
    /// When it must be settled at the latest.
    pub deadline_at: Option<Timestamp>,
    /// When it was proven, failed or skipped.
    pub settled_at: Option<Timestamp>,
    /// Why it failed and what a person can do about it; for a proven stage, one line that says what proves it.
    pub reason: Option<String>,
    /// What proves (or disproves) it.
    pub proofs: Vec<Proof>,
}

impl Stage {
    /// A stage whose turn has not come.
    #[must_use]
    pub const fn pending(name: StageName) -> Self {
        Self {
            name,
            state: StageState::Pending,
            status: None,
            started_at: None,
            deadline_at: None,
            settled_at: None,
            reason: None,
            proofs: Vec::new(),
        }
    }
}

/// A pointer into the recorded evidence: anybody can look at exactly what convinced the judge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Proof {
    /// Bytes of a console log.
    Console {
        /// The console's artifact.
        artifact: ArtifactId,
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// 1-based line of the console log.
        line: u64,
        /// The text, made printable and cut to 500 characters.
        text: String,
    },
    /// A report of an agent.
    Report {
        /// Who said it: `controller`, `target` or `capture`.
        by: String,
        /// Its sequence number.
        seq: u64,
        /// What it said, in one line.
        text: String,
    },
    /// A fact the server established itself (bytes counted, hash compared, dump read).
    Server {
        /// What was found, in one line.
        text: String,
    },
}
