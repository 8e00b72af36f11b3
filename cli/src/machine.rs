//! `crashyard machine` and `crashyard reserve`: where machines are in their life, and taking one out of the farm.

mod check;

use crate::server::{Server, said};
use crate::time::{ago, minutes, when};
use crate::triage::vmcore::text;
use clap::{Args, Subcommand};
use crashyard_protocol::MachineState;
use crashyard_protocol::api::{Extension, Inventory, Machine, MachineEvent, NewMachineState, NewReservation};
use crashyard_protocol::client::Client;
use crashyard_protocol::clock::Timestamp;
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;

/// What to do with machines.
#[derive(Subcommand)]
pub enum MachineCommand {
    /// List machines: state, since when, why
    List(Common),
    /// Show one machine: state, reservation, labels, and what happened to it
    #[command(after_help = "  crashyard machine show vmx-crash-1\n  crashyard machine show vmx-crash-1 --json")]
    Show(One),
    /// Show what a machine is made of: CPU, VMX capabilities, microcode, firmware, memory, network cards, BMC
    #[command(after_help = "\
The agent on the machine collects it in every attempt. Labels follow from it (`crashyard machine show`), so that plans can
ask for them: \"requires\": [\"vmx.unrestricted\", \"memory_mib >= 65536\"]. What changes goes into the machine's history.

  crashyard machine inventory vmx-crash-1
  crashyard machine inventory vmx-crash-1 --json | jq -r '.facts[\"cpu.microcode\"]'")]
    Inventory(One),
    /// Give a machine back to the jobs: ends a quarantine or a retirement, and forgives what it did
    Release(Decide),
    /// Keep jobs away from a machine until somebody releases it
    #[command(after_help = "  crashyard machine quarantine vmx-crash-1 --reason \"fan 2 is dead, ticket 311\"")]
    Quarantine(Decide),
    /// Take a machine out of the farm for good
    Retire(Decide),
    /// Have a machine's power and consoles tried by its controller, and say what was seen
    #[command(after_help = "\
The check is wanted at the server; the machine's controller does it when the machine is idle, before its next job. Without
--cycle nothing is done to the machine. With it, the machine is switched off, told to boot from the network, switched on,
listened to, and switched off again; whatever runs on it is lost. Ctrl-C leaves the check wanted; --cancel takes it back.
The exit status is 1 if something that the configuration names was not seen to work, or the check could not be done.

  crashyard machine check r740
  crashyard machine check r740 --cycle --json
  crashyard machine check r740 --last
  crashyard machine check r740 --cancel")]
    Check(check::Check),
}

/// Arguments of `reserve`.
#[derive(Args)]
#[command(after_help = "\
A machine that is busy is yours when its attempt is over; a preemptible one gives way if it is not armed yet. Fifteen
minutes before the end its history and page say so, and --notify has you told, where the server's operator has set that up;
then its controller powers it off and it goes back to the jobs.

  crashyard reserve vmx-crash-1 --for 4h --reason \"debugging the VMXON fault\" --notify kris@example.org
  crashyard reserve vmx-crash-1 --extend 2h
  crashyard reserve vmx-crash-1 --hand-back
  crashyard reserve --list")]
pub struct Reserve {
    /// The machine's name
    #[arg(required_unless_present = "list")]
    machine: Option<String>,
    /// For how long, e.g. 90m, 4h, 2d
    #[arg(long = "for", value_name = "TIME", value_parser = minutes, default_value = "4h")]
    time: u32,
    /// What for; whoever waits for the machine sees it
    #[arg(long, required_unless_present_any = ["extend", "hand_back", "list"])]
    reason: Option<String>,
    /// Tell this address before it ends, and when it has ended; what it may be, the server's operator says
    #[arg(long, value_name = "ADDRESS", requires = "reason")]
    notify: Option<String>,
    /// Prolong the reservation, from now
    #[arg(long, value_name = "TIME", value_parser = minutes, conflicts_with_all = ["reason", "hand_back", "list"])]
    extend: Option<u32>,
    /// Hand it back now
    #[arg(long, conflicts_with_all = ["reason", "list"])]
    hand_back: bool,
    /// List what is reserved and held
    #[arg(long, conflicts_with = "reason")]
    list: bool,
    #[command(flatten)]
    common: Common,
}

