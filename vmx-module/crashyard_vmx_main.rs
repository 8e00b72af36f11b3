// SPDX-License-Identifier: GPL-2.0

//! crashyard_vmx: puts CPUs into known VMX states, so that a crash can be shown to handle them.
//!
//! Three things a crash path must get right are implemented here once more, small and checkable: every VMCS in use is
//! VMCLEARed in a crash (`list`, `crash`), a VMCS that exists is initialised (`vmcs`), and a faulting VMXON is survived
//! (`vmx`). What the callback did is left in the dump (`record`).
//!
//! VMX is turned on and off through the core's reference counting only: the module never writes CR4, so the kernel's shadow
//! of it stays right, and never executes VMXOFF, so it cannot take VMX away from KVM.
//!
//! **This module crashes machines on command.** It must never be loaded where a crash would be missed by anybody.

use kernel::{
    debugfs,
    fmt,
    new_mutex,
    prelude::*,
    sync::{
        atomic::Relaxed,
        Mutex, //
    },
    uaccess::UserSliceReader, //
};

mod command;
mod control;
mod cpu;
mod crash;
mod guest;
mod list;
mod list_test;
mod page;
mod record;
mod shim;
mod vmcs;
mod vmx;

use control::Control;

module! {
    type: CrashyardVmx,
    name: "crashyard_vmx",
    authors: ["The Crashyard authors"],
    description: "VMX states and crash triggers for crash-dump tests. Crashes the machine on command",
    license: "GPL v2",
    params: {
        observe: bool {
            default: true,
            description: "Watch the core's emergency path with a return probe and record whether VMX went off",
        },
    },
}

const MSR_FEATURE_CONTROL: u32 = 0x3a;
const MSR_VMX_BASIC: u32 = 0x480;
const FEATURE_LOCKED: u64 = 1 << 0;
const FEATURE_VMX_OUTSIDE_SMX: u64 = 1 << 2;

/// Dropped in this order: nothing may be asked for any more, then everything is undone, then it is checked.
#[pin_data]
struct CrashyardVmx {
    #[pin]
    command: debugfs::File<Shared>,
    _directory: debugfs::Dir,
    _last: Last,
}

/// The command file's data. Dropped from top to bottom as well.
#[pin_data]
struct Shared {
    _offline: OfflineGuard,
    probe: Option<Probe>,
    published: record::Published,
    #[pin]
    control: Mutex<Control>,
}

/// Keeps CPUs that are not `off` from going offline.
struct OfflineGuard(c_int);

impl OfflineGuard {
    fn new() -> Result<Self> {
        // SAFETY: Undone when dropped, before the module's text goes.
        Ok(Self(unsafe { shim::guard_offline(may_go_offline)? }))
    }
}

impl Drop for OfflineGuard {
    fn drop(&mut self) {
        // SAFETY: Ours, once.
        unsafe { shim::unguard_offline(self.0) };
    }
}

/// The return probe on the core's emergency path.
struct Probe(());

impl Probe {
    fn new() -> Result<Self> {
        // SAFETY: Undone when dropped, before the CPUs are hidden.
        unsafe { shim::observe(crash::emergency_returned)? };
        Ok(Self(()))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: Ours, once.
        unsafe { shim::unobserve() };
    }
}

/// Dropped last: says whether anything was left behind.
struct Last;

impl Drop for Last {
    fn drop(&mut self) {
        let (left, others) = control::after_unload();
        match (page::held(), left, others) {
            (0, 0, 0) => pr_info!("unloaded: VMX off on every cpu, callback free, no page left\n"),
            (0, 0, _) => pr_info!("unloaded: VMX left on for its other owner, callback not ours, no page left\n"),
            (pages, left, _) => {
                pr_err!("unloaded, leaving {} page allocations and {} other things behind\n", pages, left);
            }
        }
    }
}

/// The VMCS revision id, if this CPU can do VMX at all. CPUID is asked before any MSR, and nothing touches CR4.
fn usable_vmx() -> Result<u32> {
    if !vmx::cpu_has_vmx() {
        pr_err!("this CPU has no VMX (CPUID.1:ECX.5 is clear), not loading\n");
        return Err(ENODEV);
    }
    let features = vmx::rdmsr(MSR_FEATURE_CONTROL).ok_or(EIO)?;
    let wanted = FEATURE_LOCKED | FEATURE_VMX_OUTSIDE_SMX;
    if features & wanted != wanted {
        pr_err!("firmware has not enabled VMX (IA32_FEATURE_CONTROL {:#x}), not loading\n", features);
        return Err(EOPNOTSUPP);
    }
    // Bit 31 is always zero in the MSR; in the VMCS it would mean "shadow".
    Ok(vmx::rdmsr(MSR_VMX_BASIC).ok_or(EIO)? as u32 & 0x7fff_ffff)
}

fn all_cpus(revision: u32) -> Result<KBox<crash::Cpus>> {
    let mut cpus = KVec::new();
    for number in 0..kernel::cpu::nr_cpu_ids() {
        cpus.push(cpu::Cpu::new(number, revision)?, GFP_KERNEL)?;
    }
    Ok(KBox::new(crash::Cpus(cpus), GFP_KERNEL)?)
}

impl Shared {
    fn new() -> Result<impl PinInit<Self, Error>> {
        let revision = usable_vmx()?;
        let cpus = all_cpus(revision)?;
        let published = record::Published::new(cpus.0.iter().map(|cpu| &cpu.record))?;
        let control = Control::new(cpus)?;
        let offline = OfflineGuard::new()?;
        let probe = if module_parameters::observe.value() { Probe::new().ok() } else { None };
        for cpu in control.cpus().0.iter() {
            cpu.record.observed.store(probe.is_some().into(), Relaxed);
        }
        pr_info!(
            "loaded: {} cpus, VMCS revision {:#x}, record version {}, return probe {}\n",
            control.cpus().0.len(),
            revision,
            record::VERSION,
            if probe.is_some() { "in place" } else { "absent" }
        );
        Ok(try_pin_init!(Self {
            _offline: offline,
            probe,
            published,
            control <- new_mutex!(control),
        }? Error))
    }

    /// Write side of the command file.
    fn write(&self, reader: &mut UserSliceReader) -> Result {
        let mut line = [0u8; 64];
        let length = reader.len();
        if length > line.len() {
            return Err(E2BIG);
        }
        reader.read_slice(&mut line[..length])?;
        let line = core::str::from_utf8(&line[..length]).map_err(|_| EINVAL)?;
        self.control.lock().run(line)
    }

    /// Read side: the last answer, then one line per CPU.
    fn read(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let control = self.control.lock();
        writeln!(out, "{}", control.answer())?;
        control::describe(&control, out)
    }
}

/// A CPU that is not `off` may not leave.
unsafe extern "C" fn may_go_offline(cpu: c_uint) -> c_int {
    if crash::state_of(cpu) == 0 {
        return 0;
    }
    pr_err!("cpu{} is in use by crashyard_vmx, it stays online\n", cpu);
    EBUSY.to_errno()
}

impl kernel::InPlaceModule for CrashyardVmx {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let directory = debugfs::Dir::new(c"crashyard_vmx");
        try_pin_init!(Self {
            command <- directory.read_write_callback_file(
                c"command",
                Shared::new()?,
                &|shared: &Shared, out: &mut fmt::Formatter<'_>| shared.read(out),
                &|shared: &Shared, reader: &mut UserSliceReader| shared.write(reader),
            ),
            _directory: directory,
            _last: Last,
        }? Error)
    }
}
