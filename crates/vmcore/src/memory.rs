//! Virtual memory of the crashed kernel.
//!
//! Addresses inside the kernel image are translated by `phys_base` alone, everything else (direct map, vmalloc, modules,
//! per-CPU) by walking the kernel's page tables, 4 or 5 levels, with 2 MiB and 1 GiB pages. No other constant of the memory
//! layout is used, so KASLR of every region is followed for free.
//!
//! Pages are kept in a small cache and translations in a direct-mapped one; both are bounded, as is the number of pages
//! that may be fetched in all.

use crate::error::{Error, Fault, Limits};
use crate::format::{Dump, PAGE};
use crate::vmcoreinfo::{KERNEL_MAP, Vmcoreinfo};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

const TLB_SLOTS: usize = 4096;
const PRESENT: u64 = 1;
const LARGE: u64 = 0x80;
/// Physical address bits of a page-table entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Reads kernel memory out of a dump.
pub struct Memory<'a> {
    dump: Dump<'a>,
    info: Vmcoreinfo,
    phys_base: u64,
    image_size: u64,
    top: u64,
    shifts: &'static [u32],
    /// Bits that memory encryption adds to entries.
    encrypted: u64,
    cache: RefCell<PageCache>,
    tlb: RefCell<Vec<(u64, u64)>>,
    budget: Cell<u64>,
}

impl<'a> Memory<'a> {
    /// Prepares to read the kernel in `dump`.
    ///
    /// # Errors
    /// [`Error::NoVmcoreinfo`], or [`Error::Corrupt`] when VMCOREINFO lacks the page-table root.
    pub fn new(dump: Dump<'a>, limits: &Limits) -> Result<Self, Error> {
        let info = Vmcoreinfo::parse(dump.vmcoreinfo().ok_or(Error::NoVmcoreinfo)?);
        if info.get("PAGESIZE").is_some_and(|size| size != "4096") {
            return Err(Error::Unsupported("a kernel with pages of other than 4096 bytes".into()));
        }
        let phys_base = info.number("phys_base").ok_or(Error::Corrupt("VMCOREINFO has no phys_base"))?;
        let root = info.symbol("init_top_pgt").or_else(|| info.symbol("swapper_pg_dir"));
        let root = root.ok_or(Error::Corrupt("VMCOREINFO has no page-table root"))?;
        let five = info.number("pgtable_l5_enabled") == Some(1);
        Ok(Self {
            phys_base,
            image_size: info.number("KERNEL_IMAGE_SIZE").unwrap_or(1 << 30),
            top: root.wrapping_sub(KERNEL_MAP).wrapping_add(phys_base),
            shifts: if five { &[48, 39, 30, 21, 12] } else { &[39, 30, 21, 12] },
            encrypted: info.number("sme_mask").unwrap_or(0),
            cache: RefCell::new(PageCache::new(limits.cached_pages)),
            tlb: RefCell::new(vec![(u64::MAX, 0); TLB_SLOTS]),
            budget: Cell::new(limits.pages_read),
            dump,
            info,
        })
    }

    /// The VMCOREINFO note.
    pub fn info(&self) -> &Vmcoreinfo {
        &self.info
    }

