// SPDX-License-Identifier: GPL-2.0

//! The crash record: what the crash callback did, in a form that a dump carries out of the machine.
//!
//! One page per CPU, and a header found by the symbol `crashyard_vmx_record`. Layout version 1 is specified in
//! docs/VMX.md and read by `crates/vmcore`; **any change of it is a new version**. All fields are little-endian. The
//! offsets are held by the assertions at the end of this file.
//!
//! Writers never block, allocate or print: the crash part is written in NMI context on a machine that is dying.

use core::mem::offset_of;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::page::Pages;

pub(crate) const VERSION: u32 = 1;
pub(crate) const SLOTS: usize = 64;
pub(crate) const NO_VMCS: u64 = u64::MAX;

/// Found in a dump by symbol. Zero `cpus` means: the module is loaded but has no records yet.
#[repr(C)]
pub(crate) struct Header {
    magic: [u8; 8],
    version: u32,
    header_size: u32,
    record_size: u32,
    cpus: Atomic<u32>,
    table_virt: Atomic<u64>,
    table_phys: Atomic<u64>,
    /// Order numbers given out so far; the next event of any CPU takes the next one.
    order: Atomic<u64>,
}

/// One per possible CPU, in the table the header points to.
#[repr(C)]
pub(crate) struct TableEntry {
    virt: u64,
    phys: u64,
}

#[no_mangle]
pub(crate) static crashyard_vmx_record: Header = Header {
    magic: *b"CYVMXREC",
    version: VERSION,
    header_size: size_of::<Header>() as u32,
    record_size: size_of::<Record>() as u32,
    cpus: Atomic::new(0),
    table_virt: Atomic::new(0),
    table_phys: Atomic::new(0),
    order: Atomic::new(0),
};

/// The next number in the machine-wide order of crash events, from 1.
pub(crate) fn next_order() -> u64 {
    crashyard_vmx_record.order.fetch_add(1, Relaxed) + 1
}

/// What the module knows of one VMCS of this CPU.
#[repr(C)]
pub(crate) struct Slot {
    pub(crate) phys: Atomic<u64>,
    pub(crate) virt: Atomic<u64>,
    /// Address of the list link inside the module's descriptor, to recognise it on the list.
    pub(crate) link: Atomic<u64>,
    /// A [`SlotState`].
    pub(crate) state: Atomic<u32>,
    /// 0: the callback did not touch it; else a [`Cleared`].
    pub(crate) cleared: Atomic<u32>,
    /// Order number of that VMCLEAR.
    pub(crate) order: Atomic<u64>,
    /// VM entries that succeeded.
    pub(crate) entries: Atomic<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum SlotState {
    Free = 0,
    /// Allocated, VMCLEARed, in no list.
    Clear = 1,
    /// On the list and made current once: the CPU may hold it in its cache.
    Loaded = 2,
    /// As `Loaded`, and a guest was entered.
    Launched = 3,
    /// An insertion was cut: VMCLEARed, must not be seen by the walk.
    Adding = 4,
    /// A removal was cut: VMCLEARed, must still be seen by the walk unless all writes were made.
    Deleting = 5,
}

#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Cleared {
    Done = 1,
    FailInvalid = 2,
    FailValid = 3,
    Fault = 4,
}

#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Vmxoff {
    /// The core's emergency function returned and CR4.VMXE was clear.
    Seen = 1,
    /// It returned and CR4.VMXE was still set.
    StillOn = 2,
}

/// One CPU's page.
#[repr(C)]
pub(crate) struct Record {
    magic: [u8; 8],
    version: u32,
    size: u32,
    cpu: u32,
    /// A [`crate::cpu::State`].
    pub(crate) state: Atomic<u32>,
    slot_count: u32,
    slot_size: u32,
    slots_offset: u32,
    /// VMCSes the module believes to be on the list.
    pub(crate) listed: Atomic<u32>,
    list_head: u64,
    /// VMCS revision id of this machine.
    pub(crate) revision: u32,
    _reserved: u32,
    _reserved2: u64,
    /// Order number of the callback's first entry on this CPU; 0: it never ran here.
    pub(crate) entered: Atomic<u64>,
    pub(crate) runs: Atomic<u32>,
    /// A [`crate::list::End`]; 0: not walked.
    pub(crate) walk_end: Atomic<u32>,
    pub(crate) visited: Atomic<u32>,
    pub(crate) vmclears: Atomic<u32>,
    pub(crate) vmclears_failed: Atomic<u32>,
    pub(crate) faults: Atomic<u32>,
    pub(crate) cr4_at_entry: Atomic<u64>,
    pub(crate) current_at_entry: Atomic<u64>,
    pub(crate) current_at_exit: Atomic<u64>,
    pub(crate) tsc_at_entry: Atomic<u64>,
    pub(crate) tsc_at_exit: Atomic<u64>,
    /// 0: nobody looked; else a [`Vmxoff`].
    pub(crate) vmxoff: Atomic<u32>,
    /// 1 when the return probe is in place, so that a `vmxoff` of 0 means "did not get there".
    pub(crate) observed: Atomic<u32>,
    pub(crate) cr4_after: Atomic<u64>,
    pub(crate) vmxoff_order: Atomic<u64>,
    _reserved3: [u64; 12],
    pub(crate) slots: [Slot; SLOTS],
}

