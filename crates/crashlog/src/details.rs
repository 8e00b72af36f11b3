//! The small lines of a report: CPU, task, taint, kernel, hardware, registers, addresses, error codes, modules.
//!
//! Each function takes one payload and fills what it finds; the first value wins, because the first dump of a report
//! is about the crash and later ones about whoever was asked afterwards.

use memchr::memmem::find;

use crate::model::{ErrorCode, Register, Report, TaintFlag};
use crate::normal;
use crate::template::{self, Captures};

fn text(bytes: &[u8]) -> String {
    normal::string(bytes.trim_ascii())
}

fn number(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&bytes[..digits]).ok()?.parse().ok()
}

/// What follows `key` in the line.
fn after<'a>(line: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    find(line, key).map(|at| &line[at + key.len()..])
}

/// The header line: task, CPU, address as far as it names them.
pub fn header(line: &[u8], r: &mut Report) {
    if let Some(rest) = after(line, b"CPU#")
        .or_else(|| after(line, b"CPU: "))
        .or_else(|| after(line, b"on CPU "))
        .or_else(|| after(line, b"on cpu "))
    {
        r.cpu = r.cpu.or_else(|| number(rest));
    }
    if let Some(rest) = after(line, b"PID: ") {
        r.pid = r.pid.or_else(|| number(rest));
    }
    // `INFO: task comm:123 blocked`, `stuck for 22s! [comm:123]`, `by task comm/123`.
    let mut c = Captures::default();
    let named = ["INFO: task {task} blocked", "s! [{task}]", "INFO: task {task} can't die"]
        .iter()
        .any(|t| template::find(t, line, &mut c).is_some());
    if named && let Some(task) = c.get("task") {
        split_task(task, b':', r);
    }
    by_task(line, r);
    address(line, r);
}

fn by_task(line: &[u8], r: &mut Report) {
    if let Some(task) = after(line, b" by task ") {
        let end = task.iter().position(|b| *b == b' ').unwrap_or(task.len());
        split_task(&task[..end], b'/', r);
    }
}

fn split_task(task: &[u8], by: u8, r: &mut Report) {
    if let Some(at) = memchr::memrchr(by, task)
        && let Some(pid) = number(&task[at + 1..])
    {
        r.pid = r.pid.or(Some(pid));
        r.comm.get_or_insert_with(|| text(&task[..at]));
    }
}

/// A faulting address after one of the phrases that introduce it.
fn address(line: &[u8], r: &mut Report) {
    if r.fault_address.is_some() {
        return;
    }
    const PHRASES: [&[u8]; 12] = [
        b"for address: ",
        b"dereference, address: ",
        b"at virtual address ",
        b"dereference at ",
        b"paging request at ",
        b"non-canonical address ",
        b"at addr ",
        b"data at address ",
        b"at address: ",
        b" on read at ",
        b" on write at ",
        b"Failing address: ",
    ];
    // All phrases have one of these; most lines have neither.
    if find(line, b"addr").is_none() && find(line, b" at ").is_none() {
        return;
    }
    for phrase in PHRASES {
        if let Some(rest) = after(line, phrase) {
            if rest.trim_ascii_start().starts_with(b"(null)") {
                r.fault_address = Some("0".to_owned());
                return;
            }
            let digits = rest.strip_prefix(b"0x").unwrap_or(rest);
            let len = digits.iter().take(17).take_while(|b| b.is_ascii_hexdigit()).count();
            if len > 0 {
                r.fault_address = Some(text(&digits[..len]));
                return;
            }
        }
    }
}

/// Any other line of the report. `user` says that the registers on it, if any, are those of user space.
pub fn line(line: &[u8], r: &mut Report, user: bool) {
    let t = line.trim_ascii_start();
    let Some(first) = t.first() else { return };
    match first {
        b'C' if t.starts_with(b"CPU: ") || t.starts_with(b"CPU ") => task_line(t, r),
        b'C' if t.starts_with(b"Comm: ") => task_line(t, r),
        b'P' if t.starts_with(b"Pid: ") => old_task_line(t, r),
        b'P' if t.starts_with(b"PID: ") => task_line(t, r),
        // Hung tasks and lockdep say it on a line of its own.
        b'N' if t.starts_with(b"Not tainted ") => kernel(&t[12..], false, r),
        b'T' if t.starts_with(b"Tainted: ") && t.get(9) != Some(&b'[') => kernel(&t[9..], true, r),
        b'0'..=b'9' => kernel_line(t, r),
        b'F' if t.starts_with(b"Failing address: ") => address(t, r),
        b'H' if t.starts_with(b"Hardware name: ") => {
            r.hardware.get_or_insert_with(|| text(&t[15..]));
        }
        b'M' if t.starts_with(b"Modules linked in:") => modules(&t[18..], r),
        b'#' if t.starts_with(b"#PF: error_code(0x") => error_code(&t[18..], r),
        b'O' | b'I' | b'i' | b'g' | b'd' | b'U' => oops_line(t, r),
        b'R' | b'W' if t.starts_with(b"Read of size") || t.starts_with(b"Write of size") => {
            by_task(t, r);
            address(t, r);
        }
        _ => {}
    }
    if !user {
        registers(t, r);
    }
}

