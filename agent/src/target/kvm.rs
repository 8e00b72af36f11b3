//! The smallest guest of KVM: a page of code that says once that it runs, and then spins.
//!
//! It starts with `sti`. A guest entered with its interrupt flag clear while the host's is clear too never gets an
//! interrupt exit in Bochs 2.7 and 3.0, and would hang the machine; on real CPUs it makes no difference.

use anyhow::{Context as _, bail};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::mpsc;

/// Where the page is in the guest.
const CODE_AT: u64 = 0x1000;

/// The port the guest writes to.
const PORT: u8 = 0x10;

/// `sti; out %al, $PORT; jmp .` in 16-bit code.
const CODE: [u8; 5] = [0xfb, 0xe6, PORT, 0xeb, 0xfe];

/// What a virtual CPU starts with besides its address: the bit of RFLAGS that is always set.
const RFLAGS: u64 = 2;

#[repr(align(4096))]
struct Page([u8; 4096]);

/// A guest that has run up to its port write. Dropping it destroys the virtual machine.
struct Guest {
    vcpu: VcpuFd,
    _machine: VmFd,
}

impl Guest {
    /// Makes a guest and runs it on the calling thread's CPU until it has written to its port.
    fn run() -> anyhow::Result<Self> {
        let kvm = Kvm::new().context("open /dev/kvm")?;
        let machine = kvm.create_vm().context("create a virtual machine")?;
        // Never given back: the crash comes soon, and nothing could ever free it while a virtual CPU may run in it.
        let page: &'static mut Page = Box::leak(Box::new(Page([0; 4096])));
        page.0[..CODE.len()].copy_from_slice(&CODE);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: CODE_AT,
            memory_size: page.0.len() as u64,
            userspace_addr: page.0.as_ptr() as u64,
        };
        #[expect(unsafe_code, reason = "giving memory to a guest is unsafe by nature")]
        // SAFETY: the page is leaked, so it outlives the virtual machine, and nothing else refers to it from here on.
        unsafe { machine.set_user_memory_region(region) }.context("give the guest its memory")?;
        let mut vcpu = machine.create_vcpu(0).context("create a virtual CPU")?;
        let mut special = vcpu.get_sregs().context("read the special registers")?;
        special.cs.base = 0;
        special.cs.selector = 0;
        vcpu.set_sregs(&special).context("set the special registers")?;
        let mut registers = vcpu.get_regs().context("read the registers")?;
        registers.rip = CODE_AT;
        registers.rflags = RFLAGS;
        vcpu.set_regs(&registers).context("set the registers")?;
        match vcpu.run().context("run the guest")? {
            VcpuExit::IoOut(port, _) if port == u16::from(PORT) => {}
            other => bail!("the guest left for another reason than its port write: {other:?}"),
        }
        Ok(Self { vcpu, _machine: machine })
    }

    /// Lets it spin, for ever.
    fn spin(mut self) -> anyhow::Error {
        loop {
            match self.vcpu.run() {
                // A signal to this thread; the guest goes on.
                Err(error) if error.errno() == nix::errno::Errno::EINTR as i32 => {}
                Err(error) => return anyhow::Error::new(error).context("the spinning guest stopped"),
                Ok(exit) => return anyhow::anyhow!("the spinning guest stopped: {exit:?}"),
            }
        }
    }
}

/// Runs a guest once on each of these CPUs, one after another; each is destroyed again.
pub fn run_once(cpus: &[u32]) -> anyhow::Result<()> {
    for cpu in cpus {
        on_cpu(*cpu, |told| {
            let ran = Guest::run().map(drop);
            let _ = told.send(ran);
        })?;
    }
    Ok(())
}

/// Leaves a guest spinning on each of these CPUs. When this returns, each has run and has been entered again, or is
/// about to be.
pub fn keep_running(cpus: &[u32]) -> anyhow::Result<()> {
    for cpu in cpus {
        let cpu = *cpu;
        on_cpu(cpu, move |told| match Guest::run() {
            Ok(guest) => {
                let _ = told.send(Ok(()));
                let error = guest.spin();
                eprintln!("crashyard: guest on CPU {cpu}: {error:#}");
            }
            Err(error) => {
                let _ = told.send(Err(error));
            }
        })?;
    }
    Ok(())
}

/// Does something on a thread that stays on one CPU, and waits for its word.
fn on_cpu(cpu: u32, act: impl FnOnce(mpsc::Sender<anyhow::Result<()>>) + Send + 'static) -> anyhow::Result<()> {
    let (told, word) = mpsc::channel();
    std::thread::Builder::new().name(format!("guest-{cpu}")).spawn(move || {
        let mut set = CpuSet::new();
        match set.set(cpu as usize).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)) {
            Ok(()) => act(told),
            Err(error) => {
                let _ = told.send(Err(anyhow::Error::new(error).context("move to the CPU")));
            }
        }
    })?;
    word.recv().context("the guest's thread ended")?.with_context(|| format!("guest on CPU {cpu}"))
}
