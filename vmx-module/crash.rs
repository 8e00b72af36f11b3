// SPDX-License-Identifier: GPL-2.0

//! What happens in a crash: every VMCS on this CPU's list is VMCLEARed, and the record says so.
//!
//! Called by the core's emergency path on every CPU with CR4.VMXE set, before its VMXOFF: on the crashing CPU with interrupts
//! off, on the others inside the shootdown NMI, which may have come at any instruction. So: no locks, no allocation, no
//! printing, no assumption about the list but its forward pointers, and VMX instructions that survive faults.

use core::ops::ControlFlow;
use kernel::{
    cpu::CpuId,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
};

use crate::{
    cpu::Cpu,
    list::Link,
    record::{
        self,
        Cleared,
        RecordPage,
        Vmxoff,
        NO_VMCS,
        SLOTS, //
    },
    vmcs::Vmcs,
    vmx, //
};

/// All CPUs of the machine, by number; set once they are complete.
pub(crate) struct Cpus(pub(crate) KVec<Pin<KBox<Cpu>>>);

static CPUS: Atomic<*mut Cpus> = Atomic::new(core::ptr::null_mut());

/// Lets the crash path see `cpus`.
///
/// # Safety
///
/// They must stay until after [`hide`], and the callback and the observer must be unregistered before `hide`.
pub(crate) unsafe fn show(cpus: &Cpus) {
    CPUS.store(core::ptr::from_ref(cpus).cast_mut(), Release);
}

pub(crate) fn hide() {
    CPUS.store(core::ptr::null_mut(), Release);
}

fn this_cpu() -> Option<&'static Cpu> {
    // SAFETY: `show`'s contract: while the callback can run, the CPUs are there.
    let cpus = unsafe { CPUS.load(Acquire).as_ref() }?;
    cpus.0.get(CpuId::current().as_u32() as usize).map(|cpu| &**cpu)
}

/// The emergency callback.
pub(crate) unsafe extern "C" fn emergency() {
    let Some(cpu) = this_cpu() else { return };
    let record = &cpu.record;
    if record.runs.fetch_add(1, Relaxed) == 0 {
        record.entered.store(record::next_order(), Relaxed);
        record.tsc_at_entry.store(vmx::timestamp(), Relaxed);
        record.cr4_at_entry.store(vmx::cr4(), Relaxed);
        record.current_at_entry.store(vmx::vmptrst().unwrap_or(NO_VMCS), Relaxed);
    }
    // SAFETY: The links on this list are those of living VMCSes, whatever instruction was interrupted (see `list`).
    let end = unsafe {
        cpu.list.walk(SLOTS, |link| {
            clear(link, record);
            ControlFlow::Continue(())
        })
    };
    record.walk_end.store(end as u32, Relaxed);
    record.current_at_exit.store(vmx::vmptrst().unwrap_or(NO_VMCS), Relaxed);
    record.tsc_at_exit.store(vmx::timestamp(), Relaxed);
}

/// VMCLEARs one VMCS and notes the outcome.
///
/// # Safety
///
/// `link` must be the link of a living VMCS.
unsafe fn clear(link: *mut Link, record: &RecordPage) {
    record.visited.fetch_add(1, Relaxed);
    // The negative control walks like the real one and leaves out the one instruction that matters.
    if cfg!(crashyard_control = "skip-vmclear") {
        return;
    }
    // SAFETY: By the caller.
    let vmcs = unsafe { Vmcs::from_link(link) };
    let (counter, outcome) = match vmx::vmclear(vmcs.phys()) {
        Ok(()) => (&record.vmclears, Cleared::Done),
        Err(vmx::Failure::Invalid) => (&record.vmclears_failed, Cleared::FailInvalid),
        Err(vmx::Failure::Valid) => (&record.vmclears_failed, Cleared::FailValid),
        Err(vmx::Failure::Fault) => (&record.faults, Cleared::Fault),
    };
    counter.fetch_add(1, Relaxed);
    let slot = vmcs.slot(record);
    slot.cleared.store(outcome as u32, Relaxed);
    slot.order.store(record::next_order(), Relaxed);
}

/// Runs when the core's emergency function has returned on this CPU: was VMX turned off?
pub(crate) unsafe extern "C" fn emergency_returned() {
    let Some(cpu) = this_cpu() else { return };
    let cr4 = vmx::cr4();
    let seen = if cr4 & vmx::CR4_VMXE == 0 { Vmxoff::Seen } else { Vmxoff::StillOn };
    cpu.record.cr4_after.store(cr4, Relaxed);
    cpu.record.vmxoff_order.store(record::next_order(), Relaxed);
    cpu.record.vmxoff.store(seen as u32, Relaxed);
}

/// The state code of a CPU, 0 for one that is unknown.
pub(crate) fn state_of(cpu: u32) -> u32 {
    // SAFETY: `show`'s contract.
    let cpus = unsafe { CPUS.load(Acquire).as_ref() };
    cpus.and_then(|cpus| cpus.0.get(cpu as usize)).map_or(0, |cpu| cpu.record.state.load(Relaxed))
}
