//! Starts drgn or crash where they are and the debuginfo belongs to the crashed kernel; otherwise says what is missing.

use super::{With, print, text};
use crate::debuginfo;
use anyhow::{Context as _, bail};
use crashyard_vmcore::{Limits, ReadAt as _, rearranged};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::runtime::Runtime;
use tokio::signal::unix::SignalKind;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// Opens a dump as was asked.
pub fn open(file: &Path, with: With, vmlinux: Option<&Path>, runtime: &Runtime) -> anyhow::Result<()> {
    let source = File::open(file).with_context(|| file.display().to_string())?;
    if with == With::Triage {
        return triage(&source);
    }
    let capsule = crashyard_vmcore::summarise(&source, &Limits::default())?;
    let wanted: &[With] = match with {
        With::Auto => &[With::Drgn, With::Crash],
        With::Crash => &[With::Crash],
        _ => &[With::Drgn],
    };
    let tool = wanted.iter().find_map(|tool| Some((*tool, program(tool.name()?)?)));
    let mut debuginfo = debuginfo::find(&capsule.release, capsule.build_id.as_deref(), vmlinux)?;
    if let (Some(_), None, Some(build_id)) = (&tool, &debuginfo, &capsule.build_id)
        && debuginfo::has_servers()
    {
        debuginfo = runtime.block_on(debuginfo::fetch(build_id))?;
    }
    match (tool, debuginfo) {
        (Some((tool, program)), Some(vmlinux)) => {
            // Ctrl-C is the debugger's, which ends a command by it: this program must not end and leave it to fight the
            // shell for the terminal.
            let _entered = runtime.enter();
            let _interrupts = tokio::signal::unix::signal(SignalKind::interrupt())?;
            start(tool, &program, file, &source, &vmlinux)
        }
        (tool, debuginfo) => {
            let missing = if tool.is_none() { wanted } else { &[] };
            let advice = advice(missing, debuginfo.is_some(), &text::safe(&capsule.release));
            if with != With::Auto {
                bail!("{advice}");
            }
            triage(&source)?;
            eprintln!("\n{advice}\nMore of this dump without any of that: crashyard triage vmcore {}", file.display());
            Ok(())
        }
    }
}

impl With {
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Drgn => Some("drgn"),
            Self::Crash => Some("crash"),
            _ => None,
        }
    }

    fn install(self) -> Option<&'static str> {
        match self {
            Self::Drgn => Some("pip install drgn, dnf install drgn"),
            Self::Crash => Some("apt install crash, dnf install crash"),
            _ => None,
        }
    }
}

fn triage(source: &File) -> anyhow::Result<()> {
    print(&crashyard_vmcore::capsule(source, &crashyard_vmcore::Options::default())?)
}

/// What to install, one line for each thing that is missing; of the tools any one would do.
fn advice(missing: &[With], debuginfo: bool, release: &str) -> String {
    let mut lines = Vec::new();
    if !missing.is_empty() {
        let tools: Vec<&str> = missing.iter().filter_map(|tool| tool.name()).collect();
        let are = if tools.len() == 1 { "is" } else { "are" };
        let ways: Vec<&str> = missing.iter().filter_map(|tool| tool.install()).collect();
        lines.push(format!("{} {are} not installed: {}", tools.join(" and "), ways.join(", or ")));
    }
    if !debuginfo {
        lines.push(format!(
            "no vmlinux with debuginfo for {release} was found: apt install linux-image-{release}-dbg (Debian), \
             dnf debuginfo-install kernel-{release} (Fedora), a debuginfod server in {}, or --vmlinux FILE for a kernel \
             of your own",
            debuginfo::SERVERS
        ));
    }
    lines.join("\n")
}

/// A program of this name in `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn start(tool: With, program: &Path, file: &Path, source: &File, vmlinux: &Path) -> anyhow::Result<()> {
    let plain = plain(file, source)?;
    let mut command = Command::new(program);
    match tool {
        With::Crash => command.arg(vmlinux).arg(&plain),
        _ => command.arg("-c").arg(&plain).arg("-s").arg(vmlinux),
    };
    eprintln!("Starting {} with {}", program.display(), vmlinux.display());
    let status = command.status().with_context(|| format!("cannot start {}", program.display()))?;
    if !status.success() {
        bail!(
            "{} ended with {status}. It may not know this kernel; --with triage needs no help from it.",
            program.display()
        );
    }
    Ok(())
}

/// The dump as a file that every tool reads: a flattened one is put together beside it, once.
fn plain(file: &Path, source: &File) -> anyhow::Result<PathBuf> {
    let Some(flat) = rearranged(source, &Limits::default())? else { return Ok(file.to_owned()) };
    let (plain, part) = (file.with_extension("plain"), file.with_extension("plain.part"));
    if plain.is_file() {
        return Ok(plain);
    }
    eprintln!("Putting the flattened dump together for it");
    let out = File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < flat.len() {
        let count = flat.read_at(at, &mut buffer)?;
        if count == 0 {
            bail!("the dump ends at byte {at}, earlier than it says");
        }
        // What is zero stays a hole.
        if buffer[..count].iter().any(|byte| *byte != 0) {
            out.write_all_at(&buffer[..count], at)?;
        }
        at += count as u64;
    }
    out.set_len(flat.len())?;
    out.sync_all()?;
    std::fs::rename(&part, &plain)?;
    Ok(plain)
}
