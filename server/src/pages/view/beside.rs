//! Two consoles of an attempt in one: what one did not hear stands where it belongs, marked with who heard it.
//!
//! A page shows [`PAGE_LINES`] of it, named by the number of its first line; what is on no page is in the raw logs.

use super::console::path_part;
use super::pager::Pager;
use super::{About, Shell};
use crate::beside::{GAP, is_stamped};
use crate::pages::format::count;
use crate::pages::text::{Line, lines, visible};
use askama::Template;
use crashyard_protocol::api::{Attempt, Compared, ComparedLine};

/// Lines on one page.
pub const PAGE_LINES: usize = 1_000;

/// The page at `/attempts/{id}/console/{first}/beside/{second}`.
#[derive(Debug, Template)]
#[template(path = "beside.html")]
pub struct BesidePage {
    shell: Shell,
    about: About,
    /// The two, as people read them and as parts of a path.
    first: (String, String),
    second: (String, String),
    both: String,
    first_only: String,
    second_only: String,
    cut: bool,
    only: bool,
    rows: Vec<Row>,
    pager: Option<Pager>,
}

#[derive(Debug)]
struct Row {
    line: Line,
    heard: Heard,
}

/// Who heard a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// Both; or it is no line of the kernel's, which the other never carries.
    Both,
    First,
    Second,
    /// It says that the first was not heard here.
    Gap,
}

impl Heard {
    fn of(line: &ComparedLine) -> Self {
        match (line.first, line.second) {
            (true, false) if line.text.starts_with(GAP) => Self::Gap,
            (true, false) if is_stamped(&line.text) => Self::First,
            (true, _) => Self::Both,
            (false, _) => Self::Second,
        }
    }

    fn word(self) -> Option<&'static str> {
        match self {
            Self::Both => None,
            Self::First => Some("first"),
            Self::Second => Some("second"),
            Self::Gap => Some("gap"),
        }
    }
}

impl BesidePage {
    /// The page whose first line is the `from`th (from 0) of all, or with `only` of those that differ.
    #[must_use]
    pub fn new(attempt: &Attempt, names: (&str, &str), compared: &Compared, from: usize, only: bool) -> Self {
        let numbered = (1_u64..).zip(&compared.lines).map(|(number, line)| (number, Heard::of(line), line));
        let shown: Vec<_> = numbered.filter(|(_, heard, _)| !only || *heard != Heard::Both).collect();
        let last = shown.len().saturating_sub(1) / PAGE_LINES * PAGE_LINES;
        let start = (from / PAGE_LINES * PAGE_LINES).min(last);
        let rows = shown.iter().skip(start).take(PAGE_LINES);
        let name = |name: &str| (visible(name).into_owned(), path_part(name));
        Self {
            shell: Shell { section: "runs", now: None },
            about: About::new(attempt),
            first: name(names.0),
            second: name(names.1),
            both: count(compared.both),
            first_only: count(compared.first_only),
            second_only: count(compared.second_only),
            cut: compared.cut,
            only,
            rows: rows.filter_map(|(number, heard, line)| row(*number, *heard, &line.text)).collect(),
            pager: Pager::new(start as u64, last as u64, PAGE_LINES as u64, |from| format!("?only={only}&from={from}")),
        }
    }

    /// What is said at the end of a line.
    fn note(&self, row: &Row) -> Option<String> {
        match row.heard {
            Heard::Both => None,
            Heard::First => Some(format!("only {} heard it", self.first.0)),
            Heard::Second => Some(format!("filled in from {}", self.second.0)),
            Heard::Gap => Some(format!("a gap in {}", self.first.0)),
        }
    }
}

fn row(number: u64, heard: Heard, text: &str) -> Option<Row> {
    // A line without a byte is a line, too.
    let text = if text.is_empty() { "\n" } else { text };
    lines(text.as_bytes(), number).into_iter().next().map(|line| Row { line, heard })
}
