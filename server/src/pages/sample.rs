//! A small farm's worth of data for the tests of the pages: one run of the four demo scenarios, caught in the middle.

use crashyard_protocol::agent::{Report, Role};
use crashyard_protocol::api::{
    Artifact, Attempt, Build, Event, EventBody, Evidence, Job, Machine, Page, Reservation, Run, Signature,
    SignatureAttempt, StoredScenario,
};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{
    ArtifactId, ArtifactState, AttemptId, AttemptState, Expect, JobState, MachineState, Proof, Purpose, RunState,
    Scenario, Stage, StageName, StageState, Status, Trigger, VmxState,
};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// 2026-11-23 21:04:05 UTC.
pub const NOW: Timestamp = Timestamp(1_795_467_845_000);

fn ago(seconds: i64) -> Timestamp {
    Timestamp(NOW.0 - seconds * 1000)
}

macro_rules! id {
    ($number:expr) => {
        format!("01JDB4Q1W5Z8N6K3X0V7{:06}", $number).parse().expect("a ULID")
    };
}

/// A run in the middle: two jobs judged, one on a machine, one queued.
pub fn run() -> Run {
    Run {
        id: id!(1),
        build: id!(2),
        name: "7.3.4+deb13-cloud-amd64".into(),
        plan: "demo".into(),
        state: RunState::Open,
        status: Status::Miss,
        counts: BTreeMap::from([(Status::Pass, 1), (Status::Fail, 1), (Status::Miss, 2)]),
        created_at: ago(140),
        finished_at: None,
        last_event: 42,
    }
}

/// A page of runs over two days.
pub fn runs() -> Page<Run> {
    let mut items = vec![run()];
    for (number, pass, fail, error, miss, name, plan) in [
        (11, 38, 0, 0, 0, "6.18-rc4 kasan", "vmx-full"),
        (12, 36, 2, 0, 0, "6.18-rc3 kasan", "vmx-full"),
        (13, 34, 0, 1, 3, "next-20261122", "vmx-full"),
        (14, 4, 0, 0, 0, "7.3.4+deb13-cloud-amd64", "demo"),
        (15, 0, 4, 0, 0, "5.7-rc1 revert test", "seed-bug"),
    ] {
        let created_at = ago(5_000 * (i64::from(number) - 9) * (i64::from(number) - 9));
        items.push(Run {
            id: id!(number),
            name: name.into(),
            plan: plan.into(),
            state: RunState::Done,
            status: if fail > 0 {
                Status::Fail
            } else if error > 0 {
                Status::Error
            } else {
                Status::Pass
            },
            counts: BTreeMap::from([
                (Status::Pass, pass),
                (Status::Fail, fail),
                (Status::Error, error),
                (Status::Miss, miss),
            ]),
            created_at,
            finished_at: Some(Timestamp(created_at.0 + 1_000 * i64::from(number) * 61)),
            ..run()
        });
    }
    Page { items, next: Some("01JDB4Q1W5Z8N6K3X0V7000015".into()) }
}

/// The kernel of the run.
pub fn build() -> Build {
    Build {
        id: id!(2),
        checkout: None,
        name: "Debian 7.3.4".into(),
        architecture: "x86_64".into(),
        release: "7.3.4+deb13-cloud-amd64".into(),
        build_id: Some("9f1c2d7be0a4435c8f0b6a1d52e3c4f7a8b9d0e1".into()),
        config_name: Some("cloud".into()),
        cmdline: String::new(),
        artifacts: Vec::new(),
        created_at: ago(300),
    }
}

fn scenario(name: &str, title: &str) -> Scenario {
    Scenario {
        name: name.into(),
        title: title.into(),
        vmx: VmxState::None,
        vmx_number: None,
        trigger: Trigger::SysrqC,
        cpu: None,
        boot: crashyard_protocol::Boot::default(),
        capture: crashyard_protocol::Capture::default(),
        expect: Expect { panic: "sysrq triggered crash".into() },
        deadlines: crashyard_protocol::Deadlines::default(),
    }
}

