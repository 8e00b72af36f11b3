//! Trees and checkouts.

use super::{PageQuery, wire};
use crate::app::AppState;
use crate::auth::{Reader, Submitter};
use crate::db::tree::{self, CheckoutRow, TreeRow};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, Path, Query, check_name};
use axum::extract::State;
use crashyard_protocol::api::{Checkout, NewCheckout, NewTree, Page, Tree};
use crashyard_protocol::{CheckoutId, TreeId};

/// Trees, newest first.
#[utoipa::path(get, path = "/api/v1/trees", tag = "trees", params(PageQuery), responses((status = 200, body = Page<Tree>)))]
pub async fn list_trees(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
) -> AppResult<Json<Page<Tree>>> {
    let (before, limit) = query.checked()?;
    let rows = tree::list_trees(&state.db, before, limit).await?;
    Ok(Json(query.page(rows.into_iter().map(wire::tree).collect(), |tree: &Tree| tree.id.to_string())))
}

/// Registers a tree; one of that name is returned as it is.
#[utoipa::path(post, path = "/api/v1/trees", tag = "trees", request_body = NewTree, responses((status = 200, body = Tree)))]
pub async fn create_tree(
    _: Submitter,
    State(state): State<AppState>,
    Json(new): Json<NewTree>,
) -> AppResult<Json<Tree>> {
    check_name("tree name", &new.name)?;
    check_optional("git_url", new.git_url.as_deref())?;
    let row = TreeRow {
        id: TreeId::from_ulid(state.ids.next()),
        name: new.name,
        git_url: new.git_url,
        created_at: state.now(),
    };
    let mut tx = state.db.begin().await?;
    let row = tree::create_tree(&mut tx, &row).await?;
    tx.commit().await?;
    Ok(Json(wire::tree(row)))
}

/// One tree.
#[utoipa::path(get, path = "/api/v1/trees/{id}", tag = "trees", params(("id" = TreeId, Path)), responses((status = 200, body = Tree)))]
pub async fn get_tree(_: Reader, State(state): State<AppState>, Path(id): Path<TreeId>) -> AppResult<Json<Tree>> {
    let row = tree::tree(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "tree"))?;
    Ok(Json(wire::tree(row)))
}

/// Checkouts, newest first.
#[utoipa::path(get, path = "/api/v1/checkouts", tag = "trees", params(PageQuery), responses((status = 200, body = Page<Checkout>)))]
pub async fn list_checkouts(
    _: Reader,
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
) -> AppResult<Json<Page<Checkout>>> {
    let (before, limit) = query.checked()?;
    let rows = tree::list_checkouts(&state.db, before, limit).await?;
    Ok(Json(query.page(rows.into_iter().map(wire::checkout).collect(), |row: &Checkout| row.id.to_string())))
}

/// Registers a checkout of a tree; one of that commit is returned as it is.
#[utoipa::path(post, path = "/api/v1/checkouts", tag = "trees", request_body = NewCheckout, responses((status = 200, body = Checkout)))]
pub async fn create_checkout(
    _: Submitter,
    State(state): State<AppState>,
    Json(new): Json<NewCheckout>,
) -> AppResult<Json<Checkout>> {
    let hex = new.git_commit_hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !hex || !matches!(new.git_commit_hash.len(), 40 | 64) {
        return Err(AppError::Invalid("git_commit_hash must be the full hash: 40 or 64 lower-case hex digits".into()));
    }
    check_optional("git_repository_branch", new.git_repository_branch.as_deref())?;
    check_optional("git_commit_name", new.git_commit_name.as_deref())?;
    let tree = tree::tree_by_name(&state.db, &new.tree).await.map_err(|error| AppError::or_not_found(error, "tree"))?;
    let row = CheckoutRow {
        id: CheckoutId::from_ulid(state.ids.next()),
        tree_id: tree.id,
        git_commit_hash: new.git_commit_hash,
        git_repository_branch: new.git_repository_branch,
        git_commit_name: new.git_commit_name,
        created_at: state.now(),
    };
    let mut tx = state.db.begin().await?;
    let row = tree::create_checkout(&mut tx, &row).await?;
    tx.commit().await?;
    Ok(Json(wire::checkout(row)))
}

/// One checkout.
#[utoipa::path(get, path = "/api/v1/checkouts/{id}", tag = "trees", params(("id" = CheckoutId, Path)), responses((status = 200, body = Checkout)))]
pub async fn get_checkout(
    _: Reader,
    State(state): State<AppState>,
    Path(id): Path<CheckoutId>,
) -> AppResult<Json<Checkout>> {
    let row = tree::checkout(&state.db, &id).await.map_err(|error| AppError::or_not_found(error, "checkout"))?;
    Ok(Json(wire::checkout(row)))
}

pub(super) fn check_optional(what: &str, text: Option<&str>) -> AppResult<()> {
    text.map_or(Ok(()), |text| check_name(what, text))
}
