//! The steps of arming, each with what was executed, its return code and what it said.

use super::cmdline::for_capture;
use crate::guest::{Guest, Reporter, artifact, tail};
use crate::{cpio, download};
use crashyard_protocol::agent::Report;
use crashyard_protocol::client::ClientError;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::process::Command;

/// Limit of a step's output in its report.
const OUTPUT_LIMIT: usize = 4096;

/// Word of the kernel command line of machines on which hashing the crash kernel, when it is loaded and again when it
/// is started, would take minutes.
const UNCHECKED: &str = "crashyard.kexec=load";

/// One step and its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepResult {
    /// Which step.
    pub name: String,
    /// What was executed, if it was a command.
    pub command: Option<String>,
    /// Its exit status, if it ended by itself.
    pub code: Option<i32>,
    /// Whether the goal was reached.
    pub ok: bool,
    /// What it printed.
    pub output: String,
    /// How long it took.
    pub took_ms: u64,
}

impl StepResult {
    /// A step without a command that worked.
    pub fn done(name: &str, output: impl Into<String>) -> Self {
        Self { name: name.into(), command: None, code: None, ok: true, output: output.into(), took_ms: 0 }
    }

    /// A step without a command that did not work.
    pub fn failed(name: &str, output: impl Into<String>) -> Self {
        Self { ok: false, ..Self::done(name, output) }
    }

    /// The same, with the time since `start`.
    pub fn since(self, start: Instant) -> Self {
        Self { took_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX), ..self }
    }

    /// As the server gets it.
    pub fn report(&self) -> Report {
        Report::Step {
            name: self.name.clone(),
            command: self.command.clone(),
            code: self.code,
            ok: self.ok,
            output: tail(self.output.trim(), OUTPUT_LIMIT),
            took_ms: self.took_ms,
        }
    }
}

/// Runs a command to its end and keeps all it said.
pub async fn execute(name: &str, program: &str, arguments: &[String]) -> StepResult {
    let start = Instant::now();
    let command =
        Some(std::iter::once(program).chain(arguments.iter().map(String::as_str)).collect::<Vec<_>>().join(" "));
    let result = match Command::new(program).args(arguments).output().await {
        Ok(output) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            StepResult { code: output.status.code(), ok: output.status.success(), ..StepResult::done(name, text) }
        }
        Err(error) => StepResult::failed(name, format!("{program} could not be started: {error}")),
    };
    StepResult { command, ..result.since(start) }
}

/// Fetches the build's files and loads them as the crash kernel. Every step is reported; `true` if it is loaded.
pub async fn load_crash_kernel(guest: &Guest, reporter: &mut Reporter) -> Result<bool, ClientError> {
    let directory = Path::new("/run/crashyard");
    let start = Instant::now();
    let files = match fetch_files(guest, directory).await {
        Ok(files) => {
            let step = StepResult::done("fetch-crash-kernel", "kernel and initrd are here").since(start);
            reporter.tell(step.report()).await?;
            files
        }
        Err(error) => {
            let step = StepResult::failed("fetch-crash-kernel", format!("{error:#}")).since(start);
            reporter.tell(step.report()).await?;
            return Ok(false);
        }
    };
    let running = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let cmdline = for_capture(&running, &guest.brief.scenario.capture.cmdline);
    let step = kexec_load(&files, &running, &cmdline).await;
    reporter.tell(step.report()).await?;
    if step.ok {
        // The image is in reserved memory now; the copies would only fill the dump.
        for file in [&files.kernel, &files.initrd] {
            if let Err(error) = std::fs::remove_file(file) {
                tracing::warn!(%error, file = %file.display(), "could not remove");
            }
        }
    }
    Ok(step.ok)
}

/// The file-based call lets the kernel itself read and place the image; where it is refused (an unsigned kernel under
/// lockdown, no `CONFIG_KEXEC_FILE`) the older call does it, without purgatory's slow check of its hashes. Both tries
/// are one step, which fails only if both fail: a refusal that was got around is no failure. Slow machines ask for the
/// older call first (see [`UNCHECKED`]).
async fn kexec_load(files: &Files, running: &str, cmdline: &str) -> StepResult {
    let start = Instant::now();
    let mut tries = String::new();
    let mut step = StepResult::failed("load-crash-kernel", "");
    let mut ways = [&["-p", "-s"][..], &["-p", "-c", "-i"][..]];
    if running.split_whitespace().any(|word| word == UNCHECKED) {
        ways.reverse();
    }
    for flags in ways {
        let mut arguments: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        arguments.push(files.kernel.display().to_string());
        arguments.push(format!("--initrd={}", files.initrd.display()));
        arguments.push(format!("--append={cmdline}"));
        step = execute("load-crash-kernel", "kexec", &arguments).await;
        if step.ok && !crash_kernel_is_loaded() {
            step.ok = false;
            step.output.push_str("\nkexec reports success, but /sys/kernel/kexec_crash_loaded is not 1");
        }
        let code = step.code.map_or_else(|| "no exit status".to_owned(), |code| format!("status {code}"));
        tries.push_str(&format!("kexec {}: {code}\n{}\n", flags.join(" "), step.output.trim()));
        if step.ok {
            break;
        }
    }
    StepResult { output: tries, ..step.since(start) }
}

fn crash_kernel_is_loaded() -> bool {
    std::fs::read_to_string("/sys/kernel/kexec_crash_loaded").is_ok_and(|text| text.trim() == "1")
}

struct Files {
    kernel: PathBuf,
    initrd: PathBuf,
}

async fn fetch_files(guest: &Guest, directory: &Path) -> anyhow::Result<Files> {
    std::fs::create_dir_all(directory)?;
    let files = Files { kernel: directory.join("kernel"), initrd: directory.join("initrd") };
    for (name, path) in [("kernel", &files.kernel), ("initrd", &files.initrd)] {
        let artifact = artifact(&guest.brief, name)?;
        match guest.carried(artifact) {
            // A move inside the initramfs: no second copy in memory.
            Some(carried) if std::fs::rename(&carried, path).is_ok() => {}
            Some(carried) => drop(std::fs::copy(&carried, path)?),
            None => download::fetch(&guest.client, artifact, path).await?,
        }
    }
    let ticket = Guest::archive(&guest.ticket, &guest.brief)?;
    let mut image = OpenOptions::new().append(true).open(&files.initrd)?;
    let length = image.metadata()?.len();
    image.write_all(&cpio::behind(length, &ticket))?;
    Ok(files)
}
