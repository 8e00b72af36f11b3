//! A whole capsule from a made-up kernel, in every shape the tables come in.

#[expect(dead_code, reason = "each test binary uses a part of the shared fixture")]
mod synthetic;

use crashyard_vmcore::{
    Capsule, Limits, LockKind, Options, RegisterSource, Stack, StackEnd, TableCache, capsule, of_kernel,
};
use synthetic::dump::{self, Packing};
use synthetic::{PLAIN, Shape, Symbols, World, world};

fn read(world: &World) -> Capsule {
    capsule(&dump::elf(&world.contents, false), &Options::default()).unwrap()
}

fn symbols(stack: Option<&Stack>) -> Vec<&str> {
    stack.unwrap().frames.iter().map(|f| f.symbol.as_deref().unwrap_or("?")).collect()
}

/// The stacks are the same whatever the shape of the tables.
fn check(shape: Shape) {
    let got = read(&world(shape));
    assert_eq!(got.warnings, Vec::<String>::new(), "{shape:?}");
    let panicked = got.stack(got.cpus[0].stack).unwrap();
    assert_eq!(symbols(Some(panicked)), ["__crash_kexec+0x50", "panic+0x20", "entry_SYSCALL_64+0x30"], "{shape:?}");
    assert_eq!(panicked.end, StackEnd::User);
    assert!(
        panicked.frames[1].guess && !panicked.frames[2].guess,
        "the caller found by searching says that it is a guess"
    );
    let worker = got.stack(got.cpus[1].stack).unwrap();
    assert_eq!(
        symbols(Some(worker)),
        ["asm_irq+0x10", "work+0x0", "kthread+0x20", "ret_from_fork_asm+0x8"],
        "{shape:?}"
    );
    assert_eq!(worker.frames.iter().map(|f| f.interrupted).collect::<Vec<_>>(), [true, true, false, false]);
    let sleeper = got.tasks.iter().find(|t| t.comm == "sleeper").unwrap();
    assert_eq!(
        symbols(got.stack(sleeper.stack)),
        ["schedule+0x10", "kthread+0x20", "ret_from_fork_asm+0x8"],
        "{shape:?}"
    );
    assert_eq!(got.stack(sleeper.stack).unwrap().end, StackEnd::Bottom);
    assert_eq!((sleeper.state, sleeper.kernel_thread, sleeper.running), ('D', true, false));
    let threads: Vec<_> = got.tasks.iter().map(|t| (t.pid, t.comm.as_str(), t.running)).collect();
    assert_eq!(threads, [(1, "init", true), (2, "worker", true), (3, "sleeper", false)]);
    assert_eq!(got.panic_task.unwrap().comm, "init");
    assert_eq!(got.taint.unwrap().letters, "W");
}

#[test]
fn all_three_symbol_encodings_give_the_same_stacks() {
    for symbols in [Symbols::Relative, Symbols::AbsolutePercpu, Symbols::PlaceRelative] {
        check(Shape { symbols, ..PLAIN });
    }
}

#[test]
fn four_and_five_level_page_tables_give_the_same_stacks() {
    check(Shape { five_levels: true, ..PLAIN });
    check(Shape { five_levels: true, kaslr: 0x1380_0000, symbols: Symbols::PlaceRelative, ..PLAIN });
}

#[test]
fn old_new_and_renumbered_orc_entries_give_the_same_stacks() {
    check(Shape { old_orc: true, ..PLAIN });
    check(Shape { renumbered: true, ..PLAIN });
}

#[test]
fn a_moved_kernel_gives_the_same_stacks() {
    check(Shape { kaslr: 0x0b80_0000, ..PLAIN });
}

#[test]
fn a_second_dump_of_a_kernel_uses_the_cache_and_says_the_same() {
    let cache = TableCache::new(1 << 20);
    let options = Options { cache: Some(&cache), ..Options::default() };
    let first = dump::elf(&world(PLAIN).contents, false);
    let moved = dump::kdump(&world(Shape { kaslr: 0x0b80_0000, ..PLAIN }).contents, Packing::Zstd, None);
    let fresh = capsule(&moved, &Options::default()).unwrap();
    capsule(&first, &options).unwrap();
    assert_eq!(cache.len(), 1);
    assert_eq!(capsule(&moved, &options).unwrap(), fresh);
}

#[test]
fn a_forged_build_id_does_not_get_the_tables_of_another_kernel() {
    let cache = TableCache::new(1 << 20);
    let options = Options { cache: Some(&cache), ..Options::default() };
    capsule(&dump::elf(&world(PLAIN).contents, false), &options).unwrap();
    let other = capsule(&dump::elf(&world(Shape { prefix: "other_", ..PLAIN }).contents, false), &options).unwrap();
    let sleeper = other.tasks.iter().find(|t| t.comm == "sleeper").unwrap();
    assert_eq!(symbols(other.stack(sleeper.stack))[0], "other_schedule+0x10");
}

