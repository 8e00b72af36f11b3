//! A small kernel that never ran: page tables, symbols, types, unwind tables, tasks and a log, laid out as Linux does.
//!
//! Not a copy of any kernel: addresses and layouts are made up, so that a test passes only when the engine follows what the
//! dump says about itself.

pub mod btf;
pub mod dump;

use btf::BtfWriter;
use dump::{Contents, PAGE};
use std::collections::{BTreeMap, BTreeSet};

pub const MAP: u64 = 0xffff_ffff_8000_0000;
pub const TEXT: u64 = MAP + 0x0100_0000;
const PHYS_BASE: u64 = 0x0040_0000;
const IMAGE_END: u64 = TEXT + 0x40_0000;

pub const CRASH_KEXEC: u64 = TEXT + 0x1000;
pub const PANIC: u64 = TEXT + 0x2000;
pub const SCHEDULE: u64 = TEXT + 0x3000;
pub const KTHREAD: u64 = TEXT + 0x4000;
pub const RET_FROM_FORK: u64 = TEXT + 0x5000;
pub const ENTRY: u64 = TEXT + 0x6000;
pub const IRQ: u64 = TEXT + 0x7000;
pub const WORK: u64 = TEXT + 0x8000;
pub const MUTEX_LOCK: u64 = TEXT + 0xa000;
/// Two trampolines without unwind information.
pub const RETURN_TO_HANDLER: u64 = TEXT + 0xb000;
pub const RETHOOK: u64 = TEXT + 0xb800;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symbols {
    Relative,
    AbsolutePercpu,
    PlaceRelative,
}

#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub symbols: Symbols,
    pub five_levels: bool,
    pub renumbered: bool,
    pub old_orc: bool,
    /// The function graph tracer keeps words and not an array of frames.
    pub graph_words: bool,
    /// Put before every C symbol: gives kernels with one build id and different tables.
    pub prefix: &'static str,
    pub kaslr: u64,
}

pub const PLAIN: Shape = Shape {
    symbols: Symbols::AbsolutePercpu,
    five_levels: false,
    renumbered: false,
    old_orc: false,
    graph_words: false,
    prefix: "",
    kaslr: 0,
};

/// The kernel under construction.
pub struct World {
    pub shape: Shape,
    pub contents: Contents,
    next: u64,
    next_direct: u64,
    symbols: BTreeMap<String, u64>,
    direct: u64,
    /// Addresses worth breaking in tests.
    pub named: BTreeMap<&'static str, u64>,
}

impl World {
    fn write_phys(&mut self, pa: u64, bytes: &[u8]) {
        for (i, b) in bytes.iter().enumerate() {
            let at = pa + i as u64;
            let page = self.contents.pages.entry(at / PAGE as u64).or_insert_with(|| Box::new([0; PAGE]));
            page[at as usize % PAGE] = *b;
        }
    }

    /// Physical address; only the image and the direct map.
    pub fn phys(&self, va: u64) -> u64 {
        if va >= MAP { va - MAP - self.shape.kaslr + PHYS_BASE } else { va - self.direct }
    }

    pub fn write(&mut self, va: u64, bytes: &[u8]) {
        self.write_phys(self.phys(va), bytes);
    }

    pub fn put(&mut self, va: u64, value: u64) {
        self.write(va, &value.to_le_bytes());
    }

    pub fn put32(&mut self, va: u64, value: u32) {
        self.write(va, &value.to_le_bytes());
    }

    /// Room in the kernel image.
    fn room(&mut self, len: u64) -> u64 {
        let at = self.next;
        self.next = (at + len).next_multiple_of(64);
        self.write(at, &vec![0; len as usize]);
        at
    }

    /// Room in the direct map, reached through page tables.
    fn room_direct(&mut self, len: u64) -> u64 {
        let at = self.next_direct;
        self.next_direct = (at + len).next_multiple_of(64);
        self.write(at, &vec![0; len as usize]);
        at
    }

