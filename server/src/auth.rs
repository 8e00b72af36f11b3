//! Who asks, and what they may do.
//!
//! A token is 256 random bits. What is kept is its BLAKE3 hash: with that much entropy nobody can search for the
//! secret behind a hash, so a slow password hash would cost every request something and protect nothing. Whoever
//! reads the database cannot use what is there.
//!
//! Writing always needs `Authorization: Bearer`. Reading needs a token only where `public_read` is off; browsers may
//! then send the token as the password of HTTP Basic, which counts for reading only (a browser adds it by itself to
//! requests that another site made it send).

use crate::app::AppState;
use crate::db::attempt::AttemptRow;
use crate::db::{self, token::Credential};
use crate::error::{AppError, AppResult};
use crate::ids::attempt_of;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{Method, header};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use crashyard_protocol::agent::EPOCH_HEADER;
use crashyard_protocol::{AttemptId, AttemptState, Scope};
use tokio::time::Instant;

/// The hash under which a secret is kept.
#[must_use]
pub fn secret_hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// Who asks, where a token was sent.
#[derive(Clone, Debug)]
pub struct Caller(pub Option<Credential>);

impl FromRequestParts<AppState> for Caller {
    type Rejection = AppError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> AppResult<Self> {
        let Some(value) = parts.headers.get(header::AUTHORIZATION) else { return Ok(Self(None)) };
        let value =
            value.to_str().map_err(|_| AppError::Unauthorized("the Authorization header is not text".into()))?;
        let reads = matches!(parts.method, Method::GET | Method::HEAD);
        let secret = secret_in(value, reads)
            .ok_or_else(|| AppError::Unauthorized("the Authorization header is not `Bearer TOKEN`".into()))?;
        let unknown = || AppError::Unauthorized("this token is not known, has expired or was revoked".into());
        let credential = look_up(state, &secret).await?.ok_or_else(unknown)?;
        let expired = credential.expires_at.is_some_and(|at| at <= state.now());
        if expired || credential.revoked_at.is_some() {
            return Err(unknown());
        }
        if credential.attempt_state.is_some_and(AttemptState::is_over) {
            return Err(over());
        }
        Ok(Self(Some(credential)))
    }
}

async fn look_up(state: &AppState, secret: &str) -> AppResult<Option<Credential>> {
    let (secret_hash, now) = (secret_hash(secret), Instant::now());
    if let Some(known) = state.credentials.get(&secret_hash, now) {
        return Ok(Some(known));
    }
    let found = match attempt_of(secret) {
        Some(attempt) => db::attempt::credential(&state.db, &attempt, &secret_hash).await?,
        None => db::token::by_secret_hash(&state.db, &secret_hash).await?,
    };
    if let Some(found) = &found {
        state.credentials.keep(secret_hash, found, now);
    }
    Ok(found)
}

/// The secret of a header: of `Bearer`, and for reading also the password of `Basic`.
fn secret_in(header: &str, reads: bool) -> Option<String> {
    let (scheme, rest) = header.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !reads || !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(rest.trim()).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_owned())
}

impl Caller {
    fn with(self, scopes: &[Scope]) -> AppResult<Credential> {
        let credential = self.0.ok_or_else(|| AppError::Unauthorized("this needs a token".into()))?;
        if credential.scope == Scope::Admin || scopes.contains(&credential.scope) {
            return Ok(credential);
        }
        let wanted: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
        Err(AppError::Forbidden(format!(
            "this needs a token of scope admin{}{}, not {}",
            if wanted.is_empty() { "" } else { " or " },
            wanted.join(" or "),
            credential.scope
        )))
    }
}

