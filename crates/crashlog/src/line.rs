//! From a raw console line to the kernel's own text: everything in front of it is taken off.
//!
//! A console line may carry any number of prefixes, put there by printk (`<4>[   12.345678][ T123] `), by dmesg,
//! syslog, the journal, netconsole, and by whatever recorded the serial line (conserver, LAVA, ser2net). The rule:
//! if a printk time stamp stands in the line, the kernel's text begins after it, whatever stood before; else known
//! sorts of prefixes are taken off until none is left. Text *before* a stamp is another, cut line and is handed out
//! as such, which is how lines of several CPUs that run into one another come apart.
//!
//! Nothing here allocates except for lines with escape sequences or NULs.

/// Who printed a line, as printk's caller id says (`CONFIG_PRINTK_CALLER`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Context {
    /// No caller id in the line.
    #[default]
    Unknown,
    /// A task, by thread id.
    Task(u32),
    /// A CPU in interrupt context.
    Cpu(u32),
}

/// One message of the kernel (or of whoever else writes to the console).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a> {
    /// The text without prefix, trailing blanks removed, leading blanks kept (traces are indented).
    pub text: &'a [u8],
    /// Time stamp as printed, without brackets and blanks.
    pub stamp: Option<&'a [u8]>,
    /// Caller id.
    pub context: Context,
}

