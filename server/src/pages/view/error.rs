//! What went wrong, and what to do next.

use super::Shell;
use crate::pages::text::visible;
use askama::Template;

/// A page instead of the one that was asked for.
#[derive(Debug, Template)]
#[template(path = "error.html")]
pub struct ErrorPage {
    shell: Shell,
    status: u16,
    title: &'static str,
    detail: String,
    next: &'static str,
    request_id: Option<String>,
}

impl ErrorPage {
    /// There is no such page or thing.
    #[must_use]
    pub fn not_found() -> Self {
        Self {
            shell: Shell { section: "", now: None },
            status: 404,
            title: "Nothing here",
            detail: "There is no page at this address, or what it showed is gone.".into(),
            next: "Check the address, or start from the list of runs.",
            request_id: None,
        }
    }

    /// The request makes no sense.
    #[must_use]
    pub fn invalid(detail: &str) -> Self {
        Self {
            shell: Shell { section: "", now: None },
            status: 400,
            title: "That address makes no sense",
            detail: visible(detail).into_owned(),
            next: "Check the part of the address after the question mark.",
            request_id: None,
        }
    }

    /// Reading needs a token.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self {
            shell: Shell { section: "", now: None },
            status: 401,
            title: "This farm is not public",
            detail: "Reading needs a token.".into(),
            next: "Reload, and give any user name with a token of this farm as the password.",
            request_id: None,
        }
    }

    /// The server cannot read its ledger or its blobs right now.
    #[must_use]
    pub fn unavailable(request_id: Option<String>) -> Self {
        Self {
            shell: Shell { section: "", now: None },
            status: 503,
            title: "Not available right now",
            detail: "The server cannot reach its database or its files. No evidence is lost; agents keep theirs and \
                     send it later."
                .into(),
            next: "Reload in a minute. If it stays so, tell the farm's operator.",
            request_id,
        }
    }

    /// The server's own fault.
    #[must_use]
    pub fn internal(request_id: Option<String>) -> Self {
        Self {
            shell: Shell { section: "", now: None },
            status: 500,
            title: "The server made a mistake",
            detail: "This page could not be made. The cause is in the server's log.".into(),
            next: "Reload. If it happens again, tell the farm's operator the request id below.",
            request_id,
        }
    }

    /// The HTTP status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }
}
