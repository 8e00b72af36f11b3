//! `crashyard triage vmcore`: a crash dump read with nothing but the file.
//!
//! Everything is asked of the library; this only chooses what to show. Text from a dump is text from a stranger: `text::safe`
//! goes over all of it before it reaches a terminal.

mod json;
pub mod text;

use crate::debuginfo;
use anyhow::{Context as _, bail};
use crashyard_vmcore::{Capsule, Dump, Kernel, Limits, Lines, Object, Options, ReadAt};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Arguments of `triage vmcore`.
#[derive(clap::Args)]
pub struct Args {
    /// The dump: ELF, KDUMP (makedumpfile), or either of them flattened; or all parts of one that makedumpfile --split wrote
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One JSON object with everything, stacks written out
    #[arg(long, group = "what")]
    json: bool,
    /// The capsule as the server stores it: equal stacks once
    #[arg(long, group = "what")]
    capsule: bool,
    /// One CPU: registers and stack
    #[arg(long, group = "what", value_name = "N")]
    cpu: Option<u32>,
    /// All threads, grouped by equal stacks
    #[arg(long, group = "what")]
    tasks: bool,
    /// The kernel log and nothing else
    #[arg(long, group = "what")]
    dmesg: bool,
    /// A value in memory: the name of a struct, and an address or a symbol
    #[arg(long = "type", group = "what", num_args = 2, value_names = ["STRUCT", "ADDR"])]
    object: Vec<String>,
    /// How many levels of nested structs --type shows
    #[arg(long, default_value_t = 2, requires = "object")]
    depth: u32,
    /// Read what is there of a dump that is cut off
    #[arg(long)]
    partial: bool,
    /// Add source lines and inlined functions; needs the kernel's debuginfo, from where distributions put it or a server in
    /// DEBUGINFOD_URLS
    #[arg(long, conflicts_with_all = ["dmesg", "object"])]
    lines: bool,
    /// The vmlinux with debuginfo for --lines
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dmesg", "object"])]
    vmlinux: Option<PathBuf>,
}

/// Runs `triage vmcore`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match show(args, &mut out).and_then(|()| Ok(out.flush()?)) {
        // `| head` is no error.
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => Ok(()),
        other => other,
    }
}

fn show(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let context = || args.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
    let files: Vec<File> = args
        .files
        .iter()
        .map(|file| File::open(file).with_context(|| file.display().to_string()))
        .collect::<anyhow::Result<_>>()?;
    if let ([file], true) = (&files[..], args.dmesg) {
        let lines = crashyard_vmcore::dmesg_only(file, &Limits::default()).with_context(context)?;
        return Ok(text::dmesg(out, &lines)?);
    }
    if let [name, address] = args.object.as_slice() {
        return show_object(args, &files, name, address, out).with_context(context);
    }
    let options = Options { partial: args.partial, ..Options::default() };
    let capsule = match &files[..] {
        [file] => crashyard_vmcore::capsule(file, &options),
        parts => crashyard_vmcore::capsule_of_parts(&sources(parts), &options),
    };
    let capsule = capsule.map_err(|error| match error {
        crashyard_vmcore::Error::Truncated { .. } | crashyard_vmcore::Error::Incomplete if files.len() == 1 => {
            anyhow::anyhow!("{error}; --partial reads what is there")
        }
        other => other.into(),
    });
    let mut capsule = capsule.with_context(context)?;
    if args.lines || args.vmlinux.is_some() {
        add_lines(&mut capsule, args.vmlinux.as_deref())?;
    }
    if args.dmesg {
        text::dmesg(out, &capsule.dmesg)?;
    } else if args.json {
        serde_json::to_writer(&mut *out, &json::expanded(&capsule)?)?;
        writeln!(out)?;
    } else if args.capsule {
        serde_json::to_writer(&mut *out, &capsule)?;
        writeln!(out)?;
    } else if let Some(number) = args.cpu {
        let Some(cpu) = capsule.cpus.iter().find(|c| c.cpu == number) else {
            bail!("there is no CPU {number}: the dump has {}", cpu_list(&capsule));
        };
        text::cpu(out, &capsule, cpu)?;
    } else if args.tasks {
        text::tasks(out, &capsule)?;
    } else {
        text::report(out, &capsule)?;
    }
    Ok(())
}

/// Adds what only debuginfo knows.
fn add_lines(capsule: &mut Capsule, given: Option<&Path>) -> anyhow::Result<()> {
    let build_id = capsule.build_id.clone();
    let mut vmlinux = debuginfo::find(&capsule.release, build_id.as_deref(), given)?;
    if let (None, Some(build_id)) = (&vmlinux, &build_id) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        vmlinux = runtime.block_on(debuginfo::fetch(build_id))?;
    }
    let Some(vmlinux) = vmlinux else {
        bail!(
            "no debuginfo of {} was found: install it (Debian: linux-image-{0}-dbg), name a server in {}, or give --vmlinux \
             FILE. Everything else needs none.",
            text::safe(&capsule.release),
            debuginfo::SERVERS
        );
    };
    let lines = Lines::open(&vmlinux).map_err(|error| anyhow::anyhow!("{}: {error}", vmlinux.display()))?;
    if lines.annotate(capsule) == 0 {
        bail!("{} has no line information for any frame of this dump", vmlinux.display());
    }
    Ok(())
}

fn cpu_list(capsule: &Capsule) -> String {
    let numbers: Vec<String> = capsule.cpus.iter().map(|c| c.cpu.to_string()).collect();
    if numbers.is_empty() { "none".into() } else { numbers.join(", ") }
}

fn sources(files: &[File]) -> Vec<&dyn ReadAt> {
    files.iter().map(|file| file as &dyn ReadAt).collect()
}

fn show_object(args: &Args, files: &[File], name: &str, address: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let limits = Limits::default();
    let dump = match files {
        [file] if args.partial => Dump::open_partial(file, &limits)?,
        [file] => Dump::open(file, &limits)?,
        parts => Dump::open_split(&sources(parts), &limits)?,
    };
    let kernel = Kernel::open(dump, &limits, None)?;
    let digits = address.strip_prefix("0x").unwrap_or(address);
    let at = kernel.symbol(address).or_else(|| u64::from_str_radix(digits, 16).ok());
    let Some(at) = at else { bail!("{address:?} is neither an address nor a symbol of this kernel") };
    let name = name.strip_prefix("struct ").or_else(|| name.strip_prefix("union ")).unwrap_or(name);
    let Some(object) = find_object(&kernel, name, at) else {
        bail!("neither this kernel nor its modules have a struct {name:?}");
    };
    writeln!(out, "{} {at:#x} = {}", text::safe(name), text::safe_lines(&object.render(args.depth)))?;
    Ok(())
}

/// A type of the kernel, or else of the first module that has it.
fn find_object<'k, 'a>(kernel: &'k Kernel<'a>, name: &str, at: u64) -> Option<Object<'k, 'a>> {
    kernel.object(name, at).or_else(|| {
        let typed =
            kernel.modules().iter().filter_map(|m| m.btf(kernel)).find_map(|b| b.composite(name).map(|ty| (b, ty)));
        typed.map(|(btf, ty)| kernel.object_of(btf, ty, at))
    })
}
