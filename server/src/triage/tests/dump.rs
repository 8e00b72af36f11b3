//! What is read in dumps, and when a dump cannot be read.

use super::story::{ATTEMPT, RELEASE};
use crate::triage::console::Intent;
use crate::triage::dump::{self, Expected, Outcome, Unreadable, oracles};
use crashyard_protocol::VmxState;
use crashyard_vmcore::{Options, ReadAt};

struct Source(std::io::Result<Vec<u8>>);

impl ReadAt for Source {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.0.as_ref().map_err(std::io::Error::kind)?;
        let from = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
        let length = buf.len().min(bytes.len() - from);
        buf[..length].copy_from_slice(&bytes[from..from + length]);
        Ok(length)
    }

    fn len(&self) -> u64 {
        self.0.as_ref().map_or(1 << 20, |bytes| bytes.len() as u64)
    }
}

fn intent() -> Intent {
    Intent { attempt: ATTEMPT.parse().expect("an id"), panic: "sysrq triggered crash".into(), oops: false }
}

#[test]
fn what_is_no_dump_is_a_broken_dump() {
    for bytes in [Vec::new(), b"<html>".repeat(1000), vec![0; 1 << 16]] {
        let read =
            dump::read(&Source(Ok(bytes)), &intent(), VmxState::None, &Options::default()).expect("the source works");
        assert!(matches!(read, Err(Unreadable { broken: true, .. })), "{read:?}");
    }
}

#[test]
fn a_store_that_fails_says_nothing_about_the_dump() {
    let source = Source(Err(std::io::ErrorKind::TimedOut.into()));
    assert!(dump::read(&source, &intent(), VmxState::None, &Options::default()).is_err());
}

#[test]
fn facts_of_an_empty_dump_hold_nothing() {
    let expected =
        Expected { release: RELEASE.into(), build_id: Some("00".into()), intent: intent(), vmx: VmxState::None };
    let oracles = oracles(&dump::DumpFacts::default(), &expected);
    let names: Vec<&str> = oracles.iter().map(|oracle| oracle.name.as_str()).collect();
    assert_eq!(names, ["release", "build-id", "marker", "panic", "registers"]);
    assert!(oracles.iter().all(|oracle| oracle.outcome != Outcome::Held));
}
