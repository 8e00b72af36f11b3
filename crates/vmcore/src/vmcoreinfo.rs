//! VMCOREINFO: the text note in which the kernel tells where a few things are.
//!
//! It is `KEY=value` lines. `SYMBOL(x)` is hexadecimal without a prefix, `OFFSET`, `SIZE` and `LENGTH` are decimal, `NUMBER`
//! is decimal or `0x…` (Documentation/admin-guide/kdump/vmcoreinfo.rst).

use std::collections::HashMap;

/// Start of the kernel image mapping on x86-64 (`__START_KERNEL_map`); KASLR moves the kernel inside it.
pub(crate) const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// The parsed note.
#[derive(Debug, Clone, Default)]
pub struct Vmcoreinfo {
    keys: HashMap<String, String>,
}

impl Vmcoreinfo {
    pub(crate) fn parse(note: &[u8]) -> Self {
        let text = crate::bytes::text(note);
        let pair = |line: &str| line.split_once('=').map(|(k, v)| (k.to_owned(), v.trim().to_owned()));
        Self { keys: text.lines().filter_map(pair).collect() }
    }

    /// The raw value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// Address of a symbol.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.get(&format!("SYMBOL({name})"))?, 16).ok()
    }

    /// Offset of a member, in bytes.
    pub fn offset(&self, member: &str) -> Option<u64> {
        self.get(&format!("OFFSET({member})"))?.parse().ok()
    }

    /// Size of a type, in bytes.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.get(&format!("SIZE({name})"))?.parse().ok()
    }

    /// A number; negative ones as two's complement.
    pub fn number(&self, name: &str) -> Option<u64> {
        let text = self.get(&format!("NUMBER({name})"))?;
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse::<u64>().ok().or_else(|| text.parse::<i64>().ok().map(i64::cast_unsigned)),
        }
    }

    /// `uname -r` of the crashed kernel.
    pub fn release(&self) -> &str {
        self.get("OSRELEASE").unwrap_or_default()
    }

    /// Build id of the crashed kernel, lower-case hexadecimal.
    pub fn build_id(&self) -> Option<&str> {
        self.get("BUILD-ID").filter(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    /// How far KASLR moved the kernel.
    pub fn kernel_offset(&self) -> Option<u64> {
        u64::from_str_radix(self.get("KERNELOFFSET")?, 16).ok()
    }

    /// When it crashed, in seconds since 1970; only a real kdump has it.
    pub fn crash_time(&self) -> Option<i64> {
        self.get("CRASHTIME")?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_every_notation_the_kernel_uses() {
        let info = Vmcoreinfo::parse(
            b"SYMBOL(prb)=ffffffff82000000\nNUMBER(a)=-129\nNUMBER(b)=0xff\nSIZE(page)=64\nbad line\0x=1",
        );
        assert_eq!(info.symbol("prb"), Some(0xffff_ffff_8200_0000));
        assert_eq!(info.number("a"), Some((-129i64).cast_unsigned()));
        assert_eq!(info.number("b"), Some(255));
        assert_eq!(info.size("page"), Some(64));
        assert_eq!(info.get("x"), None);
    }
}
