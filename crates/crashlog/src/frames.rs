//! Which function a report is named after, and why.
//!
//! The top of a trace is rarely the culprit: reporting machinery, sanitizers, locks, allocators and string helpers
//! stand above it. Each class says where to look and what else is its own plumbing; the families below are plumbing
//! for everybody. Every skipped function is remembered with the reason, because people must be able to disagree.

use std::sync::LazyLock;

use crate::class::{Pick, Recipe, Source};
use crate::model::Frame;
use crate::names::{Matcher, like};
use crate::normal;
use crate::template::Captures;

/// A family of functions that never name a bug. Patterns are substrings; `^` anchors at the start, `$` at the end.
struct Family {
    reason: &'static str,
    patterns: &'static [&'static str],
}

const FAMILIES: &[Family] = &[
    Family {
        reason: "reports problems",
        patterns: &[
            "dump_stack",
            "show_stack",
            "dump_backtrace",
            "arch_stack_walk",
            "save_stack",
            "unwind_",
            "unwind_backtrace",
            "show_regs",
            "panic",
            "warn_slowpath",
            "__warn",
            "warn_alloc",
            "report_bug",
            "fixup_bug",
            "handle_bug",
            "invalid_op",
            "do_trap",
            "error_trap",
            "do_error",
            "^die$",
            "^oops_",
            "^bug_handler",
            "brk_handler",
            "debug_exception",
            "exc_invalid_op",
            "exc_page_fault",
            "program_check",
            "print_address_description",
            "print_report",
            "dump_page",
            "printk",
            "^dev_info",
            "^dev_notice",
            "^dev_warn",
            "^dev_err",
            "^dev_alert",
            "^dev_crit",
            "^dev_emerg",
            "netdev_warn",
            "^_dev_",
            "slab_err",
            "object_err",
            "print_trailer",
            "rust_begin_unwind",
            "core::panicking",
            "^rust_panic",
            "begin_unwind",
            "nmi_cpu_backtrace",
            "nmi_trigger",
            "^bust_spinlocks",
        ],
    },
    Family {
        reason: "checks memory",
        patterns: &[
            "kasan",
            "__asan",
            "kmsan",
            "__msan",
            "kcsan",
            "__tsan",
            "__sanitizer",
            "__hwasan",
            "kfence",
            "ubsan",
            "check_memory_region",
            "read_word_at_a_time",
            "check_region_inline",
            "instrument_",
            "memory_is_poisoned",
            "fault_in_kernel",
            "__check_heap_object",
        ],
    },
    Family {
        reason: "checks locks and objects",
        patterns: &[
            "lockdep",
            "lock_acquire",
            "lock_release",
            "lock_class",
            "reacquire_held_locks",
            "debug_object",
            "timer_is_static_object",
            "work_is_static_object",
            "might_sleep",
            "might_fault",
            "__might_resched",
            "perf_trace",
            "^trace_",
            "check_noncircular",
            "validate_chain",
            "check_prev",
            "print_usage_bug",
            "print_circular",
            "print_bad_irq",
            "print_irq",
            "print_lock",
            "mark_lock",
            "print_deadlock",
        ],
    },
    Family {
        reason: "is a locking primitive",
        patterns: &[
            "spin_lock",
            "spin_trylock",
            "spin_unlock",
            "raw_read_lock",
            "raw_read_trylock",
            "raw_write_lock",
            "raw_write_trylock",
            "raw_read_unlock",
            "mutex_optimistic",
            "mutex_spin",
            "write_lock",
            "_dec_and_lock",
            "raw_write_unlock",
            "^down",
            "^up_read",
            "^up_write",
            "down_read",
            "down_write",
            "up_read",
            "up_write",
            "mutex_lock",
            "mutex_trylock",
            "mutex_unlock",
            "mutex_remove_waiter",
            "osq_lock",
            "osq_unlock",
            "__wake_up",
            "seqcount",
            "percpu_down",
            "percpu_up",
            "rwsem_",
            "rt_mutex",
            "rtlock_",
        ],
    },
    Family {
        reason: "is a reference count helper",
        patterns: &[
            "refcount_add",
            "refcount_sub",
            "refcount_inc",
            "refcount_dec",
            "refcount_set",
            "refcount_read",
            "refcount_warn",
            "arch_atomic",
            "^atomic_",
            "atomic64_",
            "atomic_long_",
            "^kref_",
        ],
    },
    Family {
        reason: "is a memory or string helper",
        patterns: &[
            "memcpy",
            "memcmp",
            "memset",
            "memchr",
            "memmove",
            "strcmp",
            "strncmp",
            "strcpy",
            "strlcpy",
            "strncpy",
            "strscpy",
            "strlen",
            "strnstr",
            "strnlen",
            "strchr",
            "strcat",
            "copy_to_user",
            "copy_from_user",
            "put_user",
            "get_user",
            "^string",
            "^pointer$",
            "snprintf",
            "scnprintf",
            "kasprintf",
            "kvasprintf",
            "kobject_set_name",
            "^hex_string",
            "_string",
            "^number$",
            "memscan",
            "_to_iter",
            "_from_iter",
            "iov_iter_zero",
            "crc16",
            "crc32",
            "crc_itu",
            "crc_t10",
            "^crc",
            "^aes",
            "^crypto_",
            "^xts_",
            "^ecb_",
            "^cbc_",
            "^ctr_crypt",
            "^skcipher_",
            "^shash_",
            "^ahash_",
            "^va_format",
            "^format_decode",
            "^dev_vprintk",
            "^dev_printk",
            "^sha1_",
            "^sha256_",
            "^sha512_",
            "^md5_",
            "^blake2",
            "^chacha",
            "poly1305",
            "^clear_user",
            "^rep_movs",
            "^rep_stos",
            "_copy_from_iter",
            "_copy_to_iter",
            "fortify_panic",
            "csum_partial_copy",
            "^vprintk",
            "bitmap_",
        ],
    },
    Family {
        reason: "is a list, tree or table helper",
        patterns: &[
            "rb_erase",
            "rb_insert",
            "rb_next",
            "rb_first",
            "rb_prev",
            "^xa_",
            "^xas_",
            "^__xa_",
            "^idr_",
            "^ida_",
            "radix_tree",
            "rhashtable",
            "rht_",
            "hash_lookup",
            "interval_tree_",
            "^mas_",
            "^mtree_",
            "test_and_clear_bit",
            "test_and_set_bit",
            "^clear_bit",
            "^set_bit",
            "^test_bit",
            "find_first_bit",
            "find_next_bit",
            "^assoc_array",
            "kfifo",
            "list_add",
            "list_del",
            "list_replace",
            "list_move",
            "list_splice",
            "hlist_",
            "^list_",
            "__list_",
            "llist_",
            "_indirect_thunk_",
            "__rb_insert_aug",
        ],
    },
    Family {
        reason: "waits for or tears down on behalf of its caller",
        patterns: &[
            "del_timer",
            "timer_delete",
            "timer_shutdown",
            "flush_work",
            "__cancel_work",
            "cancel_work_sync",
            "^insert_work",
            "mod_delayed_work",
            "try_to_grab_pending",
            "work_grab_pending",
            "flush_workqueue",
            "drain_workqueue",
            "destroy_workqueue",
            "finish_wait",
            "kthread_stop",
            "kobject_del",
            "kobject_put",
            "kobject_uevent_env",
            "add_uevent_var",
            "get_device_parent",
            "device_add",
            "device_del",
            "device_unregister",
            "device_destroy",
            "hwrng_unregister",
            "i2c_del_adapter",
            "__unregister_client",
            "device_for_each_child",
            "rollback_registered",
            "unregister_netdev",
            "sysfs_remove",
            "device_remove_file",
            "tty_unregister_device",
            "usb_kill_urb",
            "usb_kill_anchored_urbs",
            "usb_control_msg",
            "usb_hcd_submit_urb",
            "usb_submit_urb",
            "dummy_urb_enqueue",
            "__flush_work",
            "start_flush_work",
            "put_device",
            "debugfs_remove",
            "simple_recursive_removal",
        ],
    },
    Family {
        reason: "manages memory for its caller",
        patterns: &[
            "kmalloc",
            "kcalloc",
            "kzalloc",
            "krealloc",
            "kmemdup",
            "kmem_cache",
            "slab_",
            "^___slab",
            "^__slab",
            "kfree",
            "vmalloc",
            "vzalloc",
            "kvmalloc",
            "vfree",
            "vunmap",
            "alloc_pages",
            "alloc_frozen_pages",
            "alloc_page",
            "^__filemap_get_folio",
            "^filemap_get_",
            "^filemap_add_",
            "pagecache_get_page",
            "find_lock_entries",
            "find_get_",
            "truncate_inode_pages",
            "truncate_pagecache",
            "get_free_pages",
            "__free_page",
            "free_pages",
            "free_frozen_pages",
            "free_large_kmalloc",
            "page_owner",
            "stack_depot",
            "stack_trace_",
            "depot_save",
            "folio_unlock",
            "folio_lock",
            "unlock_page",
            "lock_page",
            "__get_free_page",
            "prep_new_page",
            "post_alloc_hook",
            "should_fail",
            "fail_dump",
            "__phys_addr",
            "mempool_",
            "memdup_user",
        ],
    },
    Family {
        reason: "is an accessor that every caller shares",
        patterns: &[
            "skb_push",
            "skb_put",
            "skb_pull",
            "skb_release",
            "kfree_skb",
            "__raw_read",
            "__raw_write",
            "logic_in",
            "logic_out",
            "^iput",
            "drop_nlink",
            "inc_nlink",
            "clear_nlink",
            "set_nlink",
            "^complete$",
            "^complete_all",
            "swake_up",
            "wait_for_completion",
            "wait_for_common",
            "queue_work_on",
            "__queue_work",
            "queue_delayed_work",
            "ref_tracker_",
            "cleanup_srcu_struct",
            "devres_release",
            "device_release",
            "trace_hardirqs",
            "^preempt_count",
            "^irqentry_",
            "write_comp_data",
            "compat_ioctl",
            "notifier_call_chain",
            "call_netdevice_notifiers",
            "rcu_read_lock",
            "rcu_read_unlock",
            "^rcu_lock",
            "^__rcu",
        ],
    },
    Family {
        reason: "handles the fault",
        patterns: &[
            "do_kernel_fault",
            "^do_bad_area",
            "do_translation_fault",
            "do_tag_check_fault",
            "do_mem_abort",
            "do_page_fault",
            "do_alignment",
            "^el1_",
            "^el1h_",
            "^el0_sync",
            "^el0t_",
            "^el1t_",
            "do_sp_pc",
            "do_undefinstr",
            "__dabt_svc",
            "__pabt_svc",
            "do_DataAbort",
            "do_PrefetchAbort",
            "^no_context",
            "bad_page_fault",
            "fixup_exception",
            "do_user_addr_fault",
            "exc_general",
            "asm_exc",
            "kernelmode_fixup",
            "page_fault_oops",
            "exc_divide",
            "machine_check",
        ],
    },
    Family {
        reason: "enters the kernel",
        patterns: &[
            "^asm_",
            "^common_interrupt$",
            "^error_entry",
            "^page_fault$",
            "^async_page_fault",
            "^stack_segment$",
        ],
    },
];

