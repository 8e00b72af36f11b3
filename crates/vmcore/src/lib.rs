//! Linux crash dumps read without debuginfo.
//!
//! A dump of any x86-64 kernel since 6.0 describes itself: VMCOREINFO leads to kallsyms, kallsyms to BTF and ORC, and all of
//! them lie inside the dump. This crate follows that chain, so that a file and nothing else gives symbols, types and stacks.
//!
//! * [`summarise`]: the kernel, its log and the saved registers, in milliseconds: enough for a verdict.
//! * [`dmesg_only`]: the log alone.
//! * [`capsule`](mod@capsule): everything, as a document that outlives the dump.
//!
//! With the feature `dwarf`, `Lines` adds source lines and inlined functions from a vmlinux to a capsule. Nothing needs it.
//!
//! The source of the bytes is anything that implements [`ReadAt`]. Nothing here is async, writes, or asks the network.
//!
//! **It must never** panic, loop or grow without bound, whatever the bytes are: dumps come from machines that just crashed.
//! [`Limits`] bounds every table and list; damage inside a dump becomes a warning next to what could still be read.

#![forbid(unsafe_code)]

mod btf;
mod bytes;
mod capsule;
mod dmesg;
mod error;
mod format;
mod hooks;
mod kallsyms;
mod kernel;
#[cfg(feature = "dwarf")]
mod lines;
mod memory;
mod modules;
mod names;
mod orc;
mod read_at;
mod registers;
mod report;
mod summary;
mod tables;
mod typed;
mod unwind;
mod vmcoreinfo;

pub use btf::{Btf, Kind, Member, TypeId};
pub use capsule::*;
pub use dmesg::{Caller, DmesgLine};
pub use error::{Error, Fault, Limits};
pub use format::{Dump, Format, Note, PAGE, PageCounts, PageState, rearranged};
pub use kallsyms::{Encoding, Kallsyms};
pub use kernel::Kernel;
#[cfg(feature = "dwarf")]
pub use lines::Lines;
pub use memory::Memory;
pub use modules::{Module, ModuleSymbol};
pub use read_at::{Bytes, ReadAt};
pub use registers::RegisterSource;
pub use report::{Options, capsule, capsule_of_parts, of_kernel, vmx};
pub use summary::{CpuNote, Summary, dmesg_only, summarise};
pub use tables::TableCache;
pub use typed::Object;
pub use unwind::{RawFrame, RawStack, StackEnd};
pub use vmcoreinfo::Vmcoreinfo;