    /// A stack has a page for itself.
    fn stack(&mut self) -> u64 {
        self.next_direct = self.next_direct.next_multiple_of(PAGE as u64);
        self.room_direct(PAGE as u64)
    }

    fn name(&mut self, name: &str, va: u64) {
        self.symbols.insert(name.to_owned(), va);
    }

    fn global(&mut self, name: &str, len: u64) -> u64 {
        let at = self.room(len);
        self.name(name, at);
        at
    }

    /// Where an address of the unmoved kernel is in this boot.
    pub fn at(&self, va: u64) -> u64 {
        va + self.shape.kaslr
    }
}

/// Offsets of the made-up `task_struct`.
mod task {
    pub const SIZE: u64 = 256;
    pub const STATE: u64 = 8;
    pub const FLAGS: u64 = 12;
    pub const PID: u64 = 16;
    pub const TGID: u64 = 20;
    pub const COMM: u64 = 24;
    pub const TASKS: u64 = 48;
    pub const NODE: u64 = 64;
    pub const SIGNAL: u64 = 80;
    pub const PARENT: u64 = 88;
    pub const SP: u64 = 104;
    pub const STACK: u64 = 120;
    pub const CURR_RET_STACK: u64 = 128;
    pub const RET_STACK: u64 = 136;
    pub const RETHOOKS: u64 = 144;
}

/// Size of the made-up `struct ftrace_ret_stack`, in words.
const GRAPH_FRAME: u64 = 3;

/// Offsets of the made-up `struct mutex`.
mod mutex {
    pub const SIZE: u64 = 24;
    pub const WAIT_LIST: u64 = 8;
}

const PERCPU: u64 = 0x2000;
const RUNQUEUE: u64 = 0x100;
const NOTES: u64 = 0x800;
pub const LINES: [&str; 3] = ["Linux version 9.9.9", "first\nsecond", "Kernel panic - not syncing: made up"];

/// Builds the kernel: CPU 0 panicked in thread 1, CPU 1 was interrupted in a worker, thread 3 sleeps.
pub fn world(shape: Shape) -> World {
    let direct: u64 = if shape.five_levels { 0xff11_0000_0000_0000 } else { 0xffff_8880_0000_0000 };
    let contents = Contents { pages: BTreeMap::new(), excluded: BTreeSet::new(), notes: Vec::new() };
    let start = TEXT + shape.kaslr;
    let mut w = World {
        shape,
        contents,
        next: start + 0x10_0000,
        next_direct: direct + 0x0200_0000,
        symbols: BTreeMap::new(),
        direct,
        named: BTreeMap::new(),
    };
    for (name, va) in [
        ("_stext", TEXT),
        ("__crash_kexec", CRASH_KEXEC),
        ("panic", PANIC),
        ("schedule", SCHEDULE),
        ("kthread", KTHREAD),
        ("ret_from_fork_asm", RET_FROM_FORK),
        ("entry_SYSCALL_64", ENTRY),
        ("asm_irq", IRQ),
        ("work", WORK),
        ("__mutex_lock", MUTEX_LOCK),
        ("return_to_handler", RETURN_TO_HANDLER),
        ("arch_rethook_trampoline", RETHOOK),
        ("_end", IMAGE_END),
    ] {
        let text =
            format!("{}{name}", if name.starts_with('_') || name == "ret_from_fork_asm" { "" } else { shape.prefix });
        w.name(&text, va + shape.kaslr);
    }
    w.write(w.at(PANIC) + 0x1b, &[0xe8, 0, 0, 0, 0]);
    w.write(w.at(ENTRY), &[0x90; 64]);
    let banner = w.global("linux_banner", 64);
    w.write(banner, b"Linux version 9.9.9 (made up)\n\0");
    let taint = w.global("tainted_mask", 8);
    w.put(taint, 1 << 9);
    let mut info = String::from("OSRELEASE=9.9.9-synthetic\nBUILD-ID=00ff00ff\nPAGESIZE=4096\nCRASHTIME=1700000000\n");
    info += &format!("KERNELOFFSET={:x}\n", shape.kaslr);
    log(&mut w, &mut info);
    types(&mut w);
    orc(&mut w);
    machines(&mut w);
    let root = page_tables(&mut w);
    kallsyms(&mut w, &mut info);
    info += &format!(
        "SYMBOL(init_top_pgt)={root:x}\nNUMBER(phys_base)={}\n",
        PHYS_BASE.wrapping_sub(shape.kaslr).cast_signed()
    );
    info +=
        &format!("NUMBER(pgtable_l5_enabled)={}\nNUMBER(KERNEL_IMAGE_SIZE)=1073741824\n", u8::from(shape.five_levels));
    w.contents.notes.push(("VMCOREINFO".into(), 0, info.into_bytes()));
    w
}