/// What every command takes.
#[derive(Args)]
pub struct Common {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub server: Server,
}

/// One machine.
#[derive(Args)]
pub struct One {
    /// The machine's name
    machine: String,
    #[command(flatten)]
    common: Common,
}

/// A decision about a machine.
#[derive(Args)]
pub struct Decide {
    /// The machine's name
    machine: String,
    /// Why; everybody sees it
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl MachineCommand {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(what) => return what.run().await,
            Self::List(common) => list(&common).await,
            Self::Show(one) => show(&one).await,
            Self::Inventory(one) => inventory(&one).await,
            Self::Release(decide) => set(decide, MachineState::Available).await,
            Self::Quarantine(decide) => set(decide, MachineState::Quarantined).await,
            Self::Retire(decide) => set(decide, MachineState::Retired).await,
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Reserve {
    pub async fn run(self) -> anyhow::Result<()> {
        let client = self.common.server.client();
        let Some(machine) = self.machine.filter(|_| !self.list) else {
            let taken = machines(&client).await?;
            let taken: Vec<_> = taken.into_iter().filter(|machine| machine.reservation.is_some()).collect();
            return self.common.print(&taken, || table(&taken, "No machine is reserved or held."));
        };
        let done = match (self.extend, self.hand_back, self.reason) {
            (Some(minutes), ..) => client.extend(&machine, &Extension { minutes }).await,
            (None, true, _) => client.hand_back(&machine).await,
            (None, false, reason) => {
                let reason = reason.unwrap_or_default();
                let new = NewReservation { minutes: self.time, reason, notify: self.notify };
                client.reserve(&machine, &new).await
            }
        };
        let done = done.map_err(|error| said(&error))?;
        self.common.print(&done, || reserved(&done))
    }
}

impl Common {
    pub fn print(&self, value: &impl Serialize, human: impl FnOnce() -> String) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(value)?);
        } else {
            print!("{}", human());
        }
        Ok(())
    }
}

async fn machines(client: &Client) -> anyhow::Result<Vec<Machine>> {
    let mut machines = client.machines().await.map_err(|error| said(&error))?;
    machines.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(machines)
}

async fn list(common: &Common) -> anyhow::Result<()> {
    let machines = machines(&common.server.client()).await?;
    common.print(&machines, || table(&machines, "No machine yet: start `crashyard-agent controller` in the lab."))
}

#[derive(Serialize)]
struct Shown {
    machine: Machine,
    inventory: Inventory,
    history: Vec<MachineEvent>,
}

async fn show(one: &One) -> anyhow::Result<()> {
    let client = one.common.server.client();
    let machine = client.machine(&one.machine).await.map_err(|error| said(&error))?;
    let history = client.machine_history(&one.machine).await.map_err(|error| said(&error))?;
    let inventory = client.machine_inventory(&one.machine).await.map_err(|error| said(&error))?;
    let shown = Shown { machine, inventory, history };
    one.common.print(&shown, || details(&shown))
}

async fn inventory(one: &One) -> anyhow::Result<()> {
    let found = one.common.server.client().machine_inventory(&one.machine).await.map_err(|error| said(&error))?;
    one.common.print(&found, || facts(&found))
}

/// An inventory for people.
fn facts(found: &Inventory) -> String {
    let Some(at) = found.seen_at else {
        return "Nothing is known of it yet: the agent on the machine finds it out in its first attempt.\n".into();
    };
    let mut out = format!("found on {}\n\n", when(at));
    for (name, value) in &found.facts {
        out.push_str(&format!("{}\n", text::safe(&format!("{name:<20} {value}"))));
    }
    for one in &found.contradictions {
        out.push_str(&format!("\nThe configuration is wrong: {}\n", text::safe(one)));
    }
    out
}

