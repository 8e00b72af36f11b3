//! Crashyard's agent: one crate, one binary, three roles.
//!
//! * [`controller`] runs in the lab: it takes leases, powers machines, records consoles, hands machines back.
//! * [`target`] runs in the kernel under test: it arms kdump and brings the kernel down.
//! * [`capture`] runs in the capture kernel: it streams the dump.
//!
//! Agents act and report what they saw. They never judge: whether something seen is good or bad is the server's to
//! say, so nothing in here may turn an observation into a verdict.

pub mod capture;
pub mod controller;
pub mod cpio;
pub mod disk;
pub mod download;
pub mod guest;
pub mod http;
pub mod ipmi;
pub mod journal;
pub mod line;
pub mod retry;
pub mod target;
pub mod upload;