fn log(w: &mut World, info: &mut String) {
    const BITS: u32 = 3;
    let (ring, pointer) = (w.room(128), w.global("prb", 8));
    w.put(pointer, ring);
    let (descs, infos, text) = (w.room(24 * 8), w.room(40 * 8), w.room(1 << 10));
    w.put32(ring, BITS);
    w.put(ring + 8, descs);
    w.put(ring + 16, infos);
    w.put32(ring + 48, 10);
    w.put(ring + 56, text);
    // Ids and positions start below zero, as the kernel's do.
    let first = (1u64 << 62) - 9;
    let mut lpos = 0u64.wrapping_sub(1 << 10);
    w.put(ring + 32, first);
    w.put(ring + 24, first + LINES.len() as u64 - 1);
    for (i, line) in LINES.iter().enumerate() {
        let id = first + i as u64;
        let slot = id % 8;
        let next = (lpos + 8 + line.len() as u64).next_multiple_of(8);
        w.put(descs + slot * 24, 2 << 62 | id);
        w.put(descs + slot * 24 + 8, lpos);
        w.put(descs + slot * 24 + 16, next);
        w.put(infos + slot * 40 + 8, 1_500_000_000 * (i as u64 + 1));
        w.write(infos + slot * 40 + 16, &(line.len() as u16).to_le_bytes());
        w.write(infos + slot * 40 + 19, &[4 << 5]);
        w.put32(infos + slot * 40 + 20, if i == 1 { 1 << 31 | 1 } else { 1 });
        w.write(text + lpos % 1024 + 8, line.as_bytes());
        lpos = next;
    }
    w.put(ring + 64, lpos);
    *info += &format!("SYMBOL(prb)={pointer:x}\n");
    for (name, value) in [
        ("OFFSET(printk_ringbuffer.desc_ring)", 0),
        ("OFFSET(printk_ringbuffer.text_data_ring)", 48),
        ("OFFSET(prb_desc_ring.count_bits)", 0),
        ("OFFSET(prb_desc_ring.descs)", 8),
        ("OFFSET(prb_desc_ring.infos)", 16),
        ("OFFSET(prb_desc_ring.head_id)", 24),
        ("OFFSET(prb_desc_ring.tail_id)", 32),
        ("SIZE(prb_desc)", 24),
        ("OFFSET(prb_desc.state_var)", 0),
        ("OFFSET(prb_desc.text_blk_lpos)", 8),
        ("OFFSET(prb_data_blk_lpos.begin)", 0),
        ("OFFSET(prb_data_blk_lpos.next)", 8),
        ("SIZE(printk_info)", 40),
        ("OFFSET(printk_info.ts_nsec)", 8),
        ("OFFSET(printk_info.text_len)", 16),
        ("OFFSET(printk_info.caller_id)", 20),
        ("OFFSET(prb_data_ring.size_bits)", 0),
        ("OFFSET(prb_data_ring.data)", 8),
        ("OFFSET(prb_data_ring.head_lpos)", 16),
        ("OFFSET(atomic_long_t.counter)", 0),
    ] {
        *info += &format!("{name}={value}\n");
    }
}

