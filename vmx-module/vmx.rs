// SPDX-License-Identifier: GPL-2.0

//! VMX instructions that survive a fault, and the registers around them.
//!
//! Each instruction carries an exception-table entry, written from the `asm!` itself: a #UD or #GP on it is not an oops
//! but [`Failure::Fault`]. That matters twice. VMXON may fault on firmware that lied about `IA32_FEATURE_CONTROL`, and the
//! crash callback may find a CPU that has left VMX operation an instant ago.
//!
//! Nothing here changes CR4: VMX is turned on and off by the kernel's core, which keeps count and keeps its shadow of CR4.

use core::arch::asm;

/// Why a VMX instruction did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// VMfailInvalid: CF set, there is no current VMCS to hold an error number.
    Invalid,
    /// VMfailValid: ZF set, the error number is in the current VMCS.
    Valid,
    /// #UD or #GP, caught.
    Fault,
}

type Outcome = core::result::Result<(), Failure>;

/// Entry `1b -> 2b` of kind EX_TYPE_DEFAULT, in the form of `_ASM_EXTABLE` of arch/x86/include/asm/asm.h.
macro_rules! exception_entry {
    () => {
        ".pushsection __ex_table, \"aM\", @progbits, 12\n\
         .balign 4\n\
         .long (1b) - .\n\
         .long (2b) - .\n\
         .long 1\n\
         .popsection\n"
    };
}

/// One VMX instruction: the status says fault until the instruction has come to its end. MOV leaves flags alone.
macro_rules! vmx_instruction {
    ($text:literal $(, $name:ident = in(reg) $value:expr)*) => {{
        let status: u32;
        // SAFETY: The instruction reads and writes only what its operands and the current VMCS name; faults are caught.
        unsafe {
            asm!(
                concat!(
                    "movl $3, {status:e}\n",
                    "1: ", $text, "\n",
                    "movl $1, {status:e}\n",
                    "jc 2f\n",
                    "movl $2, {status:e}\n",
                    "jz 2f\n",
                    "movl $0, {status:e}\n",
                    "2:\n",
                    exception_entry!(),
                ),
                $($name = in(reg) $value,)*
                status = out(reg) status,
                options(att_syntax),
            )
        };
        outcome(status)
    }};
}

fn outcome(status: u32) -> Outcome {
    match status {
        0 => Ok(()),
        1 => Err(Failure::Invalid),
        2 => Err(Failure::Valid),
        _ => Err(Failure::Fault),
    }
}

/// VMXON with the region at physical address `region`. Only the fault test uses it: see the module's head.
pub(crate) fn vmxon(region: u64) -> Outcome {
    vmx_instruction!("vmxon ({p})", p = in(reg) &raw const region)
}

pub(crate) fn vmclear(vmcs: u64) -> Outcome {
    vmx_instruction!("vmclear ({p})", p = in(reg) &raw const vmcs)
}

pub(crate) fn vmptrld(vmcs: u64) -> Outcome {
    vmx_instruction!("vmptrld ({p})", p = in(reg) &raw const vmcs)
}

/// Physical address of the current VMCS, all ones when there is none, `None` outside VMX operation.
pub(crate) fn vmptrst() -> Option<u64> {
    let mut vmcs = 0u64;
    vmx_instruction!("vmptrst ({p})", p = in(reg) &raw mut vmcs).ok()?;
    // The asm wrote it behind the compiler's back, through the pointer it was given.
    Some(vmcs)
}

pub(crate) fn vmwrite(field: u64, value: u64) -> Outcome {
    vmx_instruction!("vmwrite {v}, {f}", v = in(reg) value, f = in(reg) field)
}

pub(crate) fn vmread(field: u64) -> core::result::Result<u64, Failure> {
    let mut value = 0u64;
    vmx_instruction!("vmread {f}, ({v})", f = in(reg) field, v = in(reg) &raw mut value)?;
    Ok(value)
}