    /// The dump underneath.
    pub fn dump(&self) -> &Dump<'a> {
        &self.dump
    }

    /// Physical address behind a kernel address.
    ///
    /// # Errors
    /// [`Fault::NotMapped`], or the fault of a page-table page that is not in the dump.
    pub fn translate(&self, va: u64) -> Result<u64, Fault> {
        let into_image = va.wrapping_sub(KERNEL_MAP);
        if into_image < self.image_size {
            return Ok(into_image.wrapping_add(self.phys_base));
        }
        let page = va >> 12;
        let slot = page as usize % TLB_SLOTS;
        let (tag, pa) = self.tlb.borrow()[slot];
        if tag == page {
            return Ok(pa | (va & 0xfff));
        }
        let pa = self.walk(va)?;
        self.tlb.borrow_mut()[slot] = (page, pa & !0xfff);
        Ok(pa)
    }

    fn walk(&self, va: u64) -> Result<u64, Fault> {
        // Bits above the translated ones repeat the sign; anything else faults on a real machine too.
        let unused = 64 - (self.shifts[0] + 9);
        if ((va << unused).cast_signed() >> unused).cast_unsigned() != va {
            return Err(Fault::NotMapped(va));
        }
        let mut table = self.top;
        for &shift in self.shifts {
            let mut entry = [0u8; 8];
            self.read_phys(table + ((va >> shift) & 511) * 8, &mut entry)?;
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT == 0 {
                return Err(Fault::NotMapped(va));
            }
            table = entry & ADDRESS & !self.encrypted;
            if (shift == 30 || shift == 21) && entry & LARGE != 0 {
                let inside = (1u64 << shift) - 1;
                return Ok((table & !inside) | (va & inside));
            }
        }
        Ok(table | (va & 0xfff))
    }

    /// Reads physical memory that does not cross a page.
    fn read_phys(&self, pa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let at = (pa & 0xfff) as usize;
        self.with_page(pa >> 12, |page| {
            let n = buf.len().min(PAGE - at);
            buf[..n].copy_from_slice(&page[at..at + n]);
        })
    }

    fn with_page<R>(&self, pfn: u64, f: impl FnOnce(&[u8; PAGE]) -> R) -> Result<R, Fault> {
        let cache = &mut *self.cache.borrow_mut();
        if let Some(slot) = cache.find(pfn) {
            return Ok(f(&cache.pages[slot]));
        }
        let left = self.budget.get();
        if left == 0 {
            return Err(Fault::TooLarge(pfn << 12));
        }
        self.budget.set(left - 1);
        let slot = cache.free_slot();
        self.dump.page(pfn, &mut cache.pages[slot])?;
        cache.claim(slot, pfn);
        Ok(f(&cache.pages[slot]))
    }

    /// Fills `buf` from a kernel address.
    ///
    /// # Errors
    /// The fault of the first page that cannot be read.
    pub fn read(&self, va: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let mut done = 0;
        while done < buf.len() {
            let at = va.wrapping_add(done as u64);
            let n = (buf.len() - done).min(PAGE - (at & 0xfff) as usize);
            self.read_phys(self.translate(at)?, &mut buf[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    /// Reads a large table without disturbing the page cache.
    ///
    /// # Errors
    /// [`Fault::TooLarge`] above `limit`, or the fault of the first page that cannot be read.
    pub fn read_table(&self, va: u64, len: u64, limit: u64) -> Result<Vec<u8>, Fault> {
        if len > limit {
            return Err(Fault::TooLarge(va));
        }
        let pages = len / PAGE as u64 + 2;
        if self.budget.get() < pages {
            return Err(Fault::TooLarge(va));
        }
        // Grown page by page: a hostile length must not cost memory before there is data behind it.
        let mut out = Vec::with_capacity((len as usize).min(1 << 20));
        let mut page = [0u8; PAGE];
        while (out.len() as u64) < len {
            let at = va.wrapping_add(out.len() as u64);
            let inside = (at & 0xfff) as usize;
            let n = usize::try_from(len - out.len() as u64).unwrap_or(PAGE).min(PAGE - inside);
            let pa = self.translate(at)?;
            self.budget.set(self.budget.get().saturating_sub(1));
            self.dump.page(pa >> 12, &mut page)?;
            out.extend_from_slice(&page[inside..inside + n]);
        }
        Ok(out)
    }

    /// Reads an unsigned number of `N` bytes.
    fn number<const N: usize>(&self, va: u64) -> Result<[u8; N], Fault> {
        let mut buf = [0u8; N];
        self.read(va, &mut buf)?;
        Ok(buf)
    }

    /// Reads a byte.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn u8(&self, va: u64) -> Result<u8, Fault> {
        self.number::<1>(va).map(|b| b[0])
    }

    /// Reads a `u32`.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn u32(&self, va: u64) -> Result<u32, Fault> {
        self.number(va).map(u32::from_le_bytes)
    }

    /// Reads a `u64` or a pointer.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn u64(&self, va: u64) -> Result<u64, Fault> {
        self.number(va).map(u64::from_le_bytes)
    }

    /// Reads a NUL-terminated string of at most `max` bytes.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn cstr(&self, va: u64, max: usize) -> Result<String, Fault> {
        let mut out = Vec::new();
        while out.len() < max {
            let at = va.wrapping_add(out.len() as u64);
            let n = (max - out.len()).min(256).min(PAGE - (at & 0xfff) as usize);
            let start = out.len();
            out.resize(start + n, 0);
            self.read(at, &mut out[start..])?;
            if out[start..].contains(&0) {
                break;
            }
        }
        Ok(crate::bytes::text(&out))
    }
}

/// A bounded cache of pages; the oldest goes first.
struct PageCache {
    index: HashMap<u64, usize>,
    pages: Vec<Box<[u8; PAGE]>>,
    owner: Vec<u64>,
    next: usize,
    max: usize,
    last: (u64, usize),
}

const NOBODY: u64 = u64::MAX;

impl PageCache {
    fn new(max: u32) -> Self {
        let max = (max as usize).max(16);
        Self { index: HashMap::new(), pages: Vec::new(), owner: Vec::new(), next: 0, max, last: (NOBODY, 0) }
    }

    fn find(&mut self, pfn: u64) -> Option<usize> {
        if self.last.0 == pfn {
            return Some(self.last.1);
        }
        let slot = *self.index.get(&pfn)?;
        self.last = (pfn, slot);
        Some(slot)
    }

    /// A slot whose contents may be overwritten; it belongs to nobody until claimed.
    fn free_slot(&mut self) -> usize {
        if self.pages.len() < self.max && self.next == self.pages.len() {
            self.pages.push(Box::new([0; PAGE]));
            self.owner.push(NOBODY);
        }
        let slot = self.next;
        let old = std::mem::replace(&mut self.owner[slot], NOBODY);
        if old != NOBODY {
            self.index.remove(&old);
        }
        if self.last.1 == slot {
            self.last = (NOBODY, 0);
        }
        slot
    }

    fn claim(&mut self, slot: usize, pfn: u64) {
        self.owner[slot] = pfn;
        self.index.insert(pfn, slot);
        self.last = (pfn, slot);
        self.next = (slot + 1) % self.max;
    }
}
