//! What earlier kernels of a console said, to know it when user space prints it again (`dmesg` of a dump).
//!
//! Only a hash of each line is kept, and only of lines that tell what happened. The few lines that the crash contract
//! asks about keep some room of their own, so that a kernel that warned a thousand times does not push them out.

use std::hash::{DefaultHasher, Hash, Hasher};

const MAX: usize = 4096;
/// Room that headers of reports leave to the lines of the contract.
const RESERVED: usize = 1024;

/// Lines with the boot that printed them first.
#[derive(Debug, Clone, Default)]
pub struct Told(Vec<(u32, u64)>);

impl Told {
    /// Whether an earlier boot printed the same text at the same time. Remembers the line otherwise.
    pub fn before(&mut self, boot: u32, stamp: &[u8], text: &[u8], header: bool) -> bool {
        let mut hasher = DefaultHasher::new();
        (stamp, &text[..text.len().min(200)]).hash(&mut hasher);
        let line = hasher.finish();
        match self.0.iter().find(|(_, told)| *told == line) {
            Some((first, _)) => *first < boot,
            None => {
                if self.0.len() < if header { MAX - RESERVED } else { MAX } {
                    self.0.push((boot, line));
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_replay_only_in_a_later_boot() {
        let mut told = Told::default();
        assert!(!told.before(0, b"1.000000", b"BUG: x", true));
        assert!(!told.before(0, b"1.000000", b"BUG: x", true), "a second console says everything twice");
        assert!(!told.before(1, b"1.000001", b"BUG: x", true));
        assert!(told.before(1, b"1.000000", b"BUG: x", true));
    }

    #[test]
    fn a_flood_of_headers_does_not_push_out_the_panic() {
        let mut told = Told::default();
        for i in 0..10_000 {
            told.before(0, b"1.000000", format!("WARNING: {i}").as_bytes(), true);
        }
        assert!(!told.before(0, b"2.000000", b"Kernel panic", false));
        assert!(told.before(1, b"2.000000", b"Kernel panic", false));
        assert!(told.0.len() <= MAX);
    }
}
