//! The machines: where each is in its life, why, what it does now, and what happened to it.

use super::Shell;
use super::console::path_part;
use crate::pages::format::{Chip, When, ago};
use crate::pages::text::visible;
use askama::Template;
use crashyard_protocol::api::{Check, Inventory, Machine, MachineEvent};
use crashyard_protocol::check::passes;
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
    /// How many of them only the machine's own page shows.
    more: usize,
    epoch: u64,
    seen: When,
    seen_ago: String,
    attempt: Option<AttemptId>,
    differs: Option<String>,
}

/// Labels that the list of all machines leaves to a machine's own page: details of what it is made of.
fn listed(label: &str) -> bool {
    let details = ["bmc", "cpus", "family", "firmware_version", "model", "nested", "product", "stepping"];
    !label.starts_with("vmx.") && !details.contains(&label)
}

impl Row {
    /// The labels that a list shows.
    fn first_labels(&self) -> impl Iterator<Item = &(String, String)> {
        self.labels.iter().filter(|(label, _)| listed(label))
    }

    fn new(machine: &Machine, now: Timestamp) -> Self {
        let reason = machine.reason.as_deref().map(|reason| visible(reason).into_owned());
        let silent = || {
            let was = format!("was {}; nothing was heard of its controller lately", machine.state);
            reason.as_ref().map_or_else(|| was.clone(), |reason| format!("{was}. {reason}"))
        };
        Self {
            name: visible(&machine.name).into_owned(),
            chip: if machine.reachable { Chip::machine(machine.state) } else { Chip::UNKNOWN },
            reason: if machine.reachable { reason } else { Some(silent()) },
            since: When(machine.state_since),
            since_ago: ago(now.since(machine.state_since)),
            driver: visible(&machine.driver).into_owned(),
            controller: visible(&machine.controller_name).into_owned(),
            more: machine.labels.keys().filter(|key| !listed(key)).count(),
            labels: machine
                .labels
                .iter()
                .map(|(key, value)| (visible(key).into_owned(), visible(value).into_owned()))
                .collect(),
            epoch: machine.lease_epoch,
            seen: When(machine.last_seen_at),
            seen_ago: ago(now.since(machine.last_seen_at)),
            attempt: machine.attempt.clone(),
            differs: machine.differs.as_deref().map(|how| visible(how).into_owned()),
        }
    }
}

impl MachinesPage {
    /// The page from machines in the order in which they are shown.
    #[must_use]
    pub fn new(machines: &[Machine], newest: bool, next: Option<&str>, now: Timestamp) -> Self {
        let rows: Vec<Row> = machines.iter().map(|machine| Row::new(machine, now)).collect();
        let known = MachineState::ALL.iter().map(|state| Chip::machine(*state)).chain([Chip::UNKNOWN]);
        let counts = known
            .map(|chip| (chip, rows.iter().filter(|row| row.chip == chip).count()))
            .filter(|(_, count)| *count > 0)
            .collect();
        let next = next.map(path_part);
        Self { shell: Shell { section: "machines", now: Some(When(now)) }, counts, rows, newest, next }
    }
}

/// The page at `/machines/NAME`.
#[derive(Debug, Template)]
#[template(path = "machine.html")]
pub struct MachinePage {
    shell: Shell,
    row: Row,
    back_at: Option<When>,
    probation: bool,
    reserved: Option<Reserved>,
    /// Who found the inventory, and when.
    found: Option<(AttemptId, When)>,
    facts: Vec<(String, String)>,
    interfaces: Vec<String>,
    contradictions: Vec<String>,
    errand: Option<String>,
    check: Option<Checked>,
    events: Vec<Happened>,
}

/// The newest check of its power and consoles.
#[derive(Debug)]
struct Checked {
    by: String,
    /// When it was over, or else since when it is wanted.
    at: When,
    waits: Option<String>,
    failed: Option<String>,
    passes: bool,
    findings: Vec<Tried>,
}

/// One thing that was tried.
#[derive(Debug)]
struct Tried {
    what: String,
    word: &'static str,
    detail: String,
}

impl Checked {
    fn new(check: &Check) -> Self {
        let text = |text: &str| visible(text).into_owned();
        Self {
            by: text(&check.wanted_by),
            at: When(check.ended_at.unwrap_or(check.wanted_at)),
            waits: check.waits.as_deref().map(text),
            failed: check.failed.as_deref().map(text),
            passes: passes(&check.findings),
            findings: check
                .findings
                .iter()
                .map(|one| Tried { what: text(&one.capability), word: one.word(), detail: text(&one.detail) })
                .collect(),
        }
    }
}

#[derive(Debug)]
struct Reserved {
    owner: String,
    reason: String,
    until: When,
    began: bool,
    warned: bool,
    attempt: Option<AttemptId>,
}

#[derive(Debug)]
struct Happened {
    at: When,
    chip: Chip,
    reason: String,
    by: String,
    attempt: Option<AttemptId>,
}

impl MachinePage {
    /// The page of a machine with its newest check and its history, newest first.
    #[must_use]
    pub fn new(
        machine: &Machine,
        inventory: &Inventory,
        check: Option<&Check>,
        history: &[MachineEvent],
        now: Timestamp,
    ) -> Self {
        let text = |text: &String| visible(text).into_owned();
        Self {
            shell: Shell { section: "machines", now: Some(When(now)) },
            row: Row::new(machine, now),
            back_at: machine.quarantined_until.map(When),
            probation: machine.on_probation,
            reserved: machine.reservation.as_ref().map(|one| Reserved {
                owner: visible(&one.owner).into_owned(),
                reason: visible(&one.reason).into_owned(),
                until: When(one.until),
                began: one.began_at.is_some(),
                warned: one.warned,
                attempt: one.attempt.clone(),
            }),
            found: inventory.attempt.clone().zip(inventory.seen_at.map(When)),
            facts: inventory.facts.iter().map(|(name, value)| (text(name), text(value))).collect(),
            interfaces: inventory.interfaces().iter().map(text).collect(),
            contradictions: inventory.contradictions.iter().map(text).collect(),
            errand: machine.errand.as_ref().map(text),
            check: check.map(Checked::new),
            events: history
                .iter()
                .map(|event| Happened {
                    at: When(event.at),
                    chip: Chip::machine(event.state),
                    reason: visible(event.reason.as_deref().unwrap_or_default()).into_owned(),
                    by: visible(&event.by).into_owned(),
                    attempt: event.attempt.clone(),
                })
                .collect(),
        }
    }
}