/// `CPU: 4 UID: 0 PID: 1975 Comm: runtest.sh Kdump: loaded Tainted: G      D           5.6.0 #1 …`
fn task_line(t: &[u8], r: &mut Report) {
    let Some(rest) = after(t, b"Comm: ") else { return };
    // A second dump in the report is about another CPU.
    if r.kernel.is_some() {
        return;
    }
    r.cpu = after(t, b"CPU: ").and_then(number).or(r.cpu);
    r.pid = after(t, b"PID: ").and_then(number).or(r.pid);
    tainted_kernel(rest, r);
}

/// `Pid: 1975, comm: runtest.sh Not tainted 2.6.32 #1 Vendor Model`, before 3.10.
fn old_task_line(t: &[u8], r: &mut Report) {
    let Some(rest) = after(t, b"comm: ") else { return };
    r.pid = r.pid.or_else(|| number(&t[5..]));
    tainted_kernel(rest, r);
}

/// From the task's name on: `runtest.sh Kdump: loaded Tainted: G   D   5.6.0 #1 build`.
fn tainted_kernel(rest: &[u8], r: &mut Report) {
    let (comm_end, flags) = match (find(rest, b" Not tainted"), find(rest, b" Tainted: ")) {
        (Some(at), _) => (at, &rest[at + 12..]),
        (None, Some(at)) => (at, &rest[at + 10..]),
        (None, None) => {
            let end = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
            r.comm.get_or_insert_with(|| text(&rest[..end]));
            return;
        }
    };
    let tainted = find(rest, b" Not tainted").is_none();
    let comm = &rest[..comm_end];
    let comm = find(comm, b" Kdump: ").map_or(comm, |at| &comm[..at]);
    r.comm.get_or_insert_with(|| text(comm.strip_suffix(b",").unwrap_or(comm)));
    kernel(flags, tainted, r);
}

/// `7.3.4-own #1 Not tainted`, as lockdep says it.
fn kernel_line(t: &[u8], r: &mut Report) {
    let (at, words, tainted) = match (find(t, b" Not tainted"), find(t, b" Tainted: ")) {
        (Some(at), _) => (at, 12, false),
        (None, Some(at)) => (at, 10, true),
        (None, None) => return,
    };
    let release = t.iter().position(|b| *b == b' ').unwrap_or(t.len());
    if r.kernel.is_none() && release < at && t[release..].starts_with(b" #") {
        r.kernel = Some(text(&t[..release]));
        r.build = Some(text(&t[release..at]));
        kernel(&t[at + words..], tainted, r);
    }
}

/// Taint letters, then release and build.
fn kernel(flags: &[u8], tainted: bool, r: &mut Report) {
    let mut letters = String::new();
    let mut at = 0;
    if tainted {
        while let Some(b) = flags.get(at) {
            match b {
                b' ' | b'\t' | b'-' => {}
                b if b.is_ascii_uppercase()
                    && flags.get(at + 1).is_none_or(|n| n.is_ascii_uppercase() || matches!(n, b' ' | b'\t' | b'-')) =>
                {
                    letters.push(char::from(*b));
                }
                _ => break,
            }
            at += 1;
        }
    }
    if r.taint.is_none() {
        r.taint_flags = letters.chars().map(|letter| TaintFlag { letter, meaning: taint(letter) }).collect();
        r.taint = Some(letters);
    }
    let kernel = flags[at..].trim_ascii_start();
    let kernel = kernel.strip_prefix(b"(").map_or(kernel, |k| k.strip_suffix(b")").unwrap_or(k));
    let end = kernel.iter().position(|b| *b == b' ').unwrap_or(kernel.len());
    if end > 0 && r.kernel.is_none() && kernel[0].is_ascii_digit() {
        r.kernel = Some(text(&kernel[..end]));
        let build = text(&kernel[end..]);
        r.build = (!build.is_empty()).then_some(build);
    }
}

