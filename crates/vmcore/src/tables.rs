//! The tables that are the same in every dump of one kernel, and a cache of them by build id.
//!
//! Kallsyms and BTF are byte-identical in every boot of a kernel, wherever KASLR puts it; only a base address differs.
//! Decoding them is most of the work of reading a dump, so a server keeps a [`TableCache`] and the second dump of a kernel
//! starts with everything ready.
//!
//! A dump is not trusted to be the kernel it says it is: before cached tables are used, a few pages of each are compared with
//! the dump. A forged dump can still carry other bytes elsewhere under a known build id; it then gets *wrong names*, nothing
//! worse, and only in its own report, unless it came first. A server that reads dumps of several owners should keep one
//! cache for each.

use crate::btf::Btf;
use crate::error::Limits;
use crate::kallsyms;
use crate::memory::Memory;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Decoded tables of one kernel.
#[derive(Clone)]
pub(crate) struct Tables {
    pub kallsyms: Option<Arc<kallsyms::Table>>,
    pub btf: Option<Arc<Btf>>,
}

/// Decoded tables by build id, shared between dumps and threads.
pub struct TableCache {
    inner: Mutex<Inner>,
    max_bytes: usize,
}

struct Inner {
    entries: HashMap<String, (u64, Tables)>,
    clock: u64,
}

impl TableCache {
    /// A cache that holds at most about `max_bytes` (a kernel takes 8 to 15 MB); the kernel that was used longest ago goes first.
    pub fn new(max_bytes: usize) -> Self {
        Self { inner: Mutex::new(Inner { entries: HashMap::new(), clock: 0 }), max_bytes }
    }

    /// Number of kernels in the cache.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// True when nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave a half-made entry: entries are inserted whole.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn get(&self, build_id: &str) -> Option<Tables> {
        let inner = &mut *self.lock();
        inner.clock += 1;
        let entry = inner.entries.get_mut(build_id)?;
        entry.0 = inner.clock;
        Some(entry.1.clone())
    }

    pub(crate) fn put(&self, build_id: &str, tables: &Tables) {
        let inner = &mut *self.lock();
        inner.clock += 1;
        inner.entries.insert(build_id.to_owned(), (inner.clock, tables.clone()));
        while inner.entries.len() > 1 && inner.entries.values().map(|(_, t)| t.bytes()).sum::<usize>() > self.max_bytes
        {
            let Some(oldest) = inner.entries.iter().min_by_key(|(_, (used, _))| *used).map(|(id, _)| id.clone()) else {
                break;
            };
            inner.entries.remove(&oldest);
        }
    }
}

impl Tables {
    fn bytes(&self) -> usize {
        self.kallsyms.as_ref().map_or(0, |k| k.bytes()) + self.btf.as_ref().map_or(0, |b| b.bytes())
    }
}

/// Loads kallsyms, from the cache when it has this kernel.
pub(crate) fn kallsyms(
    memory: &Memory,
    limits: &Limits,
    known: Option<&Tables>,
) -> Result<kallsyms::Kallsyms, crate::Fault> {
    let place = kallsyms::Place::find(memory)?;
    if let Some(table) = known.and_then(|k| k.kallsyms.as_ref())
        && table.agrees_with(memory, &place)
    {
        return Ok(kallsyms::Kallsyms::new(table.clone(), &place));
    }
    let table = Arc::new(kallsyms::Table::load(memory, &place, limits)?);
    Ok(kallsyms::Kallsyms::new(table, &place))
}

/// Compares samples of a cached table with the dump: its ends and six places between.
pub(crate) fn samples_agree(memory: &Memory, va: u64, table: &[u8]) -> bool {
    const SAMPLE: usize = 64;
    let last = table.len().saturating_sub(SAMPLE);
    let mut here = [0u8; SAMPLE];
    (0..=7usize).all(|i| {
        let at = last / 7 * i;
        let cached = &table[at..(at + SAMPLE).min(table.len())];
        let here = &mut here[..cached.len()];
        memory.read(va.wrapping_add(at as u64), here).is_ok() && here == cached
    })
}
