//! Console logs: the pane of lines that two pages share, and the page that shows a whole log piece by piece.
//!
//! A log may have a gigabyte, so a page never shows more than [`PAGE_BYTES`] of it: the piece is named by a byte offset,
//! holds the lines that *begin* in it, and links to its neighbours. The same offset always gives the same page, which
//! lets a proof link to `?at=OFFSET#L123`.

use super::pager::Pager;
use super::{About, Shell};
use crate::pages::format::{bytes, count};
use crate::pages::text::{Line, lines, visible};
use askama::Template;
use crashyard_protocol::api::{Artifact, Attempt};
use crashyard_protocol::{ArtifactId, ArtifactState, Proof, StageName, StageState};
use std::collections::HashMap;

/// Bytes of a log whose lines one page shows.
pub const PAGE_BYTES: u64 = 128 * 1024;
/// Bytes read after a page's end to finish its last line.
pub const OVERHANG_BYTES: u64 = 8 * 1024;
/// Bytes of a log's end that the attempt's page shows.
pub const TAIL_BYTES: u64 = 192 * 1024;
/// Lines of a log's end that the attempt's page shows at most.
const TAIL_LINES: usize = 5_000;
/// What a console's artifact is called before its source.
pub const NAME_PREFIX: &str = "console-";

/// Lines of a console, ready to show.
#[derive(Debug)]
pub struct Pane {
    /// Whose console: `serial`, `bmc`, …, as people read it.
    pub source: String,
    /// The same as a part of a path.
    pub source_path: String,
    /// Its artifact.
    pub artifact: ArtifactId,
    /// Its bytes in all.
    pub size: u64,
    /// The lines.
    pub rows: Vec<Row>,
    /// Offset of the first byte shown.
    pub from: u64,
    /// Offset at which a live console goes on: the start of the last line, if that has no end yet.
    pub resume_at: u64,
    /// The number of the line that begins at `resume_at`.
    pub resume_line: u64,
    /// Whether more is to come.
    pub live: bool,
}

/// One line and the stages it proves or disproves.
#[derive(Debug)]
pub struct Row {
    /// The line.
    pub line: Line,
    /// The stages whose proof starts on it, and whether it proves or disproves them.
    pub stages: Vec<(StageName, StageState)>,
}

impl Row {
    /// What is said at the end of a line that was cut.
    #[must_use]
    pub fn cut_note(&self) -> Option<String> {
        self.line.cut.map(|length| format!("line cut, {} bytes in all", count(length as u64)))
    }
}

