//! Single lines of stack traces: which function, where in it, of which module, and whether the unwinder trusts it.
//!
//! Accepts the shapes of all architectures and ages that reach a console (`f+0x1/0x2 [mod]`, `[<addr>] ? f+0x1/0x2`,
//! `(f+0x1/0x2) from [<addr>] (g+0x3/0x4)`, `f+0x1/0x2 dir/file.c:12 [inline]`, `RIP: 0010:f+0x1/0x2`, `pc : f+0x1/0x2`).
//! A line in prose that mentions a function is not an entry: the function must come first but for addresses.

use memchr::memmem;

use crate::model::Frame;
use crate::normal;
use crate::template::is_symbol;

/// One entry, borrowed from its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry<'a> {
    pub function: &'a [u8],
    pub offset: Option<u64>,
    pub size: Option<u64>,
    pub module: Option<&'a [u8]>,
    pub reliable: bool,
    pub inline: bool,
    pub source: Option<&'a [u8]>,
    pub address: Option<&'a [u8]>,
}

impl Entry<'_> {
    /// The owned form. Rust symbols come out demangled.
    pub fn to_frame(self) -> Frame {
        let s = normal::string;
        Frame {
            function: readable(self.function),
            offset: self.offset,
            size: self.size,
            module: self.module.map(s),
            reliable: self.reliable,
            inline: self.inline,
            source: self.source.map(s),
            address: self.address.map(s),
        }
    }
}

/// A symbol as people read it.
pub fn readable(symbol: &[u8]) -> String {
    let text = normal::string(symbol);
    if text.starts_with("_R") || text.starts_with("_Z") {
        if let Some(name) = plain_cpp(&text) {
            return name.to_owned();
        }
        return format!("{:#}", rustc_demangle::demangle(&text));
    }
    text
}

/// Name of a C++ function outside namespaces (`_Z8do_thingi`), which out-of-tree modules bring along.
fn plain_cpp(symbol: &str) -> Option<&str> {
    let rest = symbol.strip_prefix("_Z")?;
    let digits = rest.bytes().take(3).take_while(u8::is_ascii_digit).count();
    let len: usize = rest[..digits].parse().ok()?;
    rest.get(digits..digits + len)
}

/// Parses a stack-trace line. `text` is a payload, leading blanks included or not.
pub fn entry(text: &[u8]) -> Option<Entry<'_>> {
    let mut e = Entry { reliable: true, ..Entry::default() };
    let mut rest = text.trim_ascii_start();
    let indented = rest.len() < text.len();
    let mut bracketed = false;
    // Addresses, marks and tags in front of the function.
    for _ in 0..8 {
        match rest.first()? {
            b'[' => {
                let end = memchr::memchr(b']', rest)?;
                let inner = rest[1..end].trim_ascii();
                let inner = inner.strip_prefix(b"<").unwrap_or(inner);
                let inner = inner.strip_suffix(b">").unwrap_or(inner);
                let digits = inner.strip_prefix(b"0x").unwrap_or(inner);
                if digits.len() < 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                e.address = Some(digits);
                bracketed = true;
                rest = &rest[end + 1..];
            }
            b'<' => {
                // `<IRQ>`, `<EOI>`, `<NMI>`, `<#DF>` before an entry, or a Rust path in a symbolised trace.
                let end = memchr::memchr(b'>', rest.get(..12.min(rest.len()))?)?;
                if !rest[1..end].iter().all(|b| b.is_ascii_uppercase() || matches!(b, b'#' | b'/')) {
                    return None;
                }
                rest = &rest[end + 1..];
            }
            b'?' => {
                e.reliable = false;
                rest = &rest[1..];
            }
            b'(' if bracketed => rest = &rest[1..],
            b' ' | b'\t' => rest = rest.trim_ascii_start(),
            b'#' => {
                let digits = rest[1..].iter().take_while(|b| b.is_ascii_digit()).count();
                if digits == 0 || rest.get(digits + 1) != Some(&b' ') {
                    return None;
                }
                rest = &rest[digits + 1..];
            }
            _ => break,
        }
    }
    let name_len = symbol_len(rest);
    if name_len == 0 {
        return None;
    }
    // powerpc's ELF v1 puts a dot before the names of entry points.
    e.function = rest[..name_len].strip_prefix(b".").unwrap_or(&rest[..name_len]);
    rest = &rest[name_len..];
    if let Some(used) = offsets(rest, &mut e) {
        tail(&rest[used..], &mut e);
        return Some(e);
    }
    if bracketed
        && (rest.first() == Some(&b')') || rest.starts_with(b" from "))
        && memmem::find(rest, b"from").is_some()
    {
        return Some(e);
    }
    if indented && rest.starts_with(b" from ") {
        offsets_after_from(rest, &mut e)?;
        return Some(e);
    }
    // Symbolised entries without offsets: `f fs/open.c:12 [inline]`, `f (fs/open.c:12)`.
    if !indented && !bracketed && !rest.ends_with(b"[inline]") {
        return None;
    }
    let place = rest.strip_prefix(b" ")?;
    let place = place.strip_prefix(b"(").unwrap_or(place);
    source(place)?;
    tail(rest, &mut e);
    Some(e)
}

