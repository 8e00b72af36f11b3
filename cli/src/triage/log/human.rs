//! Crash reports for people: what, where, why, in colour where the terminal has it.

use std::io::Write;

use anstyle::{AnsiColor, Style};
use crashyard_crashlog::{EventKind, Frame, Outcome, Report};

const BAD: Style = AnsiColor::Red.on_default().bold();
const MEANT: Style = AnsiColor::Green.on_default().bold();
const DOUBT: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

/// Further stacks of a report, and entries of each, that people are shown; machines get all.
const STACKS: usize = 6;
const FRAMES: usize = 16;

/// Text of a log, made harmless: control characters (escape sequences, carriage returns, C1 codes) and characters that
/// turn the direction of writing become visible placeholders, so that a log can neither drive the terminal nor lie
/// about what it says.
pub fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_deceptive(c) { '\u{fffd}' } else { c }).collect()
}

fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Prints all reports of a file.
pub fn print(out: &mut impl Write, file: &str, outcome: &Outcome) -> std::io::Result<()> {
    let n = outcome.reports.len();
    writeln!(out, "{BOLD}{}{BOLD:#}: {n} crash report{}", safe(file), if n == 1 { "" } else { "s" })?;
    for (i, r) in outcome.reports.iter().enumerate() {
        writeln!(out)?;
        report(out, i, r)?;
    }
    for (event, said) in outcome.events.iter().filter_map(|e| Some((e, remark(&e.kind)?))) {
        writeln!(out, "\n{DOUBT}line {}: {}{DOUBT:#}", event.line, safe(&said))?;
    }
    for w in &outcome.warnings {
        writeln!(out, "{DOUBT}warning at byte {}: {}{DOUBT:#}", w.offset, safe(&w.text))?;
    }
    Ok(())
}

/// What a crash was followed by, and what did not happen: a triple fault leaves no line of its own.
fn remark(kind: &EventKind) -> Option<String> {
    let words = match kind {
        EventKind::JumpDied { register, value } if register == "Exc" => {
            return Some(format!("the jump to the next kernel died of exception {value}"));
        }
        EventKind::DumpFailed { cause } => {
            return Some(format!("the capture agent says that its dump failed: {cause}"));
        }
        EventKind::RecursiveFault => "a task faulted while it died: nothing more is to be expected of this kernel",
        EventKind::UnexplainedReset => {
            "a reset that the kernel before it did not announce (triple fault, power, or from outside)"
        }
        EventKind::NoPanicAfterTrigger => "a crash was triggered, and the log ends without a panic",
        EventKind::NothingAfterPanic => "the log ends after the panic: no capture kernel started",
        _ => return None,
    };
    Some(words.to_owned())
}

fn report(out: &mut impl Write, index: usize, r: &Report) -> std::io::Result<()> {
    let style = if r.intended == Some(true) { MEANT } else { BAD };
    let mark = match r.intended {
        Some(true) => " (intended)",
        Some(false) => " (not intended)",
        None => "",
    };
    writeln!(out, "#{index} {style}{}{style:#}{mark}", safe(&r.title))?;
    writeln!(out, "   {DIM}line {}, bytes {}..{}, boot {}{DIM:#}", r.line, r.start, r.end, r.boot)?;
    facts(out, r)?;
    if let Some(reason) = &r.corrupted_reason {
        writeln!(out, "   {DOUBT}corrupted: {}{DOUBT:#}", safe(reason))?;
    }
    if let Some(c) = r.cause {
        writeln!(out, "   follows from #{c}")?;
    }
    if let Some(d) = r.duplicate_of {
        writeln!(out, "   {DIM}the same as #{d}, printed again{DIM:#}")?;
        return Ok(());
    }
    for f in &r.trace {
        trace_line(out, r, f)?;
    }
    for stack in r.stacks.iter().take(STACKS) {
        writeln!(out, "   {DIM}{}{DIM:#}", safe(if stack.label.is_empty() { "another stack:" } else { &stack.label }))?;
        for f in stack.frames.iter().take(FRAMES) {
            trace_line(out, r, f)?;
        }
        let more = stack.frames.len().saturating_sub(FRAMES);
        if more > 0 {
            writeln!(out, "     {DIM}and {more} more{DIM:#}")?;
        }
    }
    for lock in &r.locks {
        writeln!(out, "   {DIM}lock {}{DIM:#}", safe(lock))?;
    }
    if let Some(at) = r.code.as_ref().and_then(|c| c.instructions.iter().find(|i| i.offset == 0)) {
        writeln!(out, "   at   {}  {DIM}{}{DIM:#}", safe(&at.text), safe(&at.bytes))?;
    }
    for why in &r.why {
        writeln!(out, "   {DIM}why: {}{DIM:#}", safe(why))?;
    }
    Ok(())
}

fn facts(out: &mut impl Write, r: &Report) -> std::io::Result<()> {
    let mut facts = Vec::new();
    let mut add = |name: &str, value: Option<String>| facts.extend(value.map(|v| format!("{name} {v}")));
    add("CPU", r.cpu.map(|c| c.to_string()));
    add("task", r.comm.clone().map(|c| r.pid.map_or(c.clone(), |p| format!("{c}[{p}]"))));
    add("kernel", r.kernel.clone());
    add("taint", r.taint.clone().filter(|t| !t.is_empty()));
    add("address", r.fault_address.clone());
    add("access", r.error_code.as_ref().map(|c| c.meaning.join(" ")));
    add("oops", r.oops_number.map(|n| format!("[#{n}]")));
    if !facts.is_empty() {
        writeln!(out, "   {}", safe(&facts.join(", ")))?;
    }
    if let Some(h) = &r.hardware {
        writeln!(out, "   {}", safe(h))?;
    }
    Ok(())
}

