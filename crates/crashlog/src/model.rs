//! What the engine hands out: reports, events, and everything inside them.
//!
//! Plain data, serialisable, no behaviour beyond lookups, so that the server can store it, the command line can
//! print it and a newer engine can be compared with an older one. Field names are the names of the JSON that
//! `crashyard triage log` prints. Nothing here refers to the parser's inside.

use serde::Serialize;

/// Version of the classification rules. Stored next to every signature: a signature is only ever compared with
/// signatures of the same version, so better rules never silently re-bucket what people have triaged.
pub const RULE_VERSION: u32 = 3;

/// Everything that was found in one input.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Crash reports in the order of their first byte.
    pub reports: Vec<Report>,
    /// Stage events in the order of their first byte.
    pub events: Vec<Event>,
    /// What the engine had to give up on (limits reached, reports cut).
    pub warnings: Vec<Warning>,
}

/// A limit that was reached or a doubt, with the place it concerns. Never an error: parsers do not fail on content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Byte offset in the original input.
    pub offset: u64,
    /// One sentence for people.
    pub text: String,
}

/// The closed list of problem classes, coarser than titles: what sort of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the field's own; docs/CRASHLOG.md has the list with examples")]
pub enum Kind {
    Panic,
    /// A panic asked for through sysrq (`sysrq triggered crash`).
    Sysrq,
    PageFault,
    NullDereference,
    GeneralProtection,
    DivideError,
    InvalidOpcode,
    /// Any other exception the kernel died of (`Internal error`, alignment, bus error, bad mode).
    Oops,
    Bug,
    Warning,
    Kasan,
    Kmsan,
    Kcsan,
    Kfence,
    Ubsan,
    Lockdep,
    LockUsage,
    AtomicSleep,
    Preemption,
    RcuUsage,
    HungTask,
    SoftLockup,
    HardLockup,
    RcuStall,
    WorkqueueStall,
    Refcount,
    ListCorruption,
    Usercopy,
    DebugObjects,
    BadPage,
    SlabCorruption,
    StackOverflow,
    DoubleFault,
    MachineCheck,
    HardwareError,
    BadIrq,
    OutOfMemory,
    AllocationFailure,
    MemoryLeak,
    Filesystem,
    NetworkDevice,
    RustPanic,
    Firmware,
    /// A process other than the kernel reported its own failure on the console.
    Userspace,
}

/// One crash report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Title by the field's conventions, stable over runs: `KASAN: slab-use-after-free Read in F`.
    pub title: String,
    /// Other titles under which the same bug may be filed; two reports are one bug when `{title} ∪ alt_titles` meet.
    pub alt_titles: Vec<String>,
    /// Class of the problem.
    pub kind: Kind,
    /// The function the report is filed under, `None` where the class has none or it could not be found.
    pub frame: Option<String>,
    /// Module of `frame`, `None` for the kernel image.
    pub module: Option<String>,
    /// The report is cut, mixed with another one, or has no usable trace: do not file it as a new bug by itself.
    pub corrupted: bool,
    /// Why `corrupted` is set.
    pub corrupted_reason: Option<String>,
    /// Whether this is the crash the scenario asked for. `None` when no intent was given to the parser.
    pub intended: Option<bool>,
    /// First byte of the report in the original input.
    pub start: u64,
    /// One past the last byte of the report in the original input.
    pub end: u64,
    /// Line of `start`, from 1, counted by line feeds.
    pub line: u64,
    /// Header line without its prefix.
    pub header: String,
    /// Kernel time stamp of the header, in seconds as printed (`132.479829`).
    pub time: Option<String>,
    /// Printing context as the kernel gave it: `T123` a task, `C1` a CPU in interrupt context.
    pub context: Option<String>,
    /// CPU that reported.
    pub cpu: Option<u32>,
    /// Process id.
    pub pid: Option<u32>,
    /// Name of the task.
    pub comm: Option<String>,
    /// Taint letters (`GDW`), empty for "Not tainted", `None` when the report does not say.
    pub taint: Option<String>,
    /// The taint letters in words.
    pub taint_flags: Vec<TaintFlag>,
    /// Kernel release, `6.1.0-56-cloud-amd64`.
    pub kernel: Option<String>,
    /// What follows the release: build number, preemption model, distribution version.
    pub build: Option<String>,
    /// `Hardware name:` line.
    pub hardware: Option<String>,
    /// Faulting address, hexadecimal digits as printed, without `0x`.
    pub fault_address: Option<String>,
    /// Page-fault error code.
    pub error_code: Option<ErrorCode>,
    /// Count of oopses since boot as the kernel printed it (`[#12]`).
    pub oops_number: Option<u32>,
    /// Modules of `Modules linked in:`, without their flags.
    pub modules: Vec<String>,
    /// Registers of the report in the order printed.
    pub registers: Vec<Register>,
    /// Code bytes at the faulting instruction.
    pub code: Option<Code>,
    /// The main stack: the instruction pointer's function, then the call trace, top first.
    pub trace: Vec<Frame>,
    /// Further stacks: where memory was allocated or freed, the other lock holder, the other CPU.
    pub stacks: Vec<Stack>,
    /// Locks held, one line each, as printed.
    pub locks: Vec<String>,
    /// Three to six frames that identify the trace.
    pub fingerprint: Fingerprint,
    /// Which report of the same list this one follows from.
    pub cause: Option<usize>,
    /// The same report printed again (a replayed dmesg, a doubled console): index of the first.
    pub duplicate_of: Option<usize>,
    /// Which kernel boot of the input printed it, from 0.
    pub boot: u32,
    /// How title, frame, cause and intent came about, one sentence each.
    pub why: Vec<String>,
}