#[test]
fn a_task_list_that_runs_in_a_circle_ends_with_a_warning() {
    let mut world = world(PLAIN);
    let node = world.named["sleeper.tasks"];
    world.put(node, node);
    let got = read(&world);
    assert_eq!(got.tasks.len(), 3);
    assert!(got.warnings.iter().any(|w| w.starts_with("task list")), "{:?}", got.warnings);
}

#[test]
fn a_stack_that_is_not_in_the_dump_leaves_the_rest_of_the_report_alone() {
    let mut world = world(PLAIN);
    let page = world.phys(world.named["sleeper.stack"]) >> 12;
    world.contents.pages.remove(&page);
    world.contents.excluded.insert(page);
    let got = read(&world);
    let sleeper = got.tasks.iter().find(|t| t.comm == "sleeper").unwrap();
    assert_eq!(sleeper.stack, None);
    assert_eq!(got.dmesg.len(), 4);
}

#[test]
fn a_mutex_is_found_by_its_waiter_though_the_next_word_behind_it_names_a_thread() {
    let mut world = world(PLAIN);
    let mutex = synthetic::blocked_on_mutex(&mut world);
    let got = read(&world);
    let sleeper = got.tasks.iter().find(|t| t.comm == "sleeper").unwrap();
    assert_eq!(symbols(got.stack(sleeper.stack))[..3], ["schedule+0x10", "__mutex_lock+0x20", "kthread+0x20"]);
    let lock = sleeper.blocked_on.as_ref().unwrap();
    assert_eq!((lock.mutex.0, lock.kind), (mutex, LockKind::Mutex));
    assert_eq!(lock.owner.as_ref().unwrap().comm, "init");
}

#[test]
fn registers_follow_the_order_of_notes_only_when_the_kernel_kept_none() {
    let mut world = world(PLAIN);
    let sources = |w: &World| read(w).cpus.iter().map(|c| c.register_source.unwrap()).collect::<Vec<_>>();
    assert_eq!(sources(&world), [RegisterSource::CrashNotes; 2]);
    // The notes of the dump in the wrong order: the kernel's own buffers decide which CPU is which.
    world.contents.notes.swap(0, 1);
    assert_eq!(read(&world).cpus[0].registers.unwrap().rip.0, synthetic::CRASH_KEXEC + 0x50);
    world.contents.notes.swap(0, 1);
    let pointer = world.named["crash_notes"];
    world.put(pointer, 0x1800);
    assert_eq!(sources(&world), [RegisterSource::NoteOrder; 2]);
    assert_eq!(read(&world).cpus[0].registers.unwrap().rip.0, synthetic::CRASH_KEXEC + 0x50);
}

#[test]
fn without_types_the_log_registers_and_cpu_stacks_remain() {
    let mut world = world(PLAIN);
    let at = world.named["btf"];
    world.put(at, 0);
    let got = read(&world);
    assert!(got.warnings.iter().any(|w| w.starts_with("BTF")), "{:?}", got.warnings);
    assert_eq!(got.dmesg.len(), 4);
    assert_eq!(symbols(got.stack(got.cpus[1].stack))[0], "asm_irq+0x10");
}

#[test]
fn without_symbols_the_log_and_the_registers_remain() {
    let mut world = world(PLAIN);
    let at = world.named["kallsyms_names"];
    world.write(at, &[0xff; 64]);
    let got = read(&world);
    assert!(got.warnings.iter().any(|w| w.starts_with("kallsyms")), "{:?}", got.warnings);
    assert_eq!(got.dmesg.len(), 4);
    assert!(got.cpus.iter().all(|c| c.registers.is_some()));
}

#[test]
fn a_dump_that_is_still_arriving_gives_what_is_there() {
    let whole = dump::elf(&world(PLAIN).contents, false);
    let part = &whole[..whole.len() - 4096];
    assert!(capsule(&part, &Options::default()).is_err());
    let options = Options { partial: true, ..Options::default() };
    let got = capsule(&part, &options).unwrap();
    assert_eq!(got.release, "9.9.9-synthetic");
    assert!(got.warnings.iter().any(|w| w.contains("truncated")), "{:?}", got.warnings);
}

#[test]
fn a_capsule_survives_json() {
    let got = read(&world(PLAIN));
    let text = serde_json::to_string(&got).unwrap();
    assert_eq!(serde_json::from_str::<Capsule>(&text).unwrap(), got);
}

#[test]
fn members_are_read_by_name_and_rendered() {
    let world = world(PLAIN);
    let bytes = dump::elf(&world.contents, false);
    let open = crashyard_vmcore::Dump::open(&bytes, &Limits::default()).unwrap();
    let kernel = crashyard_vmcore::Kernel::open(open, &Limits::default(), None).unwrap();
    let task = kernel.object("task_struct", kernel.symbol("init_task").unwrap()).unwrap();
    assert_eq!(task.text("comm").unwrap(), "swapper");
    assert_eq!(task.number("tgid").unwrap(), 0);
    assert!(task.number("no_such_member").is_err());
    let shown = task.render(1);
    assert!(shown.contains(".comm = \"swapper\""), "{shown}");
    assert_eq!(of_kernel(&kernel).tasks.len(), 3);
}