/// Stored scenarios, of two VMX states.
pub fn scenarios() -> Vec<StoredScenario> {
    let stored = |number: u32, scenario| StoredScenario { id: id!(900 + number), scenario, updated_at: ago(4_000) };
    let cut = Scenario {
        vmx: VmxState::ListAddCut,
        vmx_number: Some(1),
        trigger: Trigger::ModuleOops,
        cpu: Some(1),
        expect: Expect { panic: "address: 0000000000000ca5".into() },
        ..scenario("vmx-list-add-cut-1-oops-cpu1", "Adding a VMCS to the list cut after 1 of 4 pointer writes; an oops")
    };
    vec![stored(0, scenario("sysrq-c", "Plain crash, nothing loaded")), stored(1, cut)]
}

/// The jobs of the run.
pub fn jobs() -> Vec<Job> {
    let job = |number: u32, scenario: Scenario, state, status, blamed_stage, reason: Option<&str>| Job {
        id: id!(100 + number),
        run: id!(1),
        ordinal: number,
        scenario,
        selector: BTreeMap::from([("driver".into(), "qemu".into())]),
        requires: Vec::new(),
        priority: None,
        deadline: None,
        state,
        status,
        reason: reason.map(str::to_owned),
        blamed_stage,
        attempts: if state == JobState::Queued { vec![] } else { vec![id!(200 + number)] },
        created_at: ago(140),
        finished_at: (state == JobState::Done).then(|| ago(60)),
    };
    vec![
        job(
            0,
            scenario("sysrq-c", "Plain crash, nothing loaded"),
            JobState::Done,
            Status::Pass,
            None,
            Some("All eight stages proven"),
        ),
        job(
            1,
            scenario("capture-panics", "The capture kernel panics at boot"),
            JobState::Done,
            Status::Fail,
            Some(StageName::Captured),
            Some("The capture kernel panicked: VFS: Unable to mount root fs on unknown-block(0,0)"),
        ),
        job(
            2,
            scenario("capture-killed", "The capture agent dies in mid-upload and resumes"),
            JobState::Leased,
            Status::Miss,
            None,
            None,
        ),
        job(3, scenario("no-crash-kernel", "Crash kernel not loaded"), JobState::Queued, Status::Miss, None, None),
    ]
}

/// Console of a machine whose capture kernel panics.
pub fn console() -> Vec<u8> {
    let mut out = String::from("\x1b[2J\x1b[HSeaBIOS (version 1.16.2)\r\nBooting from ROM...\r\n");
    out.push_str("[    0.000000] Linux version 7.3.4+deb13-cloud-amd64 (builder@farm) #1 SMP PREEMPT_DYNAMIC\r\n");
    out.push_str("[    0.000000] Command line: console=ttyS0,115200 crashkernel=192M panic=-1\r\n");
    for line in 0..60 {
        let _ = write!(
            out,
            "[    0.{:06}] ACPI: table {line} at 0x{:016x} is present\r\n",
            line * 12_345,
            0x2ffe_0000_u64 + line * 4096
        );
    }
    out.push_str("[    4.912003] crashyard: armed, crash kernel loaded (192 MiB)\r\n");
    out.push_str("[    5.396011] crashyard: trigger job=01JDB4Q1W5Z8N6K3X0V7000101 attempt=01JDB4Q1W5Z8N6K3X0V7000201 scenario=capture-panics\r\n");
    out.push_str("[    5.396200] sysrq: Trigger a crash\r\n");
    out.push_str("[    5.396392] Kernel panic - not syncing: sysrq triggered crash\r\n");
    out.push_str("[    5.397001] CPU: 1 UID: 0 PID: 214 Comm: crashyard-agent Not tainted 7.3.4+deb13-cloud-amd64\r\n");
    for call in [
        "dump_stack_lvl+0x5d/0x80",
        "vpanic+0x166/0x360",
        "panic+0x6b/0x70",
        "sysrq_handle_crash+0x1a/0x20",
        "write_sysrq_trigger+0x59/0xb0",
    ] {
        let _ = write!(out, "[    5.398000]  {call}\r\n");
    }
    out.push_str("[    0.000000] Linux version 7.3.4+deb13-cloud-amd64 (builder@farm) #1 SMP PREEMPT_DYNAMIC\r\n");
    out.push_str(
        "[    0.000000] Command line: elfcorehdr=0x2d000000 root=/dev/nonexistent rdinit=/nonexistent nr_cpus=1\r\n",
    );
    out.push_str("[    1.201113] check access for rdinit=/nonexistent failed: -2, ignoring\r\n");
    out.push_str("[    1.311824] \x1b[1;31mKernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\x1b[0m\r\n");
    out.push_str("[    1.312000] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---");
    out.into_bytes()
}

