//! What is under way, on a terminal: a line that is gone when it is over. Elsewhere nothing is shown.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// Shown until it is dropped.
pub struct Shown(ProgressBar);

impl Shown {
    /// Shows what is under way, and for how long.
    #[must_use]
    pub fn new(what: &str) -> Self {
        let style = ProgressStyle::with_template("{spinner} {prefix}  {elapsed}  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::new_spinner().with_style(style).with_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// Says how far it is.
    pub fn say(&self, how_far: String) {
        self.0.set_message(how_far);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
