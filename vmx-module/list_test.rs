// SPDX-License-Identifier: GPL-2.0

//! The list test of the mailing-list thread: insertion and removal cut at every pointer write, then walked as an NMI would.
//!
//! The thread's prediction: nothing hangs, the entry being added does not show up, the entry being deleted does. Its author
//! wrote the half-done states by hand; here the real operations are stopped half-way ([`crate::list`]). The cuts strictly
//! inside an operation print the thread's lines; the whole operations are checked too but print nothing.

use core::ops::ControlFlow;
use kernel::prelude::*;

use crate::list::{
    End,
    Link,
    List,
    ADD_WRITES,
    DELETE_WRITES, //
};

const ENTRIES: usize = 3;
/// More than any right walk needs; an endless one stops here.
const LIMIT: usize = 8;

/// What a walk saw, as entry numbers from 1 in the order of the walk.
#[derive(PartialEq, Eq, Debug)]
struct Seen {
    entries: [u8; LIMIT],
    end: End,
}

impl Seen {
    fn expected(entries: &[u8]) -> Self {
        let mut all = [0; LIMIT];
        all[..entries.len()].copy_from_slice(entries);
        Self { entries: all, end: End::Head }
    }

    fn print(&self) {
        for entry in self.entries.iter().filter(|entry| **entry != 0) {
            pr_warn!("KVM: found e{}\n", entry);
        }
        if self.end != End::Head {
            pr_warn!("KVM: kaboom\n");
        }
    }
}

#[pin_data]
struct Bench {
    #[pin]
    list: List,
    entries: [Link; ENTRIES],
}

impl Bench {
    fn new() -> Result<Pin<KBox<Self>>> {
        KBox::try_pin_init(
            try_pin_init!(Self { list <- List::new(), entries: [const { Link::new() }; ENTRIES] }? Error),
            GFP_KERNEL,
        )
    }

    /// With e1, e2, e3 added in this order: a walk finds e3, e2, e1.
    fn filled() -> Result<Pin<KBox<Self>>> {
        let bench = Self::new()?;
        for number in 1..=ENTRIES {
            bench.add(number, ADD_WRITES);
        }
        Ok(bench)
    }

    fn add(&self, number: usize, cut: usize) {
        // SAFETY: Nobody else knows this list, its entries live as long as it, and no test cuts before its last step.
        unsafe { self.list.add(&self.entries[number - 1], cut) };
    }

    fn delete(&self, number: usize, cut: usize) {
        // SAFETY: As in `add`; every test deletes entries that are in.
        unsafe { self.list.delete(&self.entries[number - 1], cut) };
    }

    fn walk(&self) -> Seen {
        let (mut entries, mut count) = ([0; LIMIT], 0);
        // SAFETY: The visitor lets only this bench's own entries pass.
        let end = unsafe {
            self.list.walk(LIMIT - 1, |link| {
                let Some(index) = self.entries.iter().position(|entry| core::ptr::eq(entry, link)) else {
                    return ControlFlow::Break(());
                };
                entries[count] = index as u8 + 1;
                count += 1;
                ControlFlow::Continue(())
            })
        };
        Seen { entries, end }
    }
}

/// What must be seen after adding e1 to an empty list, cut after `cut` writes.
fn expected_after_add(cut: usize) -> Seen {
    Seen::expected(if cut < ADD_WRITES { &[] } else { &[1] })
}

/// What must be seen after adding e3 to e2, e1.
fn expected_after_second_add(cut: usize) -> Seen {
    Seen::expected(if cut < ADD_WRITES { &[2, 1] } else { &[3, 2, 1] })
}

/// What must be seen after deleting e2 from e3, e2, e1.
fn expected_after_delete(cut: usize) -> Seen {
    Seen::expected(if cut < DELETE_WRITES { &[3, 2, 1] } else { &[3, 1] })
}

fn seen_after_add(cut: usize) -> Result<Seen> {
    let bench = Bench::new()?;
    bench.add(1, cut);
    Ok(bench.walk())
}