/// ` from caller+0x1/0x2`: the arm unwinder's form; checks it really is one.
fn offsets_after_from(rest: &[u8], _: &mut Entry<'_>) -> Option<()> {
    let caller = rest.strip_prefix(b" from ")?;
    memmem::find(caller, b"+0x").map(|_| ())
}

/// Length of the symbol `text` starts with, 0 if none. A symbol begins with a letter, `_`, `.` (powerpc) or `$`.
fn symbol_len(text: &[u8]) -> usize {
    match text.first() {
        Some(b) if b.is_ascii_alphabetic() || matches!(b, b'_' | b'.' | b'$') => {}
        // Numbered copies of test functions and such do occur (`0xffff` does not count).
        _ => return 0,
    }
    text.iter().position(|b| !is_symbol(*b)).unwrap_or(text.len())
}

/// `+0x12/0x34`, returning what it used.
fn offsets(text: &[u8], e: &mut Entry<'_>) -> Option<usize> {
    let rest = text.strip_prefix(b"+0x")?;
    let (offset, n) = hex(rest)?;
    e.offset = Some(offset);
    let mut used = 3 + n;
    if let Some(size) = rest[n..].strip_prefix(b"/0x") {
        let (s, m) = hex(size)?;
        e.size = Some(s);
        used += 3 + m;
    }
    Some(used)
}

/// What follows the offsets: module, `(unreliable)`, source position, `[inline]`.
fn tail<'a>(text: &'a [u8], e: &mut Entry<'a>) {
    let mut rest = text.trim_ascii_start();
    for _ in 0..5 {
        let rest_trimmed = rest.trim_ascii_start();
        match rest_trimmed.first() {
            Some(b'[') => {
                let Some(end) = memchr::memchr(b']', rest_trimmed) else { return };
                let inner = &rest_trimmed[1..end];
                let word = inner.iter().position(|b| *b == b' ').unwrap_or(inner.len());
                if inner == b"inline" {
                    e.inline = true;
                } else if e.module.is_none() && word > 0 && inner[..word].iter().all(|b| is_symbol(*b) || *b == b'-') {
                    e.module = Some(&inner[..word]);
                }
                rest = &rest_trimmed[end + 1..];
            }
            Some(b'(') => {
                let Some(end) = memchr::memchr(b')', rest_trimmed) else { return };
                let inner = &rest_trimmed[1..end];
                if inner == b"unreliable" {
                    e.reliable = false;
                } else if e.source.is_none() {
                    e.source = source(inner);
                }
                rest = &rest_trimmed[end + 1..];
            }
            Some(_) => {
                let word = rest_trimmed.iter().position(|b| *b == b' ').unwrap_or(rest_trimmed.len());
                match source(&rest_trimmed[..word]) {
                    Some(s) => e.source = Some(s),
                    None => return,
                }
                rest = &rest_trimmed[word..];
            }
            None => return,
        }
    }
}

