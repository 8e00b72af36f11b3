//! Matching function names against hundreds of patterns in one pass.
//!
//! A pattern is a substring; `^` at its front anchors it at the start of the name, `$` at its back at the end.

use aho_corasick::{AhoCorasick, AhoCorasickKind};

/// Lists of patterns, compiled together.
#[derive(Debug)]
pub struct Matcher {
    automaton: AhoCorasick,
    /// For each pattern: its list, and where it must stand.
    patterns: Vec<(usize, bool, bool)>,
}

impl Matcher {
    /// Compiles lists of patterns separated by blanks; earlier lists win.
    pub fn new(lists: impl Iterator<Item = &'static str>) -> Self {
        let mut cores = Vec::new();
        let mut patterns = Vec::new();
        for (list, texts) in lists.enumerate() {
            for text in texts.split_ascii_whitespace() {
                let core = text.strip_prefix('^').unwrap_or(text);
                patterns.push((list, text.starts_with('^'), text.ends_with('$')));
                cores.push(core.strip_suffix('$').unwrap_or(core));
            }
        }
        let automaton = AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(&cores);
        Self { automaton: automaton.expect("a few hundred short names are far below every limit"), patterns }
    }

    /// Index of the first list that matches the name.
    pub fn list(&self, name: &str) -> Option<usize> {
        let fits = |m: aho_corasick::Match| {
            let (list, start, end) = self.patterns[m.pattern().as_usize()];
            let stands = (!start || m.start() == 0) && (!end || m.end() == name.len());
            stands.then_some(list)
        };
        self.automaton.find_overlapping_iter(name).filter_map(fits).min()
    }
}

/// One pattern, for the short lists of single classes.
pub fn like(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('^'), pattern.ends_with('$')) {
        (Some(p), true) => name == &p[..p.len() - 1],
        (Some(p), false) => name.starts_with(p),
        (None, true) => name.ends_with(&pattern[..pattern.len() - 1]),
        (None, false) => name.contains(pattern),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_hold_and_the_first_list_wins() {
        let m = Matcher::new(["^up_read ^die$", "lock read"].into_iter());
        assert_eq!(m.list("up_read_lock"), Some(0));
        assert_eq!(m.list("vfs_read"), Some(1));
        assert_eq!(m.list("die"), Some(0));
        assert_eq!(m.list("died"), None);
        for (p, name) in [("^up_read", "up_read_lock"), ("read", "vfs_read"), ("^die$", "die"), ("ead$", "vfs_read")] {
            assert!(like(p, name), "{p}");
        }
    }
}