fn types(w: &mut World) {
    let mut b = BtfWriter::new();
    let (u8t, i32t, u32t, u64t) =
        (b.int("char", 1, true), b.int("int", 4, true), b.int("unsigned int", 4, false), b.int("u64", 8, false));
    let s16 = b.int("short", 2, true);
    let pid_t = b.typedef("pid_t", i32t);
    let list = b.structure("list_head", 16, &[("next", u64t, 0), ("prev", u64t, 8)]);
    let signal = b.structure("signal_struct", 32, &[("thread_head", list, 16)]);
    let (to_signal, comm) = (b.pointer(signal), b.array(u8t, 16));
    let thread = b.structure("thread_struct", 16, &[("sp", u64t, 0)]);
    let thread_info = b.structure("thread_info", 8, &[("cpu", u32t, 4)]);
    let frame = b.structure(
        "ftrace_ret_stack",
        8 * GRAPH_FRAME as u32,
        &[("ret", u64t, 0), ("func", u64t, 8), ("retp", u64t, 16)],
    );
    let ret_stack = b.pointer(if w.shape.graph_words { u64t } else { frame });
    let first = b.structure("llist_head", 8, &[("first", u64t, 0)]);
    b.structure("rethook_node", 32, &[("llist", first, 8), ("ret_addr", u64t, 16), ("frame", u64t, 24)]);
    // Types may refer to later ones: the pointer to task_struct comes before it.
    let to_task = b.count() + 1;
    let task_id = to_task + 1;
    assert_eq!(b.pointer(task_id), to_task);
    let members = [
        ("thread_info", thread_info, 0),
        ("__state", u32t, task::STATE as u32),
        ("flags", u32t, task::FLAGS as u32),
        ("pid", pid_t, task::PID as u32),
        ("tgid", pid_t, task::TGID as u32),
        ("comm", comm, task::COMM as u32),
        ("tasks", list, task::TASKS as u32),
        ("thread_node", list, task::NODE as u32),
        ("signal", to_signal, task::SIGNAL as u32),
        ("real_parent", to_task, task::PARENT as u32),
        ("thread", thread, task::SP as u32),
        ("stack", u64t, task::STACK as u32),
        ("curr_ret_stack", i32t, task::CURR_RET_STACK as u32),
        ("ret_stack", ret_stack, task::RET_STACK as u32),
        ("rethooks", first, task::RETHOOKS as u32),
    ];
    assert_eq!(b.structure("task_struct", task::SIZE as u32, &members), task_id);
    b.structure("rq", 64, &[("nr_running", u32t, 0), ("clock", u64t, 8), ("curr", to_task, 16), ("idle", to_task, 24)]);
    let counter = b.structure("atomic_long_t", 8, &[("counter", u64t, 0)]);
    b.structure("mutex", mutex::SIZE as u32, &[("owner", counter, 0), ("wait_list", list, mutex::WAIT_LIST as u32)]);
    b.structure("mutex_waiter", 24, &[("list", list, 0), ("task", to_task, 16)]);
    b.structure("inactive_task_frame", 24, &[("bx", u64t, 0), ("bp", u64t, 8), ("ret_addr", u64t, 16)]);
    b.structure("module", 128, &[("list", list, 0), ("name", comm, 16)]);
    let signal_or_end = if w.shape.old_orc { ("end", u32t, 42, 1) } else { ("signal", u32t, 43, 1) };
    let kind = ("type", u32t, 40, if w.shape.old_orc { 2 } else { 3 });
    let orc = [
        ("sp_offset", s16, 0, 0),
        ("bp_offset", s16, 16, 0),
        ("sp_reg", u32t, 32, 4),
        ("bp_reg", u32t, 36, 4),
        kind,
        signal_or_end,
    ];
    b.bit_structure("orc_entry", 6, &orc);
    let raw = b.finish();
    let at = w.global("__start_BTF", raw.len() as u64);
    w.write(at, &raw);
    w.name("__stop_BTF", at + raw.len() as u64);
    w.named.insert("btf", at);
}

