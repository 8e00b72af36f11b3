// SPDX-License-Identifier: GPL-2.0

//! A VMCS that exists is initialised.
//!
//! The only way to a [`Vmcs`] is [`Vmcs::new`], and it ends with a VMCLEAR that succeeded: revision id written, CPU's cache
//! empty of it, launch state clear. There is no constructor for a half-made one, so none can be linked. VMCLEAR needs VMX
//! operation, so the constructor asks for a [`VmxOn`] as proof.

use kernel::{
    interrupt::local_interrupt_disable,
    prelude::*,
    sync::atomic::Relaxed, //
};

use crate::{
    list::{
        Link,
        List,
        ADD_WRITES,
        DELETE_WRITES, //
    },
    page::Pages,
    record::{
        RecordPage,
        Slot,
        SlotState, //
    },
    shim, vmx,
};

/// Proof that this task runs bound to a CPU that is in VMX operation on our reference.
///
/// Dropping it gives the reference back; the core executes VMXOFF when nobody else holds one. So the module never executes
/// VMXOFF itself and cannot take it away from another owner.
pub(crate) struct VmxOn(());

impl VmxOn {
    /// Takes the reference. To be called, and dropped, in a task bound to the CPU.
    ///
    /// `EBUSY`: VMX is on already, so the core's one emergency callback may belong to its owner (KVM) and our VMCSes could
    /// not be cleared in a crash.
    pub(crate) fn new() -> Result<Self> {
        if vmx::cr4() & vmx::CR4_VMXE != 0 {
            return Err(EBUSY);
        }
        shim::get_ref()?;
        Ok(Self(()))
    }
}

impl Drop for VmxOn {
    fn drop(&mut self) {
        // SAFETY: Taken in `new` on the CPU this task is bound to.
        unsafe { shim::put_ref() };
    }
}

/// An initialised VMCS and its place on the CPU's list. The link is first: the walk turns one into the other.
#[repr(C)]
pub(crate) struct Vmcs {
    link: Link,
    page: Pages,
    slot: usize,
}

/// A failure of a VMX instruction as an errno: `EIO`, whatever the kind; the kind is in the log.
pub(crate) fn errno(what: &str, failure: vmx::Failure) -> Error {
    pr_err!("{} failed: {:?}\n", what, failure);
    EIO
}

impl Vmcs {
    /// Allocates and initialises a VMCS and claims the record's slot number `slot` for it.
    pub(crate) fn new(_proof: &VmxOn, revision: u32, record: &RecordPage, slot: usize) -> Result<KBox<Self>> {
        let page = Pages::one()?;
        // SAFETY: The page is ours and larger than a u32. Bit 31 stays clear: not a shadow VMCS.
        unsafe { page.address().cast::<u32>().write(revision) };
        vmx::vmclear(page.phys()).map_err(|failure| errno("VMCLEAR of a new VMCS", failure))?;
        let vmcs = KBox::new(Self { link: Link::new(), page, slot }, GFP_KERNEL)?;
        let place = record.slots.get(slot).ok_or(ENOSPC)?;
        place.occupy(vmcs.page.phys(), vmcs.page.address() as u64, &raw const vmcs.link as u64);
        Ok(vmcs)
    }

    /// The VMCS a link of a CPU's list belongs to.
    ///
    /// # Safety
    ///
    /// `link` must be the link of a living `Vmcs`.
    pub(crate) unsafe fn from_link<'a>(link: *mut Link) -> &'a Self {
        // SAFETY: By the caller; the link is the first field of a `repr(C)` struct.
        unsafe { &*link.cast::<Self>() }
    }

    pub(crate) fn phys(&self) -> u64 {
        self.page.phys()
    }

    pub(crate) fn slot<'a>(&self, record: &'a RecordPage) -> &'a Slot {
        &record.slots[self.slot]
    }

    /// Makes the VMCS current on this CPU, on the list **first**: from the moment the CPU may cache it, a crash clears it.
    pub(crate) fn load(&self, _proof: &VmxOn, list: &List, record: &RecordPage) -> Result {
        let _irqs_off = local_interrupt_disable();
        // SAFETY: On the owning CPU, interrupts off; in no list; lives in a box until `unload`.
        unsafe { list.add(&self.link, ADD_WRITES) };
        self.slot(record).set(SlotState::Loaded);
        record.listed.fetch_add(1, Relaxed);
        vmx::vmptrld(self.phys()).map_err(|failure| errno("VMPTRLD", failure))
    }

    /// VMCLEARs and leaves the list, in this order: while the CPU may cache it, a crash finds it.
    pub(crate) fn unload(&self, _proof: &VmxOn, list: &List, record: &RecordPage) -> Result {
        let _irqs_off = local_interrupt_disable();
        let cleared = vmx::vmclear(self.phys()).map_err(|failure| errno("VMCLEAR", failure));
        // SAFETY: On the owning CPU, interrupts off; in the list.
        unsafe { list.delete(&self.link, DELETE_WRITES) };
        self.slot(record).set(SlotState::Free);
        record.listed.fetch_sub(1, Relaxed);
        cleared
    }

    /// Leaves an insertion half-done after `cut` writes. Not made current: it is not a loaded VMCS yet.
    pub(crate) fn cut_add(&self, list: &List, record: &RecordPage, cut: usize) {
        let _irqs_off = local_interrupt_disable();
        let whole = cut >= ADD_WRITES;
        self.slot(record).set(if whole { SlotState::Loaded } else { SlotState::Adding });
        record.listed.fetch_add(u32::from(whole), Relaxed);
        // SAFETY: As in `load`; only the walk of a crash or `complete_add` follows.
        unsafe { list.add(&self.link, cut) };
    }

    /// Does a cut insertion again, whole, so that [`unload`](Self::unload) can follow.
    pub(crate) fn complete_add(&self, list: &List, record: &RecordPage) {
        let _irqs_off = local_interrupt_disable();
        let listed = self.slot(record).state.load(Relaxed) == SlotState::Loaded as u32;
        if !listed {
            // SAFETY: As in `load`; the insertion was cut before its last write.
            unsafe { list.add(&self.link, ADD_WRITES) };
            record.listed.fetch_add(1, Relaxed);
        }
    }

    /// VMCLEARs, then leaves a removal half-done after `cut` writes. [`unload`](Self::unload) completes it.
    pub(crate) fn cut_delete(&self, _proof: &VmxOn, list: &List, record: &RecordPage, cut: usize) -> Result {
        let _irqs_off = local_interrupt_disable();
        vmx::vmclear(self.phys()).map_err(|failure| errno("VMCLEAR", failure))?;
        self.slot(record).set(SlotState::Deleting);
        // SAFETY: As in `unload`; only the walk of a crash or `unload` follows.
        unsafe { list.delete(&self.link, cut) };
        Ok(())
    }
}
