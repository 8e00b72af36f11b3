//! What is recorded about one attempt, as the judge wants to see it.
//!
//! Plain data without a database or a web framework in sight, so that a test can write down any story and the server
//! can fill it from any store. Every piece carries the moment the *server* had it: agents' clocks are never asked.

use super::away::Span;
use super::console::ConsoleFacts;
use super::dump::DumpReading;
use crashyard_protocol::agent::BuildBrief;
use crashyard_protocol::api::Evidence;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, AttemptId, Stage};

/// Everything that is recorded about one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct EvidenceView {
    /// The attempt; its id is in the marker.
    pub attempt: AttemptId,
    /// When the lease was given: the first stage begins here.
    pub started_at: Timestamp,
    /// Where the lease is.
    pub lease: Lease,
    /// What agents reported, in any order. Repeated sequence numbers are harmless: the first received counts.
    pub reports: Vec<Evidence>,
    /// What was read on each console of the attempt.
    pub consoles: Vec<ConsoleEvidence>,
    /// The vmcore's upload; `None` until its first byte.
    pub dump: Option<DumpEvidence>,
    /// What was read in the complete vmcore; `None` until it has been read.
    pub reading: Option<DumpReading>,
    /// When the server itself was away since the attempt started. Stages do not age in this time.
    pub server_away: Vec<Span>,
    /// The stages as judged before, so that a settled stage stays settled. Empty judges from scratch.
    pub stages: Vec<Stage>,
}

impl EvidenceView {
    /// An attempt of which nothing is recorded yet but that it was started.
    #[must_use]
    pub fn new(attempt: AttemptId, started_at: Timestamp) -> Self {
        Self {
            attempt,
            started_at,
            lease: Lease::Held,
            reports: Vec::new(),
            consoles: Vec::new(),
            dump: None,
            reading: None,
            server_away: Vec::new(),
            stages: Vec::new(),
        }
    }
}

/// Where an attempt's lease is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// The controller renews it.
    Held,
    /// It ran out; what arrived until then is judged.
    Lost {
        /// When.
        at: Timestamp,
    },
    /// The controller handed it back.
    Released {
        /// When.
        at: Timestamp,
        /// Whether the machine may take the next job.
        healthy: bool,
        /// What the controller said.
        detail: String,
    },
}

/// One console of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsoleEvidence {
    /// The artifact that holds its bytes; proofs point into it.
    pub artifact: ArtifactId,
    /// What was read in them.
    pub facts: ConsoleFacts,
}

/// How far the vmcore's upload is, as the server counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpEvidence {
    /// Bytes received and stored.
    pub bytes: u64,
    /// When the upload was closed with every byte there and the whole hash equal.
    pub completed_at: Option<Timestamp>,
    /// The BLAKE3 of the whole, lower-case hex, once complete.
    pub blake3: Option<String>,
    /// When the upload was refused because the bytes are not what was announced, and how they differ.
    pub mismatch: Option<(Timestamp, String)>,
}

/// The kernel under test, as far as the judge needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildFacts {
    /// `uname -r` it must show.
    pub release: String,
    /// GNU build id of its vmlinux, lower-case hex, where known.
    pub build_id: Option<String>,
}

impl From<&BuildBrief> for BuildFacts {
    fn from(build: &BuildBrief) -> Self {
        Self { release: build.release.clone(), build_id: build.build_id.clone() }
    }
}
