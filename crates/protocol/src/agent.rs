//! The agent API (`/agent/v1`): how controllers and the agents on a machine take work and hand in evidence.
//!
//! Agents pull; the server never connects to them. Every write inside an attempt carries the attempt's lease epoch
//! in the [`EPOCH_HEADER`]; a stale epoch is answered `409 lease_lost`, and the agent stops acting on the machine.
//! Every write may be repeated: the same report (by source and sequence number), the same console bytes (by
//! offset) and the same chunk (by offset and hash) are answered as if they came for the first time.
//!
//! An attempt, as its agents see it:
//!
//! ```text
//! controller: claim ─► brief ─► console, power on ───────── renew … renew ──► directive `collect` ─► power off,
//!                                                                             health check ─► release
//! target:               enrol (report `kernel`) ─► arm (reports `step`, `armed`) ─► directive `trigger`
//!                       ─► report `triggering` ─► marker ─► crash
//! capture:              report `capture_started` ─► chunks … ─► complete ─► report `dump_finished` ─► power off
//! ```

use crate::check::Finding;
use crate::{
    ArtifactId, AttemptId, BuildId, ControllerId, ErrandId, JobId, MachineId, RunId, Scenario, VmxState, text_enum,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Header with the attempt's lease epoch (a decimal number), on every write inside an attempt.
pub const EPOCH_HEADER: &str = "crashyard-epoch";

/// Every chunk of an upload but the last has exactly this many bytes, and starts at a multiple of it.
pub const CHUNK_BYTES: u64 = 4 * 1024 * 1024;

/// The largest body of one console write.
pub const CONSOLE_WRITE_MAX: usize = 4 * 1024 * 1024;

/// The machines' names and drivers that a controller announces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolRequest {
    /// Unique name of the controller.
    pub name: String,
    /// Version of its software.
    pub version: String,
    /// The machines it drives. Machines it no longer names stay known, and are not offered jobs.
    pub machines: Vec<MachineSpec>,
}

/// One machine as its controller describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineSpec {
    /// Unique name.
    pub name: String,
    /// What drives it: `qemu`, `bochs`, `ipmi`, `redfish`, …
    pub driver: String,
    /// Properties that selectors can ask for.
    pub labels: BTreeMap<String, String>,
}

/// Answer to an enrolment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Enrolled {
    /// The controller's id.
    pub controller: ControllerId,
    /// Its machines, by name.
    pub machines: BTreeMap<String, MachineId>,
    /// Machines that it does not get, and why: another controller has them. The others must not wait for that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
    /// How long a lease lasts without being renewed.
    pub lease_seconds: u32,
}

/// Asks for work for idle machines; the server answers when there is some, or `204` after `wait_seconds`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClaimRequest {
    /// Who asks.
    pub controller: ControllerId,
    /// Its machines that are idle now.
    pub machines: Vec<MachineId>,
    /// How long the server may hold the request open (at most 60).
    pub wait_seconds: u32,
    /// Whether it does errands; one that does not is never given any.
    #[serde(default)]
    pub errands: bool,
}

/// Answer to a claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum Work {
    /// A job.
    Lease(Box<Claim>),
    /// Something else, which comes before the machine's next job.
    Errand(Errand),
}

/// Something that a controller shall do with an idle machine, and that is no attempt. It may be given again, so whatever it asks
/// for may be done twice; it is over when the controller says what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Errand {
    /// Names it in the answer.
    pub errand: ErrandId,
    /// The machine.
    pub machine: MachineId,
    /// What to do.
    #[serde(flatten)]
    pub order: Order,
}

/// What an errand asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Try its power and consoles.
    Check {
        /// Also switch it off and on, and off again.
        cycle: bool,
    },
    /// Power it off.
    Off,
}

/// What came of an errand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrandDone {
    /// Whether it could be done. A check that finds faults was done.
    pub ok: bool,
    /// What was done, or why it could not be.
    pub detail: String,
    /// What a check found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// A lease: one attempt of one job on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Claim {
    /// The attempt.
    pub attempt: AttemptId,
    /// The machine it has.
    pub machine: MachineId,
    /// Sent back with every write.
    pub epoch: u64,
    /// Renew before this many seconds have passed.
    pub lease_seconds: u32,
    /// Secret for target and capture agent, valid inside this attempt until it ends.
    pub attempt_token: String,
    /// What to do.
    pub brief: Brief,
}

