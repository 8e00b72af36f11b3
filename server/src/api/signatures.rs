//! Signatures: crashes by what they are.

use super::{PageQuery, wire};
use crate::app::AppState;
use crate::auth::Reader;
use crate::db::signature::{self, PlaceRow};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, Query};
use axum::extract::State;
use crashyard_crashlog::RULE_VERSION;
use crashyard_protocol::SignatureId;
use crashyard_protocol::api::{Page, Signature};
use serde::Deserialize;
use std::collections::HashMap;

/// Places of one signature in a list, and on its own.
const PLACES_IN_LIST: i64 = 5;
const PLACES: i64 = 200;

/// Which version of the rules.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
pub struct RulesQuery {
    /// Signatures made by this version of the crash-log rules; the server's own if absent.
    pub rules: Option<u32>,
}

/// Crashes nobody asked for, each signature once, newest first. Signatures of older rules stay as they were.
#[utoipa::path(get, path = "/api/v1/signatures", tag = "signatures", params(PageQuery, RulesQuery),
    responses((status = 200, body = Page<Signature>)))]
pub async fn list_signatures(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
    Query(rules): Query<RulesQuery>,
) -> AppResult<Json<Page<Signature>>> {
    Ok(Json(page(&state, &query, rules.rules).await?))
}

/// A page of signatures, as API and pages show it.
pub async fn page(state: &AppState, query: &PageQuery, rules: Option<u32>) -> AppResult<Page<Signature>> {
    let (before, limit) = query.checked()?;
    let rules = i64::from(rules.unwrap_or(RULE_VERSION));
    let rows = signature::list(&state.db, rules, before, limit).await?;
    let mut places: HashMap<SignatureId, Vec<PlaceRow>> = HashMap::new();
    for place in signature::places(&state.db, rules, before, limit, PLACES_IN_LIST).await? {
        places.entry(place.signature_id.clone()).or_default().push(place);
    }
    let signatures = rows.into_iter().map(|row| {
        let seen = places.remove(&row.id).unwrap_or_default();
        wire::signature(row, seen)
    });
    Ok(query.page(signatures.collect(), |signature: &Signature| signature.id.to_string()))
}

/// One signature, with the newest places where it was seen.
#[utoipa::path(get, path = "/api/v1/signatures/{id}", tag = "signatures", params(("id" = SignatureId, Path)),
    responses((status = 200, body = Signature)))]
pub async fn get_signature(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<SignatureId>,
) -> AppResult<Json<Signature>> {
    Ok(Json(one(&state, &id).await?))
}

/// One signature, as API and pages show it.
pub async fn one(state: &AppState, id: &SignatureId) -> AppResult<Signature> {
    let row = signature::get(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "signature"))?;
    Ok(wire::signature(row, signature::places_of(&state.db, id, PLACES).await?))
}