/// Frames below which the thing that loops or hangs is to be found: dispatchers of work, system calls, interrupts.
const ENTRIES: &[&str] = &[
    "process_one_work",
    "do_syscall_",
    "do_fast_syscall_",
    "do_int80_",
    "sysenter_dispatch",
    "tracesys_phase2",
    "entry_SYSCALL",
    "netif_receive_skb",
    "el0_svc",
    "invoke_syscall",
    "ret_fast_syscall",
    "system_call",
    "do_softirq",
    "handle_softirqs",
    "call_timer_fn",
    "expire_timers",
    "_run_timers",
    "run_timer_",
    "run_ksoftirqd",
    "smpboot_thread_fn",
    "^kthread$",
    "kthread_worker_fn",
    "start_secondary",
    "cpu_startup_entry",
    "ret_from_fork",
    "x64_sys_call",
    "ia32_sys_call",
    "vfs_write",
    "vfs_read",
    "vfs_iter_read",
    "vfs_iter_write",
    "do_iter_read",
    "do_iter_write",
    "new_sync_read",
    "new_sync_write",
    "__vfs_read",
    "__vfs_write",
    "vfs_ioctl",
    "blkdev_driver_ioctl",
    "blkdev_ioctl",
    "blkdev_common_ioctl",
    "^call_read_iter",
    "^call_write_iter",
    "do_iter_readv_writev",
    "^call_mmap",
    "mmap_region",
    "do_mmap",
    "do_dentry_open",
    "vfs_open",
    "path_openat",
    "^sock_sendmsg",
    "__sock_sendmsg",
    "____sys_sendmsg",
    "^sock_recvmsg",
    "^sock_release",
    "^__sock_release",
    "__sys_setsockopt",
    "kernel_setsockopt",
    "sock_common_setsockopt",
    "do_sock_setsockopt",
    "__sys_listen",
    "kernel_listen",
    "sk_common_release",
    "^sock_mmap",
    "__sys_accept",
    "kernel_accept",
    "^sock_do_ioctl",
    "^sock_ioctl",
    "^compat_sock_ioctl",
    "^nfnetlink_rcv_msg",
    "^rtnetlink_rcv_msg",
    "__hrtimer_run_queues",
    "__run_hrtimer",
    "sys_socketpair",
    "sys_connect",
    "sys_ioctl",
    "SyS_ioctl",
    "SYSC_ioctl",
    "SyS_connect",
    "SYSC_connect",
    "SyS_socketpair",
    "SYSC_socketpair",
    "sys_fstat",
    "do_vfs_ioctl",
    "__do_fault",
    "do_page_fault",
    "^page_fault$",
    "__fput",
    "task_work_run",
    "exit_to_usermode",
    "exit_to_user_mode",
    "smp_call_function",
    "^call_function_single_interrupt",
    "rcu_core",
    "rcu_do_batch",
    "^cleanup_net",
];

