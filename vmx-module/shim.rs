// SPDX-License-Identifier: GPL-2.0

//! The C shim, and safe faces for it.
//!
//! Everything `extern` the module uses is declared here and nowhere else, so that the comparison with
//! `crashyard_vmx_shim.h` is one page long.

use kernel::prelude::*;

extern "C" {
    fn crashyard_vmx_virt_to_phys(virt: c_ulong) -> u64;
    fn crashyard_vmx_cpu_online(cpu: c_uint) -> bool;
    fn crashyard_vmx_cr4_shadow() -> c_ulong;
    fn crashyard_vmx_run_on(
        cpu: c_uint,
        function: unsafe extern "C" fn(*mut c_void) -> c_long,
        argument: *mut c_void,
    ) -> c_long;
    fn crashyard_vmx_reschedule();
    fn crashyard_vmx_after_exit();
    fn crashyard_vmx_get_ref() -> c_int;
    fn crashyard_vmx_put_ref();
    fn crashyard_vmx_register_callback(callback: unsafe extern "C" fn());
    fn crashyard_vmx_unregister_callback(callback: unsafe extern "C" fn());
    fn crashyard_vmx_observe(seen: unsafe extern "C" fn()) -> c_int;
    fn crashyard_vmx_unobserve();
    fn crashyard_vmx_guard_offline(may_go: unsafe extern "C" fn(c_uint) -> c_int) -> c_int;
    fn crashyard_vmx_unguard_offline(state: c_int);
    fn crashyard_vmx_panic_in_irq() -> c_int;
    fn crashyard_vmx_panic_in_nmi(cpu: c_uint) -> c_int;
}

/// Physical address of direct-map memory.
///
/// # Safety
///
/// `virt` must lie in the kernel's direct map.
pub(crate) unsafe fn virt_to_phys(virt: usize) -> u64 {
    // SAFETY: By the caller.
    unsafe { crashyard_vmx_virt_to_phys(virt) }
}

pub(crate) fn cpu_online(cpu: u32) -> bool {
    // SAFETY: Any number may be asked about.
    unsafe { crashyard_vmx_cpu_online(cpu) }
}

/// What the kernel believes this CPU's CR4 to be.
pub(crate) fn cr4_shadow() -> u64 {
    // SAFETY: Reads a variable of the CPU this runs on.
    unsafe { crashyard_vmx_cr4_shadow() as u64 }
}

/// Runs `work` in process context on `cpu` and waits for it.
///
/// The closure stays on that CPU: it runs in a worker bound to it. Fails with `ENODEV` when the CPU is not online.
pub(crate) fn run_on<F: FnMut() -> Result>(cpu: u32, mut work: F) -> Result {
    unsafe extern "C" fn call<F: FnMut() -> Result>(argument: *mut c_void) -> c_long {
        // SAFETY: `run_on` passes its closure and waits, so nobody else holds it.
        let work = unsafe { &mut *argument.cast::<F>() };
        match work() {
            Ok(()) => 0,
            Err(error) => error.to_errno() as c_long,
        }
    }
    // SAFETY: `call::<F>` matches the type behind the pointer, which outlives the synchronous call.
    let answer = unsafe { crashyard_vmx_run_on(cpu, call::<F>, (&raw mut work).cast()) };
    kernel::error::to_result(answer as c_int)
}

pub(crate) fn reschedule() {
    // SAFETY: Called from process context only (the guest's thread).
    unsafe { crashyard_vmx_reschedule() }
}

/// Marks the TSS limit as spoilt by a VM exit.
pub(crate) fn after_exit() {
    // SAFETY: Callable from any task context.
    unsafe { crashyard_vmx_after_exit() }
}

/// Takes the core's VMX reference on this CPU: VMXON when it is the first.
///
/// Errors: `EOPNOTSUPP` without usable VMX, `EBUSY` when CR4.VMXE is set by somebody who does not count,
/// `EFAULT` when VMXON faulted (the core leaves CR4 clean).
pub(crate) fn get_ref() -> Result {
    // SAFETY: The core guards preemption itself.
    kernel::error::to_result(unsafe { crashyard_vmx_get_ref() })
}

/// Gives the reference back: VMXOFF when it was the last.
///
/// # Safety
///
/// This CPU must hold a reference from [`get_ref`].
pub(crate) unsafe fn put_ref() {
    // SAFETY: By the caller.
    unsafe { crashyard_vmx_put_ref() }
}

/// Occupies the core's one emergency callback slot.
///
/// # Safety
///
/// The slot must be free, and `callback` must stay valid until [`unregister_callback`].
pub(crate) unsafe fn register_callback(callback: unsafe extern "C" fn()) {
    // SAFETY: By the caller.
    unsafe { crashyard_vmx_register_callback(callback) }
}

/// Frees the slot and waits until no CPU can be inside the callback.
///
/// # Safety
///
/// `callback` must be the registered one.
pub(crate) unsafe fn unregister_callback(callback: unsafe extern "C" fn()) {
    // SAFETY: By the caller.
    unsafe { crashyard_vmx_unregister_callback(callback) }
}

/// Has `seen` called whenever the core's emergency function returns on a CPU.
///
/// # Safety
///
/// `seen` may run in an NMI and must stay valid until [`unobserve`].
pub(crate) unsafe fn observe(seen: unsafe extern "C" fn()) -> Result {
    // SAFETY: By the caller.
    kernel::error::to_result(unsafe { crashyard_vmx_observe(seen) })
}

/// # Safety
///
/// Only after a successful [`observe`].
pub(crate) unsafe fn unobserve() {
    // SAFETY: By the caller.
    unsafe { crashyard_vmx_unobserve() }
}

/// Has `may_go` asked before a CPU goes offline; returns the number to hand to [`unguard_offline`].
///
/// # Safety
///
/// `may_go` must stay valid until [`unguard_offline`].
pub(crate) unsafe fn guard_offline(may_go: unsafe extern "C" fn(c_uint) -> c_int) -> Result<c_int> {
    // SAFETY: By the caller.
    let state = unsafe { crashyard_vmx_guard_offline(may_go) };
    kernel::error::to_result(state.min(0))?;
    Ok(state)
}

/// # Safety
///
/// `state` must come from [`guard_offline`], once.
pub(crate) unsafe fn unguard_offline(state: c_int) {
    // SAFETY: By the caller.
    unsafe { crashyard_vmx_unguard_offline(state) }
}

pub(crate) fn panic_in_irq(cpu: u32) -> Result {
    // SAFETY: Ends in a panic on `cpu`, which is what was asked for.
    run_on(cpu, || kernel::error::to_result(unsafe { crashyard_vmx_panic_in_irq() }))
}

pub(crate) fn panic_in_nmi(cpu: u32) -> Result {
    // SAFETY: As above.
    kernel::error::to_result(unsafe { crashyard_vmx_panic_in_nmi(cpu) })
}
