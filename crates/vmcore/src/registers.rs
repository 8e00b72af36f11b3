//! The registers of every CPU at the moment of the crash, and which CPU they belong to.
//!
//! The notes of a dump are in order of CPUs but leave out CPUs that saved nothing, so the n-th note is not CPU n. The kernel
//! keeps each CPU's note in its per-CPU `crash_notes` buffer, which is in the dump too: that is the sure source. QEMU
//! does not fill those buffers and writes one note per vCPU, so there the order is right.

use crate::error::Limits;
use crate::format::{Prstatus, prstatus_in, prstatus_of};
use crate::kallsyms::Kallsyms;
use crate::memory::Memory;

/// Where saved registers were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegisterSource {
    /// The per-CPU buffer of the crashed kernel: the CPU number is sure.
    CrashNotes,
    /// The notes of the dump, counted: right when every CPU has one.
    NoteOrder,
}

pub(crate) struct Saved {
    pub cpu: u32,
    pub status: Prstatus,
    pub source: RegisterSource,
}

/// CPU numbers in a cpumask, e.g. `__cpu_online_mask`.
pub(crate) fn cpumask(memory: &Memory, symbols: &Kallsyms, name: &str, limits: &Limits) -> Option<Vec<u32>> {
    let mask = symbols.lookup(name)?;
    // The mask has NR_CPUS bits; `nr_cpu_ids` says how many can be set.
    let ids = symbols.lookup("nr_cpu_ids").and_then(|va| memory.u32(va).ok()).unwrap_or(64).min(limits.cpus);
    let mut cpus = Vec::new();
    for word in 0..ids.div_ceil(64) {
        let bits = memory.u64(mask.wrapping_add(u64::from(word) * 8)).ok()?;
        cpus.extend((0..64).filter(|b| bits >> b & 1 == 1).map(|b| word * 64 + b).filter(|&c| c < ids));
    }
    Some(cpus)
}

/// Address of a per-CPU variable on one CPU. Works for symbols that are offsets (6.x) and for those that are addresses (7.x).
pub(crate) fn per_cpu(memory: &Memory, symbols: &Kallsyms, var: u64, cpu: u32) -> Option<u64> {
    let offsets = symbols.lookup("__per_cpu_offset")?;
    Some(var.wrapping_add(memory.u64(offsets.wrapping_add(u64::from(cpu) * 8)).ok()?))
}

/// The registers of all CPUs, in CPU order.
pub(crate) fn saved(memory: &Memory, symbols: Option<&Kallsyms>, limits: &Limits) -> Vec<Saved> {
    let in_order: Vec<Prstatus> =
        memory.dump().notes().iter().filter_map(prstatus_of).take(limits.cpus as usize).collect();
    let by_cpu = symbols.and_then(|s| from_crash_notes(memory, s, limits)).unwrap_or_default();
    if !by_cpu.is_empty() {
        return by_cpu;
    }
    let number = |(cpu, status)| Saved { cpu: cpu as u32, status, source: RegisterSource::NoteOrder };
    in_order.into_iter().enumerate().map(number).collect()
}

fn from_crash_notes(memory: &Memory, symbols: &Kallsyms, limits: &Limits) -> Option<Vec<Saved>> {
    let var = memory.u64(symbols.lookup("crash_notes")?).ok()?;
    let cpus = cpumask(memory, symbols, "__cpu_possible_mask", limits)?;
    let mut found = Vec::new();
    let mut note = [0u8; 512];
    for cpu in cpus {
        let Some(at) = per_cpu(memory, symbols, var, cpu) else { continue };
        if memory.read(at, &mut note).is_ok()
            && let Some(status) = prstatus_in(&note)
        {
            found.push(Saved { cpu, status, source: RegisterSource::CrashNotes });
        }
    }
    Some(found)
}
