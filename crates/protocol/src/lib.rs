//! The wire: what server, agents, CLI and CI systems say to each other.
//!
//! Plain serde types, one word for one thing, no behaviour beyond parsing and printing. Server, agent and CLI
//! depend on this crate and never on each other. Wire types are not database rows: a row may change shape in a
//! migration, a wire type may only grow optional fields.

pub mod agent;
pub mod api;
pub mod bzimage;
pub mod catalogue;
pub mod check;
#[cfg(feature = "hash")]
pub mod chunk;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
#[cfg(feature = "client")]
pub mod events;
mod ids;
pub mod problem;
#[cfg(feature = "client")]
pub mod retry;
mod scenario;
#[cfg(feature = "sql")]
mod sql;
mod stage;
mod status;
mod told;

pub use ids::*;
pub use scenario::*;
pub use stage::*;
pub use status::*;
