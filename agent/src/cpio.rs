//! Writes newc cpio archives, the format of an initramfs.
//!
//! The kernel unpacks several archives laid end to end, each starting at a multiple of four bytes, the first ones
//! perhaps compressed (`Documentation/driver-api/early-userspace/buffer-format.rst`). That is how a ticket reaches a
//! machine: a small archive behind the build's own. Output is reproducible: no times, no owners, inode numbers in
//! order of addition.

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

/// `st_mode` bits of what initramfs images hold.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; its parent must have been added before.
    pub fn directory(&mut self, path: &str) -> &mut Self {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file with permission bits.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> &mut Self {
        self.entry(path, REGULAR | permissions, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character special file.
    pub fn character(&mut self, path: &str, permissions: u32, major: u32, minor: u32) -> &mut Self {
        self.entry(path, CHARACTER | permissions, (major, minor), &[])
    }

    /// The finished archive, a multiple of four bytes long.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> &mut Self {
        let size = u32::try_from(content.len()).expect("files of an initramfs are smaller than 4 GiB");
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let name = path.trim_start_matches('/');
        let name_size = u32::try_from(name.len() + 1).expect("a path is short");
        self.bytes.extend_from_slice(b"070701");
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        for field in [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        pad(&mut self.bytes);
        self.bytes.extend_from_slice(content);
        pad(&mut self.bytes);
        self.inode += 1;
        self
    }
}

/// Lays `archive` behind the initramfs image `base`, at the next place where the kernel looks for one.
#[must_use]
pub fn append(mut base: Vec<u8>, archive: &[u8]) -> Vec<u8> {
    pad(&mut base);
    base.extend_from_slice(archive);
    base
}

/// What to write behind an initramfs image of `length` bytes so that `archive` follows it where the kernel looks.
#[must_use]
pub fn behind(length: u64, archive: &[u8]) -> Vec<u8> {
    let missing = length.next_multiple_of(4) - length;
    let mut bytes = vec![0; usize::try_from(missing).expect("less than four")];
    bytes.extend_from_slice(archive);
    bytes
}

/// Fills up to a multiple of four with zeros.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    fn sample() -> Archive {
        let mut archive = Archive::new();
        archive.directory("etc").file("etc/empty", 0o644, b"").file("etc/odd", 0o600, b"abc").symlink("sh", "etc/odd");
        archive
    }

    #[test]
    fn the_system_cpio_lists_and_reads_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("cpio")
            .args(["-idm", "--quiet"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("this test needs the package cpio");
        child.stdin.take().unwrap().write_all(&sample().finish()).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(dir.path().join("etc/odd")).unwrap(), b"abc");
        assert_eq!(std::fs::read(dir.path().join("etc/empty")).unwrap(), b"");
        assert_eq!(std::fs::read_link(dir.path().join("sh")).unwrap().to_str(), Some("etc/odd"));
    }

    #[test]
    fn archives_start_where_the_kernel_looks() {
        let joined = append(vec![1, 2, 3], &sample().finish());
        assert_eq!(&joined[..10], b"\x01\x02\x03\x00070701");
        assert!(joined.len().is_multiple_of(4));
        for length in 1..9 {
            let base = vec![1; length];
            let written = [base.clone(), behind(length as u64, b"archive.")].concat();
            assert_eq!(written, append(base, b"archive."), "an image of {length} bytes");
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(sample().finish(), sample().finish());
    }
}