fn orc(w: &mut World) {
    enum Kind {
        Hole,
        End,
        Call,
        Regs,
    }
    let table = [
        (TEXT, Kind::Hole, 0),
        (CRASH_KEXEC, Kind::Hole, 0),
        (PANIC, Kind::Call, 24),
        (SCHEDULE, Kind::Call, 16),
        (KTHREAD, Kind::Call, 8),
        (RET_FROM_FORK, Kind::End, 0),
        (ENTRY, Kind::Regs, 0),
        (IRQ, Kind::Regs, 0),
        (WORK, Kind::Call, 32),
        (WORK + 0x1000, Kind::Hole, 0),
        (MUTEX_LOCK, Kind::Call, 64),
        (MUTEX_LOCK + 0x1000, Kind::Hole, 0),
    ];
    let count = table.len() as u64;
    let (ips, entries) = (w.global("__start_orc_unwind_ip", 4 * count), w.global("__start_orc_unwind", 6 * count));
    w.name("__stop_orc_unwind_ip", ips + 4 * count);
    let sp_number = if w.shape.renumbered { 3 } else { 5 };
    for (i, (va, kind, offset)) in table.iter().enumerate() {
        let at = ips + 4 * i as u64;
        w.put32(at, (va + w.shape.kaslr).wrapping_sub(at) as u32);
        let kind = match (kind, w.shape.old_orc) {
            (Kind::Hole, _) | (Kind::Call, true) => 0u64,
            (Kind::End, true) => 4,
            (Kind::End, false) | (Kind::Regs, true) => 1,
            (Kind::Call, false) => 2,
            (Kind::Regs, false) => 3 | 8,
        };
        let sp = if kind == 0 && *offset == 0 || kind == 4 { 0 } else { sp_number };
        let raw = u64::from(*offset as u16) | sp << 32 | kind << 40;
        w.write(entries + 6 * i as u64, &raw.to_le_bytes()[..6]);
    }
}

/// `struct pt_regs` with these values.
fn pt_regs(ip: u64, sp: u64, user: bool) -> Vec<u8> {
    let mut regs = [0u64; 21];
    (regs[16], regs[17], regs[18], regs[19]) = (ip, if user { 0x33 } else { 0x10 }, 0x246, sp);
    regs.iter().flat_map(|r| r.to_le_bytes()).collect()
}

fn prstatus(ip: u64, sp: u64, pid: u32) -> Vec<u8> {
    let mut desc = vec![0u8; 336];
    desc[32..36].copy_from_slice(&pid.to_le_bytes());
    desc[112..112 + 168].copy_from_slice(&pt_regs(ip, sp, false));
    desc
}

