//! The REST API (`/api/v1`): what CI systems, the CLI and dashboards say.
//!
//! Lists are pages: newest first, `?before=ID&limit=N`. Ids are ULIDs, times are milliseconds since the epoch.

use crate::check::Finding;
use crate::clock::Timestamp;
use crate::{
    ArtifactId, ArtifactState, AttemptId, AttemptState, BuildId, CheckoutId, ControllerId, ErrandId, JobId, JobState,
    MachineId, MachineState, PlanId, Priority, Purpose, ReservationId, RunId, RunState, Scenario, ScenarioId, Scope,
    SignatureId, Stage, StageName, Status, SubmitterId, TokenId, TreeId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of an attempt's dump among its artifacts.
pub const DUMP: &str = "vmcore";

/// How the names of the capsules of an attempt's dump begin; the rest is the version of the reader that made it.
pub const CAPSULE: &str = "found-capsule";

impl Attempt {
    /// Its dump, in whatever state that is.
    #[must_use]
    pub fn dump(&self) -> Option<&Artifact> {
        self.artifacts.iter().find(|file| file.name == DUMP)
    }

    /// The newest complete artifact whose name begins so: versions have few digits, but ids grow with time.
    #[must_use]
    pub fn newest(&self, prefix: &str) -> Option<&Artifact> {
        let complete = |file: &&Artifact| file.name.starts_with(prefix) && file.state == ArtifactState::Complete;
        self.artifacts.iter().filter(complete).max_by(|a, b| a.id.cmp(&b.id))
    }
}

impl Inventory {
    /// The network interfaces in one line each, for people: `eth0: igb, 1000 Mbit/s, at 0000:02:00.0`.
    #[must_use]
    pub fn interfaces(&self) -> Vec<String> {
        let places = self.facts.iter().filter_map(|(key, name)| {
            let place = key.strip_prefix("network.")?.strip_suffix(".name")?;
            let fact = |what: &str| self.facts.get(&format!("network.{place}.{what}"));
            let driver = fact("driver").map_or("no driver", String::as_str);
            let speed = fact("mbit").map_or_else(|| "no link seen".to_owned(), |mbit| format!("{mbit} Mbit/s"));
            Some(format!("{name}: {driver}, {speed}, at {place}"))
        });
        places.collect()
    }
}

impl Waiting {
    /// Whether nothing has changed since but the estimate, which moves with the time.
    #[must_use]
    pub fn says_the_same_as(&self, before: &Self) -> bool {
        let exact = |one: &Self| Self { summary: String::new(), expected_start: None, ..one.clone() };
        exact(self) == exact(before)
    }
}

impl NewRun {
    /// A submission with nothing special about it.
    #[must_use]
    pub fn new(build: BuildId, plan: &str) -> Self {
        Self {
            build,
            plan: plan.to_owned(),
            key: None,
            priority: None,
            start_within_seconds: None,
            deadline: None,
            policy: None,
        }
    }
}

crate::text_enum! {
    /// How something can be owed.
    OwedKind {
        /// A job has waited for longer than a day.
        JobWaits = "job-waits",
        /// A job is leased, and no attempt could give it a verdict.
        JobWithoutAttempt = "job-without-attempt",
        /// An attempt's lease ran out long ago, and nobody has ended it.
        AttemptWithoutLease = "attempt-without-lease",
        /// A machine is leased, and its attempt is over.
        MachineWithoutAttempt = "machine-without-attempt",
        /// A run is open, and none of its jobs is left to do.
        RunWithoutJobs = "run-without-jobs",
    }
}

/// What is done about failures of a job. The default: what the lab did not deliver is tried again, and a `FAIL` is final.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Tries of each attempt that the lab owes (it ended as `MISS`, or as `ERROR` of machine or network); the server's
    /// `max_attempts` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tries: Option<u32>,
    /// A kernel that passes. Before a `FAIL` is final, it has to pass on the same machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_good: Option<BuildId>,
    /// Before a `FAIL` is final, the kernel is tried on another machine too.
    pub elsewhere: bool,
    /// Minutes for which a machine stays in the state in which a job failed on it, for a person to look at; 0 is not at all.
    pub hold_minutes: u32,
    /// Whether it gives its machine away, as long as it is not armed, to jobs of a higher priority and to people.
    pub preemptible: bool,
}