/// The 1-based line of the first line that contains a text, and the offset of its first byte.
pub fn find_line(log: &[u8], text: &str) -> (u64, u64) {
    let mut offset = 0;
    for (number, line) in (1..).zip(log.split(|byte| *byte == b'\n')) {
        if String::from_utf8_lossy(line).contains(text) {
            return (number, offset);
        }
        offset += line.len() as u64 + 1;
    }
    panic!("no line with {text:?}");
}

/// The artifact that holds a console.
pub fn console_artifact(size: u64, state: ArtifactState) -> Artifact {
    Artifact {
        id: id!(300),
        build: None,
        attempt: Some(id!(201)),
        name: "console-serial".into(),
        state,
        size,
        blake3: None,
        created_at: ago(120),
        held: None,
        dropped: None,
    }
}

fn proof(text: &str) -> Proof {
    let artifact: ArtifactId = id!(300);
    let (line, offset) = find_line(&console(), text);
    Proof::Console { artifact, offset, length: text.len() as u64, line, text: text.into() }
}

fn stage(name: StageName, state: StageState, from: i64, took: i64, reason: &str, proofs: Vec<Proof>) -> Stage {
    let began = !matches!(state, StageState::Pending | StageState::Skipped);
    let started = Timestamp(NOW.0 - 120_000 + from);
    Stage {
        name,
        state,
        status: match state {
            StageState::Proven => Some(Status::Pass),
            StageState::Failed => Some(Status::Fail),
            _ => None,
        },
        started_at: began.then_some(started),
        deadline_at: began.then(|| started.plus(crashyard_protocol::Deadlines::default().of(name))),
        settled_at: matches!(state, StageState::Proven | StageState::Failed).then(|| Timestamp(started.0 + took)),
        reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
        proofs,
    }
}

/// An attempt that stopped at `captured`.
pub fn failed_attempt() -> Attempt {
    use StageName as N;
    use StageState as S;
    let said = |by: &str, seq, text: &str| Proof::Report { by: by.into(), seq, text: text.into() };
    Attempt {
        id: id!(201),
        job: id!(101),
        run: id!(1),
        number: 1,
        purpose: Purpose::Test,
        build: id!(10),
        held_until: None,
        machine: id!(400),
        machine_name: "vmx-crash-1".into(),
        controller: id!(500),
        state: AttemptState::Done,
        verdict: Status::Fail,
        reason: Some("The capture kernel panicked: VFS: Unable to mount root fs on unknown-block(0,0). Check the capture kernel's command line and initrd.".into()),
        blamed_stage: Some(N::Captured),
        stages: vec![
            stage(N::Provisioned, S::Proven, 0, 11_240, "Release and build id are the build's", vec![proof("Linux version 7.3.4"), said("target", 0, "7.3.4+deb13-cloud-amd64, 2 CPUs online")]),
            stage(N::Armed, S::Proven, 11_240, 3_610, "Crash kernel loaded, 192 MiB reserved", vec![said("target", 3, "crash kernel loaded, VMX state none")]),
            stage(N::Triggered, S::Proven, 14_850, 480, "Marker on the console", vec![proof("crashyard: trigger")]),
            stage(N::Panicked, S::Proven, 15_330, 190, "The intended panic", vec![proof("Kernel panic - not syncing: sysrq")]),
            stage(N::Captured, S::Failed, 15_520, 4_410, "A second panic came after the capture kernel's banner, before its agent called in: VFS: Unable to mount root fs on unknown-block(0,0)", vec![proof("Command line: elfcorehdr"), proof("Kernel panic - not syncing: VFS")]),
            stage(N::Dumped, S::Skipped, 0, 0, "", vec![]),
            stage(N::Verified, S::Skipped, 0, 0, "", vec![]),
            stage(N::Returned, S::Proven, 19_930, 2_100, "Emulator ended, disk images fresh", vec![said("controller", 4, "healthy")]),
        ],
        artifacts: vec![
            console_artifact(console().len() as u64, ArtifactState::Complete),
            Artifact { id: id!(301), name: "emulator-log".into(), size: 812, blake3: Some("ab".repeat(32)), ..console_artifact(0, ArtifactState::Complete) },
        ],
        started_at: ago(120),
        finished_at: Some(ago(98)),
    }
}