/// Splits a raw line into its messages, in order; usually one.
pub fn payloads<'a>(raw: &'a [u8], mut each: impl FnMut(Payload<'a>)) {
    let mut rest = raw.trim_ascii_end();
    let mut pending: Option<(&'a [u8], usize)> = None;
    loop {
        let found = find_stamp(rest);
        let text = match found {
            Some((at, _)) => &rest[..at],
            None => rest,
        };
        match pending.take() {
            Some((stamp, _)) => each(after_stamp(stamp, text)),
            None => {
                let p = strip(text);
                if !p.text.trim_ascii().is_empty() {
                    each(p);
                }
            }
        }
        let Some((at, len)) = found else { break };
        pending = Some((rest[at + 1..at + len - 1].trim_ascii(), at));
        rest = &rest[at + len..];
    }
}

/// The kernel's text after a printk stamp: caller ids, then one blank.
fn after_stamp<'a>(stamp: &'a [u8], text: &'a [u8]) -> Payload<'a> {
    let mut text = text.trim_ascii_end();
    let mut context = Context::Unknown;
    while let Some((c, len)) = caller(text) {
        context = c;
        text = &text[len..];
    }
    let mut text = text.strip_prefix(b" ").unwrap_or(text);
    if let Some(used) = cpu_and_task(text) {
        text = text[used..].strip_prefix(b" ").unwrap_or(&text[used..]);
    }
    // `journalctl -o short-monotonic` puts the host between the stamp and the words.
    if let Some(used) = host(text) {
        text = text[used..].strip_prefix(b" ").unwrap_or(&text[used..]);
    }
    Payload { text, stamp: Some(stamp), context }
}

/// `(0)[77:sh]`, with which a vendor's kernels say what caller ids say.
fn cpu_and_task(text: &[u8]) -> Option<usize> {
    let inner = text.trim_ascii_start().strip_prefix(b"(")?;
    let digits = inner.iter().take(3).take_while(|b| b.is_ascii_digit()).count();
    let task = inner[digits..]
        .strip_prefix(b")[")
        .filter(|task| digits > 0 && task.first().is_some_and(u8::is_ascii_digit))?;
    let end = memchr::memchr(b']', task.get(..32.min(task.len()))?)?;
    task[..end].contains(&b':').then_some(text.len() - task.len() + end + 1)
}

/// Position and length of the first `[   12.345678]` in the line.
fn find_stamp(text: &[u8]) -> Option<(usize, usize)> {
    for at in memchr::memchr_iter(b'[', text) {
        if let Some(len) = stamp_len(&text[at..]) {
            return Some((at, len));
        }
    }
    None
}

/// Length of a stamp with its brackets: blanks, one to nine digits, a dot, six digits; some vendors print nine, or the CPU
/// (`[   12.345678@3]`).
fn stamp_len(text: &[u8]) -> Option<usize> {
    let mut i = 1;
    while i < 12 && text.get(i) == Some(&b' ') {
        i += 1;
    }
    let digits = i;
    while i < digits + 9 && text.get(i).is_some_and(u8::is_ascii_digit) {
        i += 1;
    }
    let fraction = text.get(i + 1..i + 7)?;
    if i == digits || text[i] != b'.' || !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let rest = &text[i + 7..];
    let more = match rest.first()? {
        b']' => 0,
        b'@' => 1 + rest[1..].iter().take(4).take_while(|b| b.is_ascii_digit()).count(),
        _ => rest.iter().take(3).take_while(|b| b.is_ascii_digit()).count(),
    };
    (rest.get(more) == Some(&b']')).then_some(i + 8 + more)
}

/// A caller id `[ T123]`, `[   C1]` and its length.
fn caller(text: &[u8]) -> Option<(Context, usize)> {
    let mut i = 0;
    if *text.first()? != b'[' {
        return None;
    }
    i += 1;
    while i < 12 && text.get(i) == Some(&b' ') {
        i += 1;
    }
    let letter = *text.get(i)?;
    i += 1;
    let mut number = 0u32;
    let digits = i;
    while i < digits + 9 && text.get(i).is_some_and(u8::is_ascii_digit) {
        number = number * 10 + u32::from(text[i] - b'0');
        i += 1;
    }
    if i == digits || text.get(i) != Some(&b']') {
        return None;
    }
    match letter {
        b'T' => Some((Context::Task(number), i + 1)),
        b'C' => Some((Context::Cpu(number), i + 1)),
        _ => None,
    }
}

/// Takes known prefixes off a line without a printk stamp.
fn strip(mut text: &[u8]) -> Payload<'_> {
    let mut stamp = None;
    let mut context = Context::Unknown;
    let mut dated = false;
    // Every turn removes something, and no real line has more than a handful of prefixes.
    for _ in 0..10 {
        let inner = text.trim_ascii_start();
        let Some(first) = inner.first() else { break };
        let used = match first {
            b'<' => priority(inner),
            b'>' | b'|' => Some(1),
            b'[' => match caller(inner) {
                Some((c, len)) => {
                    context = c;
                    Some(len)
                }
                None => bracketed(inner)
                    .inspect(|(s, _)| {
                        stamp = s.or(stamp);
                        dated = true;
                    })
                    .map(|(_, len)| len),
            },
            b'0'..=b'9' => match numeric_date(inner).or_else(|| unix_time(inner)).or_else(|| netconsole(inner)) {
                Some(len) => {
                    dated = true;
                    Some(len)
                }
                None => None,
            },
            b'A'..=b'Z' => named_date(inner).inspect(|_| dated = true),
            b'k' => kernel_tag(inner),
            b'-' | b'{' => lava_message(inner),
            _ => None,
        };
        let used = match used {
            Some(u) => u,
            // After a date, a host name may stand before `kernel:`.
            None if dated => match host(inner) {
                Some(u) => u,
                None => break,
            },
            None => break,
        };
        text = &inner[used..];
        if first == &b'-' || first == &b'{' {
            text = text.strip_suffix(b"'}").or_else(|| text.strip_suffix(b"\"}")).unwrap_or(text);
        }
        text = text.strip_prefix(b" ").unwrap_or(text);
    }
    Payload { text: text.trim_ascii_end(), stamp, context }
}

/// `<4>`, `<12>`.
fn priority(text: &[u8]) -> Option<usize> {
    let end = memchr::memchr(b'>', text.get(..8.min(text.len()))?)?;
    (end > 1 && text[1..end].iter().all(u8::is_ascii_digit)).then_some(end + 1)
}

/// `[2023-01-31 10:00:00]`, `[Mon Jan 31 10:00:00 2023]`, `[  +0.000012]`, `[12345.67]`: a bracket with a time in it.
fn bracketed(text: &[u8]) -> Option<(Option<&[u8]>, usize)> {
    let end = memchr::memchr(b']', text.get(..48.min(text.len()))?)?;
    let inner = text[1..end].trim_ascii();
    let digits = inner.iter().filter(|b| b.is_ascii_digit()).count();
    let bare = inner.strip_prefix(b"+").or_else(|| inner.strip_prefix(b"<")).unwrap_or(inner);
    let bare = bare.strip_suffix(b">").unwrap_or(bare).trim_ascii();
    if digits >= 2 && bare.contains(&b'.') && bare.iter().all(|b| b.is_ascii_digit() || *b == b'.') {
        return (bare.iter().filter(|b| **b == b'.').count() == 1).then_some((Some(bare), end + 1));
    }
    let timed = inner.contains(&b':') && digits >= 4;
    let dated = memchr::memchr_iter(b'-', inner).count() == 2 && digits >= 6;
    let only =
        |b: &u8| b.is_ascii_digit() || matches!(b, b':' | b'.' | b',' | b'-' | b'/' | b'+' | b' ' | b'T' | b'Z' | b'_');
    if (timed || dated) && (inner.iter().all(only) || named_date(inner).is_some()) {
        Some((None, end + 1))
    } else {
        None
    }
}