/// The page of one CPU, owned. Its content is reached through `Deref`.
pub(crate) struct RecordPage(Pages);

impl RecordPage {
    /// A zeroed page with the constant part filled in.
    pub(crate) fn new(cpu: u32, revision: u32, list_head: u64) -> Result<Self> {
        let page = Pages::one()?;
        let record = page.address().cast::<Record>();
        // SAFETY: The page is ours alone, zeroed (a valid `Record`), aligned and large enough (asserted below).
        unsafe {
            (*record).magic = *b"CYVMXCPU";
            (*record).version = VERSION;
            (*record).size = size_of::<Record>() as u32;
            (*record).cpu = cpu;
            (*record).slot_count = SLOTS as u32;
            (*record).slot_size = size_of::<Slot>() as u32;
            (*record).slots_offset = offset_of!(Record, slots) as u32;
            (*record).list_head = list_head;
            (*record).revision = revision;
        }
        Ok(Self(page))
    }

    pub(crate) fn phys(&self) -> u64 {
        self.0.phys()
    }
}

impl core::ops::Deref for RecordPage {
    type Target = Record;

    fn deref(&self) -> &Record {
        // SAFETY: The page holds a `Record` for as long as it lives; what changes in it is atomic.
        unsafe { &*self.0.address().cast::<Record>() }
    }
}

impl Slot {
    /// Claims the slot for a VMCS.
    pub(crate) fn occupy(&self, phys: u64, virt: u64, link: u64) {
        self.phys.store(phys, Relaxed);
        self.virt.store(virt, Relaxed);
        self.link.store(link, Relaxed);
        self.cleared.store(0, Relaxed);
        self.order.store(0, Relaxed);
        self.entries.store(0, Relaxed);
        self.set(SlotState::Clear);
    }

    pub(crate) fn set(&self, state: SlotState) {
        self.state.store(state as u32, Relaxed);
    }
}

/// The table of all records, and the header pointing to it for as long as this lives.
pub(crate) struct Published(#[expect(dead_code, reason = "held for its memory")] Pages);

impl Published {
    pub(crate) fn new<'a>(records: impl ExactSizeIterator<Item = &'a RecordPage>) -> Result<Self> {
        let cpus = records.len();
        let table = Pages::with_size(cpus * size_of::<TableEntry>())?;
        for (index, record) in records.enumerate() {
            let entry = TableEntry { virt: record.0.address() as u64, phys: record.phys() };
            // SAFETY: The table has room for `cpus` entries and nobody reads it before the header points to it.
            unsafe { table.address().cast::<TableEntry>().add(index).write(entry) };
        }
        crashyard_vmx_record.table_virt.store(table.address() as u64, Relaxed);
        crashyard_vmx_record.table_phys.store(table.phys(), Relaxed);
        crashyard_vmx_record.cpus.store(cpus as u32, Relaxed);
        Ok(Self(table))
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        crashyard_vmx_record.cpus.store(0, Relaxed);
        crashyard_vmx_record.table_virt.store(0, Relaxed);
        crashyard_vmx_record.table_phys.store(0, Relaxed);
    }
}

const _: () = {
    assert!(size_of::<Header>() == 48);
    assert!(offset_of!(Header, table_virt) == 24);
    assert!(offset_of!(Header, order) == 40);
    assert!(size_of::<Slot>() == 48);
    assert!(offset_of!(Slot, state) == 24);
    assert!(offset_of!(Slot, entries) == 40);
    assert!(offset_of!(Record, listed) == 36);
    assert!(offset_of!(Record, list_head) == 40);
    assert!(offset_of!(Record, entered) == 64);
    assert!(offset_of!(Record, cr4_at_entry) == 96);
    assert!(offset_of!(Record, vmxoff) == 136);
    assert!(offset_of!(Record, vmxoff_order) == 152);
    assert!(offset_of!(Record, slots) == 256);
    assert!(size_of::<Record>() <= crate::page::SIZE);
};