/// A piece of a log as read from its artifact.
#[derive(Debug)]
pub struct Piece {
    /// Offset of its first byte, which begins a line.
    pub from: u64,
    /// Number of that line.
    pub first_line: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Pane {
    /// The pane of a piece; `attempt` says which lines are proofs.
    #[must_use]
    pub fn new(attempt: &Attempt, artifact: &Artifact, piece: &Piece) -> Self {
        let stages = proven_lines(attempt, &artifact.id);
        let shown = lines(&piece.bytes, piece.first_line);
        let next_line = piece.first_line.saturating_add(shown.len() as u64);
        let open = piece.bytes.last().is_some_and(|last| *last != b'\n');
        let last_start = piece.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rows = shown
            .into_iter()
            .map(|line| Row { stages: stages.get(&line.number).cloned().unwrap_or_default(), line })
            .collect();
        Self {
            source: visible(source_of(artifact)).into_owned(),
            source_path: path_part(source_of(artifact)),
            artifact: artifact.id.clone(),
            size: artifact.size,
            rows,
            from: piece.from,
            resume_at: piece.from + if open { last_start } else { piece.bytes.len() } as u64,
            resume_line: if open { next_line - 1 } else { next_line },
            live: artifact.state == ArtifactState::Open && !attempt.state.is_over(),
        }
    }

    /// The pane of a log's end.
    #[must_use]
    pub fn tail(attempt: &Attempt, artifact: &Artifact, piece: &Piece) -> Self {
        let mut pane = Self::new(attempt, artifact, piece);
        let surplus = pane.rows.len().saturating_sub(TAIL_LINES);
        if surplus > 0 {
            pane.rows.drain(..surplus);
            let mut newlines = piece.bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            let skipped = newlines.nth(surplus - 1).map_or(0, |(at, _)| at + 1);
            pane.from = piece.from + skipped as u64;
        }
        pane
    }

    /// Whether a byte of the log is among those shown.
    #[must_use]
    pub fn shows(&self, artifact: &ArtifactId, offset: u64) -> bool {
        *artifact == self.artifact && offset >= self.from && offset < self.size
    }

    /// The log's size in words.
    #[must_use]
    pub fn size_text(&self) -> String {
        bytes(self.size)
    }

    /// The size of what comes before the lines shown, in words.
    #[must_use]
    pub fn before_text(&self) -> String {
        bytes(self.from)
    }
}

fn proven_lines(attempt: &Attempt, console: &ArtifactId) -> HashMap<u64, Vec<(StageName, StageState)>> {
    let mut out: HashMap<u64, Vec<(StageName, StageState)>> = HashMap::new();
    for stage in &attempt.stages {
        for proof in &stage.proofs {
            if let Proof::Console { artifact, line, .. } = proof
                && artifact == console
            {
                let stages = out.entry(*line).or_default();
                if !stages.contains(&(stage.name, stage.state)) {
                    stages.push((stage.name, stage.state));
                }
            }
        }
    }
    out
}

/// The consoles of an attempt beside this one: as people read them, and as a part of a path.
#[must_use]
pub fn others(attempt: &Attempt, this: &Artifact) -> Vec<(String, String)> {
    let consoles = attempt.artifacts.iter().filter(|one| one.name.starts_with(NAME_PREFIX) && one.id != this.id);
    consoles.map(|one| (visible(source_of(one)).into_owned(), path_part(source_of(one)))).collect()
}

/// Whose console an artifact is.
#[must_use]
pub fn source_of(artifact: &Artifact) -> &str {
    artifact.name.strip_prefix(NAME_PREFIX).unwrap_or(&artifact.name)
}

/// Text as one part of a path: everything but letters, digits and `-._~` in percent form.
///
/// A browser follows `..` in any spelling, so a name of dots alone (which the server refuses) becomes `_`.
#[must_use]
pub fn path_part(text: &str) -> String {
    if text.bytes().all(|byte| byte == b'.') {
        return "_".into();
    }
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// The page at `/attempts/{id}/console/{source}`.
#[derive(Debug, Template)]
#[template(path = "console.html")]
pub struct ConsolePage {
    shell: Shell,
    about: About,
    pane: Pane,
    pager: Option<Pager>,
    /// The attempt's other consoles: as people read them, and as a part of a path.
    others: Vec<(String, String)>,
}

impl ConsolePage {
    /// The page that starts at the offset `start`, a multiple of [`PAGE_BYTES`].
    #[must_use]
    pub fn new(attempt: &Attempt, artifact: &Artifact, start: u64, piece: &Piece) -> Self {
        let last = last_page(artifact.size);
        let mut pane = Pane::new(attempt, artifact, piece);
        pane.live &= start == last;
        Self {
            shell: Shell { section: "runs", now: None },
            about: About::new(attempt),
            pane,
            pager: Pager::new(start, last, PAGE_BYTES, |at| format!("?at={at}")),
            others: others(attempt, artifact),
        }
    }
}

/// Where the last page of a log of this size starts.
#[must_use]
pub fn last_page(size: u64) -> u64 {
    size.saturating_sub(1) / PAGE_BYTES * PAGE_BYTES
}

/// Cuts the lines that begin in `[start, start + PAGE_BYTES)` out of the bytes read from `read_from` on.
///
/// `read_from` is `start - 1` (one byte earlier, to see whether a line begins at `start`), or 0. `lines_before` is the
/// number of line ends in `[0, read_from)`. Where no line begins in the page (it lies inside one endless line), the
/// bytes themselves are shown, so that nothing of a log is out of reach.
#[must_use]
pub fn cut_page(start: u64, read_from: u64, bytes: &[u8], lines_before: u64) -> Piece {
    let page_end = usize::try_from((start - read_from).saturating_add(PAGE_BYTES)).unwrap_or(usize::MAX);
    let ends = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    let mut begin = 0;
    if start > 0 {
        let within = &bytes[..bytes.len().min(page_end.saturating_sub(1))];
        match within.iter().position(|byte| *byte == b'\n') {
            Some(at) => begin = at + 1,
            None => {
                let inside = usize::from(read_from < start).min(bytes.len());
                let end = bytes.len().min(page_end);
                return Piece {
                    from: start,
                    first_line: lines_before + 1,
                    bytes: bytes[inside..end.max(inside)].to_vec(),
                };
            }
        }
    }
    // The last line that begins in the page runs on to its own end, if that was read.
    let mut end = bytes.len();
    if end > page_end {
        // A line that begins at `page_end` belongs to the next page.
        end = bytes[page_end - 1..].iter().position(|byte| *byte == b'\n').map_or(end, |at| page_end + at);
    }
    Piece {
        from: read_from + begin as u64,
        first_line: lines_before + 1 + ends(&bytes[..begin]),
        bytes: bytes[begin..end].to_vec(),
    }
}

/// Cuts the first, broken line off a log's end that was read from `read_from` on.
#[must_use]
pub fn cut_tail(read_from: u64, bytes: Vec<u8>, lines_before: u64) -> Piece {
    if read_from == 0 {
        return Piece { from: 0, first_line: 1, bytes };
    }
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) => {
            Piece { from: read_from + at as u64 + 1, first_line: lines_before + 2, bytes: bytes[at + 1..].to_vec() }
        }
        None => Piece { from: read_from, first_line: lines_before + 1, bytes },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_path_cannot_leave_its_place() {
        assert_eq!(path_part("serial"), "serial");
        assert_eq!(path_part(".."), "_");
        assert_eq!(path_part("../a b?<\"é"), "..%2Fa%20b%3F%3C%22%C3%A9");
    }

    /// Pages of a log, the way the handler reads them.
    fn pages(log: &[u8]) -> Vec<Piece> {
        let mut out = Vec::new();
        let mut start = 0;
        while start < log.len() as u64 {
            let read_from = start.saturating_sub(1);
            let end = (start + PAGE_BYTES + OVERHANG_BYTES).min(log.len() as u64);
            let bytes = &log[usize::try_from(read_from).unwrap()..usize::try_from(end).unwrap()];
            let before = log[..usize::try_from(read_from).unwrap()].iter().filter(|b| **b == b'\n').count() as u64;
            out.push(cut_page(start, read_from, bytes, before));
            start += PAGE_BYTES;
        }
        out
    }

    #[test]
    fn the_pages_of_a_log_hold_each_line_once_under_its_number() {
        let page = usize::try_from(PAGE_BYTES).unwrap();
        let mut log = Vec::new();
        let mut number = 0_u64;
        while log.len() < page * 3 + 1000 {
            number += 1;
            let filler = "x".repeat(usize::try_from(number * 37 % 181).unwrap());
            log.extend_from_slice(format!("line {number} {filler}\n").as_bytes());
            // Let line ends fall right before, on and after a page's border.
            let left = page - log.len() % page;
            if left < 60 && left > 2 {
                number += 1;
                let width = left - 2 + usize::try_from(number % 4).unwrap();
                log.extend_from_slice(&vec![b'y'; width]);
                log.push(b'\n');
            }
        }
        let mut told = Vec::new();
        for piece in pages(&log) {
            told.extend(lines(&piece.bytes, piece.first_line).into_iter().map(|line| line.number));
        }
        assert_eq!(told, (1..=number).collect::<Vec<_>>());
        let joined: Vec<u8> = pages(&log).into_iter().flat_map(|piece| piece.bytes).collect();
        assert!(joined == log, "every byte is on exactly one page");
    }

    #[test]
    fn a_page_inside_an_endless_line_shows_its_bytes() {
        let page = usize::try_from(PAGE_BYTES).unwrap();
        let mut log = b"first\n".to_vec();
        log.extend_from_slice(&vec![b'z'; page * 3]);
        let pages = pages(&log);
        assert_eq!(pages[1].from, PAGE_BYTES);
        assert_eq!(pages[1].first_line, 2);
        assert_eq!(pages[1].bytes.len(), page);
        assert!(!pages[3].bytes.is_empty());
    }

    #[test]
    fn a_tail_starts_with_a_whole_line_and_its_number() {
        let piece = cut_tail(100, b"oken\nwhole\nlast".to_vec(), 7);
        assert_eq!((piece.from, piece.first_line, piece.bytes.as_slice()), (105, 9, b"whole\nlast".as_slice()));
        assert_eq!(cut_tail(0, b"a\n".to_vec(), 0).first_line, 1);
    }

    #[test]
    fn the_last_page_is_where_the_last_byte_is() {
        assert_eq!(last_page(0), 0);
        assert_eq!(last_page(PAGE_BYTES), 0);
        assert_eq!(last_page(PAGE_BYTES + 1), PAGE_BYTES);
    }
}
