//! Tests of the server from outside: requests go into its router in process, time stands still unless a test moves it.

mod agent_api;
mod auth;
mod consoles;
mod db_contract;
mod dumps;
mod errands;
mod events;
mod faults;
mod fleet;
mod harness;
mod leases;
mod lender;
mod migrations;
mod notices;
mod openapi;
mod placement;
mod rest;
mod signatures;
mod two_servers;
mod uploads;

/// A small kernel's memory, made by the reader's own tests.
#[expect(dead_code, reason = "the fixture has more shapes than these tests need")]
#[path = "../../../crates/vmcore/tests/synthetic/mod.rs"]
mod synthetic;
