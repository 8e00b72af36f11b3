//! Every CPU: what it ran, where it was, its registers, its run queue.

use super::stacks::Stacks;
use super::tasks::Listed;
use crate::capsule::{Addr, Cpu, Registers, RunQueue, TaskRef};
use crate::kernel::Kernel;
use crate::registers::{self, Saved};
use crate::unwind::{self, CS_AT, IP_AT, PtRegs, SP_AT, Start};
use std::collections::HashMap;

/// The interrupt flag in RFLAGS.
const IF: u64 = 1 << 9;
const RFLAGS_AT: usize = 18;

/// Reads all present CPUs. QEMU dumps show only the panicking CPU as online, so the present mask decides.
pub(super) fn read(kernel: &Kernel, stacks: &mut Stacks) -> Vec<Cpu> {
    let (memory, limits) = (kernel.memory(), kernel.limits());
    let saved = registers::saved(memory, kernel.symbols(), limits);
    let mask = |name| registers::cpumask(memory, kernel.symbols()?, name, limits);
    let present = mask("__cpu_present_mask").filter(|m| !m.is_empty());
    let online = mask("__cpu_online_mask");
    let numbers = present.unwrap_or_else(|| saved.iter().map(|s| s.cpu).collect());
    let saved: HashMap<u32, Saved> = saved.into_iter().map(|s| (s.cpu, s)).collect();
    let cpu = |n: u32| read_one(kernel, n, saved.get(&n), online.as_ref().map(|m| m.contains(&n)), stacks);
    numbers.into_iter().map(cpu).collect()
}

fn read_one(kernel: &Kernel, cpu: u32, saved: Option<&Saved>, online: Option<bool>, stacks: &mut Stacks) -> Cpu {
    let run_queue = run_queue(kernel, cpu);
    let current = run_queue.as_ref().and_then(|q| q.follow("curr").ok()?);
    let idle = run_queue.as_ref().and_then(|q| Some(q.number("idle").ok()? == q.number("curr").ok()?));
    let regs = saved.map(|s| s.status.regs);
    let user = regs.map(|r| unwind::is_user(r[CS_AT]));
    let stack = match (regs, user) {
        (Some(regs), Some(false)) => {
            let start = Start::of_cpu(&regs, current.as_ref().map(crate::typed::Object::address));
            Some(stacks.add(kernel, &unwind::from_cpu(kernel, &start)))
        }
        // In user mode there is no kernel stack to show; the empty stack says so.
        (Some(_), _) => Some(stacks.add(kernel, &crate::unwind::RawStack::user())),
        (None, _) => None,
    };
    Cpu {
        cpu,
        online,
        pid: current.as_ref().and_then(|t| t.number("pid").ok()).map(|p| p as u32),
        comm: current.as_ref().and_then(|t| t.text("comm").ok()),
        idle,
        user,
        interrupts_on: regs.map(|r| r[RFLAGS_AT] & IF != 0),
        registers: regs.as_ref().map(named),
        register_source: saved.map(|s| s.source),
        stack,
        run_queue: run_queue.and_then(|q| {
            Some(RunQueue {
                nr_running: q.number("nr_running").ok()? as u32,
                clock_ns: q.number("clock").ok()?,
                waiting: Vec::new(),
            })
        }),
    }
}

fn run_queue<'k, 'a>(kernel: &'k Kernel<'a>, cpu: u32) -> Option<crate::typed::Object<'k, 'a>> {
    let symbols = kernel.symbols()?;
    let at = registers::per_cpu(kernel.memory(), symbols, symbols.lookup("runqueues")?, cpu)?;
    kernel.object("rq", at)
}

/// Adds to each run queue the threads that wait for its CPU.
pub(super) fn add_waiting(cpus: &mut [Cpu], tasks: &[Listed]) {
    for listed in tasks.iter().filter(|t| t.queued && !t.task.running) {
        let task = &listed.task;
        let queue = cpus.iter_mut().find(|c| Some(c.cpu) == task.cpu).and_then(|c| c.run_queue.as_mut());
        if let Some(queue) = queue {
            queue.waiting.push(TaskRef { pid: task.pid, comm: task.comm.clone() });
        }
    }
}

/// `panic_cpu` is set by every panic, `crashing_cpu` only on the way into a crash kernel.
pub(super) fn panic_cpu(kernel: &Kernel) -> Option<u32> {
    let value = |name| kernel.memory().u32(kernel.symbol(name)?).ok();
    let valid = |n: &u32| *n < kernel.limits().cpus;
    value("panic_cpu").filter(valid).or_else(|| value("crashing_cpu").filter(valid))
}

fn named(r: &PtRegs) -> Registers {
    let reg = |i: usize| Addr(r[i]);
    Registers {
        r15: reg(0),
        r14: reg(1),
        r13: reg(2),
        r12: reg(3),
        rbp: reg(4),
        rbx: reg(5),
        r11: reg(6),
        r10: reg(7),
        r9: reg(8),
        r8: reg(9),
        rax: reg(10),
        rcx: reg(11),
        rdx: reg(12),
        rsi: reg(13),
        rdi: reg(14),
        orig_rax: reg(15),
        rip: reg(IP_AT),
        cs: reg(CS_AT),
        rflags: reg(RFLAGS_AT),
        rsp: reg(SP_AT),
        ss: reg(20),
    }
}
