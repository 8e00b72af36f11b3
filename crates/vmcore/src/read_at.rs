//! Where the bytes of a dump come from.
//!
//! A dump may be a file, a memory map, a buffer or an object in a blob store that answers range requests. The engine only
//! needs "give me these bytes at this offset", so that is the whole trait. It is synchronous: the engine is plain
//! computation, and an async caller runs it on a blocking thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Random access to the bytes of one file or object.
pub trait ReadAt {
    /// Reads up to `buf.len()` bytes at `offset` and says how many it got; 0 means the end of the source.
    ///
    /// # Errors
    /// Whatever the source reports; the engine retries `Interrupted` and treats everything else as a missing page.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Size of the source in bytes.
    fn len(&self) -> u64;

    /// True when there is nothing to read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        (**self).read_at(offset, buf)
    }
    fn len(&self) -> u64 {
        (**self).len()
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Box<T> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        (**self).read_at(offset, buf)
    }
    fn len(&self) -> u64 {
        (**self).len()
    }
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |m| m.len())
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let Some(from) = usize::try_from(offset).ok().and_then(|start| self.get(start..)) else { return Ok(0) };
        let n = from.len().min(buf.len());
        buf[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.as_slice().read_at(offset, buf)
    }
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }
}

/// Anything that lends bytes: a memory map (`Bytes(mmap)`), an `Arc<[u8]>`, a reference-counted buffer.
///
/// A wrapper, so that this crate depends on no mapping library and holds no unsafe code.
#[derive(Debug, Clone)]
pub struct Bytes<T>(pub T);

impl<T: AsRef<[u8]>> ReadAt for Bytes<T> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.as_ref().read_at(offset, buf)
    }
    fn len(&self) -> u64 {
        self.0.as_ref().len() as u64
    }
}

/// Fills `buf` from `offset`, or says how far it got.
pub(crate) fn read_full(src: &dyn ReadAt, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        let Some(at) = offset.checked_add(done as u64) else { break };
        match src.read_at(at, &mut buf[done..]) {
            Ok(0) => break,
            // A source that claims more than it was offered is broken; never believe it.
            Ok(n) => done = (done + n).min(buf.len()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