/// An attempt whose dump is on its way.
pub fn running_attempt() -> Attempt {
    use StageName as N;
    use StageState as S;
    let mut attempt = failed_attempt();
    attempt.id = id!(202);
    attempt.job = id!(102);
    attempt.state = AttemptState::Running;
    attempt.verdict = Status::Miss;
    attempt.reason = None;
    attempt.blamed_stage = None;
    attempt.finished_at = None;
    attempt.machine_name = "vmx-crash-2".into();
    attempt.stages[4] = stage(N::Captured, S::Proven, 15_520, 9_870, "Capture agent called in", vec![]);
    attempt.stages[5] = stage(N::Dumped, S::Active, 25_390, 0, "", vec![]);
    attempt.stages[6] = stage(N::Verified, S::Pending, 0, 0, "", vec![]);
    attempt.stages[7] = stage(N::Returned, S::Pending, 0, 0, "", vec![]);
    attempt.artifacts[0].state = ArtifactState::Open;
    attempt.artifacts.push(Artifact {
        id: id!(302),
        name: "vmcore".into(),
        size: 40_055_603,
        ..console_artifact(0, ArtifactState::Open)
    });
    attempt
}

/// All attempts of the run.
pub fn attempts() -> Vec<Attempt> {
    let mut passed = failed_attempt();
    passed.id = id!(200);
    passed.job = id!(100);
    passed.verdict = Status::Pass;
    passed.blamed_stage = None;
    for (at, took) in [(4, 8_200), (5, 6_140), (6, 850)] {
        passed.stages[at] = stage(StageName::ALL[at], StageState::Proven, 16_000, took, "", vec![]);
    }
    vec![passed, failed_attempt(), running_attempt()]
}

/// What the agents said.
pub fn evidence() -> Vec<Evidence> {
    let said = |by, seq, seconds, report| Evidence { by, seq, report, received_at: ago(seconds) };
    vec![
        said(
            Role::Controller,
            0,
            119,
            Report::Power { action: "on".into(), ok: true, detail: "qemu started, pid 4711".into() },
        ),
        said(
            Role::Target,
            0,
            109,
            Report::Kernel {
                release: "7.3.4+deb13-cloud-amd64".into(),
                version: "#1 SMP PREEMPT_DYNAMIC".into(),
                build_id: Some("9f1c2d7b".into()),
                cpus_online: 2,
            },
        ),
        said(
            Role::Target,
            1,
            107,
            Report::Step {
                name: "load-crash-kernel".into(),
                command: Some("kexec -s -p /crashyard/kernel".into()),
                code: Some(255),
                ok: false,
                output: "kexec_file_load failed: Operation not permitted\n".into(),
                took_ms: 212,
            },
        ),
        said(
            Role::Target,
            2,
            106,
            Report::Step {
                name: "load-crash-kernel".into(),
                command: Some("kexec -c -i -p /crashyard/kernel".into()),
                code: Some(0),
                ok: true,
                output: String::new(),
                took_ms: 2_310,
            },
        ),
        said(
            Role::Target,
            3,
            105,
            Report::Armed { crash_kernel_loaded: true, crash_kernel_bytes: 192 << 20, vmx: VmxState::None },
        ),
        said(Role::Target, 4, 104, Report::Triggering { marker: "crashyard: trigger attempt=…".into() }),
        said(
            Role::Controller,
            4,
            98,
            Report::Health { healthy: true, detail: "emulator ended, disk images fresh".into() },
        ),
    ]
}

