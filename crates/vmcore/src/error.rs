//! What can go wrong, and how much work one dump may cause.
//!
//! Two kinds of failure are kept apart. [`Error`] is about the dump as a whole: it cannot be opened, or it ends too early.
//! [`Fault`] is about one address: a page was filtered out, an address is not mapped. A fault never ends the work; the part
//! of the report that needed the page is left out and a warning says so.

use std::io;

/// Why a dump cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source failed.
    #[error("reading the dump: {0}")]
    Io(#[from] io::Error),
    /// The first bytes belong to no known dump format.
    #[error("not a crash dump: it starts with neither an ELF, a KDUMP nor a makedumpfile header")]
    NotADump,
    /// The dump is shorter than its own headers say: the transfer or the capture kernel stopped early.
    #[error("the dump is truncated: it has {have} bytes and needs at least {need}")]
    Truncated {
        /// Bytes there are.
        have: u64,
        /// Bytes its headers ask for.
        need: u64,
    },
    /// The writer itself marked the dump as incomplete (`makedumpfile` ran out of space).
    #[error("the dump is incomplete: its writer marked it so")]
    Incomplete,
    /// A format, machine or version this crate does not read.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The headers contradict themselves.
    #[error("corrupt dump: {0}")]
    Corrupt(&'static str),
    /// There is no VMCOREINFO, without which nothing in the memory can be found.
    #[error("the dump has no VMCOREINFO note (QEMU needs `-device vmcoreinfo` and the guest the qemu_fw_cfg driver)")]
    NoVmcoreinfo,
    /// A limit of [`Limits`] was reached before the dump could be opened.
    #[error("the dump asks for more than the limit of {limit} {what}")]
    Limit {
        /// What there were too many of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// Why the bytes at one address are not there. Addresses are virtual unless the name says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The page tables do not map the address.
    #[error("address {0:#x} is not mapped")]
    NotMapped(u64),
    /// The page existed but the dump level filtered it out.
    #[error("the page at physical {0:#x} was filtered out of the dump")]
    Excluded(u64),
    /// The physical address is no memory, or not covered by the dump.
    #[error("physical {0:#x} is not in the dump")]
    Absent(u64),
    /// The page is in the dump but cannot be read or decompressed.
    #[error("the page at physical {0:#x} cannot be read")]
    Damaged(u64),
    /// Reading would go on for longer than [`Limits`] allow.
    #[error("a table at {0:#x} is larger than allowed")]
    TooLarge(u64),
    /// A name, type or member that this kernel does not have.
    #[error("this kernel has no {0}")]
    NoSuch(&'static str),
}

/// Upper bounds that keep a hostile dump from costing more than an honest one. The defaults suit real machines.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of the kernel log buffer (text), and separately of its descriptors.
    pub log_bytes: u64,
    /// Bytes of one table (kallsyms names, BTF, ORC).
    pub table_bytes: u64,
    /// Bytes of all ELF notes together.
    pub note_bytes: u64,
    /// Program headers of an ELF dump.
    pub segments: u64,
    /// Chunks of a flattened dump.
    pub chunks: u64,
    /// Threads that are listed.
    pub tasks: u32,
    /// CPUs that are listed.
    pub cpus: u32,
    /// Elements of any other kernel list (modules, KVM guests, VMCSs).
    pub list: u32,
    /// Frames of one stack.
    pub frames: u32,
    /// Words of stacks that are tried as return addresses, in all, where nothing says what the caller is.
    pub scans: u32,
    /// Pages the page cache may hold (4 KiB each).
    pub cached_pages: u32,
    /// Bytes of symbol tables of modules kept at once.
    pub module_bytes: u64,
    /// Pages that may be fetched from the dump in all; a hostile dump that makes us wander ends here.
    pub pages_read: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            log_bytes: 64 << 20,
            table_bytes: 64 << 20,
            note_bytes: 64 << 20,
            segments: 1 << 20,
            chunks: 4 << 20,
            tasks: 100_000,
            cpus: 8192,
            list: 10_000,
            frames: 128,
            scans: 1 << 18,
            cached_pages: 2048,
            module_bytes: 32 << 20,
            pages_read: 4 << 20,
        }
    }
}
