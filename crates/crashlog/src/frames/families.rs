//! Families of functions that never name a bug: the top of a trace is rarely the culprit.
//!
//! Each family has the reason that people are told. Patterns are separated by blanks: a pattern is a part of the name,
//! `^` anchors it at the start, `$` at the end. A function belongs here only if it is plumbing for every subsystem; what
//! is plumbing for one class of problems stands in the recipe of that class.

use std::sync::LazyLock;

use crate::names::Matcher;

struct Family {
    reason: &'static str,
    patterns: &'static str,
}

const FAMILIES: &[Family] = &[
    Family {
        reason: "reports problems",
        patterns: "\
            dump_stack show_stack dump_backtrace arch_stack_walk save_stack unwind_ unwind_backtrace show_regs panic \
            warn_slowpath __warn warn_alloc report_bug fixup_bug handle_bug invalid_op do_trap error_trap do_error \
            ^die$ ^oops_ ^bug_handler brk_handler debug_exception exc_invalid_op exc_page_fault program_check \
            print_address_description print_report dump_page printk ^dev_info ^dev_notice ^dev_warn ^dev_err \
            ^dev_alert ^dev_crit ^dev_emerg netdev_warn ^_dev_ slab_err object_err print_trailer rust_begin_unwind \
            core::panicking ^rust_panic begin_unwind nmi_cpu_backtrace nmi_trigger ^bust_spinlocks \
            fortify_report ^assfail$ ^asswarn$ ^btrfs_assertfail$ ^nmi_panic$ serror_panic ^do_serror$",
    },
    Family {
        reason: "checks memory",
        patterns: "\
            kasan __asan kmsan __msan kcsan __tsan __sanitizer __hwasan kfence ubsan check_memory_region \
            read_word_at_a_time check_region_inline instrument_ memory_is_poisoned fault_in_kernel __check_heap_object",
    },
    Family {
        reason: "checks locks and objects",
        patterns: "\
            lockdep lock_acquire lock_release lock_class reacquire_held_locks debug_object timer_is_static_object \
            work_is_static_object might_sleep might_fault __might_resched perf_trace ^trace_ check_noncircular \
            validate_chain check_prev print_usage_bug print_circular print_bad_irq print_irq print_lock mark_lock \
            print_deadlock",
    },
    Family {
        reason: "is a locking primitive",
        patterns: "\
            spin_lock spin_trylock spin_unlock raw_read_lock raw_read_trylock raw_write_lock raw_write_trylock \
            raw_read_unlock mutex_optimistic mutex_spin write_lock _dec_and_lock raw_write_unlock ^down ^up_read \
            ^up_write down_read down_write up_read up_write mutex_lock mutex_trylock mutex_unlock mutex_remove_waiter \
            osq_lock osq_unlock __wake_up seqcount percpu_down percpu_up rwsem_ rt_mutex rtlock_",
    },
    Family {
        reason: "is a reference count helper",
        patterns: "\
            refcount_add refcount_sub refcount_inc refcount_dec refcount_set refcount_read refcount_warn arch_atomic \
            ^atomic_ atomic64_ atomic_long_ ^kref_",
    },
    Family {
        reason: "is a memory or string helper",
        patterns: "\
            memcpy memcmp memset memchr memmove strcmp strncmp strcpy strlcpy strncpy strscpy strlen strnstr strnlen \
            strchr strcat copy_to_user copy_from_user put_user get_user ^string ^pointer$ snprintf scnprintf kasprintf \
            kvasprintf kobject_set_name ^hex_string _string ^number$ memscan _to_iter _from_iter iov_iter_zero crc16 \
            crc32 crc_itu crc_t10 ^crc ^aes ^crypto_ ^xts_ ^ecb_ ^cbc_ ^ctr_crypt ^skcipher_ ^shash_ ^ahash_ \
            ^va_format ^format_decode ^dev_vprintk ^dev_printk ^sha1_ ^sha256_ ^sha512_ ^md5_ ^blake2 ^chacha poly1305 \
            ^clear_user ^rep_movs ^rep_stos _copy_from_iter _copy_to_iter fortify_panic csum_partial_copy ^vprintk \
            bitmap_",
    },
    Family {
        reason: "is a list, tree or table helper",
        patterns: "\
            rb_erase rb_insert rb_next rb_first rb_prev ^xa_ ^xas_ ^__xa_ ^idr_ ^ida_ radix_tree rhashtable rht_ \
            hash_lookup interval_tree_ ^mas_ ^mtree_ test_and_clear_bit test_and_set_bit ^clear_bit ^set_bit ^test_bit \
            find_first_bit find_next_bit ^assoc_array kfifo list_add list_del list_replace list_move list_splice \
            hlist_ ^list_ __list_ llist_ _indirect_thunk_ __rb_insert_aug",
    },
    Family {
        reason: "waits for or tears down on behalf of its caller",
        patterns: "\
            del_timer timer_delete timer_shutdown flush_work __cancel_work cancel_work_sync ^insert_work \
            mod_delayed_work try_to_grab_pending work_grab_pending flush_workqueue drain_workqueue destroy_workqueue \
            finish_wait kthread_stop kobject_del kobject_put kobject_uevent_env add_uevent_var get_device_parent \
            device_add device_del device_unregister device_destroy hwrng_unregister i2c_del_adapter \
            __unregister_client device_for_each_child rollback_registered unregister_netdev sysfs_remove \
            device_remove_file tty_unregister_device usb_kill_urb usb_kill_anchored_urbs usb_control_msg \
            usb_hcd_submit_urb usb_submit_urb dummy_urb_enqueue __flush_work start_flush_work put_device \
            debugfs_remove simple_recursive_removal",
    },
    Family {
        reason: "manages memory for its caller",
        patterns: "\
            kmalloc kcalloc kzalloc krealloc kmemdup kmem_cache slab_ ^___slab ^__slab kfree vmalloc vzalloc kvmalloc \
            vfree vunmap alloc_pages alloc_frozen_pages alloc_page ^__filemap_get_folio ^filemap_get_ ^filemap_add_ \
            pagecache_get_page find_lock_entries find_get_ truncate_inode_pages truncate_pagecache get_free_pages \
            __free_page free_pages free_frozen_pages free_large_kmalloc page_owner stack_depot stack_trace_ depot_save \
            folio_unlock folio_lock unlock_page lock_page __get_free_page prep_new_page post_alloc_hook should_fail \
            fail_dump __phys_addr mempool_ memdup_user",
    },
    Family {
        reason: "is an accessor that every caller shares",
        patterns: "\
            skb_push skb_put skb_pull skb_release kfree_skb __raw_read __raw_write logic_in logic_out ^iput drop_nlink \
            inc_nlink clear_nlink set_nlink ^complete$ ^complete_all swake_up wait_for_completion wait_for_common \
            queue_work_on __queue_work queue_delayed_work ref_tracker_ cleanup_srcu_struct devres_release \
            device_release trace_hardirqs ^preempt_count ^irqentry_ write_comp_data compat_ioctl notifier_call_chain \
            call_netdevice_notifiers rcu_read_lock rcu_read_unlock ^rcu_lock ^__rcu",
    },
    Family {
        reason: "handles the fault",
        patterns: "\
            do_kernel_fault ^do_bad_area do_translation_fault do_tag_check_fault do_mem_abort do_page_fault \
            do_alignment ^el1_ ^el1h_ ^el0_sync ^el0t_ ^el1t_ do_sp_pc do_undefinstr __dabt_svc __pabt_svc \
            do_DataAbort do_PrefetchAbort ^no_context bad_page_fault fixup_exception do_user_addr_fault exc_general \
            asm_exc kernelmode_fixup page_fault_oops exc_divide machine_check",
    },
    Family {
        reason: "enters the kernel",
        patterns: "\
            ^asm_ ^common_interrupt$ ^error_entry ^page_fault$ ^async_page_fault ^stack_segment$",
    },
];

/// Why a function is never the one to blame, `None` if it may be.
pub fn plumbing(name: &str) -> Option<&'static str> {
    static MATCHER: LazyLock<Matcher> = LazyLock::new(|| Matcher::new(FAMILIES.iter().map(|f| f.patterns)));
    MATCHER.list(name).map(|i| FAMILIES[i].reason)
}
