//! A little language for stories: what happens to one attempt, second by second, and who hears of it when.

use crate::triage::away::Span;
use crate::triage::dump::Unreadable;
use crate::triage::{
    BuildFacts, ConsoleEvidence, ConsoleReader, DumpEvidence, DumpFacts, DumpReading, EvidenceView, Intent, Judgement,
    Lease, judge,
};
use crashyard_protocol::agent::{DumpFailure, Report, Role};
use crashyard_protocol::api::Evidence;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{
    ArtifactId, AttemptId, Boot, Capture, Deadlines, Expect, Scenario, StageState, Status, Transport, Trigger, VmxState,
};

pub const RELEASE: &str = "6.1.0-56-cloud-amd64";
pub const BUILD_ID: &str = "5c3f0a1e9d7b2c4866aa00ff12345678deadbeef";
pub const ATTEMPT: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MF";
pub const CONSOLE: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MG";
pub const BESIDE: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MH";
pub const START: Timestamp = Timestamp(1_000_000);

pub const FIRST_BOOT: &str = "\
[    0.000000] Linux version 6.1.0-56-cloud-amd64 (builder@lab) (gcc-12 12.2.0) #1 SMP\r
[    0.000000] Command line: console=ttyS0 crashkernel=192M panic=-1\r
[    1.000000] Kernel command line: console=ttyS0 crashkernel=192M panic=-1\r
[    2.500000] Run /init as init process\r
";
pub const MARKER: &str = "\
[   20.000000] crashyard: trigger job=01JDB4Q1W5Z8N6K3X0V7T2R9MA attempt=01JDB4Q1W5Z8N6K3X0V7T2R9MF scenario=plain\r
[   20.000100] sysrq: Trigger a crash\r
";
pub const PANIC: &str = "[   20.000200] Kernel panic - not syncing: sysrq triggered crash\r\n";
pub const CAPTURE_BOOT: &str = "\
[    0.000000] Linux version 6.1.0-56-cloud-amd64 (builder@lab) (gcc-12 12.2.0) #1 SMP\r
[    0.000000] Command line: console=ttyS0 nr_cpus=1 reset_devices elfcorehdr=753016K\r
";
pub const PLAIN_BOOT: &str = "\
[    0.000000] Linux version 6.1.0-56-cloud-amd64 (builder@lab) (gcc-12 12.2.0) #1 SMP\r
[    0.000000] Command line: console=ttyS0 root=/dev/sda1\r
";

/// Something that happens.
#[derive(Clone, Debug)]
pub enum What {
    Console(String),
    /// On a second console.
    Beside(String),
    Says(Role, Report),
    DumpBytes(u64),
    DumpComplete(u64),
    DumpMismatch(String),
    Read(Result<DumpFacts, Unreadable>),
    LeaseLost,
    Released(bool, String),
    ServerAway {
        seconds: i64,
    },
}

/// Something that happens, and when the server hears of it (milliseconds since the start).
#[derive(Clone, Debug)]
pub struct Event {
    pub heard: i64,
    pub what: What,
}

#[derive(Clone, Debug)]
pub struct Story {
    pub scenario: Scenario,
    pub build: BuildFacts,
    pub events: Vec<Event>,
}

impl Story {
    /// A story in which nothing happens.
    pub fn silent() -> Self {
        let scenario = Scenario {
            name: "plain".into(),
            title: "Plain sysrq-c".into(),
            vmx: VmxState::None,
            vmx_number: None,
            trigger: Trigger::SysrqC,
            cpu: None,
            boot: Boot::default(),
            capture: Capture::default(),
            expect: Expect { panic: "sysrq triggered crash".into() },
            deadlines: Deadlines::default(),
        };
        let build = BuildFacts { release: RELEASE.into(), build_id: Some(BUILD_ID.into()) };
        Self { scenario, build, events: Vec::new() }
    }

    /// The machine is on and the kernel under test runs.
    pub fn booted() -> Self {
        Self::silent().power(1, "on", true).console(2, FIRST_BOOT).target(6, kernel(RELEASE, Some(BUILD_ID)))
    }

    pub fn armed() -> Self {
        Self::booted().target(7, step("load-crash-kernel", 0, true, "")).target(8, armed(true))
    }

    pub fn triggered() -> Self {
        Self::armed().target(9, triggering()).console(10, MARKER)
    }

    pub fn panicked() -> Self {
        Self::triggered().console(11, PANIC)
    }

    pub fn captured() -> Self {
        Self::panicked().console(15, CAPTURE_BOOT).capture(20, started(1))
    }

    pub fn dumped() -> Self {
        Self::captured().with(22, What::DumpBytes(4 << 20)).with(30, What::DumpComplete(9_000_000))
    }