async fn set(decide: Decide, state: MachineState) -> anyhow::Result<()> {
    let client = decide.common.server.client();
    let new = NewMachineState { state, reason: decide.reason };
    let machine = client.set_machine_state(&decide.machine, &new).await.map_err(|error| said(&error))?;
    decide.common.print(&machine, || line(&machine, now()))
}

fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

/// A machine in one line.
fn line(machine: &Machine, now: Timestamp) -> String {
    let state = if machine.reachable { machine.state.as_str() } else { "unknown" };
    let mut why = machine.reason.clone().unwrap_or_default();
    if !machine.reachable {
        why = format!("was {}; nothing heard of its controller {}. {why}", machine.state, machine.controller_name);
    }
    if machine.on_probation {
        why = format!("on probation. {why}");
    }
    if let Some(until) = machine.quarantined_until {
        why = format!("{why} (until {})", when(until));
    }
    if let Some(one) = &machine.reservation {
        why = match one.began_at {
            None => format!("next is {} ({}). {why}", one.owner, one.reason),
            Some(_) if one.warned => format!("{why} (until {}, which is soon)", when(one.until)),
            Some(_) => format!("{why} (until {})", when(one.until)),
        };
    }
    if let Some(errand) = &machine.errand {
        why = format!("{why} First: {errand}.").trim_start().to_owned();
    }
    if let Some(how) = &machine.differs {
        why = format!("{why} Fails differently: {how}.").trim_start().to_owned();
    }
    let since = ago(now, machine.state_since);
    format!("{}\n", text::safe(format!("{:<24} {state:<12} {since:>6}  {why}", machine.name).trim_end()))
}

fn table(machines: &[Machine], nothing: &str) -> String {
    if machines.is_empty() {
        return format!("{nothing}\n");
    }
    machines.iter().map(|machine| line(machine, now())).collect()
}

/// What a reservation came to.
fn reserved(machine: &Machine) -> String {
    let name = &machine.name;
    let said = match &machine.reservation {
        Some(one) => {
            let told = if one.notifies { "; who is to be told is told before that" } else { "" };
            let now = if one.began_at.is_some() { "is" } else { "is busy; as soon as that is over it is" };
            format!("{name} {now} {} until {}{told}", one.owner, when(one.until))
        }
        None if machine.attempt.is_some() => format!("{name} is handed back; its attempt returns it to the jobs"),
        None if machine.state == MachineState::Quarantined => {
            format!("{name} is handed back, and quarantined as before")
        }
        None => format!("{name} is handed back; its controller powers it off, and then jobs get it"),
    };
    format!("{}\n", text::safe(&said))
}

