// SPDX-License-Identifier: GPL-2.0

//! The list of loaded VMCSes: one per CPU, changed by its CPU only, readable by an NMI at any instruction.
//!
//! A crash sends an NMI to every CPU, and the NMI walks this list forwards. It may arrive between any two instructions of an
//! insertion or a removal, and it never returns, so what it sees must be complete at every point in between:
//!
//! - an entry that is being **added** is not reachable until it is whole. Its own two pointers are written before the one
//!   write that makes it reachable, `head.next = entry`, which comes last;
//! - an entry that is being **deleted** stays reachable until one write, `prev.next = next`, takes it out, and its own
//!   pointers still lead onwards for a walker that stands on it. They are poisoned by nobody while it may be seen.
//!
//! `prev` pointers may be wrong in between: the walk never reads them. Every write is a release store: on the CPU itself
//! that keeps the compiler from reordering them, which is all an NMI on that CPU needs.
//!
//! An operation is made of the list of its pointer writes, in order ([`add_writes`], [`delete_writes`]). The operation
//! performs all of them; a cut performs the first K. So what the tests cut is the code that runs, not a copy of it.

use core::ops::ControlFlow;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed,
        Release, //
    },
};

/// Pointer writes of an insertion; cutting after this many is the whole insertion.
pub(crate) const ADD_WRITES: usize = 4;
/// Pointer writes of a removal.
pub(crate) const DELETE_WRITES: usize = 2;

/// The two pointers inside every entry, and the head. Layout as C's `struct list_head`, for readers of a dump.
#[repr(C)]
pub(crate) struct Link {
    next: Atomic<*mut Link>,
    prev: Atomic<*mut Link>,
}

impl Link {
    /// A link in no list.
    pub(crate) const fn new() -> Self {
        Self { next: Atomic::new(core::ptr::null_mut()), prev: Atomic::new(core::ptr::null_mut()) }
    }

    fn address(&self) -> *mut Link {
        core::ptr::from_ref(self).cast_mut()
    }
}

/// How a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum End {
    /// Back at the head: the list is whole.
    Head = 1,
    /// A null pointer: a head or an entry that was never initialised.
    Null = 2,
    /// More steps than there can be entries.
    Limit = 3,
    /// The visitor stopped.
    Stopped = 4,
}

struct Write<'a> {
    slot: &'a Atomic<*mut Link>,
    value: *mut Link,
}

fn perform(writes: &[Write<'_>]) {
    for write in writes {
        write.slot.store(write.value, Release);
    }
}

/// A list head. It points to itself from the moment it exists; there is no such thing as a head to be initialised later.
#[pin_data]
#[repr(transparent)]
pub(crate) struct List {
    #[pin]
    head: Link,
}

impl List {
    pub(crate) fn new() -> impl PinInit<Self> {
        // SAFETY: Writes a whole `List` into the slot, which will not move, and cannot fail.
        unsafe {
            pin_init::pin_init_from_closure(|slot: *mut Self| {
                let head = slot.cast::<Link>();
                head.write(Link { next: Atomic::new(head), prev: Atomic::new(head) });
                Ok::<(), core::convert::Infallible>(())
            })
        }
    }

    /// Address of the head, for the crash record.
    pub(crate) fn address(&self) -> *mut Link {
        self.head.address()
    }

    pub(crate) fn is_empty(&self) -> bool {
        core::ptr::eq(self.head.next.load(Relaxed), self.address())
    }

    /// Inserts `entry` behind the head, stopping after `cut` pointer writes ([`ADD_WRITES`] for all).
    ///
    /// # Safety
    ///
    /// Runs on the CPU that owns the list, with interrupts off. `entry` is in no list and neither moves nor dies before it
    /// is removed. After a real cut, only [`walk`](Self::walk), [`add`](Self::add) of the same entry and nothing else may follow.
    pub(crate) unsafe fn add(&self, entry: &Link, cut: usize) {
        // After a cut insertion the head still points to the old first entry, so doing it again does it right.
        let first = self.head.next.load(Relaxed);
        // SAFETY: `first` is the head or an entry, which by contract is alive.
        let first_link = unsafe { &*first };
        let writes = add_writes(self.address(), &self.head, entry, first, first_link);
        perform(&writes[..cut.min(ADD_WRITES)]);
    }

    /// Removes `entry`, stopping after `cut` pointer writes ([`DELETE_WRITES`] for all).
    ///
    /// # Safety
    ///
    /// As for [`add`](Self::add); `entry` is in this list, or a removal of it was cut.
    pub(crate) unsafe fn delete(&self, entry: &Link, cut: usize) {
        let (next, prev) = (entry.next.load(Relaxed), entry.prev.load(Relaxed));
        // SAFETY: Both neighbours are the head or entries of the list, alive by contract.
        let (next_link, prev_link) = unsafe { (&*next, &*prev) };
        perform(&delete_writes(prev, prev_link, next, next_link)[..cut.min(DELETE_WRITES)]);
    }

    /// Walks forwards, handing every entry to `visit`, at most `limit` of them. Reads nothing but `next` pointers.
    ///
    /// # Safety
    ///
    /// Every entry `visit` lets pass must be readable memory.
    pub(crate) unsafe fn walk(&self, limit: usize, mut visit: impl FnMut(*mut Link) -> ControlFlow<()>) -> End {
        let mut at = self.head.next.load(Relaxed);
        for _ in 0..=limit {
            if at.is_null() {
                return End::Null;
            }
            if core::ptr::eq(at, self.address()) {
                return End::Head;
            }
            if visit(at).is_break() {
                return End::Stopped;
            }
            // SAFETY: The visitor let it pass.
            at = unsafe { (*at).next.load(Relaxed) };
        }
        End::Limit
    }
}

/// The writes of an insertion between `head` and `first`, in the only order that is safe against an NMI.
#[cfg(not(crashyard_control = "wrong-order"))]
fn add_writes<'a>(
    head: *mut Link,
    head_link: &'a Link,
    entry: &'a Link,
    first: *mut Link,
    first_link: &'a Link,
) -> [Write<'a>; ADD_WRITES] {
    [
        Write { slot: &first_link.prev, value: entry.address() },
        Write { slot: &entry.next, value: first },
        Write { slot: &entry.prev, value: head },
        // From here on the entry is seen.
        Write { slot: &head_link.next, value: entry.address() },
    ]
}

/// Negative control: the entry is reachable before it leads anywhere. The list test must catch this.
#[cfg(crashyard_control = "wrong-order")]
fn add_writes<'a>(
    head: *mut Link,
    head_link: &'a Link,
    entry: &'a Link,
    first: *mut Link,
    first_link: &'a Link,
) -> [Write<'a>; ADD_WRITES] {
    [
        Write { slot: &head_link.next, value: entry.address() },
        Write { slot: &first_link.prev, value: entry.address() },
        Write { slot: &entry.next, value: first },
        Write { slot: &entry.prev, value: head },
    ]
}

/// The writes of a removal. The entry leads onwards until, and after, the second write takes it out.
fn delete_writes<'a>(
    prev: *mut Link,
    prev_link: &'a Link,
    next: *mut Link,
    next_link: &'a Link,
) -> [Write<'a>; DELETE_WRITES] {
    [
        Write { slot: &next_link.prev, value: prev },
        // From here on the entry is not seen.
        Write { slot: &prev_link.next, value: next },
    ]
}
