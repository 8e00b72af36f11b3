//! The machines: where each is in its life, why, and what it does now.

use super::Shell;
use super::console::path_part;
use crate::pages::format::{Chip, When, ago};
use crate::pages::text::visible;
use askama::Template;
use crashyard_protocol::api::Machine;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{AttemptId, MachineState};

/// The page at `/machines`.
#[derive(Debug, Template)]
#[template(path = "machines.html")]
pub struct MachinesPage {
    shell: Shell,
    counts: Vec<(Chip, usize)>,
    rows: Vec<Row>,
    newest: bool,
    next: Option<String>,
}

#[derive(Debug)]
struct Row {
    name: String,
    chip: Chip,
    reason: Option<String>,
    since: When,
    since_ago: String,
    driver: String,
    controller: String,
    labels: Vec<(String, String)>,
    epoch: u64,
    seen: When,
    seen_ago: String,
    attempt: Option<AttemptId>,
}

impl MachinesPage {
    /// The page from machines in the order in which they are shown.
    #[must_use]
    pub fn new(machines: &[Machine], newest: bool, next: Option<&str>, now: Timestamp) -> Self {
        let rows: Vec<Row> = machines
            .iter()
            .map(|machine| Row {
                name: visible(&machine.name).into_owned(),
                chip: Chip::machine(machine.state),
                reason: machine.reason.as_deref().map(|reason| visible(reason).into_owned()),
                since: When(machine.state_since),
                since_ago: ago(now.since(machine.state_since)),
                driver: visible(&machine.driver).into_owned(),
                controller: visible(&machine.controller_name).into_owned(),
                labels: machine
                    .labels
                    .iter()
                    .map(|(key, value)| (visible(key).into_owned(), visible(value).into_owned()))
                    .collect(),
                epoch: machine.lease_epoch,
                seen: When(machine.last_seen_at),
                seen_ago: ago(now.since(machine.last_seen_at)),
                attempt: machine.attempt.clone(),
            })
            .collect();
        let counts = MachineState::ALL
            .iter()
            .map(|state| (Chip::machine(*state), machines.iter().filter(|machine| machine.state == *state).count()))
            .filter(|(_, count)| *count > 0)
            .collect();
        let next = next.map(path_part);
        Self { shell: Shell { section: "machines", now: Some(When(now)) }, counts, rows, newest, next }
    }
}
