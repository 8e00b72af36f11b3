//! The capsule for people: what crashed first, then everybody else.

use crashyard_vmcore::{Capsule, Cpu, DmesgLine, Frame, SourceLine, Stack, StackEnd, Task};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Lines of the kernel log in the overview.
const LOG_TAIL: usize = 30;
/// Threads named in a group of equal stacks.
const NAMED: usize = 8;

/// Makes text from a dump safe for a terminal: control characters, escapes and direction marks become visible.
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push_str("    "),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// As [`safe`], for text whose line breaks are ours.
pub fn safe_lines(text: &str) -> String {
    text.split('\n').map(safe).collect::<Vec<_>>().join("\n")
}

/// The whole report.
pub fn report(out: &mut impl Write, capsule: &Capsule) -> io::Result<()> {
    head(out, capsule)?;
    let panicked = capsule.panic_cpu.and_then(|n| capsule.cpus.iter().find(|c| c.cpu == n));
    if let Some(cpu) = panicked {
        writeln!(out, "\nStack of the panic")?;
        frames(out, capsule.stack(cpu.stack), "  ")?;
    }
    for c in capsule.cpus.iter().filter(|c| Some(c.cpu) != capsule.panic_cpu) {
        writeln!(out)?;
        cpu_line(out, c)?;
        frames(out, capsule.stack(c.stack), "  ")?;
    }
    virtualization(out, capsule)?;
    writeln!(out)?;
    tasks(out, capsule)?;
    modules(out, capsule)?;
    writeln!(
        out,
        "\nKernel log, last {} of {} lines (all with --dmesg)",
        LOG_TAIL.min(capsule.dmesg.len()),
        capsule.dmesg.len()
    )?;
    dmesg(out, &capsule.dmesg[capsule.dmesg.len().saturating_sub(LOG_TAIL)..])?;
    if !capsule.warnings.is_empty() {
        writeln!(out, "\nNot everything could be read")?;
        for warning in &capsule.warnings {
            writeln!(out, "  {}", safe(warning))?;
        }
    }
    Ok(())
}

fn head(out: &mut impl Write, capsule: &Capsule) -> io::Result<()> {
    let mut row = |name: &str, value: &str| match value.is_empty() {
        true => Ok(()),
        false => writeln!(out, "{name:<13}{}", safe(value)),
    };
    row("Kernel", &capsule.release)?;
    row("", capsule.banner.as_deref().unwrap_or_default())?;
    row("Build id", capsule.build_id.as_deref().unwrap_or_default())?;
    row("Oops", capsule.oops_message.as_deref().unwrap_or_default())?;
    row("Panic", capsule.panic_message.as_deref().unwrap_or("no panic in the log"))?;
    let by = capsule.panic_task.as_ref().map(|t| format!("{} (pid {})", t.comm, t.pid));
    let on = capsule.panic_cpu.map(|n| format!("CPU {n}"));
    row("Panicked", &[by, on].into_iter().flatten().collect::<Vec<_>>().join(" on "))?;
    let up = capsule.uptime_ns.map(|ns| format!("up {}", duration(ns)));
    let at = capsule.crash_time.map(|t| format!("{} UTC", date(t)));
    row("Crashed", &[at, up].into_iter().flatten().collect::<Vec<_>>().join(", "))?;
    row("Taint", capsule.taint.as_ref().map_or("", |t| if t.bits == 0 { "none" } else { &t.letters }))?;
    row("Command line", capsule.command_line.as_deref().unwrap_or_default())?;
    if let Some(m) = capsule.memory.as_ref().filter(|m| m.total_kib.is_some()) {
        let mib = |kib: Option<u64>| kib.map_or("?".into(), |k| (k / 1024).to_string());
        let (total, free, anon, file) = (mib(m.total_kib), mib(m.free_kib), mib(m.anonymous_kib), mib(m.file_kib));
        row("Memory", &format!("{total} MiB, free {free}, anonymous {anon}, files {file}"))?;
    }
    let (format, pages) = (capsule.format, capsule.pages);
    let format = serde_json::to_value(format).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    row("Dump", &format!("{format}, {} pages present, {} filtered out", pages.present, pages.excluded))
}

