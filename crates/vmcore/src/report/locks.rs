//! Which lock a blocked thread waits for, and who holds it.
//!
//! Kernels with proxy execution (7.x) keep the mutex in `task_struct.blocked_on`, kernels whose hung-task detector names
//! locks (6.16 and later) the lock in `task_struct.blocker`. In older ones the only trace is on the thread's own stack: while
//! it waits, a `struct mutex_waiter` (or of a semaphore) lies there, names the thread, and is linked into the lock's list of
//! waiters. What is found that way is checked: the neighbours in the list must point back, and the lock's owner must be a
//! thread.

use crate::capsule::{Addr, BlockedOn, LockKind, Stack, TaskRef};
use crate::kernel::Kernel;
use crate::typed::Object;
use std::collections::HashMap;

/// Low bits of a lock's owner are flags.
const FLAGS: u64 = 7;
/// Words of stack that are searched for the waiter: it lies in the frame of the function that puts the thread to sleep.
const SCAN_WORDS: u64 = 512;
/// Bytes of a kernel stack, at most: THREAD_SIZE of arch/x86/include/asm/page_64_types.h with KASAN.
const STACK_SIZE: u64 = 32 << 10;

/// Every thread by the address of its `task_struct`.
pub(super) type Threads = HashMap<u64, TaskRef>;

struct Lock {
    kind: LockKind,
    address: u64,
}

/// The lock that a sleeping thread waits for, where the kernel shows it.
pub(super) fn blocked_on(kernel: &Kernel, thread: &Object, stack: &Stack, threads: &Threads) -> Option<BlockedOn> {
    let lock = told(thread).or_else(|| found(kernel, thread, waits_in(stack)?, threads))?;
    let owner = owner(kernel, &lock).and_then(|at| threads.get(&at).cloned());
    Some(BlockedOn { mutex: Addr(lock.address), kind: lock.kind, owner })
}

/// What the kernel itself has written down.
fn told(thread: &Object) -> Option<Lock> {
    let pointer = |name| thread.number(name).ok().filter(|&at| at >> 63 == 1);
    let lock = |address, kind| Lock { kind, address };
    // All ones and its neighbours mean that the thread is being woken.
    if let Some(mutex) = pointer("blocked_on").filter(|&at| at < u64::MAX - 0xfff) {
        return Some(lock(mutex, LockKind::Mutex));
    }
    let blocker = pointer("blocker")?;
    let kind = match blocker & 3 {
        0 => LockKind::Mutex,
        1 => LockKind::Semaphore,
        _ => LockKind::ReadWrite,
    };
    Some(lock(blocker & !3, kind))
}

/// The kind of lock whose slow path a thread sleeps in.
fn waits_in(stack: &Stack) -> Option<LockKind> {
    let name = |symbol: &str| match symbol {
        s if s.starts_with("__mutex_lock") || s.starts_with("__ww_mutex_lock") => Some(LockKind::Mutex),
        s if s.starts_with("rwsem_down_") => Some(LockKind::ReadWrite),
        s if s.starts_with("__down_common") => Some(LockKind::Semaphore),
        _ => None,
    };
    stack.frames.iter().filter_map(|frame| name(frame.symbol.as_deref()?)).next()
}

impl LockKind {
    fn types(self) -> (&'static str, &'static str) {
        match self {
            Self::Mutex => ("mutex", "mutex_waiter"),
            Self::ReadWrite => ("rw_semaphore", "rwsem_waiter"),
            Self::Semaphore => ("semaphore", "semaphore_waiter"),
        }
    }
}

/// Follows the waiter on the thread's stack to the lock.
fn found(kernel: &Kernel, thread: &Object, kind: LockKind, threads: &Threads) -> Option<Lock> {
    let (memory, btf) = (kernel.memory(), kernel.btf()?);
    let (lock, waiter) = kind.types();
    let offset = |of: &str, path: &str| Some(btf.path(btf.composite(of)?, path)?.bit_offset / 8);
    // Where there is no list, the kernel says it in the thread.
    let (head, list, task) = (offset(lock, "wait_list")?, offset(waiter, "list")?, offset(waiter, "task")?);
    let linked = |node: u64| {
        let (next, before) = (memory.u64(node).ok()?, memory.u64(node.wrapping_add(8)).ok()?);
        let back = |at: u64, link: u64| memory.u64(at.wrapping_add(link)).ok();
        (back(next, 8)? == node && back(before, 0)? == node).then_some(next)
    };
    let sp = thread.number("thread.sp").ok()?;
    for word in 0..SCAN_WORDS {
        let at = sp.wrapping_add(word * 8);
        if memory.u64(at).ok()? != thread.address() {
            continue;
        }
        let start = at.wrapping_sub(task).wrapping_add(list);
        let Some(mut node) = linked(start) else { continue };
        // Other waiters lie on the stacks of the threads they name, the list's head in the lock. To name a thread is not
        // enough: what is read as a name behind the head may be the owner of the next lock.
        let is_waiter = |node: u64| {
            let named = memory.u64(node.wrapping_sub(list).wrapping_add(task)).ok();
            let named = named.filter(|task| threads.contains_key(task));
            let stack = named.and_then(|task| kernel.object("task_struct", task)?.number("stack").ok());
            stack.is_some_and(|stack| node.wrapping_sub(stack) < STACK_SIZE)
        };
        for _ in 0..kernel.limits().list {
            if node == start {
                break;
            }
            if !is_waiter(node) {
                return Some(Lock { kind, address: node.wrapping_sub(head) });
            }
            node = linked(node)?;
        }
    }
    None
}

/// Address of the thread that holds a lock, or held it last where the kernel knows no better.
fn owner(kernel: &Kernel, lock: &Lock) -> Option<u64> {
    let (name, _) = lock.kind.types();
    let object = kernel.object(name, lock.address)?;
    let member = if lock.kind == LockKind::Semaphore { "last_holder" } else { "owner.counter" };
    object.number(member).ok().map(|owner| owner & !FLAGS)
}