/// One taint letter with its meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaintFlag {
    /// The letter as printed.
    pub letter: char,
    /// What the kernel's documentation says it means.
    pub meaning: &'static str,
}

/// A page-fault error code, decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorCode {
    /// The number.
    pub value: u64,
    /// Its bits in words.
    pub meaning: Vec<&'static str>,
}

/// One register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Register {
    /// Name as printed (`RAX`, `x0`, `pc`).
    pub name: String,
    /// Hexadecimal digits as printed.
    pub value: String,
}

/// The bytes around the faulting instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Code {
    /// The `Code:` line's content as printed.
    pub line: String,
    /// Index of the trapping byte (the one in `<>`), `None` when the line marks none.
    pub trap: Option<usize>,
    /// Instructions from the trapping one on, and those before it where they could be told apart (x86 only).
    pub instructions: Vec<Instruction>,
}

/// One disassembled instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Instruction {
    /// Offset to the trapping instruction in bytes, negative before it.
    pub offset: i32,
    /// Machine code in hexadecimal.
    pub bytes: String,
    /// Text in AT&T syntax, as `objdump` and the kernel's `decodecode` print it.
    pub text: String,
}

/// One entry of a stack trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// Function as printed, compiler suffixes included.
    pub function: String,
    /// Offset into the function.
    pub offset: Option<u64>,
    /// Size of the function.
    pub size: Option<u64>,
    /// Module, `None` for the kernel image.
    pub module: Option<String>,
    /// `false` for entries the unwinder marked with `?`.
    pub reliable: bool,
    /// The entry was inlined into the following one (symbolised logs only).
    pub inline: bool,
    /// Source position (`fs/open.c:123`), symbolised logs only.
    pub source: Option<String>,
    /// Address as printed, hexadecimal digits.
    pub address: Option<String>,
}

/// A named further stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stack {
    /// The line that announced it (`Allocated by task 123:`).
    pub label: String,
    /// Its entries, top first.
    pub frames: Vec<Frame>,
}

/// The frames that identify a report, made by one version of the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Fingerprint {
    /// [`RULE_VERSION`] that made it.
    pub version: u32,
    /// Normalised function names, top first.
    pub frames: Vec<String>,
}

/// Something that concerns the crash contract, found on one line (or missing between two).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
    /// First byte of the line in the original input, prefix included.
    pub start: u64,
    /// One past its last byte.
    pub end: u64,
    /// Line number, from 1, counted by line feeds.
    pub line: u64,
    /// Which kernel boot of the input it belongs to, from 0.
    pub boot: u32,
    /// Kernel time stamp of the line, in seconds as printed.
    pub time: Option<String>,
    /// The line of an earlier kernel, printed again by the present one's user space (`dmesg` of a dump): it did not
    /// happen here.
    pub replay: bool,
    /// The line without its prefix; empty for things that did not happen.
    pub text: String,
}

/// Kinds of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// Firmware or a bootloader speaks: the machine went through reset.
    Firmware,
    /// `Linux version …`: a kernel started.
    KernelBanner {
        /// Its release.
        release: String,
    },
    /// The kernel's command line.
    CommandLine {
        /// It carries `elfcorehdr=`: this is a capture kernel.
        capture: bool,
    },
    /// User space starts (`Run /init as init process`).
    InitStarted,
    /// A line with `crashyard: trigger job=… attempt=… scenario=…`.
    Marker {
        /// Job id, when the line carries one.
        job: Option<String>,
        /// Attempt id.
        attempt: Option<String>,
        /// Scenario name.
        scenario: Option<String>,
    },
    /// Somebody asked for a crash (`sysrq: Trigger a crash`, LKDTM).
    CrashTriggered,
    /// A crash report begins.
    ReportStart {
        /// Class of the report.
        class: Kind,
    },
    /// `Kernel panic - not syncing: …`.
    Panic {
        /// What follows the colon.
        reason: String,
    },
    /// `---[ end Kernel panic …`: the panic ran to its end; nothing more comes unless the machine is reset.
    PanicEnd,
    /// A task faulted while it died and is left where it stands; as a rule nothing more comes.
    RecursiveFault,
    /// A kexec into another kernel was announced.
    Kexec,
    /// The jump to another kernel died of an exception itself and prints its registers (x86 since 6.15). Of these, the
    /// ones that say why: `Exc` is the exception's number, `r12` CR4 as it was found, `r13` CR4 as it was to be.
    JumpDied {
        /// Name as printed.
        register: String,
        /// Its value.
        value: u64,
    },
    /// A capture agent says on the console that it failed (`crashyard: dump failed cause=network`).
    DumpFailed {
        /// The word it gives for the cause.
        cause: String,
    },
    /// A watchdog was started, fired or is about to reset the machine.
    Watchdog,
    /// The kernel says it restarts, halts or powers off.
    Shutdown,
    /// Absence: a new boot began although the kernel before it said neither panic nor shutdown
    /// (triple fault, power loss, reset from outside).
    UnexplainedReset,
    /// Absence: the marker or trigger is the last that is known of this kernel, no panic followed by the end of input.
    NoPanicAfterTrigger,
    /// Absence: a panic, or a crash on the way to the capture kernel, and then nothing up to the end of input.
    NothingAfterPanic,
}
