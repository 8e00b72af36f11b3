//! The signatures: every crash that nobody asked for, once, with where to look.

use super::Shell;
use super::console::path_part;
use crate::pages::format::{Chip, When, ago};
use crate::pages::text::visible;
use askama::Template;
use crashyard_protocol::api::{Signature, SignatureAttempt};
use crashyard_protocol::clock::Timestamp;

/// The page at `/signatures`.
#[derive(Debug, Template)]
#[template(path = "signatures.html")]
pub struct SignaturesPage {
    shell: Shell,
    rows: Vec<Row>,
    newest: bool,
    next: Option<String>,
    rules: u32,
    /// Older rules whose signatures can be looked at.
    older: Vec<u32>,
}

/// The page at `/signatures/{id}`.
#[derive(Debug, Template)]
#[template(path = "signature.html")]
pub struct SignaturePage {
    shell: Shell,
    row: Row,
    kind: String,
    frame: Option<String>,
    frames: Vec<String>,
    rules: u32,
    current: u32,
}

#[derive(Debug)]
struct Row {
    id: String,
    title: String,
    frames: String,
    first: When,
    first_ago: String,
    last: When,
    last_ago: String,
    attempts: u64,
    reports: u64,
    places: Vec<Place>,
    more: u64,
}

#[derive(Debug)]
struct Place {
    chip: Chip,
    attempt: String,
    name: String,
    href: String,
    source: String,
    line: u64,
    reports: u64,
    seen: When,
    seen_ago: String,
}

impl SignaturesPage {
    /// The page from the signatures of one version of the rules; `current` is the version that new ones are made with.
    #[must_use]
    pub fn new(
        signatures: &[Signature],
        (rules, current): (u32, u32),
        newest: bool,
        next: Option<&str>,
        now: Timestamp,
    ) -> Self {
        Self {
            shell: Shell { section: "signatures", now: Some(When(now)) },
            rows: signatures.iter().map(|signature| Row::new(signature, now)).collect(),
            newest,
            next: next.map(path_part),
            rules,
            older: (1..=current).rev().filter(|version| *version != rules).collect(),
        }
    }
}

impl SignaturePage {
    /// The page of one signature; `current` is the version of the rules that new ones are made with.
    #[must_use]
    pub fn new(signature: &Signature, current: u32, now: Timestamp) -> Self {
        let module = signature.module.as_deref().map_or_else(String::new, |module| format!(" [{module}]"));
        Self {
            shell: Shell { section: "signatures", now: Some(When(now)) },
            row: Row::new(signature, now),
            kind: visible(&signature.kind.replace('_', " ")).into_owned(),
            frame: signature.frame.as_deref().map(|frame| visible(&format!("{frame}{module}")).into_owned()),
            frames: signature.frames.iter().map(|frame| visible(frame).into_owned()).collect(),
            rules: signature.rules,
            current,
        }
    }
}

impl Row {
    fn new(signature: &Signature, now: Timestamp) -> Self {
        let shown = u64::try_from(signature.seen.len()).unwrap_or(u64::MAX);
        let place = signature.module.as_deref().map_or_else(String::new, |module| format!("[{module}] "));
        Self {
            id: signature.id.to_string(),
            title: visible(&signature.title).into_owned(),
            frames: visible(&format!("{place}{}", signature.frames.join(" ← "))).into_owned(),
            first: When(signature.first_seen_at),
            first_ago: ago(now.since(signature.first_seen_at)),
            last: When(signature.last_seen_at),
            last_ago: ago(now.since(signature.last_seen_at)),
            attempts: signature.attempts,
            reports: signature.reports,
            places: signature.seen.iter().map(|seen| Place::new(seen, now)).collect(),
            more: signature.attempts.saturating_sub(shown),
        }
    }
}

impl Place {
    fn new(seen: &SignatureAttempt, now: Timestamp) -> Self {
        Self {
            chip: Chip::status(seen.verdict),
            attempt: seen.attempt.to_string(),
            name: format!("attempt {} on {}", seen.number, visible(&seen.machine_name)),
            href: format!(
                "/attempts/{}/console/{}?at={}#L{}",
                seen.attempt,
                path_part(&seen.source),
                seen.start,
                seen.line
            ),
            source: visible(&seen.source).into_owned(),
            line: seen.line,
            reports: seen.reports,
            seen: When(seen.seen_at),
            seen_ago: ago(now.since(seen.seen_at)),
        }
    }
}