macro_rules! scoped {
    ($($(#[$doc:meta])* $name:ident: $scopes:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(pub Credential);

        impl FromRequestParts<AppState> for $name {
            type Rejection = AppError;

            async fn from_request_parts(parts: &mut Parts, state: &AppState) -> AppResult<Self> {
                Caller::from_request_parts(parts, state).await?.with(&$scopes).map(Self)
            }
        }
    )*};
}

scoped! {
    /// May do everything.
    Admin: [];
    /// May submit.
    Submitter: [Scope::Submit];
    /// May enrol machines and claim.
    Controller: [Scope::Controller];
}

/// May read: anybody on a public server, any token on another.
#[derive(Clone, Debug)]
pub struct Reader;

impl FromRequestParts<AppState> for Reader {
    type Rejection = AppError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> AppResult<Self> {
        if state.config.public_read {
            return Ok(Self);
        }
        match Caller::from_request_parts(parts, state).await? {
            Caller(Some(credential)) if credential.scope == Scope::Attempt => {
                Err(AppError::Forbidden("an attempt's token reads only what belongs to the attempt".into()))
            }
            Caller(Some(_)) => Ok(Self),
            Caller(None) => Err(AppError::Unauthorized("reading needs a token on this server".into())),
        }
    }
}

/// Acts inside the attempt that the path names: its controller, or an agent with the attempt's own token.
#[derive(Clone, Debug)]
pub struct InAttempt {
    /// The attempt as it was when the request came.
    pub attempt: AttemptRow,
    /// The epoch the caller sent; checked against the attempt for every method but `GET`.
    pub epoch: u64,
    /// Whether the caller is target or capture agent and not the controller.
    pub by_attempt_token: bool,
}

impl FromRequestParts<AppState> for InAttempt {
    type Rejection = AppError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> AppResult<Self> {
        let Acting { attempt, epoch, by_attempt_token } = Acting::from_request_parts(parts, state).await?;
        let attempt = db::attempt::get(&state.db, &attempt).await.map_err(|e| AppError::or_not_found(e, "attempt"))?;
        // Its token may have been looked up a moment before it ended.
        if by_attempt_token && attempt.state.is_over() {
            return Err(over());
        }
        Ok(Self { attempt, epoch, by_attempt_token })
    }
}

fn over() -> AppError {
    AppError::LeaseLost("the attempt this token was made for is over".into())
}

/// The attempt that a path names.
async fn attempt_in(parts: &mut Parts, state: &AppState) -> AppResult<AttemptId> {
    let params = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(|rejection| AppError::Invalid(rejection.body_text()))?;
    params
        .iter()
        .find(|(name, _)| *name == "attempt")
        .and_then(|(_, value)| value.parse().ok())
        .ok_or_else(|| AppError::not_found("attempt"))
}

/// The lease epoch of a request; only a `GET` may come without.
fn epoch_in(parts: &Parts) -> AppResult<u64> {
    match parts.headers.get(EPOCH_HEADER) {
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| AppError::Invalid(format!("the header {EPOCH_HEADER} is not a number"))),
        None if parts.method == Method::GET => Ok(0),
        None => Err(AppError::Invalid(format!("the header {EPOCH_HEADER} is missing"))),
    }
}

/// The same before anybody has looked at the attempt: for requests whose write looks at it anyway, and says no there.
#[derive(Clone, Debug)]
pub struct Acting {
    /// The attempt.
    pub attempt: AttemptId,
    /// The epoch the caller sent.
    pub epoch: u64,
    /// Whether the caller is target or capture agent and not the controller.
    pub by_attempt_token: bool,
}

impl FromRequestParts<AppState> for Acting {
    type Rejection = AppError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> AppResult<Self> {
        let credential = Caller::from_request_parts(parts, state).await?.with(&[Scope::Controller, Scope::Attempt])?;
        let attempt = attempt_in(parts, state).await?;
        let by_attempt_token = credential.scope == Scope::Attempt;
        if by_attempt_token && credential.attempt_id.as_ref() != Some(&attempt) {
            return Err(AppError::Forbidden("this token was made for another attempt".into()));
        }
        Ok(Self { attempt, epoch: epoch_in(parts)?, by_attempt_token })
    }
}

impl Acting {
    /// Refuses target and capture agents.
    pub fn controller_only(&self) -> AppResult<()> {
        if self.by_attempt_token { Err(controllers_only()) } else { Ok(()) }
    }
}

fn controllers_only() -> AppError {
    AppError::Forbidden("this is the controller's; use its token".into())
}

impl InAttempt {
    /// Refuses a stale epoch.
    pub fn check_lease(&self) -> AppResult<()> {
        Ok(self.attempt.check_epoch(self.epoch)?)
    }

    /// Refuses target and capture agents.
    pub fn controller_only(&self) -> AppResult<()> {
        if self.by_attempt_token { Err(controllers_only()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_basic_password_counts_for_reading_only() {
        // "reader:secret"
        let header = "Basic cmVhZGVyOnNlY3JldA==";
        assert_eq!(secret_in(header, true).as_deref(), Some("secret"));
        assert_eq!(secret_in(header, false), None);
        assert_eq!(secret_in("bearer  x ", false).as_deref(), Some("x"));
        assert_eq!(secret_in("Basic ###", true), None);
        assert_eq!(secret_in("nothing", true), None);
    }
}