    /// Everything goes well up to the end.
    pub fn perfect() -> Self {
        Self::dumped()
            .capture(
                31,
                Report::DumpFinished {
                    bytes: 9_000_000,
                    blake3: "ab".repeat(32),
                    sent_bytes: 9_000_000,
                    skipped_bytes: 0,
                },
            )
            .read(32, good_dump())
            .ends(33, "soft-off")
            .controller(40, Report::Health { healthy: true, detail: "emulator freed".into() })
            .with(41, What::Released(true, "emulator freed".into()))
    }

    pub fn with(mut self, second: i64, what: What) -> Self {
        self.events.push(Event { heard: second * 1000, what });
        self
    }

    pub fn console(self, second: i64, text: &str) -> Self {
        self.with(second, What::Console(text.into()))
    }

    pub fn target(self, second: i64, report: Report) -> Self {
        self.with(second, What::Says(Role::Target, report))
    }

    pub fn capture(self, second: i64, report: Report) -> Self {
        self.with(second, What::Says(Role::Capture, report))
    }

    pub fn controller(self, second: i64, report: Report) -> Self {
        self.with(second, What::Says(Role::Controller, report))
    }

    pub fn power(self, second: i64, action: &str, ok: bool) -> Self {
        self.controller(second, Report::Power { action: action.into(), ok, detail: "the driver said so".into() })
    }

    pub fn ends(self, second: i64, detail: &str) -> Self {
        self.controller(second, Report::MachineEnded { detail: detail.into() })
    }

    pub fn read(self, second: i64, facts: DumpFacts) -> Self {
        self.with(second, What::Read(Ok(facts)))
    }

    pub fn scenario(mut self, change: impl FnOnce(&mut Scenario)) -> Self {
        change(&mut self.scenario);
        self
    }

    pub fn by_disk(self) -> Self {
        self.scenario(|scenario| scenario.capture.transport = Transport::Disk)
    }

    /// The evidence as the server has it after `ms`. Reports are numbered in the order in which they were made, which
    /// is the order of the story; console bytes are read in their order as well.
    pub fn view(&self, ms: i64) -> EvidenceView {
        let attempt: AttemptId = ATTEMPT.parse().expect("an id");
        let mut view = EvidenceView::new(attempt.clone(), START);
        let mut reader = ConsoleReader::new(Intent::new(&attempt, &self.scenario));
        let mut beside = ConsoleReader::new(Intent::new(&attempt, &self.scenario));
        let mut seq = [0_u64; 3];
        let mut heard_before = 0;
        let mut dump = DumpEvidence::default();
        let mut has_dump = false;
        for event in &self.events {
            let number = match &event.what {
                What::Says(role, _) => {
                    let next = &mut seq[*role as usize];
                    *next += 1;
                    *next - 1
                }
                _ => 0,
            };
            if event.heard > ms {
                continue;
            }
            let at = Timestamp(START.0 + event.heard);
            match &event.what {
                What::Console(text) => {
                    assert!(event.heard >= heard_before, "a console arrives in its order");
                    heard_before = event.heard;
                    reader.feed(at, reader.next_offset(), text.as_bytes());
                }
                What::Beside(text) => {
                    beside.feed(at, beside.next_offset(), text.as_bytes());
                }
                What::Says(by, report) => {
                    view.reports.push(Evidence { by: *by, seq: number, report: report.clone(), received_at: at });
                }
                What::DumpBytes(bytes) => (dump.bytes, has_dump) = (dump.bytes.max(*bytes), true),
                What::DumpComplete(bytes) => {
                    (dump.bytes, has_dump) = (*bytes, true);
                    dump.completed_at = Some(at);
                    dump.blake3 = Some("ab".repeat(32));
                }
                What::DumpMismatch(how) => (dump.mismatch, has_dump) = (Some((at, how.clone())), true),
                What::Read(outcome) => view.reading = Some(DumpReading { at, outcome: outcome.clone() }),
                What::LeaseLost => view.lease = Lease::Lost { at },
                What::Released(healthy, detail) => {
                    view.lease = Lease::Released { at, healthy: *healthy, detail: detail.clone() };
                }
                What::ServerAway { seconds } => {
                    view.server_away.push(Span { from: Timestamp(at.0 - seconds * 1000), to: at });
                }
            }
        }
        view.dump = has_dump.then_some(dump);
        for (reader, id) in [(reader, CONSOLE), (beside, BESIDE)] {
            if reader.facts().bytes > 0 {
                let artifact: ArtifactId = id.parse().expect("an id");
                view.consoles.push(ConsoleEvidence { artifact, facts: reader.facts().clone() });
            }
        }
        view
    }

    /// Judged once, `second` seconds after the start, from scratch.
    pub fn judged_at(&self, second: i64) -> Judgement {
        self.judged_once(second * 1000)
    }

    pub fn judged_once(&self, ms: i64) -> Judgement {
        judge(&self.scenario, &self.build, &self.view(ms), Timestamp(START.0 + ms))
    }

