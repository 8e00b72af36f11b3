// SPDX-License-Identifier: GPL-2.0

//! What commands do, one at a time, and the line each answers with.

use kernel::{
    bindings,
    fmt,
    interrupt::local_interrupt_disable,
    prelude::*,
    str::CString,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::{
    command::{
        self,
        Command,
        Target,
        Trigger, //
    },
    cpu::{
        Holdings,
        State, //
    },
    crash::{
        self,
        Cpus, //
    },
    list_test,
    page::Pages,
    shim,
    vmcs::errno,
    vmx, //
};

/// Everything behind the command lock.
pub(crate) struct Control {
    cpus: KBox<Cpus>,
    holdings: KVec<Holdings>,
    /// Our callback sits in the core's slot. It does only while some CPU is not `off`, so that KVM can have the slot otherwise.
    callback: bool,
    answer: CString,
}

impl Control {
    pub(crate) fn new(cpus: KBox<Cpus>) -> Result<Self> {
        let mut holdings = KVec::with_capacity(cpus.0.len(), GFP_KERNEL)?;
        for _ in 0..cpus.0.len() {
            holdings.push(Holdings::new(), GFP_KERNEL)?;
        }
        let answer = CString::try_from_fmt(fmt!("ok ready"))?;
        // SAFETY: `drop` unregisters the callback before it hides the CPUs.
        unsafe { crash::show(&cpus) };
        Ok(Self { cpus, holdings, callback: false, answer })
    }

    pub(crate) fn cpus(&self) -> &Cpus {
        &self.cpus
    }

    /// The last answer, `ok …` or `error -N: …`.
    pub(crate) fn answer(&self) -> &str {
        self.answer.to_str().unwrap_or("error")
    }

    /// Runs one line and remembers its answer, which also goes to the kernel log.
    pub(crate) fn run(&mut self, line: &str) -> Result {
        let line = line.trim();
        let result = command::parse(line).and_then(|command| self.perform(command));
        self.answer = match result {
            Ok(()) => CString::try_from_fmt(fmt!("ok {}", line))?,
            Err(error) => CString::try_from_fmt(fmt!("error {}: {}", error.to_errno(), line))?,
        };
        match result {
            Ok(()) => pr_info!("{}\n", &*self.answer),
            Err(_) => pr_err!("{}\n", &*self.answer),
        }
        result
    }

    fn perform(&mut self, command: Command) -> Result {
        match command {
            Command::State(state, target) => self.set(state, target),
            Command::VmxonFault(target) => self.each(target, |_, cpu| shim::run_on(cpu, vmxon_fault)),
            Command::ListTest => match list_test::run()? {
                0 => Ok(()),
                wrong => {
                    pr_err!("list test: {} walks saw something else than predicted\n", wrong);
                    Err(EIO)
                }
            },
            Command::Trigger(trigger, cpu) => pull(trigger, cpu),
        }
    }

    /// Calls `act` for every online CPU of `target`; `ENODEV` when the one named is not online.
    fn each(&mut self, target: Target, mut act: impl FnMut(&mut Self, u32) -> Result) -> Result {
        match target {
            Target::One(cpu) if (cpu as usize) < self.holdings.len() && shim::cpu_online(cpu) => act(self, cpu),
            Target::One(_) => Err(ENODEV),
            Target::All => {
                (0..self.holdings.len() as u32).filter(|cpu| shim::cpu_online(*cpu)).try_for_each(|cpu| act(self, cpu))
            }
        }
    }

    fn set(&mut self, state: State, target: Target) -> Result {
        if state != State::Off {
            self.occupy_callback()?;
        }
        let result = self.each(target, |this, cpu| {
            let cpu = cpu as usize;
            this.holdings[cpu].set(&this.cpus.0[cpu], state)
        });
        self.release_callback_if_off();
        result
    }

    /// The callback must be there before the first VMCS can be loaded. VMX being on already means KVM may own the slot.
    fn occupy_callback(&mut self) -> Result {
        if self.callback {
            return Ok(());
        }
        let mut in_use = false;
        self.each(Target::All, |_, cpu| {
            shim::run_on(cpu, || {
                in_use |= vmx::cr4() & vmx::CR4_VMXE != 0;
                Ok(())
            })
        })?;
        if in_use {
            pr_err!("VMX is in use by another owner (kvm_intel?), not touching it\n");
            return Err(EBUSY);
        }
        // SAFETY: Nobody has VMX on, so KVM holds no callback; ours stays until `release_callback_if_off`.
        unsafe { shim::register_callback(crash::emergency) };
        self.callback = true;
        Ok(())
    }

    fn release_callback_if_off(&mut self) {
        if self.callback && self.holdings.iter().all(Holdings::is_off) {
            // SAFETY: Ours since `occupy_callback`.
            unsafe { shim::unregister_callback(crash::emergency) };
            self.callback = false;
        }
    }
}

/// What unloading left behind, beside pages: CPUs with VMX on or with a CR4 that the kernel does not know of, and our
/// callback in the core's slot.
static LEFT_BEHIND: Atomic<u32> = Atomic::new(0);
/// CPUs whose VMX belonged to somebody else throughout.
static OTHERS: Atomic<u32> = Atomic::new(0);

/// `(left behind, CPUs left to another owner)`, once a [`Control`] was dropped.
pub(crate) fn after_unload() -> (u32, u32) {
    (LEFT_BEHIND.load(Relaxed), OTHERS.load(Relaxed))
}

impl Drop for Control {
    fn drop(&mut self) {
        // While it is ours, nobody else can have turned VMX on: whatever is on afterwards was left on.
        let was_ours = self.callback;
        // One by one: a CPU that fails must not keep the others from being put off.
        for cpu in (0..self.holdings.len() as u32).filter(|cpu| shim::cpu_online(*cpu)) {
            if let Err(error) = self.set(State::Off, Target::One(cpu)) {
                pr_err!("unload: cpu{} could not be put off: {}\n", cpu, error.to_errno());
                LEFT_BEHIND.fetch_add(1, Relaxed);
            }
        }
        if self.callback {
            pr_err!("unload: the emergency callback was still ours\n");
            LEFT_BEHIND.fetch_add(1, Relaxed);
            // SAFETY: Ours since `occupy_callback`. Its text is about to go, so it must not stay, whatever else does.
            unsafe { shim::unregister_callback(crash::emergency) };
        }
        crash::hide();
        let looked = self.each(Target::All, |_, cpu| shim::run_on(cpu, || look(cpu, was_ours)));
        if looked.is_err() {
            pr_err!("unload: a CPU could not be looked at\n");
            LEFT_BEHIND.fetch_add(1, Relaxed);
        }
    }
}

/// On a CPU that must be clean: the register itself, and the kernel's own idea of it.
fn look(cpu: u32, was_ours: bool) -> Result {
    let (cr4, shadow) = {
        // Nothing may change CR4 between the two.
        let _irqs_off = local_interrupt_disable();
        (vmx::cr4(), shim::cr4_shadow())
    };
    let on = cr4 & vmx::CR4_VMXE != 0;
    if cr4 != shadow || on && was_ours {
        pr_err!("unload: cpu{}: CR4 is {:#x}, the kernel's shadow of it {:#x}\n", cpu, cr4, shadow);
        LEFT_BEHIND.fetch_add(1, Relaxed);
    } else if on {
        OTHERS.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// On a CPU with VMX off: VMXON must fault, be caught, and leave everything as it was.
fn vmxon_fault() -> Result {
    let before = vmx::cr4();
    if before & vmx::CR4_VMXE != 0 {
        return Err(EBUSY);
    }
    let region = Pages::one()?;
    let outcome = {
        let _irqs_off = local_interrupt_disable();
        vmx::vmxon(region.phys())
    };
    // What an owner of VMX must make of it: an error, and a machine as before.
    let reported = outcome.map_err(|failure| errno("VMXON without CR4.VMXE", failure));
    let survived = reported == Err(EIO) && outcome == Err(vmx::Failure::Fault) && vmx::cr4() == before;
    pr_info!("cpu{}: VMXON faulted: survived {}\n", kernel::cpu::CpuId::current().as_u32(), survived);
    survived.then_some(()).ok_or(EBADE)
}

/// Crashes the machine. Returns only when that could not be done.
fn pull(trigger: Trigger, cpu: u32) -> Result {
    if !shim::cpu_online(cpu) {
        return Err(ENODEV);
    }
    pr_emerg!("trigger {:?} on cpu {}\n", trigger, cpu);
    match trigger {
        // SAFETY: Does not return, which is the order.
        Trigger::Panic => {
            shim::run_on(cpu, || unsafe { bindings::panic(c"crashyard: panic on cpu %u\n".as_char_ptr(), cpu) })
        }
        Trigger::Oops => shim::run_on(cpu, || {
            // SAFETY: None. It writes to an address that is never mapped: that is the oops.
            unsafe { core::arch::asm!("movb $0, ({})", in(reg) 0xca5usize, options(att_syntax)) };
            Ok(())
        }),
        Trigger::NmiPanic => shim::panic_in_nmi(cpu),
        Trigger::IrqPanic => shim::panic_in_irq(cpu),
        Trigger::HardLockup => shim::run_on(cpu, || {
            let _irqs_off = local_interrupt_disable();
            loop {
                core::hint::spin_loop();
            }
        }),
    }
}

/// One line per CPU for the status file.
pub(crate) fn describe(control: &Control, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    for cpu in control.cpus().0.iter() {
        let record = &cpu.record;
        writeln!(
            out,
            "cpu{} state={} listed={} record={:#x}",
            cpu.number,
            State::name(record.state.load(Relaxed)),
            record.listed.load(Relaxed),
            record.phys()
        )?;
    }
    Ok(())
}
