//! Every thread: state, parent, stack, and what [`super::locks`] says it waits for.

use super::locks::{Threads, blocked_on};
use super::stacks::Stacks;
use crate::capsule::{Addr, Cpu, Task, TaskRef};
use crate::kernel::Kernel;
use crate::typed::Object;
use crate::unwind::{self, Start};
use std::collections::{HashMap, HashSet};

/// `PF_KTHREAD`.
const KTHREAD: u64 = 0x0020_0000;
/// `TASK_NOLOAD`: an uninterruptible sleep that does not count as load; `ps` shows it as idle.
const NOLOAD: u64 = 0x400;
/// How long an uninterruptible sleep may take, as in the kernel's own hung-task detector.
const HUNG_NS: u64 = 120_000_000_000;

/// A thread, and whether it is on a run queue.
pub(super) struct Listed {
    pub task: Task,
    pub queued: bool,
}

pub(super) fn read(kernel: &Kernel, cpus: &[Cpu], stacks: &mut Stacks) -> Vec<Listed> {
    let running: HashMap<u32, &Cpu> = cpus.iter().filter_map(|c| Some((c.pid?, c))).collect();
    let now = cpus.iter().filter_map(|c| Some(c.run_queue.as_ref()?.clock_ns)).max();
    let symbols =
        Symbols { fork_return: kernel.symbol("ret_from_fork_asm").or_else(|| kernel.symbol("ret_from_fork")), now };
    let mut damaged = 0;
    let mut listed = Vec::new();
    let mut asleep = Vec::new();
    for thread in threads(kernel) {
        match one(kernel, &thread, &running, &symbols, stacks) {
            Some(one) => {
                // A thread that waits for a lock can be woken by nothing but the lock, or by a signal as well.
                if matches!(one.task.state, 'D' | 'S') && !one.task.running {
                    asleep.push((listed.len(), thread));
                }
                listed.push(one);
            }
            None => damaged += 1,
        }
    }
    let named = |one: &Listed| (one.task.address.0, TaskRef { pid: one.task.pid, comm: one.task.comm.clone() });
    let threads: Threads = listed.iter().map(named).collect();
    for (index, thread) in asleep {
        let task = &mut listed[index].task;
        task.blocked_on = stacks.get(task.stack).and_then(|stack| blocked_on(kernel, &thread, stack, &threads));
    }
    if damaged > 0 {
        kernel.warn(format!("tasks: {damaged} threads could not be read"));
    }
    listed
}

struct Symbols {
    fork_return: Option<u64>,
    now: Option<u64>,
}

/// All threads but the idle ones: the list of processes, and in each the list of its threads.
fn threads<'k, 'a>(kernel: &'k Kernel<'a>) -> Vec<Object<'k, 'a>> {
    let max = kernel.limits().tasks;
    let Some(init) = kernel.symbol("init_task").and_then(|at| kernel.object("task_struct", at)) else {
        kernel.warn("tasks: no init_task or no BTF".into());
        return Vec::new();
    };
    let Ok(head) = init.field("tasks") else { return Vec::new() };
    let (leaders, fault) = head.list(init.type_id(), "tasks", max);
    if let Some(fault) = fault {
        kernel.warn(format!("task list: {fault}"));
    }
    let mut found: Vec<Object> = Vec::new();
    // Every thread once: a corrupt list may lead into the threads of another process.
    let mut seen = HashSet::new();
    for leader in leaders {
        let head = leader.follow("signal").ok().flatten().and_then(|s| s.field("thread_head").ok());
        let (group, fault) = head.map_or((Vec::new(), None), |h| h.list(init.type_id(), "thread_node", max));
        if let Some(fault) = fault {
            kernel.warn(format!("thread list: {fault}"));
        }
        for thread in std::iter::once(leader).chain(group) {
            if found.len() as u32 >= max {
                kernel.warn(format!("tasks: more than {max}"));
                return found;
            }
            if seen.insert(thread.address()) {
                found.push(thread);
            }
        }
    }
    found
}

fn one(
    kernel: &Kernel,
    thread: &Object,
    running: &HashMap<u32, &Cpu>,
    symbols: &Symbols,
    stacks: &mut Stacks,
) -> Option<Listed> {
    let number = |path| thread.number(path).ok();
    let pid = number("pid")? as u32;
    let on_cpu = running.get(&pid);
    let state = state(number("__state").or_else(|| number("state"))?, number("exit_state").unwrap_or(0));
    let cpu = number("thread_info.cpu").or_else(|| number("cpu")).map(|c| c as u32);
    let stack = match on_cpu {
        Some(cpu) => cpu.stack,
        None => {
            asleep(kernel, thread, symbols.fork_return).map(|start| stacks.add(kernel, &unwind::unwind(kernel, &start)))
        }
    };
    let ran = number("sched_info.last_arrival").filter(|&t| t != 0 && on_cpu.is_none());
    let off_cpu_ns = ran.and_then(|t| symbols.now?.checked_sub(t));
    let queued = number("on_rq") == Some(1);
    let task = Task {
        pid,
        tgid: number("tgid")? as u32,
        ppid: thread.follow("real_parent").ok().flatten().and_then(|p| p.number("tgid").ok()).map(|p| p as u32),
        comm: thread.text("comm").ok()?,
        address: Addr(thread.address()),
        state,
        kernel_thread: number("flags").is_some_and(|f| f & KTHREAD != 0),
        cpu,
        running: on_cpu.is_some(),
        off_cpu_ns,
        hung: state == 'D' && off_cpu_ns.is_some_and(|ns| ns > HUNG_NS),
        blocked_on: None,
        stack,
    };
    Some(Listed { task, queued })
}

/// Where `__switch_to_asm` left a thread: its saved stack pointer points to a `struct inactive_task_frame`.
fn asleep(kernel: &Kernel, thread: &Object, fork_return: Option<u64>) -> Option<Start> {
    let sp = thread.number("thread.sp").ok()?;
    let frame = kernel.object("inactive_task_frame", sp);
    let (bp, ip, size) = match &frame {
        Some(f) => (f.number("bp").ok()?, f.number("ret_addr").ok()?, kernel.btf()?.size(f.type_id())?),
        None => (kernel.memory().u64(sp.wrapping_add(40)).ok()?, kernel.memory().u64(sp.wrapping_add(48)).ok()?, 56),
    };
    // A thread that never ran stands at the first instruction of its life, not after a call.
    let first = fork_return == Some(ip);
    Some(Start { ip, sp: sp.wrapping_add(size), bp, regs: None, signal: first, task: Some(thread.address()) })
}

fn state(state: u64, exit: u64) -> char {
    match (state & 0xff) | (exit & 0x30) {
        s if s & 0x20 != 0 => 'Z',
        s if s & 0x10 != 0 => 'X',
        0 => 'R',
        s if s & 1 != 0 => 'S',
        s if s & 2 != 0 && state & NOLOAD != 0 => 'I',
        s if s & 2 != 0 => 'D',
        s if s & 4 != 0 => 'T',
        s if s & 8 != 0 => 't',
        s if s & 0x40 != 0 => 'P',
        s if s & 0x80 != 0 => 'X',
        _ => '?',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_as_ps_prints_them() {
        assert_eq!(state(0, 0), 'R');
        assert_eq!(state(1, 0), 'S');
        assert_eq!(state(2, 0), 'D');
        assert_eq!(state(0x402, 0), 'I');
        assert_eq!(state(0x80, 0x20), 'Z');
    }
}
