//! The streaming parser.

use crate::model::{Event, Outcome, Report};
use crate::options::Options;

/// Reads a console piece by piece.
#[derive(Debug, Clone, Default)]
pub struct Parser {
    options: Options,
    outcome: Outcome,
}

impl Parser {
    /// A parser at the beginning of a console.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options, outcome: Outcome::default() }
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, _bytes: &[u8]) {
        let _ = &self.options;
    }

    /// Events seen so far.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.outcome.events
    }

    /// Reports that are complete so far.
    #[must_use]
    pub fn reports(&self) -> &[Report] {
        &self.outcome.reports
    }

    /// What `finish` would give if the input ended here.
    #[must_use]
    pub fn snapshot(&self) -> Outcome {
        self.clone().finish()
    }

    /// The end of the input.
    #[must_use]
    pub fn finish(self) -> Outcome {
        self.outcome
    }
}
