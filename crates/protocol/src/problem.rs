//! Errors on the wire: RFC 9457 problem details, always with what to do next.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An error answer (`application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Stable machine-readable kind, one of [`kind`].
    #[serde(rename = "type")]
    pub kind: String,
    /// Short human-readable summary of the kind.
    pub title: String,
    /// HTTP status code.
    pub status: u16,
    /// What was wrong with this request.
    pub detail: String,
    /// What the client can do about it.
    pub next: String,
    /// Request id to quote to the server's operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.title, self.detail, self.next)?;
        if let Some(id) = &self.request_id {
            write!(f, " [request {id}]")?;
        }
        Ok(())
    }
}

/// The values of [`Problem::kind`]; clients branch on these and never on texts.
pub mod kind {
    /// No such thing.
    pub const NOT_FOUND: &str = "not_found";
    /// The request is malformed or breaks a rule.
    pub const INVALID: &str = "invalid";
    /// No token, or an unknown, expired or revoked one.
    pub const UNAUTHORIZED: &str = "unauthorized";
    /// The token may not do this.
    pub const FORBIDDEN: &str = "forbidden";
    /// The request contradicts what the server already has.
    pub const CONFLICT: &str = "conflict";
    /// The lease epoch is stale: somebody else holds the attempt, or it is over. Stop acting on the machine.
    pub const LEASE_LOST: &str = "lease_lost";
    /// The lease is lost, and somebody else has the machine. Do nothing more to it, not even power it off.
    pub const MACHINE_TAKEN: &str = "machine_taken";
    /// Bytes do not have the hash they were announced with. Send them again.
    pub const HASH_MISMATCH: &str = "hash_mismatch";
    /// Console bytes beyond the end of what the server has; `detail` names the next offset.
    pub const OFFSET_GAP: &str = "offset_gap";
    /// Larger than a limit or quota allows.
    pub const TOO_LARGE: &str = "too_large";
    /// The server cannot store anything right now (full disk, database away). Try again later.
    pub const UNAVAILABLE: &str = "unavailable";
    /// The server's own fault; quote the request id.
    pub const INTERNAL: &str = "internal";
}
