//! Where images are kept: one directory per user, everything in it named by what it was made from, so that nothing
//! in it is ever stale and all of it may be deleted at any time.

use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// The cache directory.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$CRASHYARD_CACHE`, else `$XDG_CACHE_HOME/crashyard`, else `~/.cache/crashyard`.
    pub fn open() -> anyhow::Result<Self> {
        let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = from("CRASHYARD_CACHE")
            .or_else(|| Some(from("XDG_CACHE_HOME")?.join("crashyard")))
            .or_else(|| Some(from("HOME")?.join(".cache/crashyard")))
            .context("no cache directory: set CRASHYARD_CACHE or HOME")?;
        Self::at(&root)
    }

    /// A cache in a given directory.
    pub fn at(root: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(root).with_context(|| format!("make {}", root.display()))?;
        Ok(Self { root: root.canonicalize()? })
    }

    /// A path inside.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The directory `name`, made by `make` if it is not there. It appears whole or not at all, so an interrupted
    /// making leaves nothing that could be taken for a result.
    pub fn directory(&self, name: &str, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        if path.is_dir() {
            return Ok(path);
        }
        let parent = path.parent().expect("a path inside the cache has a parent");
        std::fs::create_dir_all(parent)?;
        let unfinished =
            parent.join(format!(".{}.{}", path.file_name().unwrap_or_default().display(), std::process::id()));
        let _ = std::fs::remove_dir_all(&unfinished);
        std::fs::create_dir(&unfinished)?;
        let made = make(&unfinished).and_then(|()| match std::fs::rename(&unfinished, &path) {
            // Somebody else made the same thing meanwhile; it is the same.
            Err(_) if path.is_dir() => Ok(()),
            renamed => renamed.with_context(|| format!("keep {}", path.display())),
        });
        let _ = std::fs::remove_dir_all(&unfinished);
        made.map(|()| path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_once_and_a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        assert!(cache.directory("a/b", |_| anyhow::bail!("no")).is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 0);
        let made = cache.directory("a/b", |into| Ok(std::fs::write(into.join("f"), "x")?)).unwrap();
        assert_eq!(std::fs::read_to_string(made.join("f")).unwrap(), "x");
        cache.directory("a/b", |_| anyhow::bail!("made twice")).unwrap();
    }
}
