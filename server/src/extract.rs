//! Extractors and the JSON answer, with problems in place of axum's plain-text rejections.

use crate::error::AppError;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A JSON body, in and out.
#[derive(Clone, Debug)]
pub struct Json<T>(pub T);

/// Parameters in the query string.
#[derive(Clone, Debug)]
pub struct Query<T>(pub T);

/// Parameters in the path.
#[derive(Clone, Debug)]
pub struct Path<T>(pub T);

/// A body of plain bytes, within the route's limit.
#[derive(Clone, Debug)]
pub struct Body(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = AppError;

    async fn from_request(request: Request, state: &S) -> Result<Self, AppError> {
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(rejection) if rejection.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE => {
                Err(AppError::TooLarge("the body is larger than this path takes".into()))
            }
            Err(rejection) => Err(AppError::Invalid(format!("the body could not be read: {}", rejection.body_text()))),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = AppError;

    async fn from_request(request: Request, state: &S) -> Result<Self, AppError> {
        let Body(bytes) = Body::from_request(request, state).await?;
        parse(&bytes).map(Self).map_err(|error| AppError::Invalid(format!("the body is not what is expected: {error}")))
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    // PostgreSQL keeps no NUL in texts. Agents report what machines print, and machines print NULs.
    if memchr::memmem::find(bytes, br"\u0000").is_none() {
        return serde_json::from_slice(bytes);
    }
    let mut value: serde_json::Value = serde_json::from_slice(bytes)?;
    replace_nul(&mut value);
    serde_json::from_value(value)
}

/// Puts a replacement character in the place of every NUL.
pub fn replace_nul(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = text.replace('\0', "\u{fffd}"),
        serde_json::Value::Array(items) => items.iter_mut().for_each(replace_nul),
        serde_json::Value::Object(map) => {
            let old = std::mem::take(map);
            for (key, mut item) in old {
                replace_nul(&mut item);
                map.insert(key.replace('\0', "\u{fffd}"), item);
            }
        }
        _ => {}
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = AppError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, AppError> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(AppError::Invalid(rejection.body_text())),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = AppError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, AppError> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(AppError::Invalid(rejection.body_text())),
        }
    }
}

/// A name that people give: not empty, not long, without control characters.
pub fn check_name(what: &str, name: &str) -> Result<(), AppError> {
    let fits = !name.trim().is_empty() && name.chars().count() <= 200 && !name.chars().any(char::is_control);
    if fits {
        Ok(())
    } else {
        Err(AppError::Invalid(format!("{what} must have 1 to 200 characters and no control characters")))
    }
}

/// A name that stands in a URL path: letters, digits, `.`, `_`, `-`, not starting with a dot.
pub fn check_path_name(what: &str, name: &str) -> Result<(), AppError> {
    let fits = (1..=100).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits {
        Ok(())
    } else {
        Err(AppError::Invalid(format!(
            "{what} {name:?} must have 1 to 100 letters, digits, dots, underscores or dashes and not start with a dot"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_characters_in_json_become_replacement_characters() {
        let text: Vec<String> = parse(br#"["a\u0000b", "\\u0000"]"#).unwrap();
        assert_eq!(text, ["a\u{fffd}b", r"\u0000"]);
    }

    #[test]
    fn names_with_path_tricks_are_refused() {
        for name in ["", ".", "..", "../etc/passwd", "a/b", "a\\b", ".hidden", "a\0b", "ä", "a b", &"x".repeat(101)] {
            assert!(check_path_name("artifact name", name).is_err(), "{name:?}");
        }
        for name in ["kernel", "vmcore.zst", "console-serial0", "a..b"] {
            assert!(check_path_name("artifact name", name).is_ok(), "{name:?}");
        }
    }
}