impl Policy {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

macro_rules! wire {
    ($($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $name { $($body)* }
    )*};
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// Pass as `before` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

wire! {
    /// A source tree.
    pub struct Tree {
        /// Id.
        pub id: TreeId,
        /// Unique name, e.g. `mainline`.
        pub name: String,
        /// Where it comes from.
        pub git_url: Option<String>,
        /// When it was registered.
        pub created_at: Timestamp,
    }

    /// Registers a tree; repeating it is harmless.
    pub struct NewTree {
        /// Unique name.
        pub name: String,
        /// Where it comes from.
        #[serde(default)]
        pub git_url: Option<String>,
    }

    /// One commit of a tree.
    pub struct Checkout {
        /// Id.
        pub id: CheckoutId,
        /// The tree.
        pub tree: TreeId,
        /// Full commit hash.
        pub git_commit_hash: String,
        /// Branch it was seen on.
        pub git_repository_branch: Option<String>,
        /// `git describe`.
        pub git_commit_name: Option<String>,
        /// When it was registered.
        pub created_at: Timestamp,
    }

    /// Registers a checkout; repeating it is harmless.
    pub struct NewCheckout {
        /// Name of the tree.
        pub tree: String,
        /// Full commit hash.
        pub git_commit_hash: String,
        /// Branch.
        #[serde(default)]
        pub git_repository_branch: Option<String>,
        /// `git describe`.
        #[serde(default)]
        pub git_commit_name: Option<String>,
    }

    /// One kernel built from a checkout.
    pub struct Build {
        /// Id.
        pub id: BuildId,
        /// What it was built from, where known.
        pub checkout: Option<CheckoutId>,
        /// Name for people.
        pub name: String,
        /// KCIDB's architecture name.
        pub architecture: String,
        /// `uname -r`.
        pub release: String,
        /// GNU build id of vmlinux, lower-case hex.
        pub build_id: Option<String>,
        /// Name of its configuration.
        pub config_name: Option<String>,
        /// Added to the command line of every boot of this kernel.
        pub cmdline: String,
        /// Its files.
        pub artifacts: Vec<Artifact>,
        /// When it was submitted.
        pub created_at: Timestamp,
    }

    /// Submits a build. Upload its files next.
    pub struct NewBuild {
        /// What it was built from.
        #[serde(default)]
        pub checkout: Option<CheckoutId>,
        /// Name for people.
        pub name: String,
        /// KCIDB's architecture name, e.g. `x86_64`.
        pub architecture: String,
        /// `uname -r`.
        pub release: String,
        /// GNU build id of vmlinux, lower-case hex.
        #[serde(default)]
        pub build_id: Option<String>,
        /// Name of its configuration.
        #[serde(default)]
        pub config_name: Option<String>,
        /// Added to the command line of every boot of this kernel.
        #[serde(default)]
        pub cmdline: String,
    }

    /// A file kept by the server.
    pub struct Artifact {
        /// Id.
        pub id: ArtifactId,
        /// The build it belongs to.
        pub build: Option<BuildId>,
        /// The attempt it is evidence of.
        pub attempt: Option<AttemptId>,
        /// Name, unique inside its build or attempt.
        pub name: String,
        /// Whether it is complete.
        pub state: ArtifactState,
        /// Bytes received.
        pub size: u64,
        /// BLAKE3 of the whole, once complete.
        pub blake3: Option<String>,
        /// When its first byte came.
        pub created_at: Timestamp,
        /// Who wants a dump to stay; the policy never drops a held one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub held: Option<Hold>,
        /// Why the bytes of a dump are gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub dropped: Option<Dropped>,
    }

    /// A person's hold on a dump.
    pub struct Hold {
        /// Since when.
        pub at: Timestamp,
        /// Name of the token it was held with.
        pub by: String,
        /// Why.
        pub reason: String,
    }

    /// Holds a dump.
    pub struct NewHold {
        /// Why; people read it later.
        pub reason: String,
    }

    /// What the policy for dumps did. Name, size, hash and capsule of the dump stay.
    pub struct Dropped {
        /// When.
        pub at: Timestamp,
        /// By which rule.
        pub reason: String,
    }

    /// A stored scenario.
    pub struct StoredScenario {
        /// Id.
        pub id: ScenarioId,
        /// The scenario.
        pub scenario: Scenario,
        /// When it was stored or last changed.
        pub updated_at: Timestamp,
    }

    /// A stored plan.
    pub struct Plan {
        /// Id.
        pub id: PlanId,
        /// What it says.
        pub plan: NewPlan,
        /// When it was stored or last changed.
        pub updated_at: Timestamp,
    }

    /// Scenarios × machines × repetitions.
    pub struct NewPlan {
        /// Unique name.
        pub name: String,
        /// Names of stored scenarios.
        pub scenarios: Vec<String>,
        /// Labels that a machine must have, e.g. `{"driver": "qemu"}`.
        #[serde(default)]
        pub selector: BTreeMap<String, String>,
        /// What else it must satisfy, e.g. `["memory_mib >= 4096", "vmx.unrestricted", "firmware != bios"]`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub requires: Vec<String>,
        /// How often each scenario runs.
        pub repetitions: u32,
        /// What is done about failures.
        #[serde(default, skip_serializing_if = "Policy::is_default")]
        pub policy: Policy,
    }

    /// Submits a build against a plan.
    pub struct NewRun {
        /// The build.
        pub build: BuildId,
        /// Name of the plan.
        pub plan: String,
        /// Repeating a submission with the same key returns the first run.
        #[serde(default)]
        pub key: Option<String>,
        /// How soon it is wanted; `normal` if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub priority: Option<Priority>,
        /// A job that no machine has taken in this time ends as `MISS`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub start_within_seconds: Option<u32>,
        /// A job that no machine has taken by then ends as `MISS`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub deadline: Option<Timestamp>,
        /// What is done about failures; the plan's policy if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub policy: Option<Policy>,
    }

    /// A build against a plan.
    pub struct Run {
        /// Id.
        pub id: RunId,
        /// The build.
        pub build: BuildId,
        /// Name for people.
        pub name: String,
        /// Name of the plan.
        pub plan: String,
        /// Where it is.
        pub state: RunState,
        /// The worst verdict of its jobs; `MISS` while something is owed.
        pub status: Status,
        /// Jobs by verdict; unfinished jobs count as `MISS`.
        pub counts: BTreeMap<Status, u32>,
        /// When it was submitted.
        pub created_at: Timestamp,
        /// When its last job was done.
        pub finished_at: Option<Timestamp>,
        /// Sequence number of its newest event.
        pub last_event: u64,
    }

    /// One scenario owed by a run.
    pub struct Job {
        /// Id.
        pub id: JobId,
        /// Its run.
        pub run: RunId,
        /// Position in the run, from 0.
        pub ordinal: u32,
        /// The scenario, as it was when the run was submitted.
        pub scenario: Scenario,
        /// Labels its machine must have.
        pub selector: BTreeMap<String, String>,
        /// What else its machine must satisfy.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub requires: Vec<String>,
        /// How soon it is wanted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub priority: Option<Priority>,
        /// When it ends without a result if no machine has taken it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub deadline: Option<Timestamp>,
        /// Where it is.
        pub state: JobState,
        /// Its verdict; `MISS` until there is one.
        pub status: Status,
        /// Why, in one line.
        pub reason: Option<String>,
        /// The stage where the contract stopped.
        pub blamed_stage: Option<StageName>,
        /// Its tries, oldest first.
        pub attempts: Vec<AttemptId>,
        /// When it was created.
        pub created_at: Timestamp,
        /// When it got its verdict.
        pub finished_at: Option<Timestamp>,
    }

    /// One try of a job.
    pub struct Attempt {
        /// Id.
        pub id: AttemptId,
        /// Its job.
        pub job: JobId,
        /// Its run.
        pub run: RunId,
        /// Counts from 1 inside the job.
        pub number: u32,
        /// What it is for.
        pub purpose: Purpose,
        /// The kernel it boots.
        pub build: BuildId,
        /// Until when its machine is kept as the failure left it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub held_until: Option<Timestamp>,
        /// The machine.
        pub machine: MachineId,
        /// The machine's name.
        pub machine_name: String,
        /// Who drives it.
        pub controller: ControllerId,
        /// Where it is.
        pub state: AttemptState,
        /// What it showed; `MISS` until judged.
        pub verdict: Status,
        /// Why, in one line.
        pub reason: Option<String>,
        /// The stage where the contract stopped.
        pub blamed_stage: Option<StageName>,
        /// The eight stages.
        pub stages: Vec<Stage>,
        /// Consoles, vmcore, whatever was collected.
        pub artifacts: Vec<Artifact>,
        /// When the lease was given.
        pub started_at: Timestamp,
        /// When the machine was back.
        pub finished_at: Option<Timestamp>,
    }

    /// Two consoles of one attempt beside each other.
    pub struct Compared {
        /// In the order in which they were printed.
        pub lines: Vec<ComparedLine>,
        /// Lines of the kernel that both heard.
        pub both: u64,
        /// Lines of the kernel that only the first heard.
        pub first_only: u64,
        /// Lines of the kernel that only the second heard.
        pub second_only: u64,
        /// Whether there are more lines than these.
        pub cut: bool,
    }

    /// One line of one console or of both.
    pub struct ComparedLine {
        /// The line.
        pub text: String,
        /// Whether the first console heard it.
        pub first: bool,
        /// Whether the second did. Lines without a kernel's time are only looked for in the first.
        pub second: bool,
    }

    /// Everything that it takes to do an attempt again.
    pub struct Repro {
        /// The attempt.
        pub attempt: AttemptId,
        /// Its job.
        pub job: JobId,
        /// The machine's name.
        pub machine: String,
        /// What the machine was made of then: microcode, firmware, VMX capabilities, command line; empty where the attempt did
        /// not come so far.
        pub facts: BTreeMap<String, String>,
        /// The kernel it booted, with its files (modules among them).
        pub build: Build,
        /// What was done. It holds every input; there is no seed, as no step draws a random number.
        pub scenario: Scenario,
        /// The scenario in sentences, with the values that it does not say itself.
        #[serde(default)]
        pub steps: Vec<String>,
        /// What nobody chooses, and may be another next time.
        #[serde(default)]
        pub left_open: Vec<String>,
        /// The same again, as commands.
        pub commands: Vec<String>,
    }

    /// One report of an agent, as recorded.
    pub struct Evidence {
        /// `controller`, `target` or `capture`.
        pub by: crate::agent::Role,
        /// Its sequence number.
        pub seq: u64,
        /// What was seen.
        pub report: crate::agent::Report,
        /// When the server got it.
        pub received_at: Timestamp,
    }

    /// Crashes nobody asked for that look the same to one version of the crash-log rules.
    pub struct Signature {
        /// Id.
        pub id: SignatureId,
        /// What it is called, by the field's conventions.
        pub title: String,
        /// Class of the problem (`page_fault`, `kasan`, …).
        pub kind: String,
        /// The function it is filed under.
        pub frame: Option<String>,
        /// The module of that function, none for the kernel image.
        pub module: Option<String>,
        /// The functions that identify it, top first.
        pub frames: Vec<String>,
        /// Version of the rules; signatures of different versions are never compared.
        pub rules: u32,
        /// When the first attempt began that showed it.
        pub first_seen_at: Timestamp,
        /// When the last one began.
        pub last_seen_at: Timestamp,
        /// In how many attempts it was seen.
        pub attempts: u64,
        /// How many crash reports it has.
        pub reports: u64,
        /// Where it was seen, newest first; not all in a list.
        pub seen: Vec<SignatureAttempt>,
    }

    /// A place where a signature was seen.
    pub struct SignatureAttempt {
        /// The attempt.
        pub attempt: AttemptId,
        /// Its run.
        pub run: RunId,
        /// Counts from 1 inside the job.
        pub number: u32,
        /// The machine's name.
        pub machine_name: String,
        /// What the attempt showed.
        pub verdict: Status,
        /// Which console.
        pub source: String,
        /// The first report's place there: byte offset.
        pub start: u64,
        /// The same place as a line, from 1.
        pub line: u64,
        /// How many reports of this signature are there.
        pub reports: u64,
        /// When the attempt began.
        pub seen_at: Timestamp,
    }

    /// A system under test.
    pub struct Machine {
        /// Id.
        pub id: MachineId,
        /// Unique name.
        pub name: String,
        /// What drives it.
        pub driver: String,
        /// Its controller's id.
        pub controller: ControllerId,
        /// Its controller's name.
        pub controller_name: String,
        /// Properties that selectors can ask for.
        pub labels: BTreeMap<String, String>,
        /// Where it is in its life.
        pub state: MachineState,
        /// Why it is there.
        pub reason: Option<String>,
        /// Since when.
        pub state_since: Timestamp,
        /// The attempt that owns it.
        pub attempt: Option<AttemptId>,
        /// The epoch of its newest lease.
        pub lease_epoch: u64,
        /// When its controller last named it.
        pub last_seen_at: Timestamp,
        /// Whether its controller has been heard of lately. If not, the state is the last one known and the machine gets no
        /// job.
        pub reachable: bool,
        /// When a quarantine ends by itself; without it, a person ends it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub quarantined_until: Option<Timestamp>,
        /// Whether it came back from quarantine and has not proven itself yet.
        #[serde(default)]
        pub on_probation: bool,
        /// How its failures differ from those of the machines that ran the same tests, if they do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub differs: Option<String>,
        /// Who has it or gets it next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reservation: Option<Reservation>,
        /// What its controller does with it before its next job, in words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub errand: Option<String>,
    }

    /// Wants a machine's power and consoles tried by its controller.
    pub struct NewCheck {
        /// Also switch it off and on, and off again; whatever runs on it is lost.
        #[serde(default)]
        pub cycle: bool,
    }

    /// A check of a machine's power and consoles: wanted, or what came of it.
    pub struct Check {
        /// Id.
        pub id: ErrandId,
        /// The machine's name.
        pub machine: String,
        /// Whether it is also switched off and on.
        pub cycle: bool,
        /// Who wants it: `token:NAME`.
        pub wanted_by: String,
        /// Since when.
        pub wanted_at: Timestamp,
        /// When its controller took it up (the last time, if more than once).
        pub begun_at: Option<Timestamp>,
        /// When it was over.
        pub ended_at: Option<Timestamp>,
        /// What it waits for, as long as it is not over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub waits: Option<String>,
        /// Why it could not be done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub failed: Option<String>,
        /// What was seen, in the order in which it was tried.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub findings: Vec<Finding>,
    }

    /// A machine taken by a person, or kept for one.
    pub struct Reservation {
        /// Id.
        pub id: ReservationId,
        /// Who has it: `token:NAME`, or the submitter whose failed job it is kept for.
        pub owner: String,
        /// What for.
        pub reason: String,
        /// When it was asked for.
        pub created_at: Timestamp,
        /// When the machine was theirs; absent while an attempt still has it.
        pub began_at: Option<Timestamp>,
        /// When it ends by itself.
        pub until: Timestamp,
        /// Whether its end is near and was announced.
        pub warned: bool,
        /// Whether its owner is told of its end; at which address, only they and the server's operator know.
        #[serde(default)]
        pub notifies: bool,
        /// The failed attempt that left the machine as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub attempt: Option<AttemptId>,
    }

    /// Takes a machine for a person.
    pub struct NewReservation {
        /// For how long, from now; at most four weeks.
        pub minutes: u32,
        /// What for; everybody sees it who waits for the machine.
        pub reason: String,
        /// Whom to tell before it ends, and when it has ended by itself: what the server's operator reaches people by.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub notify: Option<String>,
    }

    /// Something that is owed and was not delivered.
    pub struct Owed {
        /// What is wrong.
        pub kind: OwedKind,
        /// Id of the job, attempt, machine or run.
        pub id: String,
        /// Name of the run or machine it belongs to.
        pub name: Option<String>,
        /// Since when.
        pub since: Timestamp,
    }

    /// What a machine is made of, as the target agent found it last.
    pub struct Inventory {
        /// Who found it; absent before its first attempt.
        pub attempt: Option<AttemptId>,
        /// When.
        pub seen_at: Option<Timestamp>,
        /// Names and values: `cpu.model`, `msr.0x480`, `firmware.version`, …
        pub facts: BTreeMap<String, String>,
        /// Labels that follow from it.
        pub labels: BTreeMap<String, String>,
        /// Where the controller's configuration says something else; selectors believe the configuration.
        pub contradictions: Vec<String>,
    }

    /// What a person decides about a machine.
    pub struct NewMachineState {
        /// `available` gives it back to the jobs; `quarantined` and `retired` keep them away from it.
        pub state: MachineState,
        /// Why, for everybody who sees it.
        #[serde(default)]
        pub reason: Option<String>,
    }

    /// Prolongs a reservation.
    pub struct Extension {
        /// For how long, from now.
        pub minutes: u32,
    }

    /// Something that happened to a machine.
    pub struct MachineEvent {
        /// When.
        pub at: Timestamp,
        /// The state it came into.
        pub state: MachineState,
        /// Why.
        pub reason: Option<String>,
        /// Who decided it: `server`, or `token:NAME`.
        pub by: String,
        /// The attempt that it has to do with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub attempt: Option<AttemptId>,
    }

    /// Why a job waits. Exact for the moment it was asked for, but for the expected start.
    pub struct Waiting {
        /// The job.
        pub job: JobId,
        /// Where it is.
        pub state: JobState,
        /// All of it in one sentence.
        pub summary: String,
        /// When it was created.
        pub since: Timestamp,
        /// When it ends without a result if no machine has taken it.
        pub deadline: Option<Timestamp>,
        /// Whose machine time it takes.
        pub submitter: String,
        /// How soon it is wanted.
        pub priority: Priority,
        /// What it asks of a machine.
        pub constraints: Vec<WaitingConstraint>,
        /// How many machines satisfy all of it.
        pub fitting: u32,
        /// These machines by name, at most 50.
        pub machines: Vec<WaitingMachine>,
        /// Jobs of the same submitter, priority and constraints that come first, counted up to 10,000.
        pub before: u64,
        /// Other queues that want any of these machines, next first.
        pub ahead: Vec<Ahead>,
        /// How many machines its submitter may have.
        pub limit: Option<WaitingLimit>,
        /// An estimate from how long such jobs took lately; absent where nothing is known or no machine will take it.
        pub expected_start: Option<Timestamp>,
    }

    /// One constraint of a waiting job.
    pub struct WaitingConstraint {
        /// As a plan says it.
        pub constraint: String,
        /// How many machines satisfy it.
        pub satisfied_by: u32,
        /// How many do not.
        pub failed_by: u32,
        /// Those that do not, at most 50.
        pub fails: Vec<Unsatisfied>,
    }

    /// A machine that does not satisfy a constraint.
    pub struct Unsatisfied {
        /// Its name.
        pub machine: String,
        /// What it has instead.
        pub found: String,
    }

    /// A machine that a waiting job could have.
    pub struct WaitingMachine {
        /// When its state ends by itself: a quarantine, or a person's time with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub until: Option<Timestamp>,
        /// Who has it as soon as its attempt is over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub next: Option<String>,
        /// Id.
        pub id: MachineId,
        /// Its name.
        pub name: String,
        /// Where it is.
        pub state: MachineState,
        /// Whether its controller still names it.
        pub announced: bool,
        /// Since when nothing was heard of its controller, where that is so long that nobody knows where it is now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub silent_since: Option<Timestamp>,
        /// Why it is there.
        pub reason: Option<String>,
        /// Since when.
        pub since: Timestamp,
        /// The attempt that has it.
        pub attempt: Option<AttemptId>,
    }

    /// Another queue for the same machines.
    pub struct Ahead {
        /// Whose it is.
        pub submitter: String,
        /// How soon its jobs are wanted.
        pub priority: Priority,
        /// How many wait, counted up to 10,000.
        pub jobs: u64,
        /// Whether its turn comes first at this moment.
        pub first: bool,
    }

    /// How many machines a submitter may have.
    pub struct WaitingLimit {
        /// At most.
        pub machines: u32,
        /// Has now.
        pub held: u32,
    }

    /// Whoever's jobs share one part of the farm: a tree, or a token where a build belongs to no tree.
    pub struct Submitter {
        /// Id.
        pub id: SubmitterId,
        /// `tree:NAME` or `token:NAME`.
        pub name: String,
        /// Its part of the machine time, relative to the others that have jobs waiting.
        pub weight: u32,
        /// Most machines at once.
        pub max_machines: Option<u32>,
        /// Machines it has now.
        pub machines: u32,
        /// Machine time it has had, in seconds.
        pub machine_seconds: u64,
        /// Whether it may have jobs waiting.
        pub waiting: bool,
        /// When it first submitted.
        pub created_at: Timestamp,
    }

    /// What an administrator sets for a submitter.
    pub struct SetSubmitter {
        /// Its part of the machine time, 1 to 1000.
        pub weight: u32,
        /// Most machines at once; no limit if absent.
        #[serde(default)]
        pub max_machines: Option<u32>,
    }

    /// Makes a token.
    pub struct NewToken {
        /// For people.
        pub name: String,
        /// What it may do (`attempt` tokens are made by claims only).
        pub scope: Scope,
        /// When it stops working.
        #[serde(default)]
        pub expires_at: Option<Timestamp>,
    }

    /// A token, without its secret.
    pub struct Token {
        /// Id.
        pub id: TokenId,
        /// For people.
        pub name: String,
        /// What it may do.
        pub scope: Scope,
        /// When it was made.
        pub created_at: Timestamp,
        /// When it stops working.
        pub expires_at: Option<Timestamp>,
        /// When it was revoked.
        pub revoked_at: Option<Timestamp>,
    }

    /// A new token with its secret, shown once and never again.
    pub struct TokenWithSecret {
        /// The token.
        pub token: Token,
        /// Send as `Authorization: Bearer …`.
        pub secret: String,
    }

    /// One event of a run. Server-sent events carry `seq` as their id, so a client resumes with `Last-Event-ID`.
    pub struct Event {
        /// Counts from 1 inside the run, without gaps.
        pub seq: u64,
        /// When it happened.
        pub at: Timestamp,
        /// The job it is about.
        pub job: Option<JobId>,
        /// The attempt it is about.
        pub attempt: Option<AttemptId>,
        /// What happened.
        #[serde(flatten)]
        pub body: EventBody,
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventBody {
    /// The run was submitted.
    RunSubmitted {
        /// How many jobs it owes.
        jobs: u32,
    },
    /// A machine was placed.
    AttemptStarted {
        /// Its name.
        machine: String,
        /// Counts from 1 inside the job.
        number: u32,
    },
    /// A stage changed.
    Stage {
        /// The stage as it is now.
        stage: Stage,
    },
    /// An agent said something.
    Report {
        /// Who.
        by: crate::agent::Role,
        /// What.
        report: crate::agent::Report,
    },
    /// More of the dump is there.
    DumpProgress {
        /// Bytes received so far.
        bytes: u64,
    },
    /// An attempt was judged.
    AttemptJudged {
        /// The verdict.
        verdict: Status,
        /// The stage where the contract stopped.
        blamed_stage: Option<StageName>,
        /// Why, in one line.
        reason: Option<String>,
    },
    /// The machine is back.
    AttemptDone,
    /// A job changed its state.
    Job {
        /// Where it is now.
        state: JobState,
        /// Its verdict.
        status: Status,
    },
    /// The last job was done.
    RunDone {
        /// The worst verdict.
        status: Status,
    },
}
