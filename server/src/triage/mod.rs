//! Triage: from recorded evidence to a verdict.
//!
//! Agents report what they saw, consoles are recorded from outside, dumps are read; what all of that *means* is
//! decided here and nowhere else. The decision is a pure function ([`judge`]) of plain data ([`EvidenceView`]): no
//! clock, no database, no network, no randomness. That buys three things. Every story a machine can tell is a unit
//! test. A judgement can be made twice, by two servers, after every write or once at the end, with the same result.
//! And when a reader gets better, history can be judged again from what was stored.
//!
//! ```text
//! console bytes ─► console::ConsoleReader ─► ConsoleFacts ─┐
//! dump          ─► dump::read             ─► DumpFacts    ─┼─► EvidenceView ─► judge ─► Judgement
//! agents' reports, lease, server outages ──────────────────┘
//! ```
//!
//! What it must never do: prove a stage by the absence of bad news, un-settle a stage that was settled, or let the
//! text of a console decide what the scenario intended.

pub mod away;
pub mod console;
pub mod contract;
pub mod dump;
pub mod evidence;
mod rules;
mod scene;

#[cfg(test)]
mod tests;

pub use console::{ConsoleFacts, ConsoleReader, Intent};
pub use contract::{Judgement, judge};
pub use dump::{DumpFacts, DumpReading, Oracle, Outcome};
pub use evidence::{BuildFacts, ConsoleEvidence, DumpEvidence, EvidenceView, Lease};
