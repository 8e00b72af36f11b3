//! One compressed page to 4096 bytes, by the method its descriptor names.
//!
//! The output is always exactly one page, so no input can make a decoder allocate: whatever does not fit is an error.
//! zlib, LZO and snappy are pure Rust without unsafe code; zstd is the C library, which is several times faster on frames
//! this small and is the best-tested decoder there is.

use super::PAGE;
use flate2::{Decompress, FlushDecompress, Status};

/// Flags of `page_desc` (`makedumpfile` diskdump_mod.h).
pub(super) const ZLIB: u32 = 0x1;
pub(super) const LZO: u32 = 0x2;
pub(super) const SNAPPY: u32 = 0x4;
pub(super) const ZSTD: u32 = 0x20;

/// Decoder state that is worth keeping between pages.
pub(super) struct Decompressor {
    zlib: Decompress,
    snappy: snap::raw::Decoder,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decompressor {
    pub(super) fn new() -> Self {
        // Without zstd (out of memory at this point) its pages read as damaged.
        Self {
            zlib: Decompress::new(true),
            snappy: snap::raw::Decoder::new(),
            zstd: zstd::bulk::Decompressor::new().ok(),
        }
    }

    /// Fills `out`; false when the data is damaged or the method unknown.
    pub(super) fn page(&mut self, flags: u32, data: &[u8], out: &mut [u8; PAGE]) -> bool {
        match flags & (ZLIB | LZO | SNAPPY | ZSTD) {
            0 if data.len() == PAGE => {
                out.copy_from_slice(data);
                true
            }
            ZLIB => {
                self.zlib.reset(true);
                let done = self.zlib.decompress(data, out, FlushDecompress::Finish);
                matches!(done, Ok(Status::StreamEnd)) && self.zlib.total_out() == PAGE as u64
            }
            LZO => lzo::decompress_into(data, out).is_ok_and(|n| n == PAGE),
            SNAPPY => self.snappy.decompress(data, out).is_ok_and(|n| n == PAGE),
            ZSTD => match &mut self.zstd {
                Some(zstd) => zstd.decompress_to_buffer(data, &mut out[..]).is_ok_and(|n| n == PAGE),
                None => false,
            },
            _ => false,
        }
    }
}
