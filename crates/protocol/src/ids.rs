//! Identifiers: ULIDs as text, one type for each thing that has one.
//!
//! A ULID sorts by creation time and is readable in a shell, a URL and a database. Parsing is strict, so a bad id in
//! a path is a client's mistake (404 or 400), never a database error.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;

/// Text that is not an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadId;

impl fmt::Display for BadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an id: expected 26 characters of Crockford base 32 (a ULID)")
    }
}

impl std::error::Error for BadId {}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String, example = "01JDB4Q1W5Z8N6K3X0V7T2R9MF"))]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Makes an id from a freshly drawn ULID.
            #[must_use]
            pub fn from_ulid(ulid: ulid::Ulid) -> Self {
                Self(ulid.to_string())
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                ulid::Ulid::from_string(text).map(Self::from_ulid).map_err(|_| BadId)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }

        #[cfg(feature = "sql")]
        $crate::sql_text!($name);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// A source tree that is tested (KCIDB: `tree_name`).
    TreeId,
    /// One commit of a tree.
    CheckoutId,
    /// One kernel built from a checkout.
    BuildId,
    /// A file kept by the server: part of a build, or evidence of an attempt.
    ArtifactId,
    /// A stored plan.
    PlanId,
    /// A stored scenario.
    ScenarioId,
    /// A build against a plan.
    RunId,
    /// One scenario owed by a run.
    JobId,
    /// One try of a job on one machine.
    AttemptId,
    /// A system under test.
    MachineId,
    /// A lab-side process that drives machines.
    ControllerId,
    /// A signature: crashes that look the same to one version of the rules.
    SignatureId,
    /// An API token (never its secret).
    TokenId,
    /// A machine selector that jobs share.
    SelectorId,
    /// Whoever's jobs share one part of the farm: a tree, or a token.
    SubmitterId,
    /// The queue of one submitter, priority and selector.
    FlowId,
    /// A machine taken by a person, or kept for one.
    ReservationId,
    /// Something that a controller shall do with an idle machine.
    ErrandId,
}