/// Interrupt entries: what runs below them is what was interrupted.
const INTERRUPTS: &[&str] = &[
    "apic_timer_interrupt",
    "el1_interrupt",
    "el1_irq",
    "el1h_64_irq",
    "asm_sysvec",
    "common_interrupt",
    "__irq_svc",
    "ret_from_intr",
    "el1h_irq",
];

/// Waits that many unrelated tasks end up in: filed under their own name, not under the victim's.
const WAITS: &[(&str, Option<&str>)] = &[
    ("rtnl_lock", None),
    ("synchronize_rcu", Some("synchronize_rcu")),
    ("synchronize_srcu", Some("synchronize_rcu")),
    ("__synchronize_srcu", Some("synchronize_rcu")),
    ("synchronize_net", Some("synchronize_rcu")),
    ("synchronize_sched", Some("synchronize_rcu")),
];

/// The chosen frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The name titles use.
    pub name: String,
    /// Other names under which the same frame is known.
    pub others: Vec<String>,
    /// Module of the frame.
    pub module: Option<String>,
}

/// Why a function is never the one to blame, `None` if it may be.
pub fn plumbing(name: &str) -> Option<&'static str> {
    static MATCHER: LazyLock<Matcher> = LazyLock::new(|| Matcher::new(FAMILIES.iter().map(|f| f.patterns)));
    MATCHER.list(name).map(|i| FAMILIES[i].reason)
}