    /// Judged as a server does it: after everything that arrives, and whenever the last judgement asked for it.
    /// Returns every judgement on the way.
    pub fn live(&self, until_ms: i64) -> Vec<Judgement> {
        let mut arrivals: Vec<i64> = self.events.iter().map(|event| event.heard).filter(|ms| *ms <= until_ms).collect();
        // While the server is away it judges nothing.
        let away: Vec<(i64, i64)> = self
            .events
            .iter()
            .filter_map(|event| match event.what {
                What::ServerAway { seconds } => Some((event.heard - seconds * 1000, event.heard)),
                _ => None,
            })
            .collect();
        arrivals.push(0);
        arrivals.sort_unstable();
        arrivals.dedup();
        let mut arrivals = arrivals.into_iter().peekable();
        let mut judgements: Vec<Judgement> = Vec::new();
        let mut timer = None;
        loop {
            let now = match (arrivals.peek().copied(), timer) {
                (Some(arrival), Some(timer)) if timer < arrival => timer,
                (Some(arrival), _) => {
                    arrivals.next();
                    arrival
                }
                (None, Some(timer)) if timer <= until_ms => timer,
                (None, _) => return judgements,
            };
            if let Some((_, back)) = away.iter().find(|(from, to)| (*from..*to).contains(&now)) {
                timer = Some(*back);
                continue;
            }
            let mut view = self.view(now);
            view.stages = judgements.last().map(|last| last.stages.clone()).unwrap_or_default();
            let judgement = judge(&self.scenario, &self.build, &view, Timestamp(START.0 + now));
            timer = judgement.check_at.map(|at| at.0 - START.0);
            assert!(timer.is_none_or(|timer| timer > now), "a judgement asks to be made again in the future");
            judgements.push(judgement);
        }
    }

    /// The story's end: long after every deadline, judged live and from scratch, which must agree.
    pub fn end(&self) -> Judgement {
        const DAY: i64 = 24 * 3600 * 1000;
        let live = self.live(DAY).pop().expect("judged at the start");
        assert_eq!(live, self.judged_once(DAY), "judged again from scratch, the story ends the same");
        live
    }

    /// The story's end in short: letters of the stages, verdict, the second of the verdict.
    #[track_caller]
    pub fn ends_as(&self, stages: &str, verdict: Status, second: i64, reason: &str) -> Judgement {
        let end = self.end();
        let decided = end.judged_at.map(|at| (at.0 - START.0) / 1000);
        let said = end.reason.clone().unwrap_or_default();
        assert_eq!((letters(&end).as_str(), end.verdict, decided), (stages, Some(verdict), Some(second)), "{said}");
        assert!(said.contains(reason), "the reason is: {said}");
        assert_eq!(end.reason.is_none(), verdict == Status::Pass, "whatever is no pass says why");
        end
    }
}

/// One letter for each stage: `.` pending, `?` active, `p` proven, `-` skipped, or the first letter of what its
/// failure means.
pub fn letters(judgement: &Judgement) -> String {
    let letter = |stage: &crashyard_protocol::Stage| match stage.state {
        StageState::Pending => '.',
        StageState::Active => '?',
        StageState::Proven => 'p',
        StageState::Skipped => '-',
        StageState::Failed => stage.status.and_then(|status| status.as_str().chars().next()).unwrap_or('!'),
    };
    judgement.stages.iter().map(letter).collect()
}

pub fn kernel(release: &str, build_id: Option<&str>) -> Report {
    Report::Kernel {
        release: release.into(),
        version: "#1 SMP".into(),
        build_id: build_id.map(str::to_owned),
        cpus_online: 2,
    }
}

pub fn step(name: &str, code: i32, ok: bool, output: &str) -> Report {
    let command = (name == "load-crash-kernel").then(|| "kexec -p".to_owned());
    Report::Step { name: name.into(), command, code: Some(code), ok, output: output.into(), took_ms: 12 }
}

pub fn armed(loaded: bool) -> Report {
    Report::Armed { crash_kernel_loaded: loaded, crash_kernel_bytes: 192 << 20, vmx: VmxState::None }
}

pub fn triggering() -> Report {
    Report::Triggering { marker: format!("crashyard: trigger job=x attempt={ATTEMPT} scenario=plain") }
}

pub fn started(start: u32) -> Report {
    Report::CaptureStarted { release: RELEASE.into(), start, vmcore_bytes: Some(800 << 20) }
}

pub fn failed(cause: DumpFailure, detail: &str) -> Report {
    Report::DumpFailed { cause, detail: detail.into() }
}

pub fn good_dump() -> DumpFacts {
    DumpFacts {
        release: RELEASE.into(),
        build_id: Some(BUILD_ID.into()),
        crash_time: Some(1_795_000_000),
        log_lines: 400,
        marker: Some(format!("crashyard: trigger job=x attempt={ATTEMPT} scenario=plain")),
        panic: Some("sysrq triggered crash".into()),
        cpus_online: Some(2),
        cpus_saved: 2,
        warnings: Vec::new(),
        vmx: None,
    }
}
