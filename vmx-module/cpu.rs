// SPDX-License-Identifier: GPL-2.0

//! The VMX states of a CPU, and the way from one to another.
//!
//! There is one way: back to `off`, then up to what was asked for. So a state never depends on the one before it.
//! All of it runs on the CPU itself, in process context, one command at a time (the caller holds the command lock).

use kernel::{
    prelude::*,
    sync::atomic::Relaxed, //
};

use crate::{
    guest::{
        self,
        Guest, //
    },
    list::{
        List,
        ADD_WRITES,
        DELETE_WRITES, //
    },
    record::{
        RecordPage,
        SLOTS, //
    },
    shim,
    vmcs::{
        Vmcs,
        VmxOn, //
    },
    vmx, //
};

/// A state as asked for by a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Off,
    VmxOn,
    /// This many VMCSes on the list, each made current once.
    Loaded(usize),
    /// One VMCS, and a guest of it spinning.
    Launched,
    /// Two VMCSes loaded, the insertion of a third cut after this many pointer writes.
    AddCut(usize),
    /// Three VMCSes loaded, the removal of the middle one cut after this many pointer writes.
    DeleteCut(usize),
}

impl State {
    /// As written to the record's `state`.
    fn code(self) -> u32 {
        match self {
            State::Off => 0,
            State::VmxOn => 1,
            State::Loaded(_) => 2,
            State::Launched => 3,
            State::AddCut(_) => 4,
            State::DeleteCut(_) => 5,
        }
    }

    pub(crate) fn name(code: u32) -> &'static str {
        ["off", "vmxon", "vmcs-loaded", "vmcs-launched", "list-add-cut", "list-del-cut"]
            .get(code as usize)
            .copied()
            .unwrap_or("?")
    }

    /// Whether the numbers in it are possible.
    pub(crate) fn check(self) -> Result {
        let possible = match self {
            State::Loaded(count) => (1..=SLOTS).contains(&count),
            State::AddCut(cut) => cut <= ADD_WRITES,
            State::DeleteCut(cut) => cut <= DELETE_WRITES,
            State::Off | State::VmxOn | State::Launched => true,
        };
        possible.then_some(()).ok_or(ERANGE)
    }
}

/// What the crash path sees of a CPU.
#[pin_data]
pub(crate) struct Cpu {
    pub(crate) number: u32,
    #[pin]
    pub(crate) list: List,
    pub(crate) record: RecordPage,
}

impl Cpu {
    pub(crate) fn new(number: u32, revision: u32) -> Result<Pin<KBox<Self>>> {
        // The record names the list's address, so the list must have its place first: hence the page is filled in last.
        let cpu = KBox::try_pin_init(
            try_pin_init!(&this in Self {
                number,
                list <- List::new(),
                // SAFETY: Only the address of the field is taken.
                record: RecordPage::new(*number, revision, unsafe { &raw const (*this.as_ptr()).list } as u64)?,
            }? Error),
            GFP_KERNEL,
        )?;
        Ok(cpu)
    }
}

/// What only the command path touches.
pub(crate) struct Holdings {
    // Order of the fields is order of dropping, should it ever come to that: guest, VMCSes, VMX.
    guest: Option<Guest>,
    vmcses: KVec<KBox<Vmcs>>,
    half_added: bool,
    on: Option<VmxOn>,
}

// SAFETY: Made, used and emptied under the command lock, on whichever task holds it; `VmxOn` only on its own CPU (`set`).
unsafe impl Send for Holdings {}

impl Holdings {
    pub(crate) const fn new() -> Self {
        Self { guest: None, vmcses: KVec::new(), half_added: false, on: None }
    }

    /// Whether nothing is held.
    pub(crate) fn is_off(&self) -> bool {
        self.on.is_none()
    }

