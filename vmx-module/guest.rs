// SPDX-License-Identifier: GPL-2.0

//! The smallest guest there is: two instructions that spin in VMX non-root operation.
//!
//! It exists so that the shootdown NMI of a crash finds the CPU *inside a guest*. It runs on the kernel's own page tables
//! (no EPT), at privilege level 0, with interrupts enabled and every interrupt, NMI and exception made a VM exit. It touches
//! no register and no memory, which is why entering it saves nothing but the stack pointer.
//!
//! A kernel thread bound to the CPU keeps entering it, serves interrupts between entries, and passes an NMI on to the
//! kernel's handler. In a crash it never returns from there.

use kernel::{
    bindings,
    interrupt::local_interrupt_disable,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::{
    record::{
        Slot,
        SlotState, //
    },
    shim,
    vmcs::errno,
    vmx::{
        self,
        vmwrite, //
    },
};

pub(crate) const HOST_RSP: u64 = 0x6c14;
pub(crate) const HOST_RIP: u64 = 0x6c16;
const EXIT_REASON: u64 = 0x4402;
const EXIT_INTERRUPTION: u64 = 0x4404;

const EXIT_EXCEPTION_OR_NMI: u64 = 0;
const EXIT_EXTERNAL_INTERRUPT: u64 = 1;
const INTERRUPTION_TYPE_NMI: u64 = 2;

const MSR_VMX_BASIC: u32 = 0x480;
const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_SYSENTER_CS: u32 = 0x174;
const MSR_SYSENTER_ESP: u32 = 0x175;
const MSR_SYSENTER_EIP: u32 = 0x176;

// Interrupts are on in the guest (RFLAGS below), so no `sti` is needed.
core::arch::global_asm!(
    ".pushsection .text, \"ax\", @progbits",
    ".balign 16",
    ".type crashyard_vmx_spin, @function",
    "crashyard_vmx_spin:",
    "pause",
    "jmp crashyard_vmx_spin",
    ".size crashyard_vmx_spin, . - crashyard_vmx_spin",
    ".popsection",
);

extern "C" {
    fn crashyard_vmx_spin();
}

fn read(msr: u32) -> Result<u64> {
    vmx::rdmsr(msr).ok_or(EIO)
}

/// The control word nearest to `wanted` that the CPU allows; `EOPNOTSUPP` when a wanted bit is not to be had.
///
/// `msr` is the old capability register; its TRUE variant is used where the CPU has it.
fn control(msr: u32, true_msr: u32, wanted: u64) -> Result<u64> {
    let capability = read(if read(MSR_VMX_BASIC)? >> 55 & 1 != 0 { true_msr } else { msr })?;
    let (must, may) = (capability & 0xffff_ffff, capability >> 32);
    if wanted & !may != 0 {
        return Err(EOPNOTSUPP);
    }
    Ok(wanted & may | must)
}

/// Writes a list of fields, stopping at the first that fails.
fn write_all(fields: &[(u64, u64)]) -> Result {
    for &(field, value) in fields {
        vmwrite(field, value).map_err(|failure| {
            pr_err!("VMWRITE of field {:#x}\n", field);
            errno("VMWRITE", failure)
        })?;
    }
    Ok(())
}

/// Base of the task state segment, from its 16-byte descriptor.
fn tss_base(gdt: &vmx::Table) -> u64 {
    let base = gdt.base;
    let descriptor = (base + (vmx::tr() & !7)) as *const u64;
    // SAFETY: TR names a descriptor of the GDT, which is mapped.
    let (low, high) = unsafe { (descriptor.read_unaligned(), descriptor.add(1).read_unaligned()) };
    low >> 16 & 0xff_ffff | low >> 56 << 24 | high << 32
}

/// Fills the current VMCS, all but what changes from entry to entry.
pub(crate) fn fill_current_vmcs() -> Result {
    if vmx::cr4() & vmx::CR4_FRED != 0 {
        pr_err!("vmcs-launched needs IDT event delivery, this kernel runs with FRED\n");
        return Err(EOPNOTSUPP);
    }
    let gdt = vmx::gdt();
    let idt = vmx::idt();
    let (gdt_base, gdt_limit) = (gdt.base, u64::from(gdt.limit));
    let (idt_base, idt_limit) = (idt.base, u64::from(idt.limit));
    let tss = tss_base(&gdt);
    let sysenter = (read(MSR_SYSENTER_CS)?, read(MSR_SYSENTER_ESP)?, read(MSR_SYSENTER_EIP)?);
    const UNUSABLE: u64 = 1 << 16;

    // Controls: every interrupt and NMI leaves the guest; 64-bit on both sides; every exception leaves it too.
    write_all(&[
        (0x4000, control(0x481, 0x48d, 1 << 0 | 1 << 3)?),
        (0x4002, control(0x482, 0x48e, 0)?),
        (0x400c, control(0x483, 0x48f, 1 << 9)?),
        (0x4012, control(0x484, 0x490, 1 << 9)?),
        (0x4004, 0xffff_ffff), // exception bitmap
        (0x4006, 0),           // page-fault error-code mask and match: every page fault
        (0x4008, 0),
        (0x400a, 0), // CR3 targets
        (0x400e, 0), // MSR lists: none
        (0x4010, 0),
        (0x4014, 0),
        (0x4016, 0), // no event to inject
        (0x6000, 0), // CR0 and CR4: the guest owns every bit
        (0x6002, 0),
        (0x2800, u64::MAX), // no shadow VMCS
    ])?;
    // Host state that stays.
    write_all(&[
        (0x0c00, 0), // ES, CS, SS, DS, FS, GS, TR selectors
        (0x0c02, vmx::cs()),
        (0x0c04, vmx::ss() & !7),
        (0x0c06, 0),
        (0x0c08, 0),
        (0x0c0a, 0),
        (0x0c0c, vmx::tr() & !7),
        (0x4c00, sysenter.0),
        (0x6c10, sysenter.1),
        (0x6c12, sysenter.2),
        (0x6c0a, tss),
        (0x6c0c, gdt_base),
        (0x6c0e, idt_base),
    ])?;
    // Guest: flat 64-bit code, no data segments, the host's tables.
    write_all(&[
        (0x0802, vmx::cs()),
        (0x4802, 0xffff_ffff),
        (0x4816, 0xa09b), // present, code, accessed, 64-bit
        (0x6808, 0),
        (0x0804, 0),
        (0x4804, 0),
        (0x4818, UNUSABLE), // SS
        (0x680a, 0),
        (0x0800, 0),
        (0x4800, 0),
        (0x4814, UNUSABLE), // ES
        (0x6806, 0),
        (0x0806, 0),
        (0x4806, 0),
        (0x481a, UNUSABLE), // DS
        (0x680c, 0),
        (0x0808, 0),
        (0x4808, 0),
        (0x481c, UNUSABLE), // FS
        (0x680e, 0),
        (0x080a, 0),
        (0x480a, 0),
        (0x481e, UNUSABLE), // GS
        (0x6810, 0),
        (0x080c, 0),
        (0x480c, 0),
        (0x4820, UNUSABLE), // LDTR
        (0x6812, 0),
        (0x080e, vmx::tr() & !7),
        (0x480e, 0x67),
        (0x4822, 0x8b), // busy 64-bit TSS
        (0x6814, tss),
        (0x6816, gdt_base),
        (0x4810, gdt_limit),
        (0x6818, idt_base),
        (0x4812, idt_limit),
        (0x681a, 0x400), // DR7
        (0x681c, 0),     // RSP: never used
        (0x681e, crashyard_vmx_spin as *const () as u64),
        (0x6820, 0x202), // RFLAGS: interrupts enabled
        (0x6822, 0),     // pending debug exceptions
        (0x482a, sysenter.0),
        (0x6824, sysenter.1),
        (0x6826, sysenter.2),
        (0x2802, 0), // DEBUGCTL
        (0x4824, 0), // interruptibility
        (0x4826, 0), // active
    ])
}

/// Host and guest state that may differ from entry to entry: this thread may have been rescheduled in between.
fn refresh() -> Result {
    let (cr0, cr3, cr4) = (vmx::cr0(), vmx::cr3(), vmx::cr4());
    write_all(&[
        (0x6c00, cr0),
        (0x6c02, cr3),
        (0x6c04, cr4),
        (0x6c06, read(MSR_FS_BASE)?),
        (0x6c08, read(MSR_GS_BASE)?),
        (0x6800, cr0),
        (0x6802, cr3),
        (0x6804, cr4),
    ])
}

/// The thread that keeps a CPU in the guest.
pub(crate) struct Guest {
    thread: *mut bindings::task_struct,
    shared: KBox<Shared>,
}

// SAFETY: The thread pointer is only used to stop the thread, by whoever owns the `Guest`.
unsafe impl Send for Guest {}

struct Shared {
    slot: *const Slot,
    vmcs: u64,
    exits: Atomic<u64>,
    /// errno of a guest that could not go on, 0 while it can.
    failure: Atomic<i32>,
}

impl Guest {
    /// Starts entering the guest of `vmcs`, which is filled, loaded on `cpu` and described by `slot`.
    ///
    /// # Safety
    ///
    /// The VMCS and the slot must outlive the guest, and nothing else may use VMX on that CPU while it lives.
    pub(crate) unsafe fn start(cpu: u32, vmcs: u64, slot: &Slot) -> Result<Self> {
        let shared = KBox::new(Shared { slot, vmcs, exits: Atomic::new(0), failure: Atomic::new(0) }, GFP_KERNEL)?;
        let data = core::ptr::from_ref::<Shared>(&shared).cast_mut().cast();
        // SAFETY: `run` matches; its data lives in the box until the thread has been stopped (see `drop`).
        let thread = kernel::error::from_err_ptr(unsafe {
            bindings::kthread_create_on_node(Some(run), data, -1, c"crashyard/%u".as_char_ptr(), cpu)
        })?;
        // SAFETY: A new thread that has not run.
        unsafe { bindings::kthread_bind(thread, cpu) };
        // The reference keeps `thread` valid even if the thread ends by itself.
        // SAFETY: As above.
        unsafe {
            bindings::get_task_struct(thread);
            bindings::wake_up_process(thread);
        }
        Ok(Self { thread, shared })
    }

    /// Waits until the guest has been entered and left, or could not be. Gives up after five seconds.
    pub(crate) fn wait(&self) -> Result {
        for _ in 0..500 {
            kernel::error::to_result(self.shared.failure.load(Relaxed))?;
            if self.shared.exits.load(Relaxed) > 0 {
                return Ok(());
            }
            kernel::time::delay::fsleep(kernel::time::Delta::from_millis(10));
        }
        Err(ETIMEDOUT)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: We hold a reference; the thread waits to be stopped even after a failure.
        unsafe {
            bindings::kthread_stop(self.thread);
            bindings::put_task_struct(self.thread);
        }
    }
}

unsafe extern "C" fn run(data: *mut c_void) -> c_int {
    // SAFETY: `start` passes its box, which outlives this thread.
    let shared = unsafe { &*data.cast::<Shared>() };
    let mut launched = false;
    // SAFETY: We are a kthread.
    while !unsafe { bindings::kthread_should_stop() } {
        if shared.failure.load(Relaxed) != 0 {
            kernel::time::delay::fsleep(kernel::time::Delta::from_millis(10));
            continue;
        }
        if let Err(error) = once(shared, &mut launched) {
            shared.failure.store(error.to_errno(), Relaxed);
        }
        // Interrupts are on again: whatever made the guest exit has been served by now.
        shim::after_exit();
        shim::reschedule();
    }
    0
}

/// One entry and one exit.
fn once(shared: &Shared, launched: &mut bool) -> Result {
    let _irqs_off = local_interrupt_disable();
    refresh()?;
    let (gdt, idt) = (vmx::gdt(), vmx::idt());
    // SAFETY: Interrupts off, the VMCS is filled and refreshed on this CPU, the guest touches no register.
    let entered = unsafe { vmx::enter(*launched) };
    // SAFETY: Read on this CPU above.
    unsafe { vmx::restore_tables(&gdt, &idt) };
    if let Err(failure) = entered {
        let number = vmx::vmread(0x4400).unwrap_or(0);
        pr_err!("VM entry of {:#x}: VM-instruction error {}\n", shared.vmcs, number);
        return Err(errno("VM entry", failure));
    }
    let reason = vmx::vmread(EXIT_REASON).map_err(|failure| errno("VMREAD", failure))?;
    if reason >> 31 & 1 != 0 {
        pr_err!("VM entry of {:#x} failed with exit reason {:#x}\n", shared.vmcs, reason);
        return Err(EIO);
    }
    // SAFETY: `start`'s contract.
    let slot = unsafe { &*shared.slot };
    if !*launched {
        *launched = true;
        slot.set(SlotState::Launched);
    }
    slot.entries.fetch_add(1, Relaxed);
    shared.exits.fetch_add(1, Relaxed);
    match reason & 0xffff {
        EXIT_EXTERNAL_INTERRUPT => Ok(()),
        EXIT_EXCEPTION_OR_NMI => {
            let event = vmx::vmread(EXIT_INTERRUPTION).map_err(|failure| errno("VMREAD", failure))?;
            if event >> 8 & 7 != INTERRUPTION_TYPE_NMI {
                pr_err!("the guest took exception {:#x}\n", event);
                return Err(EIO);
            }
            // SAFETY: Interrupts off, IDT delivery (checked when the VMCS was filled), just after an NMI exit.
            unsafe { vmx::deliver_nmi() };
            Ok(())
        }
        other => {
            pr_err!("the guest left with exit reason {}\n", other);
            Err(EIO)
        }
    }
}
