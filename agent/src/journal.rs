//! The journal of one attempt: what was decided and what was seen, on disk before anybody acts on it.
//!
//! Append-only lines of JSON, each synced before [`Journal::append`] returns. A process that dies in mid-append
//! leaves a torn last line; opening drops it, because whatever it announced was not acted on yet. A torn line
//! anywhere else cannot come from a crash and is refused instead of being guessed around.

use anyhow::{Context as _, bail};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens or creates a journal and returns what it holds. Readable by its owner only: it holds an attempt token.
    pub fn open<T: DeserializeOwned>(path: &Path) -> anyhow::Result<(Self, Vec<T>)> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("open the journal {}", path.display()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
        }
        file.seek(SeekFrom::Start(whole as u64))?;
        let mut entries = Vec::new();
        for (number, line) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            match serde_json::from_slice(line) {
                Ok(entry) => entries.push(entry),
                Err(error) => bail!("{} line {} is not readable: {error}", path.display(), number + 1),
            }
        }
        // The directory entry must be as durable as the lines.
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok((Self { file, path: path.to_owned() }, entries))
    }

    /// Appends one entry; it is on disk when this returns.
    pub fn append<T: Serialize>(&mut self, entry: &T) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_data())
            .with_context(|| format!("write the journal {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_is_read_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let (mut journal, entries) = Journal::open::<u32>(&path).unwrap();
        assert!(entries.is_empty());
        for entry in [7, 8, 9] {
            journal.append(&entry).unwrap();
        }
        assert_eq!(Journal::open::<u32>(&path).unwrap().1, [7, 8, 9]);
    }

    #[test]
    fn a_cut_at_any_byte_loses_only_entries_that_were_not_synced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let lines = "\"one\"\n\"two\"\n\"three\"\n";
        for cut in 0..=lines.len() {
            std::fs::write(&path, &lines[..cut]).unwrap();
            let (mut journal, entries) = Journal::open::<String>(&path).unwrap();
            let whole = lines[..cut].matches('\n').count();
            assert_eq!(entries.len(), whole, "cut at {cut}");
            journal.append(&"next").unwrap();
            let again = Journal::open::<String>(&path).unwrap().1;
            assert_eq!(again.len(), whole + 1);
            assert_eq!(again.last().unwrap(), "next");
        }
    }

    #[test]
    fn damage_that_no_crash_explains_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        std::fs::write(&path, "1\nx\n3\n").unwrap();
        let error = Journal::open::<u32>(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