/// `dir/file.c:123` at the start of `text`.
fn source(text: &[u8]) -> Option<&[u8]> {
    let len = text.iter().position(|b| matches!(b, b' ' | b')')).unwrap_or(text.len());
    let word = &text[..len];
    let colon = memchr::memchr(b':', word)?;
    let file = &word[..colon];
    let known = [&b".c"[..], b".h", b".S", b".rs", b".cpp", b".cc", b".inc"].iter().any(|x| file.ends_with(x));
    (known && word.get(colon + 1).is_some_and(u8::is_ascii_digit)).then_some(word)
}

/// Reads hexadecimal digits, at most 16.
pub fn hex(text: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    let mut n = 0;
    while let Some(d) = text.get(n).and_then(|b| char::from(*b).to_digit(16)) {
        if n == 16 {
            return None;
        }
        value = value << 4 | u64::from(d);
        n += 1;
    }
    (n > 0).then_some((value, n))
}

/// What an instruction-pointer line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pointer<'a> {
    /// In a kernel function.
    Kernel(Entry<'a>),
    /// At an address that is no kernel function (a wild jump, a null call).
    Nowhere,
    /// In user space: the end of the kernel's part of the story.
    User,
}

/// Words that introduce the instruction pointer, all architectures; the longest of a kind first.
const POINTERS: [&[u8]; 18] = [
    b"RIP is at ",
    b"EIP is at ",
    b"PC is at ",
    b"RIP: ",
    b"RIP ",
    b"EIP: ",
    b"EIP ",
    b"NIP: ",
    b"NIP ",
    b"IP: ",
    b"IP [",
    b"pc : ",
    b"PC : ",
    b"epc : ",
    b"epc   : ",
    b"ERA: ",
    b"era   : ",
    b"TPC: <",
];

