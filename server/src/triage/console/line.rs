//! What one line of a console says.

use super::{Mark, MarkKind};
use crashyard_protocol::AttemptId;

pub(super) const PANIC: &str = "Kernel panic - not syncing: ";
pub(super) const MARKER: &str = "crashyard: trigger ";
pub(super) const DUMP_FAILED: &str = "crashyard: dump failed cause=";

/// A command line this long may have been cut by the kernel's log (1,024 bytes with its prefix), and its end is where
/// `elfcorehdr=` stands.
const COMMAND_LINE_SURE: u64 = 900;

/// How the headers of oopses begin. Warnings are not among them: kernels survive them.
pub(super) const OOPSES: &[&str] = &[
    "BUG: ",
    "kernel BUG at ",
    "Oops: ",
    "general protection fault",
    "divide error: ",
    "invalid opcode: ",
    "double fault: ",
    "stack segment: ",
    "Unable to handle kernel ",
    "Internal error: ",
    "traps: PANIC: ",
    "PANIC: double fault",
];

/// The first line without its line feed, and what follows it; `None` without a line feed.
pub(super) fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = memchr::memchr(b'\n', bytes)?;
    Some((&bytes[..length], &bytes[length + 1..]))
}

/// The line as text: escape sequences, carriage returns and other control characters gone, bad UTF-8 replaced.
pub(super) fn clean(raw: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            0x1b => match rest.next() {
                // CSI: parameters and intermediates up to a final byte.
                Some(b'[') => while rest.next().is_some_and(|byte| !(0x40..=0x7e).contains(&byte)) {},
                // OSC: up to BEL or ESC.
                Some(b']') => while rest.next().is_some_and(|byte| byte != 0x07 && byte != 0x1b) {},
                _ => {}
            },
            b'\t' => bytes.push(b' '),
            0..=0x1f | 0x7f => {}
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// At most 500 characters.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(500).collect()
}

/// Whether a command line's mark may be cut, so that nothing follows from what is not in it.
#[must_use]
pub fn may_be_cut(mark: &Mark) -> bool {
    mark.length >= COMMAND_LINE_SURE
}

pub(super) fn is_panic(text: &str) -> bool {
    text.contains(PANIC)
}

/// Whether a line is the marker of an attempt. Also what is looked for in a dump's log.
///
/// The marker is a message of its own: one that is quoted, as an agent does that logs what it is about to say, is none.
#[must_use]
pub fn is_marker(text: &str, attempt: &AttemptId) -> bool {
    text.find(MARKER).is_some_and(|start| {
        text[..start].chars().next_back().is_none_or(|before| before.is_whitespace() || "]>".contains(before))
            && text[start..]
                .split_ascii_whitespace()
                .any(|word| word.strip_prefix("attempt=") == Some(attempt.as_str()))
    })
}

/// Registers that matter of those printed by a jump that died.
pub(super) const JUMP_REGISTERS: [&str; 3] = ["Exc:", "r12:", "r13:"];

fn jump_register(text: &str) -> Option<MarkKind> {
    let register = JUMP_REGISTERS.into_iter().find(|register| text.starts_with(register))?;
    let digits = text[register.len()..].trim_end();
    let value = (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())??;
    Some(MarkKind::JumpDied { register: register.trim_end_matches(':').to_owned(), value })
}

/// What a line says, if it matters. Whether a panic is the intended one is not decided here.
pub(super) fn classify(text: &str, attempt: &AttemptId) -> Option<MarkKind> {
    // Before the panic itself, because this line repeats its message.
    if text.contains("---[ end Kernel panic") || text.contains("Fixing recursive fault but reboot is needed") {
        return Some(MarkKind::DeadEnd);
    }
    if let Some(message) = after(text, PANIC) {
        return Some(MarkKind::Panic { message: message.trim_end().to_owned(), intended: false, expected: false });
    }
    if is_marker(text, attempt) {
        return Some(MarkKind::Marker);
    }
    if let Some(cause) = after(text, DUMP_FAILED) {
        let word = cause.split(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default();
        return word.parse().ok().map(|cause| MarkKind::DumpFailed { cause });
    }
    // "Kernel command line:" ends in this phrase as well; both count.
    if let Some(line) = after(text, "Command line: ").or_else(|| after(text, "Kernel command line: ")) {
        let capture = line.split_ascii_whitespace().any(|word| word.starts_with("elfcorehdr="));
        return Some(MarkKind::CommandLine { capture });
    }
    if let Some(banner) = after(text, "Linux version ") {
        // The kernel's banner goes on with who built it; a chance mention does not.
        let (release, builder) = banner.split_once(' ')?;
        return builder.starts_with('(').then(|| MarkKind::Banner { release: release.to_owned() });
    }
    if let Some(kind) = jump_register(text) {
        return Some(kind);
    }
    let payload = payload(text);
    OOPSES.iter().any(|start| payload.starts_with(start)).then(|| MarkKind::Oops { title: title(payload) })
}

/// The line without log level, time stamp, caller and subsystem in front of an oops header.
pub(super) fn payload(text: &str) -> &str {
    let text = match time_stamp(text) {
        Some((_, rest)) => rest,
        None => text.trim_start(),
    };
    let text = match text.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
        Some((level, rest)) if level.bytes().all(|byte| byte.is_ascii_digit()) => rest,
        _ => text,
    };
    text.strip_prefix("watchdog: ").unwrap_or(text)
}

/// The kernel's time stamp, and what follows it (and its caller, `[T12]`).
fn time_stamp(text: &str) -> Option<(&str, &str)> {
    let mut from = 0;
    while let Some(open) = text[from..].find('[').map(|at| from + at) {
        let close = open + text[open..].find(']')?;
        let stamp = text[open + 1..close].trim();
        if stamp.split_once('.').is_some_and(|(whole, part)| is_digits(whole) && part.len() == 6 && is_digits(part)) {
            let rest = text[close + 1..].trim_start();
            let caller = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            let rest = match caller {
                Some((caller, rest)) if caller.trim_start().starts_with(['T', 'C']) => rest.trim_start(),
                _ => rest,
            };
            return Some((stamp, rest));
        }
        from = open + 1;
    }
    None
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What a replayed line has in common with the line it repeats.
pub(super) fn replay_key(text: &str) -> (Option<&str>, &str) {
    match time_stamp(text) {
        Some((stamp, rest)) => (Some(stamp), rest.trim_end()),
        None => (None, text.trim()),
    }
}

/// A title that is equal for equal bugs: the header without addresses and numbers.
fn title(header: &str) -> String {
    let end = [", address: ", " for address: ", ", probably for ", ": 0000 ", " at virtual address ", " [#"]
        .iter()
        .filter_map(|stop| header.find(stop))
        .min()
        .unwrap_or(header.len());
    let short = header[..end].trim_end();
    // `Oops: general protection fault, …` is filed under what happened.
    let named = short.strip_prefix("Oops: ").filter(|rest| !is_digits(rest) && *rest != "Oops:");
    named.unwrap_or(short).chars().take(200).collect()
}

/// The kernel function of an instruction-pointer line (x86: code segment 0x10; arm64: `pc :`).
pub(super) fn kernel_function(text: &str) -> Option<&str> {
    let place = after(text, "RIP: 0010:").or_else(|| after(text, "pc : "))?;
    let (function, _) = place.split_once("+0x")?;
    (!function.is_empty() && !function.contains(' ')).then_some(function)
}

fn after<'a>(text: &'a str, phrase: &str) -> Option<&'a str> {
    text.find(phrase).map(|start| &text[start + phrase.len()..])
}
