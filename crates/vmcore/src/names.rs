//! A hash index from names to numbers that does not hold the names.
//!
//! Kernel symbol tables have a few hundred thousand names, most of which nobody asks for. This keeps 4 bytes per slot (an
//! entry number), and the caller, who can produce the name of an entry, decides equality. Open addressing, half full at most.

/// Index of names by hash.
#[derive(Debug, Clone, Default)]
pub(crate) struct NameIndex {
    slots: Vec<u32>,
    mask: usize,
}

const EMPTY: u32 = u32::MAX;
/// A hostile table could give every name the same hash; a chain longer than this is not followed.
const MAX_PROBES: usize = 256;

impl NameIndex {
    pub(crate) fn with_capacity(entries: usize) -> Self {
        let size = (entries * 2).next_power_of_two().max(16);
        Self { slots: vec![EMPTY; size], mask: size - 1 }
    }

    /// Adds an entry; of two entries with one name the caller finds the one added first.
    pub(crate) fn add(&mut self, name: &[u8], entry: u32) {
        let mut slot = hash(name) as usize & self.mask;
        for _ in 0..MAX_PROBES {
            if self.slots[slot] == EMPTY {
                self.slots[slot] = entry;
                return;
            }
            slot = (slot + 1) & self.mask;
        }
    }

    /// The first entry with this name for which `same` is true.
    pub(crate) fn find(&self, name: &[u8], mut same: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let mut slot = hash(name) as usize & self.mask;
        for _ in 0..MAX_PROBES {
            match self.slots[slot] {
                EMPTY => return None,
                entry if same(entry) => return Some(entry),
                _ => slot = (slot + 1) & self.mask,
            }
        }
        None
    }

    pub(crate) fn bytes(&self) -> usize {
        self.slots.len() * 4
    }
}

/// FNV-1a over 8 bytes at a time, mixed at the end: quick on the short names of a kernel.
fn hash(name: &[u8]) -> u64 {
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, rest) = name.as_chunks::<8>();
    let mut h = name.len() as u64;
    for w in words {
        h = (h ^ u64::from_le_bytes(*w)).wrapping_mul(PRIME).rotate_left(29);
    }
    for &b in rest {
        h = (h ^ u64::from(b)).wrapping_mul(PRIME).rotate_left(11);
    }
    (h ^ (h >> 32)).wrapping_mul(PRIME) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_the_first_of_two_wins() {
        let names: Vec<String> = (0..1000).map(|i| format!("symbol_{}", i % 990)).collect();
        let mut index = NameIndex::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            index.add(name.as_bytes(), i as u32);
        }
        for (i, name) in names.iter().enumerate() {
            let found = index.find(name.as_bytes(), |e| names[e as usize] == *name);
            assert_eq!(found, Some(i as u32 % 990));
        }
        assert_eq!(index.find(b"nobody", |e| names[e as usize] == "nobody"), None);
    }
}