/// Parses `RIP: 0010:f+0x1/0x2`, `IP: [<…>] f+0x1/0x2`, `pc : f+0x1/0x2`, `NIP [c000…] f+0x1/0x2` and the like.
pub fn pointer(text: &[u8]) -> Option<Pointer<'_>> {
    let text = text.trim_ascii_start();
    let first = *text.first()?;
    if !matches!(first, b'R' | b'E' | b'P' | b'N' | b'I' | b'p' | b'e' | b'K' | b'T' | b'-') {
        return None;
    }
    if let Some(psw) = text.strip_prefix(b"Krnl PSW : ") {
        let open = memchr::memchr(b'(', psw)?;
        return entry(&psw[open + 1..]).map(Pointer::Kernel);
    }
    if let Some(rest) = text.strip_prefix(b"--- interrupt: ") {
        // powerpc: `--- interrupt: 700 at f+0x1/0x2`.
        let at = memmem::find(rest, b" at ")?;
        return entry(&rest[at + 4..]).map(Pointer::Kernel);
    }
    let word = POINTERS.iter().find(|p| p[0] == first && text.starts_with(p))?;
    let mut rest = &text[word.len() - usize::from(word.ends_with(b"["))..];
    rest = rest.trim_ascii_start();
    // Segment selectors: `0010:`, `0033:0x7f…`, `0060:[<…>]`.
    let mut user = false;
    while let Some(colon) = rest.iter().take(17).position(|b| *b == b':') {
        if !rest[..colon].iter().all(u8::is_ascii_hexdigit) || colon == 0 {
            break;
        }
        // The lowest two bits of a selector are the privilege level.
        user |= colon == 4 && matches!(rest[3], b'3' | b'b');
        rest = &rest[colon + 1..];
        rest = rest.trim_ascii_start();
    }
    if user {
        return Some(Pointer::User);
    }
    // mips and riscv print the address bare.
    if let Some((_, n)) = hex(rest)
        && n >= 8
        && rest.get(n) == Some(&b' ')
    {
        rest = &rest[n + 1..];
    }
    if let Some(e) = entry(rest).filter(|e| e.offset.is_some()) {
        return Some(Pointer::Kernel(e));
    }
    let wild = rest.first().is_some_and(|b| b.is_ascii_hexdigit() || matches!(b, b'[' | b'(' | b'<'));
    wild.then_some(Pointer::Nowhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(text: &str) -> Option<String> {
        entry(text.as_bytes()).map(|e| String::from_utf8_lossy(e.function).into_owned())
    }

    #[test]
    fn entries_of_all_architectures_are_read() {
        for line in [
            " do_it+0x10/0x20",
            " do_it+0x10/0x20 [my_mod]",
            " [<ffffffff81000010>] do_it+0x10/0x20",
            " [<ffffffff81000010>] ? do_it+0x10/0x20 [my_mod]",
            "[<c0100010>] (do_it) from [<c0100020>] (caller+0x1/0x2)",
            "[<c0100010>] (do_it+0x10/0x20) from [<c0100020>] (caller+0x1/0x2)",
            " do_it from caller+0x1/0x2",
            "[c000000001234560] [c000000000123450] do_it+0x10/0x20 (unreliable)",
            " do_it+0x10/0x20 drivers/my/file.c:77 [inline]",
            " do_it drivers/my/file.c:77 [inline]",
            " do_it (drivers/my/file.c:77 (discriminator 3))",
            "#0  do_it+0x10/0x20",
            " <IRQ>  [<ffffffff81000010>] do_it+0x10/0x20",
            "([<0000000000123456>] do_it+0x10/0x20)",
        ] {
            let line = line.strip_prefix('(').unwrap_or(line);
            assert_eq!(function(line).as_deref(), Some("do_it"), "{line}");
        }
    }

    #[test]
    fn offsets_module_and_source_are_read() {
        let e = entry(b" ? do_it+0x1f/0x20 [my_mod 0123abcd] fs/x.c:12").unwrap();
        assert_eq!(
            (e.offset, e.size, e.module, e.reliable, e.source),
            (Some(0x1f), Some(0x20), Some(&b"my_mod"[..]), false, Some(&b"fs/x.c:12"[..]))
        );
    }

    #[test]
    fn prose_about_functions_is_no_entry() {
        for line in [
            "last function: do_it+0x1/0x2",
            "at: [<ffffffff81000010>] do_it+0x1/0x2",
            "do_it started",
            "WARNING: x at do_it+0x1/0x2",
            " Modules linked in: a b c",
            "usb 1-1: new device",
            " (detected by 0, t=1 jiffies)",
        ] {
            assert_eq!(function(line), None, "{line}");
        }
    }

    #[test]
    fn instruction_pointers_of_all_architectures_are_read() {
        for line in [
            "RIP: 0010:do_it+0x1/0x2",
            "RIP: 0010:[<ffffffff81000010>]  [<ffffffff81000010>] do_it+0x1/0x2",
            "EIP: do_it+0x1/0x2",
            "IP: do_it+0x1/0x2",
            "IP: [<ffffffff81000010>] do_it+0x1/0x2 [m]",
            "EIP is at do_it+0x1/0x2",
            "PC is at do_it+0x1/0x2",
            "pc : do_it+0x1/0x2",
            "NIP [c000000000123450] do_it+0x1/0x2",
            "epc : do_it+0x1/0x2",
            "Krnl PSW : 0704c00180000000 0000000000123456 (do_it+0x1/0x2)",
            "RIP  [<ffffffff81000010>] do_it+0x1/0x2",
            "epc   : 80123456 do_it+0x1/0x2",
            "   ERA: 9000000000221abc do_it+0x1/0x2",
            "era   : 9000000000221abc do_it+0x1/0x2",
            "TPC: <do_it+0x1/0x2>",
        ] {
            let Some(Pointer::Kernel(e)) = pointer(line.as_bytes()) else { panic!("{line}") };
            assert_eq!(e.function, b"do_it", "{line}");
        }
        assert_eq!(pointer(b"RIP: 0033:0x7f12345678"), Some(Pointer::User));
        assert_eq!(pointer(b"RIP: 0010:0x0"), Some(Pointer::Nowhere));
        assert_eq!(pointer(b"RIP: 0010:          (null)"), Some(Pointer::Nowhere));
        assert_eq!(pointer(b"IPv6: address"), None);
    }
}