/// `2023-01-31T10:00:00.123+01:00`, `2023-01-31 10:00:00`, `2023/01/31-10:00:00`, `10:00:00.123`.
fn numeric_date(text: &[u8]) -> Option<usize> {
    let date = shaped(text, b"dddd-dd-dd").or_else(|| shaped(text, b"dddd/dd/dd")).map(|()| 10);
    let mut at = 0;
    if let Some(len) = date {
        at = len;
        if text.get(at).is_none_or(|b| !matches!(b, b'T' | b' ' | b'-' | b'_')) {
            return Some(at);
        }
        if shaped(&text[at + 1..], b"dd:dd").is_none() {
            return Some(at);
        }
        at += 1;
    }
    shaped(&text[at..], b"dd:dd:dd").or_else(|| date.and(shaped(&text[at..], b"dd:dd")))?;
    at += text[at..]
        .iter()
        .position(|b| !(b.is_ascii_digit() || matches!(b, b':' | b'.' | b',')))
        .unwrap_or(text.len() - at);
    // `10:00:00.123:` and zones: `Z`, `+01:00`, ` +0100`.
    match text.get(at) {
        Some(b'Z') => at += 1,
        Some(b'+' | b'-') => {
            at += 1;
            at += text[at..].iter().position(|b| !(b.is_ascii_digit() || *b == b':')).unwrap_or(text.len() - at);
        }
        _ => {}
    }
    text.get(at).is_none_or(|b| matches!(b, b' ' | b'\t' | b'|')).then_some(at)
}

/// `1795430000.123456 box kernel:` (`journalctl -o short-unix`), and the version in front of RFC 5424's date.
fn unix_time(text: &[u8]) -> Option<usize> {
    if text.starts_with(b"1 ") {
        return numeric_date(&text[2..]).map(|used| used + 2);
    }
    shaped(text, b"dddddddddd.dddddd ").and_then(|()| host(&text[18..])).map(|used| 18 + used)
}

fn shaped(text: &[u8], shape: &[u8]) -> Option<()> {
    let fits = text.len() >= shape.len()
        && shape.iter().zip(text).all(|(s, b)| if *s == b'd' { b.is_ascii_digit() } else { s == b });
    fits.then_some(())
}

