//! `crashyard machine check`: wants a check at the server, waits until the machine's controller has done it, prints what was seen.

use super::Common;
use crate::server::{patiently, said};
use crate::time::when;
use crate::triage::vmcore::text;
use anyhow::Context as _;
use clap::Args;
use crashyard_protocol::api::{Check as Checked, NewCheck};
use crashyard_protocol::check::{Report, passes};
use crashyard_protocol::client::Client;
use crashyard_protocol::retry::Backoff;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// How long the server may hold an answer back.
const WAIT_SECONDS: u32 = 20;
/// What a shell makes of Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Arguments of `machine check`.
#[derive(Args)]
pub struct Check {
    /// The machine's name
    machine: String,
    /// Also switch it off and on, and off again
    #[arg(long)]
    cycle: bool,
    /// Show the newest check, and want none
    #[arg(long, conflicts_with_all = ["cycle", "cancel"])]
    last: bool,
    /// Take back that a check is wanted
    #[arg(long, conflicts_with = "cycle")]
    cancel: bool,
    #[command(flatten)]
    common: Common,
}

impl Check {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.common.server.client();
        if self.cancel {
            let check = client.cancel_check(&self.machine).await.map_err(|error| said(&error))?;
            self.common.print(&check, || told(&check))?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.last {
            let check = client.check(&self.machine, 0).await.map_err(|error| said(&error))?;
            return self.show(&check);
        }
        // Wanting what is wanted already changes nothing, so it may be said again after a cut connection.
        let new = NewCheck { cycle: self.cycle };
        let wanted = patiently(|| client.want_check(&self.machine, &new)).await.map_err(|error| said(&error))?;
        let mut interrupt = signal(SignalKind::interrupt()).context("hear Ctrl-C")?;
        tokio::select! {
            check = self.wait(&client, wanted) => self.show(&check?),
            _ = interrupt.recv() => {
                let name = text::safe(&self.machine);
                eprintln!("The check stays wanted: `crashyard machine check {name}` takes it up again, and \
                    `crashyard machine check {name} --cancel` takes it back.");
                Ok(ExitCode::from(INTERRUPTED))
            }
        }
    }

    /// Until the check is over; says each time what it waits for.
    async fn wait(&self, client: &Client, mut check: Checked) -> anyhow::Result<Checked> {
        let (mut before, mut backoff) = (None, Backoff::default());
        while let Some(waits) = check.waits.clone() {
            if before.as_ref() != Some(&waits) {
                eprintln!("{}", text::safe(&waits));
                before = Some(waits);
            }
            check = match client.check(&self.machine, WAIT_SECONDS).await {
                Ok(now) => {
                    backoff = Backoff::default();
                    now
                }
                Err(error) if error.is_transient() => {
                    backoff.wait().await;
                    check
                }
                Err(error) => return Err(said(&error)),
            };
        }
        Ok(check)
    }

    fn show(&self, check: &Checked) -> anyhow::Result<ExitCode> {
        self.common.print(check, || told(check))?;
        let good = check.ended_at.is_some() && check.failed.is_none() && passes(&check.findings);
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// A check for people.
fn told(check: &Checked) -> String {
    let machine = &check.machine;
    match (&check.waits, &check.failed) {
        (Some(waits), _) => format!("{}\n", text::safe(&format!("A check of {machine} is wanted; {waits}"))),
        (None, Some(why)) => format!("{}\n", text::safe(&format!("The check of {machine} was not done: {why}"))),
        (None, None) => {
            let report = Report { machine: machine.clone(), findings: check.findings.clone() };
            let at = check.ended_at.map(|at| format!("checked on {}\n", when(at))).unwrap_or_default();
            format!("{}{at}", report.text())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_protocol::check::{Finding, Seen};
    use crashyard_protocol::clock::Timestamp;

    #[test]
    fn a_check_is_told_as_the_agent_tells_it_and_what_it_waits_for_is_safe_for_a_terminal() {
        let finding = Finding {
            capability: "power state".into(),
            seen: Seen::Fails,
            detail: "\u{1b}[2Jno route".into(),
            needed: true,
        };
        let check = Checked {
            id: "01JDB4Q1W5Z8N6K3X0V7T2R9MF".parse().unwrap(),
            machine: "r740".into(),
            cycle: false,
            wanted_by: "token:kris".into(),
            wanted_at: Timestamp(0),
            begun_at: None,
            ended_at: Some(Timestamp(60_000)),
            waits: None,
            failed: None,
            findings: vec![finding],
        };
        let text = told(&check);
        assert!(text.starts_with("power state          FAILS           [2Jno route\nr740 cannot take jobs"), "{text}");
        assert!(text.ends_with("checked on 1970-01-01 00:01:00 UTC\n"), "{text}");
        let waits = Checked { waits: Some("controller \u{1b} is silent".into()), ended_at: None, ..check.clone() };
        assert_eq!(told(&waits), "A check of r740 is wanted; controller \\x1b is silent\n");
        let failed = Checked { failed: Some("token:kris took it back".into()), ..check };
        assert!(told(&failed).contains("was not done: token:kris took it back"));
    }
}