fn machines(w: &mut World) {
    let tasks: Vec<u64> =
        (0..4).map(|i| if i == 0 { w.global("init_task", task::SIZE) } else { w.room_direct(task::SIZE) }).collect();
    for (i, &at) in tasks.iter().enumerate() {
        let (next, prev) = (tasks[(i + 1) % 4], tasks[(i + 3) % 4]);
        w.put(at + task::TASKS, next + task::TASKS);
        w.put(at + task::TASKS + 8, prev + task::TASKS);
        let signal = w.room_direct(32);
        w.put(at + task::SIGNAL, signal);
        w.put(signal + 16, at + task::NODE);
        w.put(signal + 24, at + task::NODE);
        w.put(at + task::NODE, signal + 16);
        w.put(at + task::NODE + 8, signal + 16);
        w.put32(at + task::PID, i as u32);
        w.put32(at + task::TGID, i as u32);
        w.write(at + task::COMM, ["swapper", "init", "worker", "sleeper"][i].as_bytes());
        w.put(at + task::PARENT, tasks[0]);
        w.put32(at + 4, u32::from(i == 2));
        w.put32(at + task::CURR_RET_STACK, if w.shape.graph_words { 0 } else { u32::MAX });
    }
    w.put32(tasks[3] + task::STATE, 2);
    w.put32(tasks[3] + task::FLAGS, 0x0020_0000);
    w.named.insert("sleeper.tasks", tasks[3] + task::TASKS);
    w.named.extend([("init", tasks[1]), ("worker", tasks[2]), ("sleeper", tasks[3])]);
    let (ret_stack, rethooks) = (w.room_direct(256), w.room_direct(256));
    w.named.extend([("ret_stack", ret_stack), ("rethooks", rethooks)]);
    let locks = w.room_direct(2 * mutex::SIZE);
    w.named.insert("locks", locks);

    // Thread 3 sleeps: schedule ← kthread ← ret_from_fork.
    let stack = w.stack();
    let sp = stack + 2048;
    w.put(tasks[3] + task::SP, sp);
    w.put(tasks[3] + task::STACK, stack);
    w.put(sp + 16, w.at(SCHEDULE) + 0x10);
    w.put(sp + 24 + 8, w.at(KTHREAD) + 0x20);
    w.put(sp + 24 + 16, w.at(RET_FROM_FORK) + 0x8);
    w.named.insert("sleeper.stack", sp);

    // Thread 1 panicked: __crash_kexec has no ORC, its caller panic is found on the stack; panic ← entry ← user mode.
    let stack = w.stack();
    let panic_sp = stack + 1024;
    w.put(panic_sp + 40, w.at(PANIC) + 0x20);
    w.put(panic_sp + 48 + 16, w.at(ENTRY) + 0x30);
    w.write(panic_sp + 48 + 24, &pt_regs(0x40_1000, 0x7fff_0000, true));

    // CPU 1: an interrupt hit the worker: asm_irq has registers on its stack; work ← kthread ← ret_from_fork.
    let stack = w.stack();
    let (irq_sp, work_sp) = (stack + 512, stack + 2048);
    w.named.extend([("worker.regs", irq_sp), ("worker.stack", work_sp)]);
    w.write(irq_sp, &pt_regs(w.at(WORK), work_sp, false));
    w.put(work_sp + 24, w.at(KTHREAD) + 0x20);
    w.put(work_sp + 32, w.at(RET_FROM_FORK) + 0x8);

    let offsets = w.global("__per_cpu_offset", 64);
    let mut areas = Vec::new();
    for cpu in 0..2u64 {
        let area = w.room_direct(PERCPU);
        // A per-CPU symbol is a small number before 7.x and an address of the image since.
        let base = if w.shape.symbols == Symbols::AbsolutePercpu { 0 } else { w.at(TEXT) + 0x3f_0000 };
        w.put(offsets + 8 * cpu, area.wrapping_sub(base));
        w.put32(area + RUNQUEUE, 1);
        w.put(area + RUNQUEUE + 8, 5_000_000_000 + cpu);
        w.put(area + RUNQUEUE + 16, tasks[1 + cpu as usize]);
        w.put(area + RUNQUEUE + 24, tasks[0]);
        areas.push((area, base));
    }
    w.name("runqueues", areas[0].1 + RUNQUEUE);
    let notes = [prstatus(w.at(CRASH_KEXEC) + 0x50, panic_sp, 1), prstatus(w.at(IRQ) + 0x10, irq_sp, 2)];
    let pointer = w.global("crash_notes", 8);
    w.named.insert("crash_notes", pointer);
    w.put(pointer, areas[0].1 + NOTES);
    for ((area, _), desc) in areas.iter().zip(&notes) {
        let note = ("CORE".to_owned(), 1, desc.clone());
        let one = Contents { pages: BTreeMap::new(), excluded: BTreeSet::new(), notes: vec![note.clone()] };
        w.write(area + NOTES, &dump::notes(&one));
        w.contents.notes.push(note);
    }
    for mask in ["__cpu_possible_mask", "__cpu_present_mask", "__cpu_online_mask"] {
        let at = w.global(mask, 8);
        w.put(at, 3);
    }
    let ids = w.global("nr_cpu_ids", 4);
    w.put32(ids, 2);
    let panicked = w.global("panic_cpu", 4);
    w.put32(panicked, 0);
    let modules = w.global("modules", 16);
    w.put(modules, modules);
    w.put(modules + 8, modules);
}