/// Whether a function dispatches work, so that what it called tells one stall from another.
fn is_entry(name: &str) -> bool {
    static MATCHER: LazyLock<Matcher> = LazyLock::new(|| Matcher::new(std::iter::once(ENTRIES)));
    MATCHER.list(name).is_some()
}

/// A candidate: normalised name and module.
#[derive(Debug, Clone, Copy)]
struct Candidate<'a> {
    name: &'a str,
    module: Option<&'a str>,
}

/// The trace as the recipes want to see it.
#[derive(Debug, Clone, Copy)]
pub struct Stack<'a> {
    /// Entries, top first.
    pub frames: &'a [Frame],
    /// Index of the entry that an instruction-pointer line gave, and the others inside the trace.
    pub pointers: &'a [usize],
}

/// Chooses the frame by a recipe, noting in `why` what was skipped and for what reason.
pub fn choose(recipe: &Recipe, stack: Stack<'_>, caps: &Captures<'_>, why: &mut Vec<String>) -> Option<Choice> {
    let captured = |name: &str| caps.get(name).map(crate::trace::readable);
    if recipe.from == [Source::Race] {
        return race(&captured("func")?, &captured("other")?);
    }
    let owned: Vec<String> =
        recipe.from.iter().filter_map(|s| if let Source::Capture(n) = s { captured(n) } else { None }).collect();
    let mut candidates: Vec<Candidate<'_>> = Vec::with_capacity(stack.frames.len() + 1);
    let mut captures = owned.iter();
    let trust = stack.frames.iter().any(|f| f.reliable && !f.inline);
    for source in recipe.from {
        match source {
            Source::Capture(name) => {
                if caps.get(name).is_some()
                    && let Some(text) = captures.next()
                {
                    candidates.push(Candidate { name: normal::function(text), module: None });
                }
            }
            Source::Pointer | Source::Race => {}
            Source::Under(_) | Source::Trace | Source::Interrupted => {
                let from = if *source == Source::Interrupted {
                    interrupted_start(stack)
                } else if recipe.from.contains(&Source::Pointer) {
                    pointer_start(stack)
                } else {
                    trace_start(stack)
                };
                let usable = stack.frames[from..].iter().filter(|f| !f.inline && (f.reliable || !trust));
                candidates.extend(
                    usable.map(|f| Candidate { name: normal::function(&f.function), module: f.module.as_deref() }),
                );
            }
        }
    }
    match recipe.pick {
        Pick::First => first(recipe, &candidates, why),
        Pick::AboveEntry => above_entry(recipe, &candidates, why),
        Pick::Waiter => waiter(recipe, &candidates, why),
    }
}

