//! What the pages show: plain data made from wire types, and the template that each is rendered with.
//!
//! A view is built by a pure function from wire types and "now"; it asks no database and no clock, so each page
//! can be rendered and checked without a server. Templates only lay out what a view says; the words are chosen here.

pub mod attempt;
pub mod beside;
pub mod console;
pub mod error;
pub mod findings;
pub mod machines;
pub mod pager;
pub mod report;
pub mod run;
pub mod runs;
pub mod scenarios;
pub mod signatures;
pub mod waiting;

use super::assets;
use super::format::{Chip, When, span, tight_span};
use super::text::visible;
use crashyard_protocol::api::Attempt;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, Stage, StageName, StageState};

/// What every page has around its content.
#[derive(Clone, Copy, Debug)]
pub struct Shell {
    /// The entry of the main navigation that the page belongs to: `runs`, `scenarios`, `signatures`, `machines` or nothing.
    pub section: &'static str,
    /// When the page was made; scripts learn from it how far the browser's clock is off.
    pub now: Option<When>,
}

impl Shell {
    /// The path of an embedded file.
    #[must_use]
    pub fn asset(&self, name: &str) -> String {
        assets::url(name)
    }
}

/// The attempt that a page beneath an attempt's own is about.
#[derive(Debug)]
pub struct About {
    /// Which.
    pub attempt: AttemptId,
    /// Its number among its job's.
    pub number: u32,
    /// The machine it was on.
    pub machine: String,
    /// How it stands.
    pub chip: Chip,
}

impl About {
    /// What such a page says of it.
    #[must_use]
    pub fn new(attempt: &Attempt) -> Self {
        Self {
            attempt: attempt.id.clone(),
            number: attempt.number,
            machine: visible(&attempt.machine_name).into_owned(),
            chip: Chip::attempt(attempt.state, attempt.verdict),
        }
    }
}

/// One stage as a cell of the grid.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Which stage.
    pub name: StageName,
    /// How far it is.
    pub state: StageState,
    /// How long it took or has taken, short.
    pub time: String,
    /// When an active stage began; scripts count on from here.
    pub since: Option<When>,
}

impl Cell {
    /// The cell of a stage, or of one that nobody has begun.
    #[must_use]
    pub fn new(name: StageName, stage: Option<&Stage>, now: Timestamp) -> Self {
        let Some(stage) = stage else {
            return Self { name, state: StageState::Pending, time: String::new(), since: None };
        };
        let active = stage.state == StageState::Active;
        Self {
            name,
            state: stage.state,
            time: if stage.state == StageState::Skipped {
                String::new()
            } else {
                stage.took(now).map(tight_span).unwrap_or_default()
            },
            since: stage.started_at.filter(|_| active).map(When),
        }
    }
}

/// Reading a stage's times.
pub trait StageTimes {
    /// How long it took until it was settled, or has taken until now; `None` if it never began.
    fn took(&self, now: Timestamp) -> Option<std::time::Duration>;
}

impl StageTimes for Stage {
    fn took(&self, now: Timestamp) -> Option<std::time::Duration> {
        Some(self.settled_at.unwrap_or(now).since(self.started_at?))
    }
}

/// How long something took or has taken, for people.
#[must_use]
pub fn took(from: Timestamp, until: Option<Timestamp>, now: Timestamp) -> String {
    span(until.unwrap_or(now).since(from))
}