/// Thread 3 waits for a mutex of thread 1, beside which lies one that thread 2 holds; returns the mutex.
pub fn blocked_on_mutex(w: &mut World) -> u64 {
    let (lock, sp, sleeper) = (w.named["locks"], w.named["sleeper.stack"], w.named["sleeper"]);
    w.put(lock, w.named["init"] | 1);
    w.put(lock + mutex::SIZE, w.named["worker"]);
    // schedule ← __mutex_lock ← kthread ← ret_from_fork, with the waiter in the frame of __mutex_lock.
    let frame = sp + 40;
    w.put(sp + 24 + 8, w.at(MUTEX_LOCK) + 0x20);
    w.put(frame + 56, w.at(KTHREAD) + 0x20);
    w.put(frame + 64, w.at(RET_FROM_FORK) + 0x8);
    let (waiter, head) = (frame + 8, lock + mutex::WAIT_LIST);
    for (node, other) in [(waiter, head), (head, waiter)] {
        w.put(node, other);
        w.put(node + 8, other);
    }
    w.put(waiter + 16, sleeper);
    lock
}

/// Where the sleeper finds return addresses once [`deeper`] has changed its stack, innermost first.
pub fn slots(w: &World) -> [u64; 2] {
    let sp = w.named["sleeper.stack"];
    [sp + 32, sp + 64]
}

/// Thread 3 sleeps deeper: schedule ← work ← kthread ← ret_from_fork.
pub fn deeper(w: &mut World) {
    let [first, second] = slots(w);
    w.put(first, w.at(WORK) + 0x20);
    w.put(second, w.at(KTHREAD) + 0x20);
    w.put(second + 8, w.at(RET_FROM_FORK) + 8);
    // The call that the last of these comes after.
    w.write(w.at(KTHREAD) + 0x1b, &[0xe8, 0, 0, 0, 0]);
}

/// What the graph tracer keeps of a thread: places and originals, oldest first. Between frames of words lie other data.
pub fn graph(w: &mut World, thread: u64, kept: &[(u64, u64)]) {
    let at = w.named["ret_stack"];
    w.put(thread + task::RET_STACK, at);
    let mut next = 0;
    for (slot, original) in kept {
        w.put(at + 8 * next, *original);
        w.put(at + 8 * next + 16, *slot);
        next += GRAPH_FRAME;
        if w.shape.graph_words {
            let kind = 1 << 10 | 1 << 12;
            w.put(at + 8 * next, GRAPH_FRAME | kind);
            w.put(at + 8 * (next + 1), 0x1234_5678);
            w.put(at + 8 * (next + 2), (GRAPH_FRAME + 2) | 2 << 10);
            next += 3;
        }
    }
    graph_top(w, thread, if w.shape.graph_words { next } else { (kept.len() as u64).wrapping_sub(1) } as u32);
}

/// Where the graph tracer's stack of a thread ends.
pub fn graph_top(w: &mut World, thread: u64, top: u32) {
    w.put32(thread + task::CURR_RET_STACK, top);
}

/// What return probes keep of a thread: places and originals, newest first.
pub fn probes(w: &mut World, thread: u64, kept: &[(u64, u64)]) {
    let at = w.named["rethooks"];
    w.put(thread + task::RETHOOKS, at + 8);
    for (i, (slot, original)) in kept.iter().enumerate() {
        let node = at + 32 * i as u64;
        w.put(node + 8, if i + 1 < kept.len() { node + 32 + 8 } else { 0 });
        w.put(node + 16, *original);
        w.put(node + 24, *slot);
    }
}

/// Thread 3 sleeps deeper, and both a tracer and a probe watch where it returns.
pub fn watched(w: &mut World) {
    deeper(w);
    let ([first, second], sleeper) = (slots(w), w.named["sleeper"]);
    let (handler, trampoline) = (w.at(RETURN_TO_HANDLER), w.at(RETHOOK));
    let originals = (w.at(WORK) + 0x20, w.at(KTHREAD) + 0x20);
    graph(w, sleeper, &[(second, trampoline), (first, originals.0), (first, handler)]);
    probes(w, sleeper, &[(second, trampoline), (second, originals.1)]);
    w.put(first, handler);
    w.put(second, handler);
}

