//! A lab in memory: a controller with machines whose agents play an attempt through, one exchange at a time.
//!
//! Each [`FakeLab::step`] makes at most one request and only moves on when its answer has arrived, exactly as the
//! real agents do; [`FakeLab::kill`] forgets what the real one would forget (memory) and keeps what it would keep
//! (the journal, the local console file, the old kernel's memory). The dump is noise: what the server makes of
//! dumps is another test's subject.

use crate::wire::{Answer, Lost, Wire};
use axum::http::{Method, StatusCode};
use bytes::Bytes;
use crashyard_protocol::agent::{
    CHUNK_BYTES, Claim, ClaimRequest, CompleteRequest, ConsoleAck, Directive, EnrolRequest, Enrolled, MachineSpec,
    Numbered, ReleaseRequest, RenewReply, RenewRequest, Report, Reports, ReportsReply, Role, Upload,
};
use crashyard_protocol::chunk::{chunk_hash, hex, whole_hash};
use crashyard_protocol::problem::{Problem, kind};
use crashyard_protocol::{ControllerId, MachineId, VmxState};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;

/// Bytes of a fake dump: two chunks, the second a short one.
const DUMP_BYTES: usize = CHUNK_BYTES as usize + 4711;

/// Which process of the lab dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    /// The controller: everything but journal and console files is gone.
    Controller,
    /// The agent on a machine, whichever is running: restarted by its init.
    Agent,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something moved.
    Moved,
    /// There is no work.
    Idle,
}

/// A controller and its machines.
pub struct FakeLab {
    token: String,
    spec: EnrolRequest,
    enrolled: Option<Enrolled>,
    attempts: Vec<FakeAttempt>,
    rng: SmallRng,
    /// Console bytes of every attempt that was ever claimed, for comparing with what the server has.
    pub consoles: BTreeMap<String, Vec<u8>>,
    /// Dumps that the server acknowledged as complete, by attempt.
    pub dumps: BTreeMap<String, Vec<u8>>,
    /// Leases that were lost, by attempt.
    pub lost: Vec<String>,
}