/// One entry; the chosen frame stands out, entries the unwinder doubts are dim.
fn trace_line(out: &mut impl Write, r: &Report, f: &Frame) -> std::io::Result<()> {
    let chosen = r.frame.as_ref().is_some_and(|name| f.function.split('.').next() == Some(name));
    let style = if chosen {
        BOLD
    } else if f.reliable {
        Style::new()
    } else {
        DIM
    };
    let place = match (f.offset, f.size) {
        (Some(o), Some(s)) => format!("+{o:#x}/{s:#x}"),
        (Some(o), None) => format!("+{o:#x}"),
        _ => String::new(),
    };
    let module = f.module.as_ref().map_or_else(String::new, |m| format!(" [{m}]"));
    let source = f.source.as_ref().map_or_else(String::new, |s| format!(" {s}"));
    let sign = if chosen {
        "→"
    } else if f.reliable {
        " "
    } else {
        "?"
    };
    writeln!(out, "   {sign} {style}{}{style:#}", safe(&format!("{}{place}{module}{source}", f.function)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_crashlog::{Options, parse};

    #[test]
    fn hostile_bytes_never_reach_the_terminal() {
        let log = "[    1.000000] Kernel panic - not syncing: \u{9b}31mboo \u{202e}kcab\n[    1.000001] CPU: 0 PID: 1 Comm: \u{9d}0;evil\u{7}x Not tainted 7.3.4 #1\n";
        let mut out = Vec::new();
        print(&mut out, "a\x1b]0;evil\x07.log", &parse(log.as_bytes(), Options::default())).unwrap();
        let mut plain = Vec::new();
        std::io::Write::write_all(&mut anstream::StripStream::new(&mut plain), &out).unwrap();
        let text = String::from_utf8(plain).unwrap();
        assert!(!text.chars().any(|c| c != '\n' && c.is_control() || is_deceptive(c)), "{text:?}");
        assert!(text.contains("boo"), "{text}");
    }

    #[test]
    fn people_are_told_what_did_not_happen() {
        let log = "[    1.000000] Kernel panic - not syncing: sysrq triggered crash\n";
        let mut out = Vec::new();
        print(&mut out, "x.log", &parse(log.as_bytes(), Options::default())).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("no capture kernel started"));
    }

    #[test]
    fn people_are_told_how_the_way_to_the_next_kernel_ended() {
        let log = "[    1.000000] Kernel panic - not syncing: sysrq triggered crash\nExc:000000000000000d\nr12:0000000000372ef0\n[    2.000000] crashyard: dump failed cause=network\n";
        let mut out = Vec::new();
        print(&mut out, "x.log", &parse(log.as_bytes(), Options::default())).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("line 2: the jump to the next kernel died of exception 13"), "{text}");
        assert!(text.contains("line 4: the capture agent says that its dump failed: network"), "{text}");
    }

    #[test]
    fn people_see_who_freed_the_memory_and_what_the_access_was() {
        let log = "[    1.000000] BUG: KASAN: slab-use-after-free in my_read+0x1/0x2\n[    1.000001] Read of size 8 at addr ffff888012345678 by task my/42\n[    1.000002] Call Trace:\n[    1.000003]  my_read+0x1/0x2\n[    1.000004]  my_open+0x3/0x4\n[    1.000005] Freed by task 7:\n[    1.000006]  my_free+0x3/0x4\n[    1.000007]  my_close+0x3/0x4\n[    2.000000] BUG: unable to handle page fault for address: ffffffffffffffc8\n[    2.000001] #PF: error_code(0x0002) - not-present page\n[    2.000002] RIP: 0010:my_write+0x1/0x2\n[    2.000003] Call Trace:\n[    2.000004]  my_open+0x3/0x4\n";
        let mut out = Vec::new();
        print(&mut out, "x.log", &parse(log.as_bytes(), Options::default())).unwrap();
        let mut plain = Vec::new();
        std::io::Write::write_all(&mut anstream::StripStream::new(&mut plain), &out).unwrap();
        let text = String::from_utf8(plain).unwrap();
        for part in ["Freed by task 7:\n     my_free+0x3/0x4", "access page not present write in kernel mode"] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn people_see_title_place_and_reasons() {
        let log = "[    1.000000] WARNING: CPU: 2 PID: 7 at fs/my.c:12 my_check+0x1/0x2\n[    1.000001] Call Trace:\n[    1.000002]  my_check+0x1/0x2 [my_mod]\n[    1.000003]  my_open+0x3/0x4 [my_mod]\n";
        let mut out = Vec::new();
        print(&mut out, "x.log", &parse(log.as_bytes(), Options::default())).unwrap();
        let mut plain = Vec::new();
        std::io::Write::write_all(&mut anstream::StripStream::new(&mut plain), &out).unwrap();
        let text = String::from_utf8(plain).unwrap();
        for part in
            ["x.log: 1 crash report\n", "#0 WARNING in my_check", "→ my_check+0x1/0x2 [my_mod]", "why: frame my_check"]
        {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }
}
