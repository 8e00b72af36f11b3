//! Reports and events in one line each.
//!
//! Agents' words are data: they are shown as they came, with control characters made visible, and never judged here.

use crate::pages::format::{bytes, span};
use crate::pages::text::visible;
use crashyard_protocol::StageState;
use crashyard_protocol::agent::Report;
use crashyard_protocol::api::EventBody;
use std::time::Duration;

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What it is about, in one or two words.
    pub what: String,
    /// The line.
    pub text: String,
    /// Longer text (a command's output), if there is any.
    pub more: Option<String>,
    /// Whether something went wrong.
    pub bad: bool,
}

impl Told {
    fn new(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { what: what.into(), text: visible(&text.into()).into_owned(), more: None, bad: false }
    }

    fn bad(mut self, bad: bool) -> Self {
        self.bad = bad;
        self
    }
}

/// What an agent said.
#[must_use]
pub fn report(report: &Report) -> Told {
    match report {
        Report::Power { action, ok, detail } => {
            Told::new(format!("power {}", visible(action)), detail.as_str()).bad(!ok)
        }
        Report::MachineEnded { detail } => Told::new("machine ended", detail.as_str()),
        Report::Health { healthy, detail } => {
            Told::new(if *healthy { "healthy" } else { "not healthy" }, detail.as_str()).bad(!healthy)
        }
        Report::Kernel { release, version, build_id, cpus_online } => {
            let build_id = build_id.as_deref().unwrap_or("no build id");
            Told::new("kernel", format!("{release} {version}, build id {build_id}, {cpus_online} CPUs online"))
        }
        Report::Inventory { facts } => {
            let mut told = Told::new("inventory", format!("{} facts about the machine", facts.len()));
            let lines: Vec<String> = facts.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            told.more = Some(visible(&lines.join("\n")).into_owned()).filter(|lines| !lines.is_empty());
            told
        }
        Report::Typed { source, by, keys, ok, detail, .. } => {
            Told::new(format!("typed by {}", visible(by)), format!("{keys} at {source}: {detail}")).bad(!ok)
        }
        Report::Step { name, command, code, ok, output, took_ms } => {
            let mut text = command.clone().unwrap_or_else(|| "done".into());
            if let Some(code) = code {
                text.push_str(&format!(" → exit {code}"));
            }
            text.push_str(&format!(", {}", span(Duration::from_millis(*took_ms))));
            let mut told = Told::new(format!("step {}", visible(name)), text).bad(!ok);
            told.more = Some(visible(output.trim_end()).into_owned()).filter(|output| !output.is_empty());
            told
        }
        Report::Armed { crash_kernel_loaded, crash_kernel_bytes, vmx } => Told::new(
            "armed",
            format!(
                "crash kernel {}, {} reserved, VMX state {vmx}",
                if *crash_kernel_loaded { "loaded" } else { "not loaded" },
                bytes(*crash_kernel_bytes)
            ),
        )
        .bad(!crash_kernel_loaded),
        Report::Triggering { marker } => Told::new("triggering", marker.as_str()),
        Report::CaptureStarted { release, start, vmcore_bytes } => {
            let size = vmcore_bytes.map_or_else(|| "of unknown size".into(), bytes);
            Told::new("capture started", format!("{release}, start {start}, /proc/vmcore {size}"))
        }
        Report::DumpFinished { bytes: size, blake3, sent_bytes, skipped_bytes } => Told::new(
            "dump finished",
            format!(
                "{}, {} sent by this start, {} the server had, BLAKE3 {blake3}",
                bytes(*size),
                bytes(*sent_bytes),
                bytes(*skipped_bytes)
            ),
        ),
        Report::DumpFailed { cause, detail } => Told::new("dump failed", format!("{cause}: {detail}")).bad(true),
        Report::Note { text } => Told::new("note", text.as_str()),
    }
}

/// What happened, by the server's account; `None` for what the page shows elsewhere.
#[must_use]
pub fn event(body: &EventBody) -> Option<Told> {
    Some(match body {
        EventBody::RunSubmitted { jobs } => Told::new("submitted", format!("{jobs} jobs owed")),
        EventBody::AttemptStarted { machine, number } => Told::new("started", format!("attempt {number} on {machine}")),
        EventBody::Stage { stage } => {
            let reason = stage.reason.as_deref().unwrap_or_default();
            let text = match stage.state {
                StageState::Pending | StageState::Active | StageState::Skipped => return None,
                StageState::Proven if reason.is_empty() => "proven".to_owned(),
                StageState::Proven => format!("proven: {reason}"),
                StageState::Failed => format!("failed: {reason}"),
            };
            Told::new(stage.name.as_str(), text).bad(stage.state == StageState::Failed)
        }
        EventBody::Report { .. } | EventBody::DumpProgress { .. } => return None,
        EventBody::AttemptJudged { verdict, blamed_stage, reason } => {
            let at = blamed_stage.map(|stage| format!(" at {stage}")).unwrap_or_default();
            let reason = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            Told::new("judged", format!("{verdict}{at}{reason}"))
        }
        EventBody::AttemptDone => Told::new("done", "the machine is back"),
        EventBody::Job { state, status } => Told::new("job", format!("{state}, {status}")),
        EventBody::RunDone { status } => Told::new("run done", status.as_str()),
    })
}
