//! The dump disk: how a dump leaves a machine that has no network.
//!
//! A raw disk, no file system, because the capture kernel has little memory and needs no driver for it. The first
//! block is a header that is written last, after everything behind it is synced: whoever finds a valid header finds
//! a complete dump. The controller clears the header before the machine starts, so that an older attempt's dump can
//! never be mistaken for this one's.

use anyhow::{Context as _, bail, ensure};
use crashyard_protocol::AttemptId;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Serial number by which the capture agent knows the disk (virtio allows 20 characters).
pub const SERIAL: &str = "crashyard-dump";

/// Where the dump starts; everything before belongs to the header.
pub const DATA_AT: u64 = 4096;

/// Bytes moved at a time.
const BLOCK: usize = 1024 * 1024;

const MAGIC: &str = "crashyard dump disk 1";

/// What the first block says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    magic: String,
    /// The attempt whose dump this is.
    pub attempt: AttemptId,
    /// Bytes of the dump.
    pub bytes: u64,
    /// BLAKE3 of the dump, lower-case hex.
    pub blake3: String,
}

/// Finds the dump disk among the block devices below `sys_block` (`/sys/block`).
pub fn find(sys_block: &Path, dev: &Path) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(sys_block).with_context(|| format!("list {}", sys_block.display()))?;
    for entry in entries {
        let entry = entry?;
        // Virtio disks have a serial number there; of ATA disks the model is what an emulator can be told.
        let is_it = ["serial", "device/model"].iter().any(|name| {
            let text = std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            text.trim() == SERIAL
        });
        if is_it {
            return Ok(dev.join(entry.file_name()));
        }
    }
    bail!("no disk has the serial number or model {SERIAL}")
}

/// Writes a stream to the disk, without the header. Returns its length and hash.
pub async fn write_data(device: &Path, mut source: impl AsyncRead + Unpin) -> anyhow::Result<(u64, String)> {
    let mut disk = OpenOptions::new().write(true).open(device).with_context(|| format!("open {}", device.display()))?;
    disk.seek(SeekFrom::Start(DATA_AT))?;
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; BLOCK];
    let mut bytes = 0;
    loop {
        let read = source.read(&mut block).await.context("read the dump")?;
        if read == 0 {
            break;
        }
        hasher.update(&block[..read]);
        disk.write_all(&block[..read]).with_context(|| format!("write {}", device.display()))?;
        bytes += read as u64;
    }
    disk.sync_all().with_context(|| format!("sync {}", device.display()))?;
    Ok((bytes, hasher.finalize().to_hex().to_string()))
}

/// Declares the dump on the disk complete.
pub fn seal(device: &Path, attempt: &AttemptId, bytes: u64, blake3: &str) -> anyhow::Result<()> {
    let header = Header { magic: MAGIC.into(), attempt: attempt.clone(), bytes, blake3: blake3.into() };
    let mut block = serde_json::to_vec(&header)?;
    ensure!(block.len() as u64 <= DATA_AT, "the header does not fit into its block");
    block.resize(usize::try_from(DATA_AT).expect("a block fits into memory"), b'\n');
    let mut disk = OpenOptions::new().write(true).open(device)?;
    disk.write_all(&block)?;
    disk.sync_all().with_context(|| format!("sync {}", device.display()))
}

/// Makes an empty disk of `bytes`, whatever was there before.
pub fn blank(image: &Path, bytes: u64) -> anyhow::Result<()> {
    let file = File::create(image).with_context(|| format!("create {}", image.display()))?;
    file.set_len(bytes)?;
    file.sync_all()?;
    Ok(())
}

/// Opens a complete dump of `attempt`, positioned at its first byte; `None` if there is none.
pub fn open(image: &Path, attempt: &AttemptId) -> anyhow::Result<Option<(Header, File)>> {
    let mut file = match File::open(image) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open {}", image.display())),
    };
    let mut block = Vec::new();
    (&mut file).take(DATA_AT).read_to_end(&mut block)?;
    let Ok(header) = serde_json::from_slice::<Header>(&block) else { return Ok(None) };
    if header.magic != MAGIC || header.attempt != *attempt {
        return Ok(None);
    }
    let room = file.metadata()?.len().saturating_sub(DATA_AT);
    ensure!(header.bytes <= room, "the dump disk announces {} bytes and has room for {room}", header.bytes);
    file.seek(SeekFrom::Start(DATA_AT))?;
    Ok(Some((header, file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(n: u128) -> AttemptId {
        AttemptId::from_ulid(ulid::Ulid(n))
    }

    #[tokio::test]
    async fn a_dump_is_there_only_once_it_is_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        assert!(open(&image, &attempt(1)).unwrap().is_none());
        blank(&image, 1 << 20).unwrap();
        let dump = vec![7; 100_000];
        let (bytes, hash) = write_data(&image, &dump[..]).await.unwrap();
        assert!(open(&image, &attempt(1)).unwrap().is_none());
        seal(&image, &attempt(1), bytes, &hash).unwrap();
        let (header, file) = open(&image, &attempt(1)).unwrap().unwrap();
        let mut back = Vec::new();
        file.take(header.bytes).read_to_end(&mut back).unwrap();
        assert_eq!(back, dump);
        assert_eq!(header.blake3, blake3::hash(&dump).to_hex().to_string());
    }

    #[tokio::test]
    async fn another_attempts_dump_and_an_older_one_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        blank(&image, 1 << 20).unwrap();
        seal(&image, &attempt(1), 10, "00").unwrap();
        assert!(open(&image, &attempt(2)).unwrap().is_none());
        blank(&image, 1 << 20).unwrap();
        assert!(open(&image, &attempt(1)).unwrap().is_none());
    }

    #[test]
    fn a_header_that_promises_too_much_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        blank(&image, 1 << 20).unwrap();
        seal(&image, &attempt(1), 1 << 30, "00").unwrap();
        assert!(open(&image, &attempt(1)).is_err());
    }

    #[test]
    fn the_disk_is_found_by_its_serial_number() {
        let dir = tempfile::tempdir().unwrap();
        for (name, serial) in [("sda", None), ("vda", Some("other")), ("vdb", Some(SERIAL))] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            if let Some(serial) = serial {
                std::fs::write(dir.path().join(name).join("serial"), serial).unwrap();
            }
        }
        assert_eq!(find(dir.path(), Path::new("/dev")).unwrap(), Path::new("/dev/vdb"));
        std::fs::remove_dir_all(dir.path().join("vdb")).unwrap();
        assert!(find(dir.path(), Path::new("/dev")).is_err());
    }
}
