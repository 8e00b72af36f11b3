//! What the parser is told from outside: the intent of the scenario, and nothing else.

/// Settings of one parse.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What was meant to happen. Without it no report is judged intended or unintended.
    pub intent: Option<Intent>,
}

/// The crash a scenario asks for. It comes from the scenario, never from the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Intent {
    /// Part of the `crashyard: trigger …` line (for example `attempt=01J…`) after which the crash is expected.
    /// `None`: any place in the log will do.
    pub marker: Option<String>,
    /// What the crash looks like: matched against each report's header and title, ignoring case. `*` stands for
    /// any run of characters; otherwise the text may stand anywhere in the header. Nothing matches an empty text.
    pub expect: String,
}

impl Intent {
    /// An intent without a marker.
    #[must_use]
    pub fn new(expect: impl Into<String>) -> Self {
        Self { marker: None, expect: expect.into() }
    }

    /// Whether a report with this header and title is what was asked for.
    #[must_use]
    pub fn matches(&self, header: &str, title: &str) -> bool {
        !self.expect.trim().is_empty() && (glob(&self.expect, header) || glob(&self.expect, title))
    }
}

/// Whether the parts of `pattern` between `*` follow one another in `text`, ignoring ASCII case. Linear: each part is
/// taken at its first place.
fn glob(pattern: &str, text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let mut from = 0;
    for part in pattern.to_ascii_lowercase().split('*').map(str::trim).filter(|p| !p.is_empty()) {
        match text[from..].find(part) {
            Some(at) => from += at + part.len(),
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_matches_headers_and_titles_in_any_case() {
        let i = Intent::new("NULL pointer dereference");
        assert!(i.matches("BUG: kernel NULL pointer dereference, address: 0", ""));
        assert!(i.matches("", "BUG: unable to handle kernel null pointer dereference in f"));
        assert!(!i.matches("Kernel panic - not syncing: sysrq triggered crash", "kernel panic: sysrq triggered crash"));
        assert!(!Intent::new(" ").matches("Kernel panic - not syncing: x", "kernel panic: x"), "nothing was asked for");
    }

    #[test]
    fn stars_span_anything_but_keep_the_order() {
        assert!(Intent::new("panic*crash").matches("Kernel panic - not syncing: sysrq triggered crash", ""));
        assert!(!Intent::new("crash*panic").matches("Kernel panic - not syncing: sysrq triggered crash", ""));
    }
}