fn seen_after_second_add(cut: usize) -> Result<Seen> {
    let bench = Bench::new()?;
    bench.add(1, ADD_WRITES);
    bench.add(2, ADD_WRITES);
    bench.add(3, cut);
    Ok(bench.walk())
}

fn seen_after_delete(cut: usize) -> Result<Seen> {
    let bench = Bench::filled()?;
    bench.delete(2, cut);
    Ok(bench.walk())
}

/// A cut operation is completed when the CPU is put back in order; it must then be as if never cut.
fn seen_after_completed_cut(cut: usize) -> Result<Seen> {
    let bench = Bench::filled()?;
    bench.delete(2, cut.min(DELETE_WRITES - 1));
    bench.delete(2, DELETE_WRITES);
    bench.add(2, cut.min(ADD_WRITES - 1));
    bench.add(2, ADD_WRITES);
    Ok(bench.walk())
}

/// Runs the test, printing the thread's lines. Returns the number of walks that saw something else than predicted.
pub(crate) fn run() -> Result<usize> {
    let mut wrong = 0;
    let mut check = |seen: Seen, expected: Seen, print: bool| {
        if print {
            seen.print();
        }
        if seen != expected {
            pr_err!("list test: saw {:?}, expected {:?}\n", seen, expected);
            wrong += 1;
        }
    };
    pr_warn!("KVM: testing NMI in list_add()\n");
    for cut in 0..=ADD_WRITES {
        check(seen_after_add(cut)?, expected_after_add(cut), (1..ADD_WRITES).contains(&cut));
        check(seen_after_second_add(cut)?, expected_after_second_add(cut), false);
    }
    pr_warn!("KVM: testing NMI in list_del()\n");
    for cut in 0..=DELETE_WRITES {
        // The thread's test walks after the first write, and again after the whole removal.
        check(seen_after_delete(cut)?, expected_after_delete(cut), cut > 0);
    }
    for cut in 0..ADD_WRITES {
        check(seen_after_completed_cut(cut)?, Seen::expected(&[2, 3, 1]), false);
    }
    Ok(wrong)
}

#[kunit_tests(crashyard_vmx_list)]
mod tests {
    use super::*;

    #[test]
    fn new_list_is_whole_and_empty() -> Result {
        let bench = Bench::new()?;
        assert!(bench.list.is_empty());
        assert_eq!(bench.walk(), Seen::expected(&[]));
        Ok(())
    }

    #[test]
    fn entry_being_added_to_empty_list_does_not_show_up() -> Result {
        for cut in 0..=ADD_WRITES {
            assert_eq!(seen_after_add(cut)?, expected_after_add(cut));
        }
        Ok(())
    }

    #[test]
    fn entry_being_added_hides_nothing() -> Result {
        for cut in 0..=ADD_WRITES {
            assert_eq!(seen_after_second_add(cut)?, expected_after_second_add(cut));
        }
        Ok(())
    }

    #[test]
    fn entry_being_deleted_shows_up_until_the_last_write() -> Result {
        for cut in 0..=DELETE_WRITES {
            assert_eq!(seen_after_delete(cut)?, expected_after_delete(cut));
        }
        Ok(())
    }

    #[test]
    fn cut_operations_can_be_completed() -> Result {
        for cut in 0..ADD_WRITES {
            assert_eq!(seen_after_completed_cut(cut)?, Seen::expected(&[2, 3, 1]));
        }
        Ok(())
    }

    #[test]
    fn whole_list_can_be_emptied_in_any_order() -> Result {
        for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
            let bench = Bench::filled()?;
            for number in order {
                bench.delete(number, DELETE_WRITES);
            }
            assert!(bench.list.is_empty());
        }
        Ok(())
    }

    #[test]
    fn walk_of_endless_list_ends() -> Result {
        let bench = Bench::new()?;
        bench.add(1, ADD_WRITES);
        // The first write of a second insertion of the same entry makes it lead to itself once the second is done.
        bench.add(1, 2);
        assert_eq!(bench.walk().end, End::Limit);
        Ok(())
    }
}
