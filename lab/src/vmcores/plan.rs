//! Which crashes prove the most: a set in which every two choices meet.
//!
//! Kernels, numbers of CPUs, load, ways to crash and who takes the dump make several hundred crashes, each of which costs most
//! of a minute. A reader breaks on one of these or on two of them together (this kernel's NMI stacks, that format of many
//! CPUs), hardly on three at once. So the set is built one by one, each time the crash that shows most that was not yet shown,
//! until every pair was. Every kernel also meets every format.

use super::{Crash, Format, How, Load, Panic};
use std::collections::HashSet;

/// What there is to choose from.
#[derive(Debug)]
pub struct Choices {
    /// Kernels, by number, and whether they tell QEMU where they are (the lab's own does not).
    pub kernels: Vec<bool>,
    pub cpus: Vec<u32>,
    pub loads: Vec<Load>,
    pub panics: Vec<Panic>,
    pub how: Vec<How>,
}

/// Two choices that meet: the number of each axis, and the value on it.
type Pair = [(usize, usize); 2];

/// A crash and the number of its kernel.
pub type Planned = (usize, Crash);

/// The crashes to do, in the order of kernels.
pub fn covering(choices: &Choices) -> Vec<Planned> {
    let candidates = everything(choices);
    let mut missing: HashSet<Pair> = candidates.iter().flat_map(pairs).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let new = |candidate: &&Planned| pairs(candidate).iter().filter(|pair| missing.contains(*pair)).count();
        // Of equal ones the first, so that the set is the same each time.
        let Some(best) = candidates.iter().rev().max_by_key(new) else { break };
        for pair in pairs(best) {
            missing.remove(&pair);
        }
        chosen.push(*best);
    }
    chosen.sort_by_key(|(kernel, _)| *kernel);
    chosen
}

/// Every crash that can be done at all.
fn everything(choices: &Choices) -> Vec<Planned> {
    let mut all = Vec::new();
    for (kernel, tells_qemu) in choices.kernels.iter().enumerate() {
        for &how in choices.how.iter().filter(|how| **how == How::Kdump || *tells_qemu) {
            for &format in how.formats() {
                for &cpus in &choices.cpus {
                    for &panic in &choices.panics {
                        for &load in &choices.loads {
                            all.push((kernel, Crash { panic, format, cpus, load }));
                        }
                    }
                }
            }
        }
    }
    all
}

/// What a crash shows.
fn pairs((kernel, crash): &Planned) -> Vec<Pair> {
    let Crash { panic, format, cpus, load } = *crash;
    let axes = [*kernel, format.how() as usize, cpus as usize, panic as usize, load as usize];
    let axes: Vec<(usize, usize)> = axes.into_iter().enumerate().collect();
    let mut pairs = Vec::new();
    for (i, one) in axes.iter().enumerate() {
        pairs.extend(axes[i + 1..].iter().map(|other| [*one, *other]));
    }
    // The format is not met by every other choice: that would double the set, and what a page is packed with is no matter
    // of CPUs or load.
    let format = Format::ALL.iter().position(|one| *one == format).unwrap_or(0);
    pairs.push([axes[0], (axes.len(), format)]);
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Choices {
        Choices {
            kernels: vec![true; 3],
            cpus: vec![1, 2, 4, 8],
            loads: vec![Load::Idle, Load::Busy, Load::Watched],
            panics: vec![Panic::Sysrq, Panic::Oops, Panic::Nmi, Panic::Lockup],
            how: vec![How::Kdump, How::Qemu],
        }
    }

    #[test]
    fn every_two_choices_meet_in_few_crashes() {
        let plan = covering(&all());
        let shown: HashSet<Pair> = plan.iter().flat_map(pairs).collect();
        let possible: HashSet<Pair> = everything(&all()).iter().flat_map(pairs).collect();
        assert_eq!(shown, possible);
        assert!(plan.len() <= 22, "{} crashes", plan.len());
    }

    #[test]
    fn a_kernel_that_tells_qemu_nothing_is_never_dumped_by_it() {
        let plan = covering(&Choices { kernels: vec![false], ..all() });
        assert!(!plan.is_empty() && plan.iter().all(|(_, crash)| crash.format.how() == How::Kdump));
    }

    #[test]
    fn one_choice_everywhere_is_one_crash_for_each_format() {
        let one = Choices {
            kernels: vec![true],
            cpus: vec![2],
            loads: vec![Load::Busy],
            panics: vec![Panic::Nmi],
            how: vec![How::Kdump],
        };
        assert_eq!(covering(&one).len(), How::Kdump.formats().len());
    }
}
