//! A search for many literals at once, vectorised where the machine can.
//!
//! [`AhoCorasick`] itself would be right too, but it walks an automaton byte by byte when its literals have no rare byte
//! in common, which is twenty times slower on consoles. So the vectorised search is asked for by name.

use aho_corasick::packed::{Config, MatchKind, Searcher};
use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, Span};

/// Finds the first of a few dozen literals.
#[derive(Clone, Debug)]
pub struct Finder(Engine);

#[derive(Clone, Debug)]
enum Engine {
    Packed(Searcher),
    /// Machines without vector instructions, or more literals than the vectorised search takes (64).
    Automaton(AhoCorasick),
}

impl Finder {
    /// A search for these literals.
    ///
    /// # Panics
    /// With more literals than an automaton can have states (2 GiB of them).
    #[must_use]
    pub fn new(literals: &[&str]) -> Self {
        let packed = Config::new().match_kind(MatchKind::LeftmostFirst).builder().extend(literals).build();
        Self(packed.map_or_else(
            || {
                let automaton = AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(literals);
                Engine::Automaton(automaton.expect("a few dozen short literals are far below every limit"))
            },
            Engine::Packed,
        ))
    }

    /// Position of the first literal in `bytes` at or after `from`.
    #[must_use]
    pub fn next(&self, bytes: &[u8], from: usize) -> Option<usize> {
        match &self.0 {
            Engine::Packed(packed) => packed.find_in(bytes, Span { start: from, end: bytes.len() }).map(|m| m.start()),
            Engine::Automaton(automaton) => {
                automaton.find(Input::new(bytes).span(from..bytes.len())).map(|m| m.start())
            }
        }
    }

    /// Whether the search is vectorised on this machine.
    #[cfg(test)]
    #[must_use]
    pub fn is_vectorised(&self) -> bool {
        matches!(self.0, Engine::Packed(_))
    }
}
