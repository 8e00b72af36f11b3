//! Errors towards clients: one enum, one place that turns it into `application/problem+json`.
//!
//! What a client did wrong is explained to it, with what to do next. What the server did wrong goes to its log under
//! the request id, and the client sees only that id.

use crate::blobs::BlobError;
use crate::db::DbError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use crashyard_protocol::problem::{Problem, kind};

/// Why a request was not done.
#[derive(Debug)]
pub enum AppError {
    /// No such thing; says which.
    NotFound(String),
    /// The request is malformed or breaks a rule.
    Invalid(String),
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// No token, or one that does not work.
    Unauthorized(String),
    /// The token may not do this.
    Forbidden(String),
    /// The request contradicts what is there.
    Conflict(String),
    /// The lease is over.
    LeaseLost(String),
    /// The lease is over, and somebody else has the machine.
    MachineTaken(String),
    /// The bytes are not the announced ones.
    HashMismatch(String),
    /// Console bytes that would leave a gap.
    OffsetGap {
        /// Where the console ends.
        next: u64,
        /// Where the bytes were to go.
        got: u64,
    },
    /// Beyond a limit.
    TooLarge(String),
    /// Database or blob store cannot be used right now.
    Unavailable(anyhow::Error),
    /// The server's own fault.
    Internal(anyhow::Error),
}

/// Answer of a handler.
pub type AppResult<T> = Result<T, AppError>;

impl AppError {
    /// No such thing.
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::NotFound(format!("there is no such {what}"))
    }

    /// Names the thing that is missing, where a query found nothing.
    #[must_use]
    pub fn or_not_found(error: DbError, what: &str) -> Self {
        match error {
            DbError::NotFound => Self::not_found(what),
            other => other.into(),
        }
    }

    /// Status, kind, title, detail, and what to do next.
    fn parts(&self) -> (StatusCode, &'static str, &'static str, String, String) {
        let say =
            |status, kind, title, detail: &str, next: &str| (status, kind, title, detail.to_owned(), next.to_owned());
        match self {
            Self::NotFound(detail) => {
                say(StatusCode::NOT_FOUND, kind::NOT_FOUND, "Not found", detail, "Check the id or the path.")
            }
            Self::Invalid(detail) => say(
                StatusCode::BAD_REQUEST,
                kind::INVALID,
                "Invalid request",
                detail,
                "Correct the request; /api/v1/openapi.json describes every one.",
            ),
            Self::MethodNotAllowed => say(
                StatusCode::METHOD_NOT_ALLOWED,
                kind::INVALID,
                "Method not allowed",
                "this path does not take this method",
                "The Allow header names the methods it takes.",
            ),
            Self::Unauthorized(detail) => say(
                StatusCode::UNAUTHORIZED,
                kind::UNAUTHORIZED,
                "Not authorized",
                detail,
                "Send `Authorization: Bearer TOKEN`; an administrator makes tokens with `crashyard-server token create`.",
            ),
            Self::Forbidden(detail) => say(
                StatusCode::FORBIDDEN,
                kind::FORBIDDEN,
                "Forbidden",
                detail,
                "Use a token of the scope that is needed.",
            ),
            Self::Conflict(detail) => say(
                StatusCode::CONFLICT,
                kind::CONFLICT,
                "Conflict",
                detail,
                "Look at what the server has; sending the same thing again is always safe, a different one is not.",
            ),
            Self::LeaseLost(detail) => say(
                StatusCode::CONFLICT,
                kind::LEASE_LOST,
                "Lease lost",
                detail,
                "Stop acting on the machine and claim again.",
            ),
            Self::MachineTaken(detail) => say(
                StatusCode::CONFLICT,
                kind::MACHINE_TAKEN,
                "Machine taken",
                detail,
                "Do nothing more to this machine; whoever has it decides about its power.",
            ),
            Self::HashMismatch(detail) => say(
                StatusCode::UNPROCESSABLE_ENTITY,
                kind::HASH_MISMATCH,
                "Hash mismatch",
                detail,
                "Nothing was stored; send the bytes again.",
            ),
            Self::OffsetGap { next, got } => say(
                StatusCode::CONFLICT,
                kind::OFFSET_GAP,
                "Offset gap",
                &format!("the console ends at {next}, these bytes start at {got}"),
                &format!("Send the bytes from offset {next} on."),
            ),
            Self::TooLarge(detail) => say(
                StatusCode::PAYLOAD_TOO_LARGE,
                kind::TOO_LARGE,
                "Too large",
                detail,
                "Send less, or ask the farm's operator to raise the limit.",
            ),
            Self::Unavailable(_) => say(
                StatusCode::SERVICE_UNAVAILABLE,
                kind::UNAVAILABLE,
                "Not available right now",
                "the server cannot store or read anything at the moment",
                "Keep what you have and try again; nothing of this request was recorded.",
            ),
            Self::Internal(_) => say(
                StatusCode::INTERNAL_SERVER_ERROR,
                kind::INTERNAL,
                "Internal error",
                "the server failed on this request",
                "Try again later; if it stays, quote the request id to the farm's operator.",
            ),
        }
    }
}

impl std::fmt::Display for AppError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unavailable(error) | Self::Internal(error) => write!(f, "{error:#}"),
            other => f.write_str(&other.parts().3),
        }
    }
}

impl From<DbError> for AppError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::NotFound => Self::not_found("thing"),
            DbError::Conflict(detail) => Self::Conflict(detail),
            DbError::LeaseLost(detail) => Self::LeaseLost(detail),
            DbError::Unavailable(_) => Self::Unavailable(error.into()),
            DbError::Other(_) => Self::Internal(error.into()),
        }
    }
}

impl From<BlobError> for AppError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Unavailable(_) => Self::Unavailable(error.into()),
            BlobError::Missing(_) => Self::Internal(error.into()),
        }
    }
}

impl From<tokio::task::JoinError> for AppError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Internal(anyhow::Error::new(error).context("a worker died"))
    }
}

/// What the outermost layer makes the body from, when it knows the request id.
#[derive(Clone, Debug)]
pub struct PendingProblem(Problem);

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        let (status, kind, title, detail, next) = self.parts();
        match &self {
            // Logged here, once, inside the request's span, which carries its id.
            Self::Internal(error) => tracing::error!(error = format!("{error:#}"), "request failed"),
            Self::Unavailable(error) => tracing::warn!(error = format!("{error:#}"), "not available"),
            _ => {}
        }
        let problem = Problem {
            kind: kind.to_owned(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail,
            next,
            request_id: None,
        };
        let mut response = status.into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"crashyard\", Basic realm=\"crashyard\""),
            );
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response.extensions_mut().insert(PendingProblem(problem));
        response
    }
}

/// Writes the body of a problem, with the id of its request.
#[must_use]
pub fn finish(response: Response, request_id: Option<&str>) -> Response {
    let (mut parts, body) = response.into_parts();
    let Some(PendingProblem(mut problem)) = parts.extensions.remove::<PendingProblem>() else {
        return Response::from_parts(parts, body);
    };
    problem.request_id = request_id.map(str::to_owned);
    let text = serde_json::to_vec(&problem).expect("a problem is plain strings");
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    parts.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, text.into())
}
