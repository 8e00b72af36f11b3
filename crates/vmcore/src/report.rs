//! From an open kernel to a [`Capsule`].
//!
//! Each part is read on its own: what one part cannot read is a warning, and the others go on.

mod cpus;
mod facts;
mod kvm;
mod locks;
mod stacks;
mod tasks;
mod vmx;

use crate::capsule::{Capsule, ModuleInfo, TaskRef, VERSION, Vmx};
use crate::dmesg;
use crate::error::{Error, Limits};
use crate::format::Dump;
use crate::kernel::Kernel;
use crate::read_at::ReadAt;
use crate::summary::{oops_message, panic_message};
use crate::tables::TableCache;

/// How to make a capsule.
#[derive(Clone, Default)]
pub struct Options<'c> {
    /// Bounds.
    pub limits: Limits,
    /// Tables of kernels seen before.
    pub cache: Option<&'c TableCache>,
    /// Read what is there of a dump that is cut off or still arriving, instead of refusing it.
    pub partial: bool,
}

/// Reads a whole capsule.
///
/// # Errors
/// The dump cannot be opened; see [`Error`].
pub fn capsule(src: &dyn ReadAt, options: &Options) -> Result<Capsule, Error> {
    let dump = Dump::open_partial(src, &options.limits)?;
    let cut = match dump.check_complete() {
        Err(error) if options.partial => Some(error.to_string()),
        other => other.map(|()| None)?,
    };
    of_dump(dump, cut, options)
}

/// Reads a whole capsule of a dump that `makedumpfile --split` wrote in parts, given in any order.
///
/// # Errors
/// The dump cannot be opened, or is not whole; see [`Error`].
pub fn capsule_of_parts(parts: &[&dyn ReadAt], options: &Options) -> Result<Capsule, Error> {
    of_dump(Dump::open_split(parts, &options.limits)?, None, options)
}

fn of_dump(dump: Dump, cut: Option<String>, options: &Options) -> Result<Capsule, Error> {
    let elsewhere = dump.elsewhere();
    let kernel = Kernel::open(dump, &options.limits, options.cache)?;
    if let Some(cut) = cut {
        kernel.warn(cut);
    }
    if elsewhere > 0 {
        kernel.warn(format!(
            "{elsewhere} pages are in other parts of this split dump, which must be read together with it"
        ));
    }
    Ok(of_kernel(&kernel))
}

/// Reads only what a dump shows of VMX: KVM's lists and the farm's crash records.
///
/// # Errors
/// The dump cannot be opened; see [`Error`].
pub fn vmx(src: &dyn ReadAt, options: &Options) -> Result<Vmx, Error> {
    let kernel = Kernel::open(Dump::open(src, &options.limits)?, &options.limits, options.cache)?;
    let (record, kvm) = (vmx::record(&kernel), kvm::read(&kernel));
    Ok(Vmx { record, kvm, warnings: kernel.warnings() })
}

/// Reads a capsule from an open kernel.
pub fn of_kernel(kernel: &Kernel) -> Capsule {
    let memory = kernel.memory();
    let info = memory.info();
    let log = dmesg::read(memory, kernel.limits()).unwrap_or_else(|fault| {
        kernel.warn(format!("kernel log: {fault}"));
        dmesg::Log::default()
    });
    log.warnings().for_each(|warning| kernel.warn(warning));
    let mut stacks = stacks::Stacks::default();
    let mut cpus = cpus::read(kernel, &mut stacks);
    let tasks = tasks::read(kernel, &cpus, &mut stacks);
    cpus::add_waiting(&mut cpus, &tasks);
    let panic_cpu = cpus::panic_cpu(kernel);
    let panicked = panic_cpu.and_then(|n| cpus.iter().find(|c| c.cpu == n));
    let panic_task = panicked.and_then(|c| Some(TaskRef { pid: c.pid?, comm: c.comm.clone()? }));
    Capsule {
        capsule_version: VERSION,
        release: info.release().to_owned(),
        banner: facts::banner(kernel),
        build_id: info.build_id().map(str::to_ascii_lowercase),
        kernel_offset: info.kernel_offset().map(crate::capsule::Addr),
        crash_time: info.crash_time().or_else(|| facts::wall_clock(kernel)),
        uptime_ns: cpus.iter().filter_map(|c| Some(c.run_queue.as_ref()?.clock_ns)).max(),
        taint: facts::taint(kernel),
        panic_message: panic_message(&log.lines),
        oops_message: oops_message(&log.lines),
        panic_cpu,
        panic_task,
        command_line: facts::command_line(kernel),
        format: memory.dump().format(),
        pages: memory.dump().page_counts(),
        modules: kernel.modules().iter().map(module).collect(),
        memory: facts::memory(kernel),
        kvm: kvm::read(kernel),
        vmx_record: vmx::record(kernel),
        dmesg: log.lines,
        stacks: stacks.into_list(),
        cpus,
        tasks: tasks.into_iter().map(|t| t.task).collect(),
        warnings: kernel.warnings(),
    }
}

fn module(m: &crate::modules::Module) -> ModuleInfo {
    ModuleInfo {
        name: m.name.clone(),
        base: crate::capsule::Addr(m.ranges.first().map_or(0, |r| r.start)),
        size: m.ranges.iter().map(|r| r.end - r.start).sum(),
        taints: facts::taint_letters(m.taints),
    }
}