/// What an attempt is to do: the same for controller, target and capture agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Brief {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its job.
    pub job: JobId,
    /// Its run.
    pub run: RunId,
    /// What to do and what to expect.
    pub scenario: Scenario,
    /// The kernel under test.
    pub build: BuildBrief,
    /// The line to write to the kernel log right before the crash.
    pub marker: String,
}

/// The kernel under test, as an attempt needs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BuildBrief {
    /// Its id.
    pub id: BuildId,
    /// `uname -r` it must show.
    pub release: String,
    /// GNU build id of its vmlinux, lower-case hex, where known.
    pub build_id: Option<String>,
    /// Its files: `kernel`, `initrd`, …
    pub artifacts: Vec<ArtifactBrief>,
}

/// One file of a build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ArtifactBrief {
    /// Its name inside the build.
    pub name: String,
    /// Its id, for the download.
    pub id: ArtifactId,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the whole, lower-case hex.
    pub blake3: String,
}

/// What target and capture agent find in their initramfs (`/crashyard/ticket.json`): how to reach the server.
///
/// A file and not the kernel command line, because consoles and dumps show the command line to everybody.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    /// Base URL of the server as the machine reaches it.
    pub server: String,
    /// The attempt.
    pub attempt: AttemptId,
    /// Its lease epoch.
    pub epoch: u64,
    /// Its token.
    pub token: String,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("server", &self.server)
            .field("attempt", &self.attempt)
            .field("epoch", &self.epoch)
            .field("token", &"…")
            .finish()
    }
}

text_enum! {
    /// Which agent speaks.
    Role {
        /// The lab-side process.
        Controller = "controller",
        /// The agent in the kernel under test.
        Target = "target",
        /// The agent in the capture kernel.
        Capture = "capture",
    }
}

/// Reports of one agent, in order. A repeated sequence number with equal content is accepted and ignored.
///
/// An empty list only asks for the directive; the server may hold it for some seconds while that is `continue`.
/// That is how a target agent waits for its trigger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reports {
    /// Who saw it.
    pub by: Role,
    /// What was seen.
    pub reports: Vec<Numbered>,
}

/// A report and its place in its agent's journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Numbered {
    /// Counts from 0 for each agent of the attempt; an agent that restarts goes on where its journal ended.
    pub seq: u64,
    /// What was seen.
    pub report: Report,
}

/// Something an agent saw. Agents report; only the server says what it means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Report {
    /// Controller: a power action and its outcome. Target agent: that its BMC did not take an NMI (`bmc-nmi`).
    Power {
        /// `on`, `off`, `reset` or `nmi`.
        action: String,
        /// Whether it was confirmed.
        ok: bool,
        /// What the driver said.
        detail: String,
    },
    /// Controller: the machine stopped by itself (soft-off, or its emulator ended).
    MachineEnded {
        /// What the driver saw: exit code, triple fault, soft-off.
        detail: String,
    },
    /// Controller: the machine's state after the attempt.
    Health {
        /// Whether it may take the next job.
        healthy: bool,
        /// What was checked, or what failed.
        detail: String,
    },
    /// Target: the kernel that runs.
    Kernel {
        /// `uname -r`.
        release: String,
        /// `uname -v`.
        version: String,
        /// GNU build id from `/sys/kernel/notes`, lower-case hex.
        build_id: Option<String>,
        /// Online CPUs.
        cpus_online: u32,
    },
    /// Target: what the machine is made of, as this kernel finds it.
    Inventory {
        /// `cpu.model`, `msr.0x480`, `firmware.version`, …; what was not found is not there.
        facts: BTreeMap<String, String>,
    },
    /// Controller: something that a person typed into a console, and whether the console took it.
    Typed {
        /// Its number among the attempt's, from 0.
        number: u64,
        /// Which console.
        source: String,
        /// Who typed.
        by: String,
        /// What.
        keys: Keys,
        /// Whether the console took it.
        ok: bool,
        /// What is known of it.
        detail: String,
    },
    /// Target: one step of arming, with its return code.
    Step {
        /// `load-crash-kernel`, `vmx-state`, …
        name: String,
        /// What was executed, if it was a command.
        command: Option<String>,
        /// Its exit status, if it was a command that ended.
        code: Option<i32>,
        /// Whether the step reached its goal.
        ok: bool,
        /// What it printed, cut to 4 kB.
        output: String,
        /// How long it took.
        took_ms: u64,
    },
    /// Target: what was reached when all steps were done.
    Armed {
        /// `/sys/kernel/kexec_crash_loaded`.
        crash_kernel_loaded: bool,
        /// `/sys/kernel/kexec_crash_size`, bytes.
        crash_kernel_bytes: u64,
        /// The VMX state that was reached.
        vmx: VmxState,
    },
    /// Target: the marker is being written, the trigger follows at once.
    Triggering {
        /// The line written to the kernel log.
        marker: String,
    },
    /// Capture: the capture kernel is up.
    CaptureStarted {
        /// `uname -r` of the capture kernel.
        release: String,
        /// How often this agent was started in this capture kernel, from 1.
        start: u32,
        /// Bytes of `/proc/vmcore` before filtering.
        vmcore_bytes: Option<u64>,
    },
    /// Capture: the dump is complete on the server (or, by transport, on the disk).
    DumpFinished {
        /// Bytes of the dump.
        bytes: u64,
        /// BLAKE3 of the whole, lower-case hex.
        blake3: String,
        /// Bytes this start of the agent sent.
        sent_bytes: u64,
        /// Bytes it did not send because the server had them.
        skipped_bytes: u64,
    },
    /// Capture: the dump failed.
    DumpFailed {
        /// Whose fault it is.
        cause: DumpFailure,
        /// What was said.
        detail: String,
    },
    /// Anything worth telling a person.
    Note {
        /// One line.
        text: String,
    },
}

