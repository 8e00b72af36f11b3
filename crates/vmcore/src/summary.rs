//! The little that a verdict needs: which kernel, what it said, who has registers.
//!
//! Everything here comes from VMCOREINFO, the notes, the log buffer and the symbol table; types and stacks are not touched,
//! so it costs a few milliseconds.

use crate::dmesg::{self, DmesgLine};
use crate::error::{Error, Limits};
use crate::format::{Dump, Format, PageCounts};
use crate::memory::Memory;
use crate::read_at::ReadAt;
use crate::registers::{self, RegisterSource};
use serde::{Deserialize, Serialize};

/// Registers that one CPU left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuNote {
    /// CPU number.
    pub cpu: u32,
    /// Thread it ran, as the note says. QEMU writes a vCPU number here.
    pub pid: u32,
    /// Instruction pointer.
    pub rip: u64,
    /// Where this was found.
    pub source: RegisterSource,
}

/// See the module head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// `uname -r`.
    pub release: String,
    /// Build id in lower-case hexadecimal.
    pub build_id: Option<String>,
    /// Seconds since 1970; a dump taken by QEMU has none.
    pub crash_time: Option<i64>,
    /// Text after `Kernel panic - not syncing: `, of the first panic in the log.
    pub panic_message: Option<String>,
    /// CPUs that were online when the kernel died; `None` when the kernel's mask is not in the dump. A panic without kdump
    /// takes the other CPUs offline first.
    pub cpus_online: Option<u32>,
    /// Saved registers, in CPU order.
    pub prstatus: Vec<CpuNote>,
    /// The kernel log.
    pub dmesg: Vec<DmesgLine>,
    /// The container of the dump.
    pub format: Format,
    /// Pages present and filtered out.
    pub pages: PageCounts,
    /// What could not be read, in words.
    pub warnings: Vec<String>,
}

/// Reads the summary of a whole dump.
///
/// # Errors
/// [`Error::Truncated`] when bytes are missing at the end, [`Error::Incomplete`] when the writer gave up, and the other errors
/// of opening a dump. Damage inside a whole dump is a warning.
pub fn summarise(src: &dyn ReadAt, limits: &Limits) -> Result<Summary, Error> {
    let dump = Dump::open(src, limits)?;
    let pages = dump.page_counts();
    let memory = Memory::new(dump, limits)?;
    let mut warnings = Vec::new();
    let log = dmesg::read(&memory, limits).unwrap_or_else(|fault| {
        warnings.push(format!("kernel log: {fault}"));
        dmesg::Log::default()
    });
    warnings.extend(log.warnings());
    let symbols = crate::tables::kallsyms(&memory, limits, None)
        .inspect_err(|fault| warnings.push(format!("kallsyms: {fault}")))
        .ok();
    let cpus_online = symbols
        .as_ref()
        .and_then(|s| registers::cpumask(&memory, s, "__cpu_online_mask", limits))
        .map(|cpus| cpus.len() as u32);
    let prstatus = registers::saved(&memory, symbols.as_ref(), limits)
        .into_iter()
        .map(|s| CpuNote { cpu: s.cpu, pid: s.status.pid, rip: s.status.regs[16], source: s.source })
        .collect();
    let info = memory.info();
    Ok(Summary {
        release: info.release().to_owned(),
        build_id: info.build_id().map(str::to_ascii_lowercase),
        crash_time: info.crash_time(),
        panic_message: panic_message(&log.lines),
        cpus_online,
        prstatus,
        dmesg: log.lines,
        format: memory.dump().format(),
        pages,
        warnings,
    })
}

/// Reads only the kernel log.
///
/// # Errors
/// As [`summarise`]; a log that is not in the dump is [`Error::Unsupported`].
pub fn dmesg_only(src: &dyn ReadAt, limits: &Limits) -> Result<Vec<DmesgLine>, Error> {
    let memory = Memory::new(Dump::open_partial(src, limits)?, limits)?;
    match dmesg::read(&memory, limits) {
        Ok(log) => Ok(log.lines),
        Err(fault) => Err(Error::Unsupported(format!("a dump whose kernel log cannot be read ({fault})"))),
    }
}

/// What the first panic in the log says.
pub(crate) fn panic_message(lines: &[DmesgLine]) -> Option<String> {
    const MARK: &str = "Kernel panic - not syncing: ";
    lines.iter().find_map(|l| l.text.split_once(MARK).map(|(_, message)| message.trim_end().to_owned()))
}

/// What the last oops in the log says: of the lines before the one with its number (`[#1]`) the one that names it, else that
/// line itself.
pub(crate) fn oops_message(lines: &[DmesgLine]) -> Option<String> {
    /// `BUG:`, then what kind of access, the error code, and the page tables.
    const BEFORE: usize = 5;
    let numbered = |line: &DmesgLine| {
        let number = line.text.split_once("[#").and_then(|(_, rest)| rest.split_once(']'));
        number.is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    let at = lines.iter().rposition(numbered)?;
    let names = |line: &&DmesgLine| line.text.starts_with("BUG: ") || line.text.starts_with("kernel BUG at ");
    let before = lines[at.saturating_sub(BEFORE)..at].iter().rev().find(names);
    Some(before.unwrap_or(&lines[at]).text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oops_is_called_by_the_line_that_names_it() {
        let line = |text: &str| DmesgLine { ts_ns: 0, level: 1, caller: None, text: text.into() };
        let fault = [
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "#PF: supervisor read access in kernel mode",
            "#PF: error_code(0x0000) - not-present page",
            "PGD 0 P4D 0 ",
            "Oops: 0000 [#1] PREEMPT SMP NOPTI",
            "CPU: 0 PID: 1 Comm: init",
        ];
        let fault: Vec<_> = fault.into_iter().map(line).collect();
        assert_eq!(oops_message(&fault).as_deref(), Some(fault[0].text.as_str()));
        let other =
            [line("x"), line("general protection fault, probably for non-canonical address 0x1: 0000 [#2] SMP ")];
        assert_eq!(oops_message(&other).as_deref(), Some(other[1].text.trim_end()));
        assert_eq!(oops_message(&[line("a list [#] of [#x] things")]), None);
    }
}