/// Where the trace proper begins when the instruction pointer above it is not asked for.
fn trace_start(stack: Stack<'_>) -> usize {
    match stack.pointers.first() {
        Some(0) if stack.frames.len() > 1 => 1,
        _ => 0,
    }
}

/// Where the interesting part begins: at the instruction pointer, if the trace has one.
fn pointer_start(stack: Stack<'_>) -> usize {
    stack.pointers.first().copied().unwrap_or(0).min(stack.frames.len())
}

/// Below the interrupt that noticed; the top where the trace is that of the stuck CPU itself.
fn interrupted_start(stack: Stack<'_>) -> usize {
    let irq = stack.frames.iter().position(|f| INTERRUPTS.iter().any(|i| f.function.contains(i)));
    irq.map_or(0, |i| i + 1)
}

/// Whether a trace shows the interrupt that noticed a stall.
pub fn interrupted(frames: &[Frame]) -> bool {
    frames.iter().any(|f| INTERRUPTS.iter().any(|i| f.function.contains(i)))
}

fn skip_reason(recipe: &Recipe, name: &str) -> Option<&'static str> {
    if recipe.skip.iter().any(|p| like(p, name)) { Some("is plumbing of this class") } else { plumbing(name) }
}

fn chosen(c: Candidate<'_>, why: &mut Vec<String>, because: &str) -> Choice {
    let (name, others) = normal::syscall(c.name).unwrap_or_else(|| (c.name.to_owned(), Vec::new()));
    let place = c.module.map_or_else(String::new, |m| format!(" [{m}]"));
    why.push(format!("frame {}{place}: {because}", c.name));
    Choice { name, others, module: c.module.map(str::to_owned) }
}

