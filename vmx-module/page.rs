// SPDX-License-Identifier: GPL-2.0

//! Zeroed kernel pages whose physical address is known.
//!
//! `kernel::page::Page` has no way to its physical address, which VMCSes and records are all about. Every page is counted,
//! so that unloading can say that none was left behind.

use core::ptr::NonNull;
use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::shim;

pub(crate) const SIZE: usize = kernel::page::PAGE_SIZE;

/// Allocations alive.
static HELD: Atomic<i64> = Atomic::new(0);

/// Page allocations not yet given back.
pub(crate) fn held() -> i64 {
    HELD.load(Relaxed)
}

/// A run of 2^order pages from the direct map, zeroed at birth and freed on drop.
pub(crate) struct Pages {
    address: NonNull<u8>,
    order: u32,
}

// SAFETY: Plain memory, owned.
unsafe impl Send for Pages {}
// SAFETY: A shared reference gives out an address only.
unsafe impl Sync for Pages {}

impl Pages {
    pub(crate) fn one() -> Result<Self> {
        Self::with_size(SIZE)
    }

    /// At least `bytes` of memory. Sleeps; fails with `ENOMEM`.
    pub(crate) fn with_size(bytes: usize) -> Result<Self> {
        let order = bytes.div_ceil(SIZE).next_power_of_two().trailing_zeros();
        // SAFETY: No requirements; called from process context.
        let address = unsafe { bindings::get_free_pages_noprof(bindings::GFP_KERNEL | bindings::__GFP_ZERO, order) };
        let address = NonNull::new(address as *mut u8).ok_or(ENOMEM)?;
        HELD.fetch_add(1, Relaxed);
        Ok(Self { address, order })
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    pub(crate) fn phys(&self) -> u64 {
        // SAFETY: The page allocator gives direct-map addresses.
        unsafe { shim::virt_to_phys(self.address.as_ptr() as usize) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Relaxed);
        // SAFETY: Allocated with this order, freed once.
        unsafe { bindings::free_pages(self.address.as_ptr() as c_ulong, self.order) };
    }
}