/// Enters the guest of the current VMCS and comes back at its next VM exit, with interrupts still off.
///
/// # Safety
///
/// Interrupts are off, the current VMCS is complete but for host RIP and RSP, its host state is that of this CPU now, and
/// its guest changes no general register: none is saved here, so a guest that touched one would corrupt the caller.
pub(crate) unsafe fn enter(launched: bool) -> Outcome {
    let status: u32;
    // SAFETY: By the caller. After the exit RSP is what it was, and so is every register but RFLAGS.
    // `jna` is always taken after an entry that failed; it is conditional so that objtool sees label 4 as reachable.
    unsafe {
        asm!(
            "leaq 4f(%rip), {t}",
            "vmwrite {t}, {host_rip}",
            "vmwrite %rsp, {host_rsp}",
            "testl {launched:e}, {launched:e}",
            "movl $3, {status:e}",
            "jnz 5f",
            "1: vmlaunch",
            "jmp 6f",
            "5: vmresume",
            "6: movl $1, {status:e}",
            "jna 2f",
            "4: movl $0, {status:e}",
            "2:",
            ".pushsection __ex_table, \"aM\", @progbits, 12",
            ".balign 4",
            ".long (1b) - .",
            ".long (2b) - .",
            ".long 1",
            ".long (5b) - .",
            ".long (2b) - .",
            ".long 1",
            ".popsection",
            t = out(reg) _,
            host_rip = in(reg) crate::guest::HOST_RIP,
            host_rsp = in(reg) crate::guest::HOST_RSP,
            launched = in(reg) u32::from(launched),
            status = out(reg) status,
            options(att_syntax),
        )
    };
    outcome(status)
}

pub(crate) const CR4_VMXE: u64 = 1 << 13;
pub(crate) const CR4_FRED: u64 = 1 << 32;

macro_rules! read_register {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        pub(crate) fn $name() -> u64 {
            let value: u64;
            // SAFETY: Reads one register.
            unsafe { asm!($text, out(reg) value, options(nostack, preserves_flags, att_syntax)) };
            value
        }
    };
}

read_register!(
    /// The real CR4, not the kernel's shadow of it.
    cr4, "mov %cr4, {}"
);
read_register!(cr0, "mov %cr0, {}");
read_register!(cr3, "mov %cr3, {}");
read_register!(cs, "mov %cs, {}");
read_register!(ss, "mov %ss, {}");
read_register!(tr, "str {}");

/// A GDTR or IDTR: limit and base.
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Table {
    pub(crate) limit: u16,
    pub(crate) base: u64,
}

pub(crate) fn gdt() -> Table {
    let mut table = Table::default();
    // SAFETY: Writes ten bytes into `table`.
    unsafe { asm!("sgdt ({})", in(reg) &raw mut table, options(nostack, preserves_flags, att_syntax)) };
    table
}

pub(crate) fn idt() -> Table {
    let mut table = Table::default();
    // SAFETY: Writes ten bytes into `table`.
    unsafe { asm!("sidt ({})", in(reg) &raw mut table, options(nostack, preserves_flags, att_syntax)) };
    table
}

/// Puts limits back that a VM exit widened to 0xffff.
///
/// # Safety
///
/// The tables must have been read on this CPU with [`gdt`] and [`idt`].
pub(crate) unsafe fn restore_tables(gdt: &Table, idt: &Table) {
    // SAFETY: By the caller: the same tables, loaded again.
    unsafe {
        asm!(
            "lgdt ({g})", "lidt ({i})",
            g = in(reg) &raw const *gdt, i = in(reg) &raw const *idt,
            options(nostack, preserves_flags, att_syntax)
        )
    };
}

/// Runs the kernel's NMI handler for an NMI that arrived as a VM exit.
///
/// # Safety
///
/// Interrupts off, IDT delivery in use (no FRED), and NMIs blocked by the exit just taken.
pub(crate) unsafe fn deliver_nmi() {
    // SAFETY: By the caller: the gate, the stack switch and the IRET are those of a real NMI.
    unsafe { asm!("int $2") };
}

/// RDMSR that survives #GP.
pub(crate) fn rdmsr(msr: u32) -> Option<u64> {
    let (low, high, fault): (u32, u32, u32);
    // SAFETY: Reads a register; the fault is caught.
    unsafe {
        asm!(
            concat!(
                "movl $1, {fault:e}\n",
                "1: rdmsr\n",
                "movl $0, {fault:e}\n",
                "2:\n",
                exception_entry!(),
            ),
            fault = out(reg) fault,
            in("ecx") msr,
            inout("eax") 0 => low,
            inout("edx") 0 => high,
            options(att_syntax),
        )
    };
    (fault == 0).then_some(u64::from(high) << 32 | u64::from(low))
}

/// CPUID.1:ECX.VMX. Asked before anything else: writing CR4.VMXE on a CPU without VMX is not survivable everywhere.
pub(crate) fn cpu_has_vmx() -> bool {
    core::arch::x86_64::__cpuid(1).ecx & 1 << 5 != 0
}

pub(crate) fn timestamp() -> u64 {
    // SAFETY: RDTSC is always allowed in the kernel.
    unsafe { core::arch::x86_64::_rdtsc() }
}