struct FakeAttempt {
    claim: Claim,
    controller_token: String,
    console: Vec<u8>,
    acknowledged: Option<u64>,
    controller_seq: u64,
    controller: ControllerPhase,
    machine: MachinePhase,
    /// Forgotten when the agent dies; asked from the server then.
    agent_seq: Option<u64>,
    upload: Option<Upload>,
    starts: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ControllerPhase {
    PowerOn,
    Watch,
    PowerOff,
    Health,
    Release,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MachinePhase {
    Off,
    Kernel,
    Load,
    Armed,
    AwaitTrigger,
    Triggering,
    CaptureStarted,
    Upload,
    Complete,
    Finished,
    Halted,
}

impl FakeLab {
    /// A lab named `name` with `machines` machines.
    #[must_use]
    pub fn new(name: &str, machines: usize, token: &str, seed: u64) -> Self {
        let machine = |i: usize| MachineSpec {
            name: format!("{name}-{i}"),
            driver: "fake".into(),
            labels: BTreeMap::from([("driver".to_owned(), "fake".to_owned())]),
        };
        Self {
            token: token.to_owned(),
            spec: EnrolRequest {
                name: name.to_owned(),
                version: "test".into(),
                machines: (0..machines).map(machine).collect(),
            },
            enrolled: None,
            attempts: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
            consoles: BTreeMap::new(),
            dumps: BTreeMap::new(),
            lost: Vec::new(),
        }
    }

    /// Kills a process of the lab; it is back at the next step, with only what was on its disk.
    pub fn kill(&mut self, what: Kill) {
        match what {
            Kill::Controller => {
                self.enrolled = None;
                for attempt in &mut self.attempts {
                    attempt.acknowledged = None;
                }
            }
            Kill::Agent => {
                for attempt in &mut self.attempts {
                    attempt.agent_seq = None;
                    attempt.upload = None;
                    attempt.machine = match attempt.machine {
                        MachinePhase::Load | MachinePhase::Armed | MachinePhase::AwaitTrigger => MachinePhase::Kernel,
                        MachinePhase::Upload | MachinePhase::Complete | MachinePhase::Finished => {
                            MachinePhase::CaptureStarted
                        }
                        other => other,
                    };
                }
            }
        }
    }

    /// Attempts that the lab believes it holds.
    #[must_use]
    pub fn holding(&self) -> Vec<(MachineId, u64)> {
        self.attempts.iter().map(|attempt| (attempt.claim.machine.clone(), attempt.claim.epoch)).collect()
    }

    /// One exchange of one randomly chosen party.
    pub async fn step(&mut self, wire: &mut Wire) -> Progress {
        let Some(enrolled) = self.enrolled.clone() else {
            if let Ok(answer) = wire.post("/agent/v1/enrol", &self.token, None, &self.spec).await
                && answer.status == StatusCode::OK
            {
                self.enrolled = Some(answer.json());
            }
            return Progress::Moved;
        };
        let idle: Vec<MachineId> = enrolled
            .machines
            .values()
            .filter(|id| self.attempts.iter().all(|attempt| attempt.claim.machine != **id))
            .cloned()
            .collect();
        if !idle.is_empty() && (self.attempts.is_empty() || self.rng.random_bool(0.2)) {
            return self.claim(wire, enrolled.controller, idle).await;
        }
        if self.attempts.is_empty() {
            return Progress::Idle;
        }
        let at = self.rng.random_range(0..self.attempts.len());
        let attempt = &mut self.attempts[at];
        let acts_as_controller = self.rng.random_bool(0.6);
        let outcome =
            if acts_as_controller { attempt.controller_step(wire).await } else { attempt.agent_step(wire).await };
        let id = attempt.claim.attempt.to_string();
        self.consoles.insert(id.clone(), attempt.console.clone());
        match outcome {
            Step::Go => {}
            Step::DumpComplete(bytes) => {
                self.dumps.insert(id, bytes);
            }
            Step::Released => {
                self.attempts.remove(at);
            }
            Step::LeaseLost => {
                self.lost.push(id);
                self.attempts.remove(at);
            }
        }
        Progress::Moved
    }

    async fn claim(&mut self, wire: &mut Wire, controller: ControllerId, machines: Vec<MachineId>) -> Progress {
        let request = ClaimRequest { controller, machines, wait_seconds: 0, errands: false };
        match wire.post("/agent/v1/claim", &self.token, None, &request).await {
            Ok(answer) if answer.status == StatusCode::OK => {
                self.attempts.push(FakeAttempt::new(answer.json(), &self.token));
                Progress::Moved
            }
            Ok(answer) if answer.status == StatusCode::NO_CONTENT => Progress::Idle,
            Ok(_) | Err(Lost) => Progress::Moved,
        }
    }
}

enum Step {
    Go,
    DumpComplete(Vec<u8>),
    Released,
    LeaseLost,
}

impl FakeAttempt {
    fn new(claim: Claim, controller_token: &str) -> Self {
        Self {
            claim,
            controller_token: controller_token.to_owned(),
            console: Vec::new(),
            acknowledged: None,
            controller_seq: 0,
            controller: ControllerPhase::PowerOn,
            machine: MachinePhase::Off,
            agent_seq: None,
            upload: None,
            starts: 0,
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/agent/v1/attempts/{}/{rest}", self.claim.attempt)
    }

    /// Target and capture agent have the attempt's token, the controller keeps its own.
    fn token(&self, by: Role) -> &str {
        if by == Role::Controller { &self.controller_token } else { &self.claim.attempt_token }
    }

    async fn send(&self, wire: &mut Wire, by: Role, method: Method, rest: &str, body: Bytes) -> Result<Answer, Lost> {
        wire.call(method, &self.path(rest), self.token(by), Some(self.claim.epoch), body).await
    }

    async fn post(&self, wire: &mut Wire, by: Role, rest: &str, body: &impl serde::Serialize) -> Result<Answer, Lost> {
        wire.post(&self.path(rest), self.token(by), Some(self.claim.epoch), body).await
    }

    async fn report(&self, wire: &mut Wire, by: Role, seq: u64, report: Report) -> Result<Answer, Lost> {
        self.post(wire, by, "reports", &Reports { by, reports: vec![Numbered { seq, report }] }).await
    }

    async fn controller_step(&mut self, wire: &mut Wire) -> Step {
        let written = self.console.len() as u64;
        match self.acknowledged {
            None => return self.ask_console(wire).await,
            Some(sent) if sent < written => return self.send_console(wire, sent).await,
            Some(_) => {}
        }
        match self.controller {
            ControllerPhase::PowerOn => self.controller_report(wire, power("on"), ControllerPhase::Watch).await,
            ControllerPhase::Watch => {
                let Ok(answer) =
                    self.post(wire, Role::Controller, "renew", &RenewRequest { wait_seconds: 0, keys: None }).await
                else {
                    return Step::Go;
                };
                if let Some(end) = refusal(&answer) {
                    return end;
                }
                if answer.json::<RenewReply>().directive == Directive::Collect {
                    self.controller = ControllerPhase::PowerOff;
                    self.machine = MachinePhase::Halted;
                }
                Step::Go
            }
            ControllerPhase::PowerOff => self.controller_report(wire, power("off"), ControllerPhase::Health).await,
            ControllerPhase::Health => {
                let health = Report::Health { healthy: true, detail: "as new".into() };
                self.controller_report(wire, health, ControllerPhase::Release).await
            }
            ControllerPhase::Release => {
                let release = ReleaseRequest { healthy: true, detail: "as new".into() };
                match self.post(wire, Role::Controller, "release", &release).await {
                    Ok(answer) => refusal(&answer).unwrap_or(Step::Released),
                    Err(Lost) => Step::Go,
                }
            }
        }
    }

    async fn controller_report(&mut self, wire: &mut Wire, report: Report, next: ControllerPhase) -> Step {
        let Ok(answer) = self.report(wire, Role::Controller, self.controller_seq, report).await else {
            return Step::Go;
        };
        if let Some(end) = refusal(&answer) {
            return end;
        }
        self.controller_seq += 1;
        self.controller = next;
        if next == ControllerPhase::Watch {
            self.machine = MachinePhase::Kernel;
            self.print(&format!("[    0.000000] Linux version {} (test)\n", self.claim.brief.build.release));
            self.print("[    0.000000] Command line: console=ttyS0 crashkernel=192M\n");
        }
        Step::Go
    }

    async fn ask_console(&mut self, wire: &mut Wire) -> Step {
        if let Ok(answer) = self.send(wire, Role::Controller, Method::GET, "console/serial", Bytes::new()).await {
            if let Some(end) = refusal(&answer) {
                return end;
            }
            self.acknowledged = Some(answer.json::<ConsoleAck>().next_offset);
        }
        Step::Go
    }

    async fn send_console(&mut self, wire: &mut Wire, from: u64) -> Step {
        let from_index = usize::try_from(from).expect("a short console");
        // Short writes, so that lines are cut anywhere.
        let until = self.console.len().min(from_index + 97);
        let body = Bytes::copy_from_slice(&self.console[from_index..until]);
        if let Ok(answer) =
            self.send(wire, Role::Controller, Method::PUT, &format!("console/serial?offset={from}"), body).await
        {
            if let Some(end) = refusal(&answer) {
                return end;
            }
            self.acknowledged = Some(answer.json::<ConsoleAck>().next_offset);
        }
        Step::Go
    }

    async fn agent_step(&mut self, wire: &mut Wire) -> Step {
        let by = match self.machine {
            MachinePhase::Off | MachinePhase::Halted => return Step::Go,
            MachinePhase::Kernel
            | MachinePhase::Load
            | MachinePhase::Armed
            | MachinePhase::AwaitTrigger
            | MachinePhase::Triggering => Role::Target,
            MachinePhase::CaptureStarted | MachinePhase::Upload | MachinePhase::Complete | MachinePhase::Finished => {
                Role::Capture
            }
        };
        let Some(seq) = self.agent_seq else {
            if let Ok(answer) = self.send(wire, by, Method::GET, &format!("reports/{by}/next"), Bytes::new()).await {
                if refusal(&answer).is_some() {
                    self.machine = MachinePhase::Halted;
                } else {
                    self.agent_seq = Some(answer.json());
                }
            }
            return Step::Go;
        };
        match self.machine {
            MachinePhase::Upload => return self.upload_step(wire).await,
            MachinePhase::Complete => return self.complete_step(wire).await,
            MachinePhase::AwaitTrigger => return self.ask_directive(wire, by).await,
            _ => {}
        }
        let Ok(answer) = self.report(wire, by, seq, self.agent_report()).await else { return Step::Go };
        if refusal(&answer).is_some() {
            self.machine = MachinePhase::Halted;
            return Step::Go;
        }
        self.agent_seq = Some(seq + 1);
        self.after_report(&answer.json::<ReportsReply>().directive);
        Step::Go
    }

    /// Reports nothing, to learn what to do next.
    async fn ask_directive(&mut self, wire: &mut Wire, by: Role) -> Step {
        let Ok(answer) = self.post(wire, by, "reports", &Reports { by, reports: Vec::new() }).await else {
            return Step::Go;
        };
        if refusal(&answer).is_some() {
            self.machine = MachinePhase::Halted;
        } else {
            self.after_report(&answer.json::<ReportsReply>().directive);
        }
        Step::Go
    }

    fn agent_report(&self) -> Report {
        let release = self.claim.brief.build.release.clone();
        match self.machine {
            MachinePhase::Kernel => Report::Kernel {
                release,
                version: "#1 SMP test".into(),
                build_id: self.claim.brief.build.build_id.clone(),
                cpus_online: 2,
            },
            MachinePhase::Load => Report::Step {
                name: "load-crash-kernel".into(),
                command: Some("kexec -p".into()),
                code: Some(0),
                ok: true,
                output: String::new(),
                took_ms: 1,
            },
            MachinePhase::Armed => {
                Report::Armed { crash_kernel_loaded: true, crash_kernel_bytes: 192 << 20, vmx: VmxState::None }
            }
            MachinePhase::Triggering => Report::Triggering { marker: self.claim.brief.marker.clone() },
            MachinePhase::CaptureStarted => {
                Report::CaptureStarted { release, start: self.starts + 1, vmcore_bytes: Some(DUMP_BYTES as u64) }
            }
            _ => Report::DumpFinished {
                bytes: DUMP_BYTES as u64,
                blake3: dump_hash(&self.dump()),
                sent_bytes: DUMP_BYTES as u64,
                skipped_bytes: 0,
            },
        }
    }

    fn after_report(&mut self, directive: &Directive) {
        if matches!(directive, Directive::Stop { .. }) {
            self.machine = MachinePhase::Halted;
            return;
        }
        self.machine = match self.machine {
            MachinePhase::Kernel => MachinePhase::Load,
            MachinePhase::Load => MachinePhase::Armed,
            // Until the console has proven the boot there is no trigger.
            MachinePhase::Armed | MachinePhase::AwaitTrigger if *directive == Directive::Trigger => {
                MachinePhase::Triggering
            }
            MachinePhase::Armed | MachinePhase::AwaitTrigger => MachinePhase::AwaitTrigger,
            MachinePhase::Triggering => {
                self.crash();
                MachinePhase::CaptureStarted
            }
            MachinePhase::CaptureStarted => {
                self.starts += 1;
                MachinePhase::Upload
            }
            _ => MachinePhase::Halted,
        };
    }

    fn crash(&mut self) {
        self.agent_seq = None;
        let marker = self.claim.brief.marker.clone();
        let release = self.claim.brief.build.release.clone();
        self.print(&format!("[    9.000000] {marker}\n[    9.100000] sysrq: Trigger a crash\n"));
        let panic = &self.claim.brief.scenario.expect.panic;
        let line = format!("[    9.200000] Kernel panic - not syncing: {panic}\n");
        self.print(&line);
        self.print(&format!("[    0.000000] Linux version {release} (test)\n"));
        self.print("[    0.000000] Command line: console=ttyS0 elfcorehdr=753012K\n");
    }

    async fn upload_step(&mut self, wire: &mut Wire) -> Step {
        let Some(upload) = &self.upload else {
            if let Ok(answer) = self.send(wire, Role::Capture, Method::GET, "artifacts/vmcore", Bytes::new()).await {
                if refusal(&answer).is_some() {
                    self.machine = MachinePhase::Halted;
                } else {
                    self.upload = Some(answer.json());
                }
            }
            return Step::Go;
        };
        let dump = self.dump();
        let missing = dump
            .chunks(usize::try_from(CHUNK_BYTES).expect("4 MiB"))
            .enumerate()
            .map(|(i, bytes)| (i as u64 * CHUNK_BYTES, bytes))
            .find(|(offset, _)| upload.chunks.iter().all(|chunk| chunk.offset != *offset));
        let Some((offset, bytes)) = missing else {
            self.machine = MachinePhase::Complete;
            return Step::Go;
        };
        let hash = hex(&chunk_hash(offset, bytes));
        let path = format!("artifacts/vmcore/chunks?offset={offset}&hash={hash}");
        if let Ok(answer) = self.send(wire, Role::Capture, Method::PUT, &path, Bytes::copy_from_slice(bytes)).await {
            if refusal(&answer).is_some() {
                self.machine = MachinePhase::Halted;
            } else {
                // What the server has is the server's to say.
                self.upload = None;
            }
        }
        Step::Go
    }

    async fn complete_step(&mut self, wire: &mut Wire) -> Step {
        let dump = self.dump();
        let done = CompleteRequest { size: dump.len() as u64, blake3: dump_hash(&dump) };
        let Ok(answer) = self.post(wire, Role::Capture, "artifacts/vmcore/complete", &done).await else {
            return Step::Go;
        };
        if refusal(&answer).is_some() {
            self.machine = MachinePhase::Halted;
            return Step::Go;
        }
        self.machine = MachinePhase::Finished;
        Step::DumpComplete(dump)
    }

    /// The crashed kernel's memory: the same each time it is read, different for each attempt.
    fn dump(&self) -> Vec<u8> {
        let salt = self.claim.attempt.as_str().as_bytes();
        (0..DUMP_BYTES).map(|i| salt[i % salt.len()] ^ u8::try_from(i >> 12 & 0xff).expect("masked")).collect()
    }

    fn print(&mut self, text: &str) {
        self.console.extend_from_slice(text.as_bytes());
    }
}

fn power(action: &str) -> Report {
    Report::Power { action: action.into(), ok: true, detail: "fake".into() }
}

fn dump_hash(dump: &[u8]) -> String {
    let size = usize::try_from(CHUNK_BYTES).expect("4 MiB");
    let values: Vec<_> =
        dump.chunks(size).enumerate().map(|(i, chunk)| chunk_hash(i as u64 * CHUNK_BYTES, chunk)).collect();
    whole_hash(&values).expect("two chunks").to_hex().to_string()
}

/// What an unsuccessful answer means: the lease is lost, or try again later. Anything else is a bug.
fn refusal(answer: &Answer) -> Option<Step> {
    if answer.status.is_success() {
        return None;
    }
    let problem: Problem = answer.json();
    match problem.kind.as_str() {
        // The attempt's token dies with the attempt.
        kind::LEASE_LOST | kind::UNAUTHORIZED => Some(Step::LeaseLost),
        kind::UNAVAILABLE => Some(Step::Go),
        other => panic!("the server refused a correct agent: {other}: {problem}"),
    }
}
