//! What went wrong, and what to do next.

use super::Shell;
use askama::Template;

/// A page instead of the one that was asked for.
#[derive(Debug, Template)]
#[template(path = "error.html")]
pub struct ErrorPage {
    shell: Shell,
    status: u16,
    title: &'static str,
    detail: &'static str,
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
            detail: "There is no page at this address, or what it showed is gone.",
            next: "Check the address, or start from the list of runs.",
            request_id: None,
        }
    }

    /// The request makes no sense.
    #[must_use]
    pub fn invalid() -> Self {
        Self {
            shell: Shell { section: "", now: None },
            status: 400,
            title: "That address makes no sense",
            detail: "A part of it is not what this farm hands out.",
            next: "Check the address, or start from the list of runs.",
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
            detail: "Reading needs a token.",
            next: "Reload, and give any user name with a token of this farm as the password.",
            request_id: None,
        }
    }

    /// The token does not give access.
    #[must_use]
    pub fn forbidden() -> Self {
        Self {
            shell: Shell { section: "", now: None },
            status: 403,
            title: "Not for this token",
            detail: "The token of an attempt reads only what belongs to the attempt, and no pages.",
            next: "Close the browser, open it again, and give another token.",
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
                     send it later.",
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
            detail: "This page could not be made. The cause is in the server's log.",
            next: "Reload. If it happens again, tell the farm's operator this address, the time, and the request id if \
                   there is one below.",
            request_id,
        }
    }

    /// The HTTP status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }
}
