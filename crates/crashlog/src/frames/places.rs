//! Functions that structure a trace: where work is dispatched, where an interrupt came in, what everybody waits in.

use std::sync::LazyLock;

use crate::model::Frame;
use crate::names::Matcher;

/// Frames below which the thing that loops or hangs is to be found: dispatchers of work, system calls, interrupts,
/// and the wrappers that stand between them and a driver. Patterns as in the families.
const ENTRIES: &str = "\
    process_one_work ^work_for_cpu_fn$ do_syscall_ do_fast_syscall_ do_int80_ sysenter_dispatch tracesys_phase2 entry_SYSCALL \
    netif_receive_skb el0_svc invoke_syscall ret_fast_syscall system_call do_softirq handle_softirqs call_timer_fn \
    expire_timers _run_timers run_timer_ run_ksoftirqd smpboot_thread_fn ^kthread$ kthread_worker_fn start_secondary \
    cpu_startup_entry ret_from_fork x64_sys_call ia32_sys_call ^full_proxy_ vfs_write vfs_read vfs_iter_read \
    vfs_iter_write do_iter_read do_iter_write new_sync_read new_sync_write __vfs_read __vfs_write vfs_ioctl \
    blkdev_driver_ioctl blkdev_ioctl blkdev_common_ioctl ^call_read_iter ^call_write_iter do_iter_readv_writev \
    ^call_mmap mmap_region do_mmap do_dentry_open vfs_open path_openat ^sock_sendmsg __sock_sendmsg ____sys_sendmsg \
    ^sock_recvmsg ^sock_release ^__sock_release __sys_setsockopt kernel_setsockopt sock_common_setsockopt \
    do_sock_setsockopt __sys_listen kernel_listen sk_common_release ^sock_mmap __sys_accept kernel_accept \
    ^sock_do_ioctl ^sock_ioctl ^compat_sock_ioctl ^nfnetlink_rcv_msg ^rtnetlink_rcv_msg __hrtimer_run_queues \
    __run_hrtimer sys_socketpair sys_connect sys_ioctl SyS_ioctl SYSC_ioctl SyS_connect SYSC_connect SyS_socketpair \
    SYSC_socketpair sys_fstat do_vfs_ioctl __do_fault do_page_fault ^page_fault$ __fput task_work_run exit_to_usermode \
    exit_to_user_mode smp_call_function ^call_function_single_interrupt rcu_core rcu_do_batch ^cleanup_net";

/// Interrupt entries: what runs below them is what was interrupted.
const INTERRUPTS: &str = "apic_timer_interrupt el1_interrupt el1_irq el1h_64_irq asm_sysvec common_interrupt __irq_svc ret_from_intr \
    el1h_irq";

/// Waits that many unrelated tasks end up in: filed under their own name, not under the victim's.
pub const WAITS: &[(&str, Option<&str>)] = &[
    ("rtnl_lock", None),
    ("synchronize_rcu", Some("synchronize_rcu")),
    ("synchronize_srcu", Some("synchronize_rcu")),
    ("__synchronize_srcu", Some("synchronize_rcu")),
    ("synchronize_net", Some("synchronize_rcu")),
    ("synchronize_sched", Some("synchronize_rcu")),
];

/// Whether a function dispatches work, so that what it called tells one stall from another.
pub fn is_entry(name: &str) -> bool {
    static MATCHER: LazyLock<Matcher> = LazyLock::new(|| Matcher::new(std::iter::once(ENTRIES)));
    MATCHER.list(name).is_some()
}

/// Whether a function is where an interrupt entered.
pub fn is_interrupt(name: &str) -> bool {
    static MATCHER: LazyLock<Matcher> = LazyLock::new(|| Matcher::new(std::iter::once(INTERRUPTS)));
    MATCHER.list(name).is_some()
}

/// Position of the interrupt that noticed a stall, if the trace shows one.
pub fn interrupt(frames: &[Frame]) -> Option<usize> {
    frames.iter().position(|f| is_interrupt(&f.function))
}