/// One CPU with its registers.
pub fn cpu(out: &mut impl Write, capsule: &Capsule, cpu: &Cpu) -> io::Result<()> {
    cpu_line(out, cpu)?;
    if let Some(r) = &cpu.registers {
        let rows = [
            [("rip", r.rip), ("rsp", r.rsp), ("rbp", r.rbp), ("flg", r.rflags)],
            [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
            [("rsi", r.rsi), ("rdi", r.rdi), ("r8 ", r.r8), ("r9 ", r.r9)],
            [("r10", r.r10), ("r11", r.r11), ("r12", r.r12), ("r13", r.r13)],
            [("r14", r.r14), ("r15", r.r15), ("cs ", r.cs), ("ss ", r.ss)],
        ];
        for row in rows {
            let cells: Vec<String> = row.iter().map(|(name, value)| format!("{name} {:016x}", value.0)).collect();
            writeln!(out, "  {}", cells.join("  "))?;
        }
    }
    frames(out, capsule.stack(cpu.stack), "  ")?;
    if let Some(queue) = &cpu.run_queue {
        let waiting: Vec<String> = queue.waiting.iter().map(|t| format!("{} ({})", safe(&t.comm), t.pid)).collect();
        writeln!(
            out,
            "  run queue: {} runnable; waiting: {}",
            queue.nr_running,
            if waiting.is_empty() { "none".into() } else { waiting.join(", ") }
        )?;
    }
    Ok(())
}

fn cpu_line(out: &mut impl Write, cpu: &Cpu) -> io::Result<()> {
    let what = match (cpu.idle, &cpu.comm, cpu.pid) {
        (Some(true), ..) => "idle".to_owned(),
        (_, Some(comm), Some(pid)) => format!("{} (pid {pid})", safe(comm)),
        _ => "unknown thread".to_owned(),
    };
    let mut notes = Vec::new();
    match cpu.user {
        Some(true) => notes.push("in user mode"),
        Some(false) => {}
        None => notes.push("left no registers"),
    }
    if cpu.interrupts_on == Some(false) {
        notes.push("interrupts off");
    }
    if cpu.online == Some(false) {
        notes.push("offline");
    }
    let notes: String = notes.iter().map(|n| format!(", {n}")).collect();
    writeln!(out, "CPU {}: {what}{notes}", cpu.cpu)
}

fn frames(out: &mut impl Write, stack: Option<&Stack>, indent: &str) -> io::Result<()> {
    let Some(stack) = stack else { return writeln!(out, "{indent}no stack") };
    for frame in &stack.frames {
        writeln!(out, "{indent}{}", frame_line(frame))?;
        for place in &frame.source {
            writeln!(out, "{indent}    {}", source_line(place))?;
        }
    }
    match stack.end {
        StackEnd::User | StackEnd::Bottom => Ok(()),
        StackEnd::NoOrc => writeln!(out, "{indent}… code without unwind information"),
        StackEnd::Missing => writeln!(out, "{indent}… the next page is not in the dump"),
        StackEnd::Corrupt => writeln!(out, "{indent}… the stack is corrupt here"),
        StackEnd::Limit => writeln!(out, "{indent}… more frames"),
    }
}

fn frame_line(frame: &Frame) -> String {
    let mut line = format!("{:016x} {}", frame.pc.0, frame.symbol.as_deref().map_or("?".into(), safe));
    if let Some(module) = &frame.module {
        let _ = write!(line, " [{}]", safe(module));
    }
    if frame.interrupted {
        line.push_str("  ← interrupted here");
    }
    if frame.guess {
        line.push_str("  (a guess)");
    }
    line
}

fn source_line(place: &SourceLine) -> String {
    let function = place.function.as_deref().map(|name| format!("{} at ", safe(name))).unwrap_or_default();
    let line = place.line.map(|line| format!(":{line}")).unwrap_or_default();
    format!("{function}{}{line}", safe(&place.file))
}

/// Threads by stack: the unusual ones first, crowds last.
pub fn tasks(out: &mut impl Write, capsule: &Capsule) -> io::Result<()> {
    let mut groups: BTreeMap<Option<u32>, Vec<&Task>> = BTreeMap::new();
    for task in &capsule.tasks {
        groups.entry(task.stack).or_default().push(task);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    let urgency = |tasks: &[&Task]| match tasks {
        t if t.iter().any(|t| t.running) => 0,
        t if t.iter().any(|t| t.hung) => 1,
        t if t.iter().any(|t| t.state == 'D') => 2,
        t if t.iter().any(|t| !t.kernel_thread) => 3,
        _ => 4,
    };
    groups.sort_by_key(|(_, tasks)| (urgency(tasks), tasks.len(), tasks[0].pid));
    writeln!(out, "{} threads, {} different stacks", capsule.tasks.len(), groups.len())?;
    for (stack, tasks) in groups {
        let mut names: Vec<String> = tasks.iter().take(NAMED).map(|t| task_name(t)).collect();
        if tasks.len() > NAMED {
            names.push(format!("and {} more", tasks.len() - NAMED));
        }
        writeln!(out, "\n  {}", names.join(", "))?;
        frames(out, capsule.stack(stack), "    ")?;
    }
    Ok(())
}

fn task_name(task: &Task) -> String {
    let mut name = format!("{} ({} {}", safe(&task.comm), task.pid, task.state);
    if task.running {
        let _ = write!(name, ", on CPU {}", task.cpu.map_or("?".into(), |c| c.to_string()));
    }
    if task.hung {
        let _ = write!(name, ", hung for {}", duration(task.off_cpu_ns.unwrap_or(0)));
    }
    if let Some(lock) = &task.blocked_on {
        let owner = lock.owner.as_ref().map_or("nobody".into(), |o| format!("{} ({})", safe(&o.comm), o.pid));
        let _ = write!(name, ", waits for {} {} held by {owner}", lock.kind, lock.mutex);
    }
    name + ")"
}

fn virtualization(out: &mut impl Write, capsule: &Capsule) -> io::Result<()> {
    let Some(kvm) = &capsule.kvm else { return Ok(()) };
    writeln!(out, "\nVirtualization")?;
    for guest in &kvm.guests {
        let vcpus: Vec<String> = guest
            .vcpus
            .iter()
            .map(|v| format!("{} on {}", v.id, v.cpu.map_or("no CPU".into(), |c| format!("CPU {c}"))))
            .collect();
        writeln!(out, "  guest {}: vCPUs {}", guest.address, vcpus.join(", "))?;
    }
    for cpu in &kvm.cpus {
        let vmx = match cpu.vmxe {
            Some(true) => "VMX enabled",
            Some(false) => "VMX off",
            None => "VMX unknown",
        };
        let vmcss = cpu.loaded_vmcss.as_ref().map_or("no VMCS list".into(), |l| format!("{} loaded VMCSs", l.len()));
        writeln!(out, "  CPU {}: {vmx}, {vmcss}", cpu.cpu)?;
        if let Some(error) = &cpu.list_error {
            writeln!(out, "    {}", safe(error))?;
        }
        for v in cpu.loaded_vmcss.iter().flatten() {
            let launched = match v.launched {
                Some(true) => "still launched",
                Some(false) => "clear",
                None => "unknown",
            };
            writeln!(out, "    loaded_vmcs {}: {launched}", v.address)?;
        }
    }
    Ok(())
}

fn modules(out: &mut impl Write, capsule: &Capsule) -> io::Result<()> {
    if capsule.modules.is_empty() {
        return Ok(());
    }
    let name = |m: &crashyard_vmcore::ModuleInfo| match m.taints.is_empty() {
        true => safe(&m.name),
        false => format!("{} ({})", safe(&m.name), m.taints),
    };
    let names: Vec<String> = capsule.modules.iter().map(name).collect();
    writeln!(out, "\n{} modules: {}", names.len(), names.join(" "))
}

/// Log lines as `dmesg` prints them.
pub fn dmesg(out: &mut impl Write, lines: &[DmesgLine]) -> io::Result<()> {
    lines.iter().try_for_each(|line| writeln!(out, "{}", safe(&line.stamped())))
}

fn duration(ns: u64) -> String {
    let s = ns / 1_000_000_000;
    match (s / 86400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, _) => format!("{}.{:03} s", s, ns / 1_000_000 % 1000),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

/// Seconds since 1970 as a date (the days-to-civil algorithm of H. Hinnant).
fn date(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
    let z = days.saturating_add(719_468);
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_a_dump_can_drive_the_terminal() {
        assert_eq!(safe("a\x1b[2Jb\u{9b}c\u{202e}d\rf\n"), "a\\x1b[2Jb\\x9bc\\u{202e}d\\x0df\\x0a");
    }

    #[test]
    fn dates_are_right_at_the_edges() {
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_827_696), "2000-02-29 12:34:56");
        assert_eq!(date(-1), "1969-12-31 23:59:59");
    }
}
