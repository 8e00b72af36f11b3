//! Where built things are kept: named by the hash of what they were made from, so that nothing is ever stale.
//!
//! A thing is built in a temporary folder beside its place and renamed into it when it is whole; whoever finds a
//! folder may use it, and a build that was cut off leaves nothing behind that looks finished.

use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// The cache folder: `CRASHYARD_CACHE`, else `crashyard` in the user's cache folder (XDG Base Directory).
pub fn folder() -> anyhow::Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("CRASHYARD_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|base| base.join("crashyard")))
        .or_else(|| from("HOME").map(|base| base.join(".cache/crashyard")))
        .context("no place for the cache: set CRASHYARD_CACHE to a folder")
}

/// The folder `kind/key`, made by `build` (which gets an empty folder to fill) if it is not there yet.
pub fn get_or_build(kind: &str, key: &str, build: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let parent = folder()?.join(kind);
    let place = parent.join(key);
    if place.is_dir() {
        return Ok(place);
    }
    std::fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
    let work = parent.join(format!("{key}.{}.partial", std::process::id()));
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir(&work)?;
    let built = build(&work);
    if built.is_ok() && std::fs::rename(&work, &place).is_err() && !place.is_dir() {
        anyhow::bail!("cannot move {} to {}", work.display(), place.display());
    }
    let _ = std::fs::remove_dir_all(&work);
    built.map(|()| place)
}
