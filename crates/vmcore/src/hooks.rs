//! Return addresses that tracers replaced.
//!
//! The function graph tracer and return probes (kretprobes, fprobes) write the address of a trampoline of theirs where a
//! function finds its return address, and keep the original with the thread, beside the place in the stack that it came
//! from. The rules follow `ftrace_graph_ret_addr()` of kernel/trace/fgraph.c and `rethook_find_ret_addr()` of
//! kernel/trace/rethook.c: one place may have several originals (tail calls, several probes of one function), of which all but
//! one are a trampoline again.

use crate::error::Fault;
use crate::kernel::Kernel;
use crate::typed::Object;

/// Bits of a word of the graph tracer's stack that say how many words before it its frame begins.
const TO_FRAME: u64 = (1 << 10) - 1;
/// More bytes than `return_to_handler` has, and more than it has on the stack below the place of the address it returns to.
const RETURNING: u64 = 512;

/// The trampolines that functions return to while they are watched.
pub(crate) struct Hooks {
    graph: Option<u64>,
    probe: Option<u64>,
}

/// What a function returns to.
pub(crate) enum Return {
    /// This address.
    To(u64),
    /// This trampoline; the original cannot be found.
    Lost(u64),
}

impl Hooks {
    pub(crate) fn of(kernel: &Kernel) -> Self {
        Self { graph: kernel.symbol("return_to_handler"), probe: kernel.symbol("arch_rethook_trampoline") }
    }

    /// Whether this is the address of a trampoline.
    pub(crate) fn is_one(&self, ip: u64) -> bool {
        self.graph == Some(ip) || self.probe == Some(ip)
    }
}

/// What stands behind the return address `ip` at `slot` in the stack of a thread.
pub(crate) fn original(kernel: &Kernel, task: Option<u64>, ip: u64, slot: u64) -> Return {
    let hooks = kernel.hooks();
    let mut ip = ip;
    // A function may be watched by both.
    for _ in 0..2 {
        let kept = match task {
            _ if !hooks.is_one(ip) => break,
            Some(task) if hooks.graph == Some(ip) => graph(kernel, task),
            Some(task) => probes(kernel, task),
            None => Ok(Vec::new()),
        };
        let kept = kept.unwrap_or_default().into_iter().find(|kept| kept.slot == slot && kept.original != ip);
        match kept {
            Some(kept) => ip = kept.original,
            None => return Return::Lost(ip),
        }
    }
    if hooks.is_one(ip) { Return::Lost(ip) } else { Return::To(ip) }
}

/// Where a thread that is inside `return_to_handler`, which mostly has no ORC, will return to: the address and its place.
pub(crate) fn returning(kernel: &Kernel, task: u64, ip: u64, sp: u64) -> Option<(u64, u64)> {
    let handler = kernel.hooks().graph?;
    // Names cost more than distances, and most stacks end elsewhere.
    if ip.wrapping_sub(handler) > RETURNING || kernel.symbolise(ip.wrapping_sub(1))?.1 != handler {
        return None;
    }
    let kept = graph(kernel, task).ok()?.into_iter().filter(|kept| kept.original != handler);
    let near = kept.filter(|kept| kept.slot.wrapping_sub(sp) < RETURNING).min_by_key(|kept| kept.slot)?;
    Some((near.original, near.slot))
}

/// One address that was replaced.
struct Kept {
    slot: u64,
    original: u64,
}

/// What the function graph tracer keeps of a thread. Before 6.11 that is an array; since then frames lie in a stack of words, and
/// the word behind a frame says where it begins.
fn graph(kernel: &Kernel, task: u64) -> Result<Vec<Kept>, Fault> {
    const NONE: Fault = Fault::NoSuch("return stack");
    let btf = kernel.btf().ok_or(NONE)?;
    let frame = btf.composite("ftrace_ret_stack").ok_or(NONE)?;
    let size = btf.size(frame).ok_or(NONE)?;
    let thread = kernel.object("task_struct", task).ok_or(NONE)?;
    let stack = thread.field("ret_stack")?;
    let is_array = btf.target(stack.type_id()).is_some_and(|target| btf.strip(target) == frame);
    let stack = stack.value()?;
    let kept = |at: u64| {
        let frame = Object::new(kernel.memory(), btf.clone(), frame, at);
        Ok(Kept { slot: frame.number("retp")?, original: frame.number("ret")? })
    };
    let top = thread.number("curr_ret_stack")?.cast_signed();
    let most = u64::from(kernel.limits().frames);
    if is_array {
        let count = u64::try_from(top.saturating_add(1)).unwrap_or(0).min(most);
        return (0..count).rev().map(|i| kept(stack.wrapping_add(i * size))).collect();
    }
    let mut found = Vec::new();
    let mut above = u64::try_from(top).unwrap_or(0).min(kernel.limits().table_bytes);
    while let Some(word) = above.checked_sub(1).filter(|_| (found.len() as u64) < most) {
        let back = kernel.memory().u64(stack.wrapping_add(8 * word))? & TO_FRAME;
        let Some(begin) = word.checked_sub(back).filter(|_| back > 0) else { break };
        found.push(kept(stack.wrapping_add(8 * begin))?);
        above = begin;
    }
    Ok(found)
}

/// What return probes keep of a thread.
fn probes(kernel: &Kernel, task: u64) -> Result<Vec<Kept>, Fault> {
    const NONE: Fault = Fault::NoSuch("return probes");
    let btf = kernel.btf().ok_or(NONE)?;
    let ty = btf.composite("rethook_node").ok_or(NONE)?;
    let inside = btf.path(ty, "llist").ok_or(NONE)?.bit_offset / 8;
    let mut node = kernel.object("task_struct", task).ok_or(NONE)?.number("rethooks.first")?;
    let mut found = Vec::new();
    while node != 0 && found.len() < kernel.limits().frames as usize {
        let hook = Object::new(kernel.memory(), btf.clone(), ty, node.wrapping_sub(inside));
        found.push(Kept { slot: hook.number("frame")?, original: hook.number("ret_addr")? });
        node = kernel.memory().u64(node)?;
    }
    Ok(found)
}