/// Maps the direct map page by page, and returns the root's address in the image.
fn page_tables(w: &mut World) -> u64 {
    let shifts: &[u32] = if w.shape.five_levels { &[48, 39, 30, 21, 12] } else { &[39, 30, 21, 12] };
    let table = |w: &mut World| {
        w.next = w.next.next_multiple_of(PAGE as u64);
        w.room(PAGE as u64)
    };
    let root = table(w);
    let (start, end) = (w.direct + 0x0200_0000, w.next_direct.next_multiple_of(PAGE as u64));
    let mut known: BTreeMap<(usize, u64), u64> = BTreeMap::new();
    for va in (start..end).step_by(PAGE) {
        let mut here = root;
        for (depth, &shift) in shifts.iter().enumerate() {
            let slot = here + (va >> shift & 511) * 8;
            if shift == 12 {
                w.put(slot, (va - w.direct) | 0x8000_0000_0000_0063);
                break;
            }
            let key = (depth, va >> shift);
            let below = match known.get(&key) {
                Some(&t) => t,
                None => {
                    let t = table(w);
                    known.insert(key, t);
                    let pa = w.phys(t);
                    w.put(slot, pa | 0x63);
                    t
                }
            };
            here = below;
        }
    }
    root
}

fn kallsyms(w: &mut World, info: &mut String) {
    let mut list: Vec<(u64, String)> = w.symbols.iter().map(|(n, a)| (*a, n.clone())).collect();
    list.sort();
    let count = list.len() as u64;
    // Every byte stands for itself, except that token 1 is "__": compression that a reader must undo.
    let names = compress(&list);
    let tokens: Vec<Vec<u8>> = (0..=255u8).map(|b| if b == 1 { b"__".to_vec() } else { vec![b] }).collect();
    let mut table = Vec::new();
    let mut index = Vec::new();
    for t in &tokens {
        index.extend((table.len() as u16).to_le_bytes());
        table.extend(t.iter().copied().filter(|&b| b != 0));
        table.push(0);
    }
    let at = [
        ("kallsyms_num_syms", w.room(8)),
        ("kallsyms_names", w.room(names.len() as u64)),
        ("kallsyms_token_table", w.room(table.len() as u64 + 128)),
        ("kallsyms_token_index", w.room(512)),
        ("kallsyms_offsets", w.room(4 * count)),
    ];
    w.put32(at[0].1, count as u32);
    w.write(at[1].1, &names);
    w.write(at[2].1, &table);
    w.write(at[3].1, &index);
    let base = w.at(TEXT);
    for (i, (va, _)) in list.iter().enumerate() {
        let here = at[4].1 + 4 * i as u64;
        let stored = match w.shape.symbols {
            Symbols::Relative => va.wrapping_sub(base) as u32,
            Symbols::AbsolutePercpu if *va < 1 << 31 => *va as u32,
            Symbols::AbsolutePercpu => base.wrapping_sub(1).wrapping_sub(*va) as u32,
            Symbols::PlaceRelative => va.wrapping_sub(at[4].1).wrapping_sub(4 * i as u64) as u32,
        };
        w.put32(here, stored);
    }
    for (name, va) in at {
        *info += &format!("SYMBOL({name})={va:x}\n");
    }
    w.named.insert("kallsyms_names", at[1].1);
    if w.shape.symbols != Symbols::PlaceRelative {
        let relative = w.room(8);
        w.put(relative, base);
        *info += &format!("SYMBOL(kallsyms_relative_base)={relative:x}\n");
    }
}

fn compress(list: &[(u64, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (_, name) in list {
        let packed = format!("T{name}").replace("__", "\u{1}");
        out.push(packed.len() as u8);
        out.extend(packed.bytes());
    }
    out
}