fn first(recipe: &Recipe, candidates: &[Candidate<'_>], why: &mut Vec<String>) -> Option<Choice> {
    for c in candidates {
        match skip_reason(recipe, c.name) {
            Some(reason) => why.push(format!("skipped {}: {reason}", c.name)),
            None => return Some(chosen(*c, why, "the first function that is not plumbing")),
        }
    }
    None
}

fn above_entry(recipe: &Recipe, candidates: &[Candidate<'_>], why: &mut Vec<String>) -> Option<Choice> {
    let mut usable = candidates
        .iter()
        .filter(|c| !INTERRUPTS.iter().any(|i| c.name.contains(i)))
        .filter(|c| skip_reason(recipe, c.name).is_none() || is_entry(c.name));
    let mut above = *usable.next()?;
    let mut current = above;
    loop {
        if is_entry(current.name) {
            if current.name.contains("smp_call_function") {
                // Many names of one thing: a CPU does not answer the others.
                let mut choice = chosen(current, why, "a CPU waits for others to run a function");
                choice.name = "smp_call_function".to_owned();
                if current.name != choice.name {
                    choice.others.push(current.name.to_owned());
                }
                return Some(choice);
            }
            return Some(chosen(above, why, "the last function above the entry point, below which the CPU was stuck"));
        }
        above = current;
        match usable.next() {
            Some(c) => current = *c,
            None => {
                why.push("no entry point in the trace: cannot tell what was stuck".to_owned());
                return None;
            }
        }
    }
}

fn waiter(recipe: &Recipe, candidates: &[Candidate<'_>], why: &mut Vec<String>) -> Option<Choice> {
    for c in candidates {
        if let Some((_, common)) = WAITS.iter().find(|(w, _)| c.name.starts_with(w)) {
            let mut choice = chosen(*c, why, "a wait that many tasks share, filed under its own name");
            if let Some(common) = common {
                if c.name != *common {
                    choice.others.push(c.name.to_owned());
                }
                choice.name = (*common).to_owned();
            }
            return Some(choice);
        }
    }
    first(recipe, candidates, why)
}

/// Data races are named after both sides, in alphabetical order, once if they are the same.
fn race(a: &str, b: &str) -> Option<Choice> {
    let (a, b) = (normal::function(a).to_owned(), normal::function(b).to_owned());
    let name = match a.cmp(&b) {
        std::cmp::Ordering::Equal => a,
        std::cmp::Ordering::Less => format!("{a} / {b}"),
        std::cmp::Ordering::Greater => format!("{b} / {a}"),
    };
    Some(Choice { name, ..Choice::default() })
}

/// Three to six normalised names that identify the trace: from the chosen frame down, plumbing left out.
pub fn fingerprint(stack: Stack<'_>, choice: Option<&Choice>) -> Vec<String> {
    let trust = stack.frames.iter().any(|f| f.reliable && !f.inline);
    let names =
        stack.frames.iter().filter(|f| !f.inline && (f.reliable || !trust)).map(|f| normal::function(&f.function));
    let mut out: Vec<String> = Vec::with_capacity(6);
    for name in names {
        if plumbing(name).is_some() || out.last().is_some_and(|l| l == name) {
            continue;
        }
        // An entry point ends the part that tells one bug from another, once there is enough of it.
        if out.len() >= 3 && is_entry(name) {
            break;
        }
        out.push(name.to_owned());
        if out.len() == 6 {
            break;
        }
    }
    if out.is_empty() {
        out.extend(choice.map(|c| c.name.clone()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(names: &[&str]) -> Vec<Frame> {
        names.iter().map(|n| Frame { function: (*n).to_owned(), reliable: true, ..Frame::default() }).collect()
    }

    fn pick(recipe: &Recipe, names: &[&str]) -> Option<String> {
        let frames = trace(names);
        choose(recipe, Stack { frames: &frames, pointers: &[] }, &Captures::default(), &mut Vec::new()).map(|c| c.name)
    }

    #[test]
    fn plumbing_is_skipped_with_its_reason() {
        let recipe = Recipe { from: &[Source::Trace], pick: Pick::First, skip: &["my_alloc"] };
        let frames = trace(&[
            "dump_stack",
            "kasan_report",
            "my_alloc_thing",
            "mutex_lock_nested",
            "real_culprit.isra.0",
            "ksys_read",
        ]);
        let mut why = Vec::new();
        let c = choose(&recipe, Stack { frames: &frames, pointers: &[] }, &Captures::default(), &mut why).unwrap();
        assert_eq!(c.name, "real_culprit");
        assert_eq!(why.len(), 5);
        assert!(why[2].contains("my_alloc_thing: is plumbing of this class"), "{why:?}");
    }

    #[test]
    fn stalls_are_named_after_what_called_the_loop() {
        let recipe = Recipe { from: &[Source::Pointer, Source::Trace], pick: Pick::AboveEntry, skip: &[] };
        let stack = [
            "rcu_check",
            "apic_timer_interrupt",
            "inner_loop",
            "middle",
            "my_driver_ioctl",
            "vfs_ioctl",
            "do_syscall_64",
        ];
        assert_eq!(pick(&recipe, &stack), Some("my_driver_ioctl".into()));
        assert_eq!(pick(&recipe, &["inner", "outer"]), None);
    }

    #[test]
    fn shared_waits_are_one_bug() {
        let recipe = Recipe { from: &[Source::Trace], pick: Pick::Waiter, skip: &["sched", "wait"] };
        assert_eq!(
            pick(&recipe, &["__schedule", "schedule", "synchronize_rcu_expedited", "my_close"]),
            Some("synchronize_rcu".into())
        );
        assert_eq!(pick(&recipe, &["__schedule", "wait_for_it", "my_close"]), Some("my_close".into()));
    }

    #[test]
    fn fingerprints_hold_up_to_six_telling_frames() {
        let frames = trace(&["dump_stack", "a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!(fingerprint(Stack { frames: &frames, pointers: &[] }, None), ["a", "b", "c", "d", "e", "f"]);
        let frames = trace(&["a", "b", "c", "do_syscall_64", "entry_SYSCALL_64"]);
        assert_eq!(fingerprint(Stack { frames: &frames, pointers: &[] }, None), ["a", "b", "c"]);
    }
}