/// Meaning of a taint letter (Documentation/admin-guide/tainted-kernels.rst).
fn taint(letter: char) -> &'static str {
    match letter {
        'G' => "only GPL-compatible modules are loaded",
        'P' => "a proprietary module is loaded",
        'F' => "a module was force loaded",
        'S' => "the kernel runs on an out-of-specification system",
        'R' => "a module was force unloaded",
        'M' => "a machine check exception was reported",
        'B' => "a bad page or unexpected page flags were found",
        'U' => "user space asked for taint",
        'D' => "the kernel has died before (oops or BUG)",
        'A' => "an ACPI table was overridden",
        'W' => "the kernel issued a warning before",
        'C' => "a staging driver is loaded",
        'I' => "a workaround for a platform firmware bug is applied",
        'O' => "an out-of-tree module is loaded",
        'E' => "an unsigned module is loaded",
        'L' => "a soft lockup occurred before",
        'K' => "the kernel was live patched",
        'X' => "auxiliary taint, defined by the distribution",
        'T' => "built with the struct randomisation plugin",
        'N' => "an in-kernel test ran",
        'J' => "fwctl's mutating debug interface was used",
        _ => "not known to this version",
    }
}

fn modules(rest: &[u8], r: &mut Report) {
    if !r.modules.is_empty() {
        return;
    }
    let list = find(rest, b"[last unloaded").map_or(rest, |at| &rest[..at]);
    let names = list.split(|b| *b == b' ').filter_map(|w| {
        let name = memchr::memchr(b'(', w).map_or(w, |at| &w[..at]);
        (!name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')))
            .then(|| text(name))
    });
    r.modules = names.take(1024).collect();
}

/// `Oops: 0002 [#1] SMP`, `Oops: Oops: 0000 [#12]`, `Internal error: Oops: 96000004 [#1]`, `general protection fault: 0000 [#1]`.
fn oops_line(t: &[u8], r: &mut Report) {
    let Some(at) = find(t, b" [#") else {
        address(t, r);
        return;
    };
    r.oops_number = r.oops_number.or_else(|| number(&t[at + 3..]));
    address(t, r);
    if t.starts_with(b"Oops: ") && r.error_code.is_none() {
        let code = t[..at].rsplit(|b| *b == b' ').next().unwrap_or_default();
        error_code(code, r);
    }
}

fn error_code(digits: &[u8], r: &mut Report) {
    if r.error_code.is_some() {
        return;
    }
    let Some((value, _)) = crate::trace::hex(digits) else { return };
    // Bits of the x86 page-fault error code (Intel SDM volume 3, 4.7).
    let mut meaning = vec![
        if value & 1 == 0 { "page not present" } else { "protection violation" },
        if value & 2 == 0 { "read" } else { "write" },
        if value & 4 == 0 { "in kernel mode" } else { "in user mode" },
    ];
    for (bit, word) in
        [(3, "reserved bit set"), (4, "instruction fetch"), (5, "protection key"), (6, "shadow stack"), (15, "SGX")]
    {
        if value >> bit & 1 == 1 {
            meaning.push(word);
        }
    }
    r.error_code = Some(ErrorCode { value, meaning });
}

/// Registers of all architectures: `RAX: ffff… RBX: …`, `x29: ffff…`, `r7 : c0000000  r6 : …`, `GPR00: … …`.
fn registers(t: &[u8], r: &mut Report) {
    if r.registers.len() >= 64 || !looks_like_registers(t) {
        return;
    }
    let mut words = t.split(|b| *b == b' ').filter(|w| !w.is_empty()).peekable();
    while let Some(word) = words.next() {
        let name = match word.strip_suffix(b":") {
            Some(n) => n,
            None if words.peek() == Some(&&b":"[..]) => {
                words.next();
                word
            }
            None => continue,
        };
        let Some(value) = words.peek() else { break };
        // Selectors stand before values: `0018:ffffa85d435dfcb0`.
        let value = memchr::memrchr(b':', value).map_or(*value, |at| &value[at + 1..]);
        let digits = value.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits < 2 || name.is_empty() || name.len() > 8 || !name[0].is_ascii_alphabetic() {
            continue;
        }
        let name = text(name);
        if r.registers.iter().any(|x| x.name == name) {
            return;
        }
        if name == "CR2"
            && r.fault_address.is_none()
            && matches!(r.kind, crate::Kind::PageFault | crate::Kind::NullDereference)
        {
            r.fault_address = Some(text(&value[..digits]));
        }
        r.registers.push(Register { name, value: text(&value[..digits]) });
    }
}

fn looks_like_registers(t: &[u8]) -> bool {
    let colon = t.iter().take(8).position(|b| *b == b':');
    let Some(colon) = colon else { return false };
    let name = t[..colon].trim_ascii_end();
    let known = matches!(
        name,
        b"RAX"
            | b"RDX"
            | b"RBP"
            | b"RSP"
            | b"R10"
            | b"R13"
            | b"EAX"
            | b"ESI"
            | b"ESP"
            | b"DS"
            | b"FS"
            | b"CS"
            | b"CR0"
            | b"CR2"
            | b"DR0"
            | b"DR3"
            | b"sp"
            | b"pstate"
            | b"ra"
    );
    let numbered = matches!(name.first(), Some(b'x' | b'r' | b'R' | b's' | b't' | b'a'))
        && name.len() <= 3
        && name[1..].iter().all(u8::is_ascii_digit)
        && name.len() > 1;
    known || numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut r = crate::build::empty(crate::Kind::PageFault);
        header(lines[0].as_bytes(), &mut r);
        for l in lines {
            line(l.as_bytes(), &mut r, false);
        }
        r
    }

    #[test]
    fn the_task_line_gives_cpu_task_taint_and_kernel() {
        let r = report(&[
            "x",
            "CPU: 4 PID: 1975 Comm: run me.sh Kdump: loaded Tainted: G      D W        5.6.0-abc #1 PREEMPT",
        ]);
        assert_eq!((r.cpu, r.pid, r.comm.as_deref()), (Some(4), Some(1975), Some("run me.sh")));
        assert_eq!(
            (r.taint.as_deref(), r.kernel.as_deref(), r.build.as_deref()),
            (Some("GDW"), Some("5.6.0-abc"), Some("#1 PREEMPT"))
        );
        assert_eq!(r.taint_flags[1].meaning, "the kernel has died before (oops or BUG)");
        let r = report(&["x", "CPU: 0 UID: 0 PID: 20 Comm: cpuhp/0 Not tainted 7.3.4 #1"]);
        assert_eq!((r.taint.as_deref(), r.kernel.as_deref()), (Some(""), Some("7.3.4")));
        for (line, taint) in [("      Not tainted 7.3.4 #1", ""), ("7.3.4 #1 Tainted: G        W", "GW")] {
            let r = report(&["x", line]);
            let got = (r.taint.as_deref(), r.kernel.as_deref(), r.build.as_deref());
            assert_eq!(got, (Some(taint), Some("7.3.4"), Some("#1")), "{line}");
        }
        let r = report(&["x", "Tainted: [O]=OOT_MODULE", "12 #1 is no kernel"]);
        assert_eq!((r.taint, r.kernel), (None, None));
        let r = report(&["x", "Pid: 12, comm: old Not tainted 2.6.32-5 #1 Vendor"]);
        assert_eq!((r.pid, r.comm.as_deref(), r.kernel.as_deref()), (Some(12), Some("old"), Some("2.6.32-5")));
    }

    #[test]
    fn addresses_codes_and_registers_are_read() {
        let r = report(&[
            "BUG: unable to handle page fault for address: ffffffffffffffc8",
            "#PF: error_code(0x0002) - not-present page",
            "Oops: 0002 [#12] SMP",
            "RSP: 0018:ffffa85d435dfcb0 EFLAGS: 00010007",
            "RAX: ffff9c82ebb2e040 RBX: 0000000080000000 RCX: 000000000000080f",
        ]);
        assert_eq!(r.fault_address.as_deref(), Some("ffffffffffffffc8"));
        assert_eq!(r.error_code.unwrap().meaning, ["page not present", "write", "in kernel mode"]);
        assert_eq!(r.oops_number, Some(12));
        assert_eq!(r.registers.len(), 5);
        assert_eq!((r.registers[0].name.as_str(), r.registers[0].value.as_str()), ("RSP", "ffffa85d435dfcb0"));
    }

    #[test]
    fn addresses_of_other_architectures_are_read() {
        let r = report(&["BUG: Kernel NULL pointer dereference on read at 0x00000008"]);
        assert_eq!(r.fault_address.as_deref(), Some("00000008"));
        let r = report(&["x", "Failing address: 0000000000001000 TEID: 0000000000001483"]);
        assert_eq!(r.fault_address.as_deref(), Some("0000000000001000"));
    }

    #[test]
    fn tasks_named_in_headers_are_read() {
        let r = report(&["INFO: task kworker/u4:1:123 blocked for more than 143 seconds."]);
        assert_eq!((r.comm.as_deref(), r.pid), (Some("kworker/u4:1"), Some(123)));
        let r = report(&["watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [my task:77]"]);
        assert_eq!((r.cpu, r.comm.as_deref(), r.pid), (Some(1), Some("my task"), Some(77)));
    }

    #[test]
    fn module_flags_are_not_part_of_names() {
        assert_eq!(
            report(&["x", "Modules linked in: kvm_intel(-) kvm(OE) irqbypass [last unloaded: x]"]).modules,
            ["kvm_intel", "kvm", "irqbypass"]
        );
    }
}
