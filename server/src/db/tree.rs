//! Trees and checkouts.

use super::{Db, DbResult, Tx, before_or_end, on, on_tx};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{CheckoutId, TreeId};
use sqlx::FromRow;

/// A source tree.
#[derive(Clone, Debug, FromRow)]
pub struct TreeRow {
    /// Id.
    pub id: TreeId,
    /// Unique name.
    pub name: String,
    /// Where it comes from.
    pub git_url: Option<String>,
    /// When it was registered.
    pub created_at: Timestamp,
}

/// One commit of a tree.
#[derive(Clone, Debug, FromRow)]
pub struct CheckoutRow {
    /// Id.
    pub id: CheckoutId,
    /// The tree.
    pub tree_id: TreeId,
    /// Full commit hash.
    pub git_commit_hash: String,
    /// Branch it was seen on.
    pub git_repository_branch: Option<String>,
    /// `git describe`.
    pub git_commit_name: Option<String>,
    /// When it was registered.
    pub created_at: Timestamp,
}

/// Registers a tree, or returns the one of that name; a URL given later is kept.
pub async fn create_tree(tx: &mut Tx, tree: &TreeRow) -> DbResult<TreeRow> {
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "INSERT INTO tree (id, name, git_url, created_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (name) DO UPDATE SET git_url = COALESCE(excluded.git_url, tree.git_url) \
         RETURNING id, name, git_url, created_at",
    )
    .bind(&tree.id)
    .bind(&tree.name)
    .bind(&tree.git_url)
    .bind(tree.created_at)
    .fetch_one(c)
    .await)?)
}

/// One page of trees, newest first.
pub async fn list_trees(db: &Db, before: Option<&str>, limit: i64) -> DbResult<Vec<TreeRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT id, name, git_url, created_at FROM tree WHERE id < $1 ORDER BY id DESC LIMIT $2",
    )
    .bind(before_or_end(before))
    .bind(limit)
    .fetch_all(c)
    .await)?)
}

/// The tree of this name.
pub async fn tree_by_name(db: &Db, name: &str) -> DbResult<TreeRow> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT id, name, git_url, created_at FROM tree WHERE name = $1")
        .bind(name)
        .fetch_one(c)
        .await)?)
}

/// One tree.
pub async fn tree(db: &Db, id: &TreeId) -> DbResult<TreeRow> {
    Ok(on!(db.read(), |c| sqlx::query_as("SELECT id, name, git_url, created_at FROM tree WHERE id = $1")
        .bind(id)
        .fetch_one(c)
        .await)?)
}

/// Registers a checkout, or returns the one of that commit; branch and name given later are kept.
pub async fn create_checkout(tx: &mut Tx, checkout: &CheckoutRow) -> DbResult<CheckoutRow> {
    Ok(on_tx!(tx, |c| sqlx::query_as(
        "INSERT INTO checkout (id, tree_id, git_commit_hash, git_repository_branch, git_commit_name, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (tree_id, git_commit_hash) DO UPDATE SET \
         git_repository_branch = COALESCE(excluded.git_repository_branch, checkout.git_repository_branch), \
         git_commit_name = COALESCE(excluded.git_commit_name, checkout.git_commit_name) \
         RETURNING id, tree_id, git_commit_hash, git_repository_branch, git_commit_name, created_at",
    )
    .bind(&checkout.id)
    .bind(&checkout.tree_id)
    .bind(&checkout.git_commit_hash)
    .bind(&checkout.git_repository_branch)
    .bind(&checkout.git_commit_name)
    .bind(checkout.created_at)
    .fetch_one(c)
    .await)?)
}

/// One checkout.
pub async fn checkout(db: &Db, id: &CheckoutId) -> DbResult<CheckoutRow> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT id, tree_id, git_commit_hash, git_repository_branch, git_commit_name, created_at \
         FROM checkout WHERE id = $1",
    )
    .bind(id)
    .fetch_one(c)
    .await)?)
}

/// One page of checkouts, newest first.
pub async fn list_checkouts(db: &Db, before: Option<&str>, limit: i64) -> DbResult<Vec<CheckoutRow>> {
    Ok(on!(db.read(), |c| sqlx::query_as(
        "SELECT id, tree_id, git_commit_hash, git_repository_branch, git_commit_name, created_at \
         FROM checkout WHERE id < $1 ORDER BY id DESC LIMIT $2",
    )
    .bind(before_or_end(before))
    .bind(limit)
    .fetch_all(c)
    .await)?)
}