fn details(shown: &Shown) -> String {
    let Shown { machine, inventory, history } = shown;
    let mut out = line(machine, now());
    let mut add = |text: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{}", text::safe(&text));
    };
    add(format!("driver      {}", machine.driver));
    add(format!("controller  {}", machine.controller_name));
    add(format!("last heard  {}", when(machine.last_seen_at)));
    if let Some(one) = &machine.reservation {
        add(format!("reserved    {} until {}: {}", one.owner, when(one.until), one.reason));
    }
    if let Some(attempt) = &machine.attempt {
        add(format!("attempt     {attempt}"));
    }
    for (key, value) in &machine.labels {
        add(format!("label       {key} = {value}"));
    }
    for one in inventory.interfaces() {
        add(format!("network     {one}"));
    }
    for one in &inventory.contradictions {
        add(format!("wrong       {one}"));
    }
    if !history.is_empty() {
        add(String::new());
    }
    for event in history.iter().take(30) {
        let by = if event.by == "server" { String::new() } else { format!(" [{}]", event.by) };
        let why = event.reason.as_deref().unwrap_or_default();
        add(format!("{}  {:<12} {why}{by}", when(event.at), event.state.as_str()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_protocol::api::Reservation;

    fn machine() -> Machine {
        let id = "01JDB4Q1W5Z8N6K3X0V7T2R9MF";
        Machine {
            id: id.parse().unwrap(),
            name: "m1".into(),
            driver: "qemu".into(),
            controller: id.parse().unwrap(),
            controller_name: "lab".into(),
            labels: [("cpu".to_owned(), "skylake".to_owned())].into(),
            state: MachineState::Quarantined,
            reason: Some("3 of its last 5 attempts failed\u{1b}[31m".into()),
            state_since: Timestamp(0),
            attempt: None,
            lease_epoch: 1,
            last_seen_at: Timestamp(0),
            reachable: true,
            quarantined_until: Some(Timestamp(3_600_000)),
            on_probation: false,
            differs: Some("MISS in 5 of 9 attempts; others in 0 of 40 at the same tests".into()),
            reservation: None,
            errand: None,
        }
    }

    #[test]
    fn a_machines_line_says_where_it_is_why_and_until_when_and_is_safe_for_a_terminal() {
        let text = line(&machine(), Timestamp(7_200_000));
        assert!(text.contains("quarantined") && text.contains("(until 1970-01-01 01:00:00 UTC)"), "{text}");
        assert!(text.contains("Fails differently: MISS in 5 of 9"), "{text}");
        assert!(text.contains("2 h") && !text.contains('\u{1b}'), "{text}");
        let silent = line(&Machine { reachable: false, ..machine() }, Timestamp(0));
        assert!(silent.contains("unknown") && silent.contains("was quarantined"), "{silent}");
    }

    #[test]
    fn a_machine_shows_its_network_interfaces() {
        let facts =
            [("name", "eth0"), ("driver", "igb")].map(|(what, is)| (format!("network.a.{what}"), is.to_owned()));
        let inventory = Inventory {
            attempt: None,
            seen_at: None,
            facts: facts.into(),
            labels: [].into(),
            contradictions: Vec::new(),
        };
        let text = details(&Shown { machine: machine(), inventory, history: Vec::new() });
        assert!(text.contains("network     eth0: igb, no link seen, at a\n"), "{text}");
    }

    #[test]
    fn a_reservation_says_whether_it_has_begun() {
        let reservation = Reservation {
            id: "01JDB4Q1W5Z8N6K3X0V7T2R9MF".parse().unwrap(),
            owner: "token:kris".into(),
            reason: "looks".into(),
            created_at: Timestamp(0),
            began_at: None,
            until: Timestamp(60_000),
            warned: false,
            notifies: false,
            attempt: None,
        };
        let waits = Machine { reservation: Some(reservation.clone()), ..machine() };
        assert!(reserved(&waits).contains("is busy; as soon as that is over it is token:kris until"));
        let began = Reservation { began_at: Some(Timestamp(0)), ..reservation.clone() };
        assert_eq!(
            reserved(&Machine { reservation: Some(began), ..machine() }),
            "m1 is token:kris until 1970-01-01 00:01:00 UTC\n"
        );
        assert_eq!(reserved(&machine()), "m1 is handed back, and quarantined as before\n");
        let enrolled = Machine { state: MachineState::Enrolled, ..machine() };
        assert_eq!(reserved(&enrolled), "m1 is handed back; its controller powers it off, and then jobs get it\n");
        let said = |warned| {
            let reservation = Some(Reservation { began_at: Some(Timestamp(0)), warned, ..reservation.clone() });
            line(&Machine { reservation, quarantined_until: None, ..machine() }, Timestamp(0))
        };
        assert!(said(false).contains("(until 1970-01-01 00:01:00 UTC)"), "{}", said(false));
        assert!(said(true).contains("(until 1970-01-01 00:01:00 UTC, which is soon)"), "{}", said(true));
    }
}
