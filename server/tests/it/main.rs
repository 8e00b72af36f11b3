//! Tests of the server from outside: requests go into its router in process, time stands still unless a test moves it.

mod agent_api;
mod auth;
mod consoles;
mod db_contract;
mod events;
mod faults;
mod harness;
mod leases;
mod migrations;
mod openapi;
mod rest;
mod uploads;