const MONTHS: [&[u8]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
const DAYS: [&[u8]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];

/// `Jan 31 10:00:00`, `Mon Jan 31 10:00:00 2023`, `Jan31 10:00`.
fn named_date(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    if DAYS.iter().any(|d| text.starts_with(d)) && text.get(3) == Some(&b' ') {
        at = 4;
        // `Mon 2023-01-31 10:00:00 CET`
        if let Some(date) = numeric_date(&text[at..]) {
            at += date;
            let zone = text[at..].iter().skip(1).take(5).take_while(|b| b.is_ascii_uppercase()).count();
            return Some(if zone > 1 && text.get(at + 1 + zone) == Some(&b' ') { at + 1 + zone } else { at });
        }
    }
    if !MONTHS.iter().any(|m| text[at..].starts_with(m)) {
        return None;
    }
    at += 3;
    let blanks = |t: &[u8]| t.iter().take(3).take_while(|b| **b == b' ').count();
    let digits = |t: &[u8]| t.iter().take(5).take_while(|b| b.is_ascii_digit()).count();
    at += blanks(&text[at..]);
    let day = digits(&text[at..]);
    if !(1..=2).contains(&day) {
        return None;
    }
    at += day;
    at += blanks(&text[at..]);
    shaped(&text[at..], b"dd:dd")?;
    at += text[at..].iter().position(|b| !(b.is_ascii_digit() || matches!(b, b':' | b'.'))).unwrap_or(text.len() - at);
    if shaped(&text[at..], b" dddd").is_some() && text.get(at + 5).is_none_or(|b| !b.is_ascii_digit()) {
        at += 5;
    }
    Some(at)
}

/// `kernel:`, `kernel[123]:`, `kernel - - -` (RFC 5424), `kern  :warn  :` (util-linux `dmesg -x`).
fn kernel_tag(text: &[u8]) -> Option<usize> {
    if let Some(rest) = text.strip_prefix(b"kernel") {
        if rest.first() == Some(&b':') {
            return Some(7);
        }
        if rest.starts_with(b" - - - ") {
            return Some(12);
        }
        let end = memchr::memchr(b']', rest.get(..14.min(rest.len()))?)?;
        let sound = rest[0] == b'[' && rest[1..end].iter().all(u8::is_ascii_digit) && rest.get(end + 1) == Some(&b':');
        return sound.then_some(6 + end + 2);
    }
    let rest = text.strip_prefix(b"kern")?;
    let colon = memchr::memchr(b':', rest.get(..6.min(rest.len()))?)?;
    let level = &rest[colon + 1..];
    let second = memchr::memchr(b':', level.get(..10.min(level.len()))?)?;
    let sound = rest[..colon].iter().all(|b| *b == b' ')
        && level[..second].iter().all(|b| b.is_ascii_alphabetic() || *b == b' ');
    sound.then_some(4 + colon + 1 + second + 1)
}

/// A host name that stands right before `kernel:`.
fn host(text: &[u8]) -> Option<usize> {
    let end = text.iter().take(65).position(|b| *b == b' ')?;
    let rest = text[end..].trim_ascii_start();
    let skipped = text.len() - rest.len();
    kernel_tag(rest).map(|len| skipped + len)
}

/// Extended netconsole and `/dev/kmsg` records: `6,416,17623341,-,caller=T1;text`.
fn netconsole(text: &[u8]) -> Option<usize> {
    let head = text.get(..96.min(text.len()))?;
    let end = memchr::memchr(b';', head)?;
    let commas = memchr::memchr_iter(b',', &head[..end]).count();
    let sound = commas >= 3
        && head[..end].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b',' | b'-' | b'=' | b'/' | b'+'));
    sound.then_some(end + 1)
}

/// LAVA's structured log: `- {"dt": "…", "lvl": "target", "msg": "…"}`.
fn lava_message(text: &[u8]) -> Option<usize> {
    let head = text.get(..160.min(text.len()))?;
    if !(head.starts_with(b"- {") || head.starts_with(b"{")) {
        return None;
    }
    let at = memchr::memmem::find(head, b"msg")?;
    let colon = at + memchr::memchr(b':', &head[at..])?;
    let quote = colon + head[colon..].iter().position(|b| matches!(b, b'"' | b'\''))?;
    Some(quote + 1)
}

/// Removes escape sequences and control characters, when there are any; `None` when the line is clean already.
pub fn clean(raw: &[u8], out: &mut Vec<u8>) -> bool {
    // Without an early exit, so that the compiler can look at many bytes at once.
    let dirty = raw.iter().fold(false, |dirty, b| dirty | (*b < b' ' && *b != b'\t') | (*b == 0x7f));
    if !dirty {
        return false;
    }
    out.clear();
    let mut i = 0;
    while i < raw.len() {
        match raw[i] {
            0x1b => i += escape_len(&raw[i..]),
            b if b < b' ' && b != b'\t' || b == 0x7f => i += 1,
            b => {
                out.push(b);
                i += 1;
            }
        }
    }
    true
}

