//! The small pattern language of the class table.
//!
//! A template is literal text with holes: `BUG: KASAN: {what} in {func:f}`. It exists because the table has to be
//! readable and extendable by somebody who writes no Rust, and because it needs no compilation: a process that
//! reads one small log must not spend milliseconds on building automata. Matching never backtracks over a hole,
//! so it is linear in the line.
//!
//! | hole | takes |
//! |---|---|
//! | `{name}` | everything up to the next literal, or to the end of the line |
//! | `{}` | the same, not kept |
//! | `{name:f}` | a function name; addresses, `[<…>]` and segment selectors before it are passed over |
//! | `{name:w}` | characters up to a blank |
//! | `{name:n}` | decimal digits |
//! | `{name:a\|b}` | one of the words |
//!
//! The first literal may stand anywhere in the line unless the template begins with `^`.

use memchr::memmem;

/// Most holes a template may have; the table is checked by a test.
pub const MAX_HOLES: usize = 6;

/// What the holes took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Captures<'t> {
    items: [(&'static str, &'t [u8]); MAX_HOLES],
    len: usize,
}

impl<'t> Captures<'t> {
    /// The text of a hole.
    pub fn get(&self, name: &str) -> Option<&'t [u8]> {
        self.items[..self.len].iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    /// Records a hole; the first of a name stays, more than [`MAX_HOLES`] are dropped.
    pub fn set(&mut self, name: &'static str, value: &'t [u8]) {
        if self.len < MAX_HOLES && self.get(name).is_none() {
            self.items[self.len] = (name, value);
            self.len += 1;
        }
    }

    /// Forgets what was recorded after there were `len` holes.
    fn cut(&mut self, len: usize) {
        self.len = len;
    }
}

/// Position of the template's first literal in `text` if the whole template matches; `caps` then has the holes.
pub fn find<'t>(template: &'static str, text: &'t [u8], caps: &mut Captures<'t>) -> Option<usize> {
    let before = caps.len;
    let found = attempt(template, text, caps);
    if found.is_none() {
        caps.cut(before);
    }
    found
}

fn attempt<'t>(template: &'static str, text: &'t [u8], caps: &mut Captures<'t>) -> Option<usize> {
    let (anchored, mut rest) = template.strip_prefix('^').map_or((false, template), |r| (true, r));
    let head = literal(rest);
    let start = if anchored {
        if !text.starts_with(head.as_bytes()) {
            return None;
        }
        0
    } else {
        memmem::find(text, head.as_bytes())?
    };
    let mut at = start + head.len();
    rest = &rest[head.len()..];
    while let Some(open) = rest.strip_prefix('{') {
        let close = open.find('}')?;
        let (name, kind) = open[..close].split_once(':').unwrap_or((&open[..close], ""));
        rest = &open[close + 1..];
        let next = literal(rest);
        let remaining = &text[at..];
        let (value, used) = match kind {
            "" => {
                let len = if next.is_empty() { remaining.len() } else { memmem::find(remaining, next.as_bytes())? };
                (remaining[..len].trim_ascii(), len)
            }
            "f" => function(remaining)?,
            "w" => run(remaining, |b| !b.is_ascii_whitespace())?,
            "n" => run(remaining, |b| b.is_ascii_digit())?,
            words => {
                let word = words.split('|').find(|w| remaining.starts_with(w.as_bytes()))?;
                (&remaining[..word.len()], word.len())
            }
        };
        if !name.is_empty() {
            caps.set(name, value);
        }
        at += used;
        if !text[at..].starts_with(next.as_bytes()) {
            return None;
        }
        at += next.len();
        rest = &rest[next.len()..];
    }
    Some(start)
}

/// The literal a template (or its rest) begins with.
pub fn literal(template: &'static str) -> &'static str {
    &template[..template.find('{').unwrap_or(template.len())]
}

fn run(text: &[u8], keep: impl Fn(u8) -> bool) -> Option<(&[u8], usize)> {
    let len = text.iter().position(|b| !keep(*b)).unwrap_or(text.len());
    (len > 0).then(|| (&text[..len], len))
}

/// A function name after any number of addresses.
fn function(text: &[u8]) -> Option<(&[u8], usize)> {
    let mut at = 0;
    loop {
        while text.get(at).is_some_and(|b| *b == b' ' || *b == b'(') {
            at += 1;
        }
        let here = &text[at..];
        if here.first() == Some(&b'[') {
            at += memchr::memchr(b']', here)? + 1;
        } else if let Some(len) = selector(here) {
            at += len;
        } else {
            break;
        }
    }
    let here = &text[at..];
    let len = here.iter().position(|b| !is_symbol(*b)).unwrap_or(here.len());
    let name = &here[..len];
    let sound = name.first().is_some_and(|b| b.is_ascii_alphabetic() || matches!(b, b'_' | b'.' | b'<' | b'$'));
    sound.then(|| (name, at + len))
}

/// Length of a segment selector or address with its colon (`0010:`, `c0123456:`).
fn selector(text: &[u8]) -> Option<usize> {
    let len = text.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(0);
    (len > 0 && text[len] == b':').then_some(len + 1)
}

/// Characters that symbols of the kernel are made of, compiler suffixes and Rust's legacy names included.
pub fn is_symbol(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'$')
}

/// Fills the holes of a title. Unknown names stay empty: a test over the table makes sure there are none.
pub fn expand(template: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(template.len() + 32);
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let close = rest[open..].find('}').map_or(rest.len(), |c| open + c);
        if let Some(v) = value(&rest[open + 1..close]) {
            out.push_str(&v);
        }
        rest = rest.get(close + 1..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(template: &'static str, text: &'static str) -> Option<Captures<'static>> {
        let mut c = Captures::default();
        find(template, text.as_bytes(), &mut c).map(|_| c)
    }

    #[test]
    fn holes_take_text_up_to_the_next_literal() {
        let c = caps("BUG: KASAN: {what} in {func:f}+", "BUG: KASAN: slab-use-after-free in my_read.isra.0+0x1/0x2")
            .unwrap();
        assert_eq!(c.get("what").unwrap(), b"slab-use-after-free");
        assert_eq!(c.get("func").unwrap(), b"my_read.isra.0");
    }

    #[test]
    fn function_holes_pass_over_addresses_and_selectors() {
        let c = caps("at: {f:f}+", "lock, at: [<ffffffff81234567>] take_it+0x10/0x20").unwrap();
        assert_eq!(c.get("f").unwrap(), b"take_it");
        let c = caps("RIP: {f:f}+", "RIP: 0010:take_it+0x10/0x20").unwrap();
        assert_eq!(c.get("f").unwrap(), b"take_it");
    }

    #[test]
    fn word_lists_take_only_their_words() {
        assert!(caps("{access:Read|Write} of size", "Erase of size 8").is_none());
        assert_eq!(caps("{access:Read|Write} of size", "Write of size 8").unwrap().get("access").unwrap(), b"Write");
    }

    #[test]
    fn anchored_templates_match_only_at_the_start() {
        assert!(caps("^INFO: {x}", "echo INFO: a").is_none());
        assert!(caps("INFO: {x}", "echo INFO: a").is_some());
    }

    #[test]
    fn a_failed_match_leaves_no_captures() {
        let mut c = Captures::default();
        assert!(find("a {x:n} b", b"a 12 c", &mut c).is_none());
        assert!(c.get("x").is_none());
    }

    #[test]
    fn titles_take_their_holes_from_the_captures() {
        assert_eq!(expand("x {a} y {b}", |n| (n == "a").then(|| "1".into())), "x 1 y ");
    }
}