/// What a person types into a console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    /// Text as it is; control characters as JSON writes them.
    Text(String),
    /// A break alone.
    Break,
    /// A break and one character: Linux's magic SysRq.
    Sysrq(char),
}

impl std::fmt::Display for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Break => f.write_str("a break"),
            Self::Sysrq(key) => write!(f, "SysRq {key}"),
        }
    }
}

/// Something to type into a console of an attempt, for its controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyPress {
    /// Counts from 0 inside the attempt.
    pub number: u64,
    /// Which console.
    pub source: String,
    /// Who typed: `token:NAME`.
    pub by: String,
    /// What.
    pub keys: Keys,
}

text_enum! {
    /// Why a dump did not come out.
    DumpFailure {
        /// makedumpfile failed: the kernel's or the tool's fault.
        Makedumpfile = "makedumpfile",
        /// The network did not come up or stayed away.
        Network = "network",
        /// The dump disk could not be written.
        Disk = "disk",
    }
}

/// What the server wants an agent to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "directive", rename_all = "snake_case")]
pub enum Directive {
    /// Go on.
    Continue,
    /// Target: provisioned and armed are proven; write the marker and crash.
    Trigger,
    /// Target and capture: the contract has ended here. Do nothing more to the machine.
    Stop {
        /// Why.
        reason: String,
    },
    /// Controller: judged. Collect what is left, power off, return the machine, release.
    Collect,
}

/// Answer to reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReportsReply {
    /// What to do next.
    #[serde(flatten)]
    pub directive: Directive,
}

/// Renews a lease. The server may hold the request until the directive changes, or somebody types.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RenewRequest {
    /// How long the server may hold the request while there is nothing new (at most a third of the lease).
    pub wait_seconds: u32,
    /// How often people typed, as far as the controller knows; the answer comes at once if it was more often. Without it the
    /// controller does not want to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
}

/// Answer to a renewal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RenewReply {
    /// How long the lease lasts from now.
    pub lease_seconds: u32,
    /// What to do next.
    #[serde(flatten)]
    pub directive: Directive,
    /// How often people typed into the attempt's consoles.
    #[serde(default)]
    pub keys: u64,
}

/// How far a console log is with the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConsoleAck {
    /// The offset of the first byte the server does not have.
    pub next_offset: u64,
}

/// How far an upload is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Upload {
    /// The artifact's id.
    pub artifact: ArtifactId,
    /// Whether it is complete.
    pub complete: bool,
    /// The chunks the server has, by offset.
    pub chunks: Vec<Chunk>,
}

/// One chunk of an upload that the server has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Chunk {
    /// Offset of its first byte; a multiple of [`CHUNK_BYTES`].
    pub offset: u64,
    /// Its length; [`CHUNK_BYTES`] for every chunk but the last.
    pub length: u64,
    /// Its hash, see [`crate::chunk`], lower-case hex.
    pub hash: String,
}

/// Closes an upload: the server checks that it has every byte and that the whole hash is equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompleteRequest {
    /// Bytes of the whole.
    pub size: u64,
    /// BLAKE3 of the whole, lower-case hex.
    pub blake3: String,
}

/// Hands a lease back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReleaseRequest {
    /// Whether the machine may take the next job.
    pub healthy: bool,
    /// What was checked, or what failed.
    pub detail: String,
}
