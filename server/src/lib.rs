//! The Crashyard server: the ledger of the farm, and the only one who says what evidence means.
//!
//! ```text
//! routes ─► api, agent, pages ─► db, blobs, judging ─► triage (pure)
//!           passes ────────────►
//! ```
//!
//! Requests and passes read and write the ledger ([`db`]) and the blob store ([`blobs`]); after every write of
//! evidence, [`judging`] asks [`triage`] what it means and writes the answer. A server keeps nothing that a `kill -9`
//! could lose: what is in memory is a cache ([`consoles`]) or a wake-up ([`wake`]).

pub mod accept;
pub mod agent;
pub mod api;
pub mod app;
pub mod auth;
pub mod beside;
pub mod blobs;
pub mod config;
pub mod consoles;
pub mod credentials;
pub mod db;
pub mod error;
pub mod evidence;
pub mod extract;
pub mod findings;
pub mod group;
pub mod ids;
pub mod inventory;
pub mod judging;
pub mod ledger_writer;
pub mod metrics;
pub mod opener;
pub mod pages;
pub mod passes;
pub mod placer;
pub mod preempt;
pub mod ranges;
pub mod receiver;
pub mod recorder;
pub mod relay;
pub mod renewer;
pub mod retries;
pub mod routes;
pub mod selector;
pub mod serve;
pub mod settling;
pub mod siblings;
pub mod sse;
pub mod terms;
pub mod triage;
pub mod trust;
pub mod uploads;
pub mod waiting;
pub mod wake;
