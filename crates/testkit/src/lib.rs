//! For tests: temporary databases, an unreliable wire, and a lab that only exists in memory.
//!
//! Fakes stand beside the real thing, never instead of it: the real crash runs in QEMU. What is here exists so that
//! thousands of interleavings of dying and repeating agents can be tried in seconds, from a printed seed. It must
//! never depend on the server, so that the server's tests may depend on it.

mod lab;
mod postgres;
mod wire;

pub use lab::{FakeLab, Kill, Progress};
pub use postgres::Postgres;
pub use wire::{Answer, Lost, Wire};