    /// Brings `cpu` into `state`. On an error the CPU is `off` again.
    pub(crate) fn set(&mut self, cpu: &Cpu, state: State) -> Result {
        state.check()?;
        // Stopping the guest's thread needs no particular CPU, and must not be done from a worker it may be starving.
        self.guest = None;
        shim::run_on(cpu.number, || self.take_down(cpu).and_then(|()| self.build(cpu, state)))?;
        if state == State::Launched {
            if let Err(error) = self.launch(cpu) {
                self.set(cpu, State::Off)?;
                return Err(error);
            }
        }
        cpu.record.state.store(state.code(), Relaxed);
        Ok(())
    }

    /// On the CPU: from whatever state to `off`. Goes on after a failure, and reports the first.
    fn take_down(&mut self, cpu: &Cpu) -> Result {
        let Some(on) = self.on.take() else { return Ok(()) };
        let mut result = Ok(());
        if core::mem::take(&mut self.half_added) {
            if let Some(vmcs) = self.vmcses.last() {
                vmcs.complete_add(&cpu.list, &cpu.record);
            }
        }
        while let Some(vmcs) = self.vmcses.pop() {
            result = result.and(vmcs.unload(&on, &cpu.list, &cpu.record));
        }
        cpu.record.state.store(State::Off.code(), Relaxed);
        // The negative control gives nothing back: unloading must say so.
        if cfg!(crashyard_control = "leave-behind") {
            core::mem::forget((on, crate::page::Pages::one()));
        } else {
            drop(on);
        }
        if !cpu.list.is_empty() || vmx::cr4() & vmx::CR4_VMXE != 0 {
            pr_err!(
                "cpu{}: not clean after off: list empty {}, CR4 {:#x}\n",
                cpu.number,
                cpu.list.is_empty(),
                vmx::cr4()
            );
            return Err(EIO);
        }
        result
    }

    /// On the CPU, from `off`.
    fn build(&mut self, cpu: &Cpu, state: State) -> Result {
        if state == State::Off {
            return Ok(());
        }
        self.on = Some(VmxOn::new()?);
        // From here on the CPU may not go offline, whatever comes next.
        cpu.record.state.store(State::VmxOn.code(), Relaxed);
        let built = self.build_vmcses(cpu, state);
        if built.is_err() {
            self.take_down(cpu)?;
        }
        built
    }

    fn build_vmcses(&mut self, cpu: &Cpu, state: State) -> Result {
        let count = match state {
            State::Off | State::VmxOn => 0,
            State::Loaded(count) => count,
            State::Launched => 1,
            State::AddCut(_) => 2,
            State::DeleteCut(_) => 3,
        };
        let on = self.on.as_ref().ok_or(EIO)?;
        // Reserved now, so that a VMCS on the list always has its owner here.
        self.vmcses.reserve(count + 1, GFP_KERNEL)?;
        for slot in 0..count {
            let vmcs = Vmcs::new(on, cpu.record.revision, &cpu.record, slot)?;
            self.vmcses.push(vmcs, GFP_KERNEL)?;
            self.vmcses[slot].load(on, &cpu.list, &cpu.record)?;
        }
        match state {
            State::AddCut(cut) => {
                self.vmcses.push(Vmcs::new(on, cpu.record.revision, &cpu.record, count)?, GFP_KERNEL)?;
                self.half_added = true;
                self.vmcses[count].cut_add(&cpu.list, &cpu.record, cut);
            }
            State::DeleteCut(cut) => self.vmcses[1].cut_delete(on, &cpu.list, &cpu.record, cut)?,
            State::Launched => guest::fill_current_vmcs()?,
            State::Off | State::VmxOn | State::Loaded(_) => (),
        }
        Ok(())
    }

    fn launch(&mut self, cpu: &Cpu) -> Result {
        let vmcs = self.vmcses.first().ok_or(EIO)?;
        // SAFETY: VMCS and slot outlive the guest (`set` and `take_down` stop it first), and it is alone on the CPU's VMX.
        let guest = unsafe { Guest::start(cpu.number, vmcs.phys(), vmcs.slot(&cpu.record))? };
        self.guest.insert(guest).wait()
    }
}
