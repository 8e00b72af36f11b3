//! How often the agent was started in this capture kernel, kept in its RAM disk.

use anyhow::Context as _;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

/// This start.
#[derive(Debug)]
pub struct Starts {
    /// Counts from 1.
    pub number: u32,
    died: PathBuf,
}

impl Starts {
    /// Counts one more start in `directory`.
    pub fn count(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let file = directory.join("starts");
        let before: u32 = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let number = before + 1;
        std::fs::write(&file, number.to_string()).with_context(|| format!("write {}", file.display()))?;
        Ok(Self { number, died: directory.join("died-as-told") })
    }

    /// Whether fault injection may still strike; true once in the life of the directory.
    pub fn may_die(&self) -> std::io::Result<bool> {
        match OpenOptions::new().write(true).create_new(true).open(&self.died) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_and_fault_injection_strikes_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = Starts::count(dir.path()).unwrap();
        assert_eq!(first.number, 1);
        assert!(first.may_die().unwrap());
        let second = Starts::count(dir.path()).unwrap();
        assert_eq!(second.number, 2);
        assert!(!second.may_die().unwrap());
    }
}