/// Length of an ANSI escape sequence, at least 1, at most what is there.
fn escape_len(text: &[u8]) -> usize {
    match text.get(1) {
        // CSI: parameters and intermediates, then one final byte.
        Some(b'[') => {
            let end = text[2..].iter().take(32).position(|b| (0x40..=0x7e).contains(b));
            end.map_or(2, |e| e + 3)
        }
        // OSC: up to BEL or ST.
        Some(b']') => {
            let end = text.iter().take(128).position(|b| *b == 0x07);
            end.map_or(2, |e| e + 1)
        }
        Some(b'(' | b')') => 3.min(text.len()),
        Some(_) => 2,
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(raw: &str) -> (String, Option<String>, Context) {
        let mut all = Vec::new();
        payloads(raw.as_bytes(), |p| {
            all.push((
                String::from_utf8_lossy(p.text).into_owned(),
                p.stamp.map(|s| String::from_utf8_lossy(s).into_owned()),
                p.context,
            ));
        });
        assert_eq!(all.len(), 1, "{raw:?} → {all:?}");
        all.remove(0)
    }

    #[test]
    fn every_known_prefix_is_taken_off() {
        for prefix in [
            "",
            "<4>",
            "[    1.234567] ",
            "<4>[    1.234567] ",
            "[    1.234567][  T123] ",
            "[    1.234567][    C1] ",
            "Nov 23 10:11:12 box kernel: ",
            "Nov 23 10:11:12 box kernel: [    1.234567] ",
            "Nov 23 10:11:12 box kernel[77]: ",
            "2026-11-23T10:11:12.123456+01:00 box kernel: ",
            "2026-11-23T10:11:12Z ",
            "2026-11-23 10:11:12 ",
            "2026-11-23 10:11:12,123 [    1.234567] ",
            "[2026-11-23 10:11:12] ",
            "[Mon Nov 23 10:11:12 2026] ",
            "[  +0.000012] ",
            "10:11:12.123 ",
            "[10:11:12.123] [    1.234567] ",
            "kern  :warn  : [    1.234567] ",
            "kernel: ",
            "> ",
            "> > [    1.234567] ",
            "6,416,17623341,-,caller=T1;",
            "Nov23 10:11 box kernel: ",
            "[   12.345678@3] ",
            "[   12.345678901] ",
            "<4>[   12.345678]  (0)[77:sh]",
            "Nov 23 10:11:12.123456 box kernel: ",
            "[   12.345678] box kernel: ",
            "1795430000.123456 box kernel: ",
            "Mon 2026-11-23 10:11:12 CET box kernel: ",
            "2026-11-23T10:11:12+0100 box kernel: ",
            "<4>1 2026-11-23T10:11:12.123456+01:00 box kernel - - - ",
            "Mon Nov 23 10:11:12 2026 kern.warn kernel: ",
            "2026/11/23 10:11:12.123: ",
            "[Nov23 10:11] ",
            "2026-11-23T10:11:12,123456+01:00 ",
            "- {dt: '2026-11-23T10:11:12', lvl: target, msg: '",
            "box login: \u{1b}",
            "[    1.23] ",
        ] {
            if prefix.contains('\u{1b}') {
                continue;
            }
            assert_eq!(one(&format!("{prefix}BUG: bad thing")).0, "BUG: bad thing", "{prefix:?}");
        }
    }

    #[test]
    fn lava_records_lose_their_wrapping() {
        assert_eq!(one(r#"- {"dt": "2026-11-23T10:11:12", "lvl": "target", "msg": "BUG: bad"}"#).0, "BUG: bad");
        assert_eq!(
            one(r#"{"dt": "2026-11-23T10:11:12", "lvl": "target", "msg": "[    1.234567] BUG: bad"#).0,
            "BUG: bad"
        );
    }

    #[test]
    fn caller_ids_and_stamps_are_kept() {
        assert_eq!(one("[    1.234567][ T12] x"), ("x".into(), Some("1.234567".into()), Context::Task(12)));
        assert_eq!(one("<4>[   21.234567][    C3] x").2, Context::Cpu(3));
    }

    #[test]
    fn indentation_of_traces_survives() {
        assert_eq!(one("[    1.234567]  do_it+0x1/0x2").0, " do_it+0x1/0x2");
    }

    #[test]
    fn two_messages_in_one_line_come_apart() {
        let mut all = Vec::new();
        payloads(b"half a li[    1.234567] BUG: x[    1.234568] y", |p| all.push(p.text));
        assert_eq!(all, [&b"half a li"[..], b"BUG: x", b"y"]);
    }

    #[test]
    fn text_that_only_looks_like_a_prefix_stays() {
        assert_eq!(one("[<ffffffff81000000>] f+0x1/0x2").0, "[<ffffffff81000000>] f+0x1/0x2");
        assert_eq!(one("March of the kernels").0, "March of the kernels");
        assert_eq!(one("[kvm_intel] x").0, "[kvm_intel] x");
    }

    #[test]
    fn escapes_and_nuls_are_removed() {
        let mut out = Vec::new();
        assert!(clean(b"\x1b[1;31mBUG\x1b[0m: \0x\x1b", &mut out));
        assert_eq!(out, b"BUG: x");
        assert!(!clean(b"plain\ttext", &mut out));
    }
}