/// The run's events about the failed attempt.
pub fn events() -> Vec<Event> {
    let attempt = failed_attempt();
    let event = |seq, seconds, body| Event {
        seq,
        at: ago(seconds),
        job: Some(attempt.job.clone()),
        attempt: Some(attempt.id.clone()),
        body,
    };
    let mut out = vec![event(5, 120, EventBody::AttemptStarted { machine: "vmx-crash-1".into(), number: 1 })];
    for (seq, stage) in (6..).zip(&attempt.stages) {
        if let Some(at) = stage.settled_at {
            out.push(Event { at, ..event(seq, 0, EventBody::Stage { stage: stage.clone() }) });
        }
    }
    out.push(event(
        20,
        100,
        EventBody::AttemptJudged {
            verdict: Status::Fail,
            blamed_stage: attempt.blamed_stage,
            reason: attempt.reason.clone(),
        },
    ));
    out.push(event(21, 98, EventBody::AttemptDone));
    out
}

/// A signature that is known well, and one of an older attempt that nothing is left of.
pub fn signatures() -> Vec<Signature> {
    let seen = SignatureAttempt {
        attempt: id!(202),
        run: id!(100),
        number: 2,
        machine_name: "vmx-crash-1".into(),
        verdict: Status::Fail,
        source: "serial".into(),
        start: 50_123,
        line: 412,
        reports: 1,
        seen_at: ago(900),
    };
    vec![
        Signature {
            id: id!(600),
            title: "BUG: unable to handle kernel paging request in crash_vmclear_local_loaded_vmcss".into(),
            kind: "page_fault".into(),
            frame: Some("crash_vmclear_local_loaded_vmcss".into()),
            module: Some("kvm_intel".into()),
            frames: vec!["crash_vmclear_local_loaded_vmcss".into(), "native_machine_crash_shutdown".into()],
            rules: 2,
            first_seen_at: ago(90_000),
            last_seen_at: ago(900),
            attempts: 7,
            reports: 9,
            seen: vec![seen],
        },
        Signature {
            id: id!(599),
            title: "kernel panic: VFS: Unable to mount root fs on unknown-block(NUM,NUM)".into(),
            kind: "panic".into(),
            frame: None,
            module: None,
            frames: Vec::new(),
            rules: 2,
            first_seen_at: ago(400_000),
            last_seen_at: ago(400_000),
            attempts: 0,
            reports: 0,
            seen: Vec::new(),
        },
    ]
}

/// Machines in several states.
pub fn machines() -> Vec<Machine> {
    let machine = |number: u32, name: &str, state, reason: Option<&str>, attempt: Option<AttemptId>, seen| Machine {
        id: id!(400 + number),
        name: name.into(),
        driver: if name.starts_with("vmx") { "qemu".into() } else { "ipmi".into() },
        controller: id!(500),
        controller_name: "lab-brno".into(),
        labels: BTreeMap::from([
            ("driver".into(), "qemu".into()),
            ("cpu".into(), "skylake".into()),
            ("vmx".into(), "yes".into()),
        ]),
        state,
        reason: reason.map(str::to_owned),
        state_since: ago(140 + i64::from(number) * 4_000),
        attempt,
        lease_epoch: 17 + u64::from(number) * 31,
        last_seen_at: ago(seen),
        reachable: seen < 3_600,
        quarantined_until: (state == MachineState::Quarantined).then(|| ago(-1_800)),
        on_probation: false,
        differs: None,
        reservation: None,
        errand: None,
    };
    vec![
        machine(0, "vmx-crash-1", MachineState::Available, None, None, 3),
        machine(1, "vmx-crash-2", MachineState::Leased, None, Some(id!(202)), 1),
        machine(
            2,
            "intel-s2600",
            MachineState::Quarantined,
            Some("Did not come back after attempt 3: no login prompt in 300 s, BMC says power on"),
            None,
            2,
        ),
        Machine {
            reservation: Some(Reservation {
                id: id!(800),
                owner: "token:kris".into(),
                reason: "debugs the VMXON fault".into(),
                created_at: ago(12_000),
                began_at: Some(ago(11_000)),
                until: ago(-90_000),
                warned: false,
                notifies: false,
                attempt: None,
            }),
            ..machine(3, "intel-r740", MachineState::Reserved, Some("token:kris: debugs the VMXON fault"), None, 4)
        },
        machine(4, "amd-7302", MachineState::Held, Some("Console silent after panic; kept for a look"), None, 86_400),
    ]
}
