//! KCIDB's result statuses, used wherever something is judged.

/// Defines an enum whose text form is the same in JSON, the database and URLs, with `FromStr` and `Display`.
// The texts are `tt`: as `literal` the description of the API cannot read them, and lists names of Rust instead.
#[macro_export]
macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:tt),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ::serde::Serialize, ::serde::Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),* }

        impl $name {
            /// Every value, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The value's text form.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    other => Err(format!(concat!("unknown ", stringify!($name), " {:?}"), other)),
                }
            }
        }

        #[cfg(feature = "sql")]
        $crate::sql_text!($name);

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    };
}

text_enum! {
    /// A result in KCIDB's words (KCIDB schema 5.3, `status` of a test).
    Status {
        /// The contract was kept.
        Pass = "PASS",
        /// The kernel under test broke the contract.
        Fail = "FAIL",
        /// The test itself went wrong (agent, configuration).
        Error = "ERROR",
        /// No result: the lab did not deliver. What every owed result reads until there is one.
        Miss = "MISS",
        /// Deliberately not run.
        Skip = "SKIP",
        /// Ran, with nothing to judge.
        Done = "DONE",
    }
}

text_enum! {
    /// How soon a job is wanted. The order of classes is strict; inside a class submitters share by weight.
    Priority {
        /// Before everything else: somebody waits for it.
        Urgent = "urgent",
        /// What is not said otherwise.
        Normal = "normal",
        /// Whenever machines are free.
        Bulk = "bulk",
    }
}

impl Priority {
    /// Place among the classes, first is 0.
    #[must_use]
    pub const fn class(self) -> i64 {
        match self {
            Self::Urgent => 0,
            Self::Normal => 1,
            Self::Bulk => 2,
        }
    }
}

text_enum! {
    /// What an attempt of a job is for.
    Purpose {
        /// The test that is owed.
        Test = "test",
        /// The same test of a kernel that is known to be good, on the machine where it failed.
        KnownGood = "known-good",
        /// The same test on another machine than the one where it failed.
        Elsewhere = "elsewhere",
    }
}

text_enum! {
    /// Where a run is.
    RunState {
        /// Some jobs are not done.
        Open = "open",
        /// Every job has its verdict.
        Done = "done",
    }
}

text_enum! {
    /// Where a job is.
    JobState {
        /// Waits for a machine.
        Queued = "queued",
        /// An attempt holds it.
        Leased = "leased",
        /// Has its verdict.
        Done = "done",
        /// Withdrawn by a person before it had a verdict.
        Cancelled = "cancelled",
    }
}

text_enum! {
    /// Where an attempt is.
    AttemptState {
        /// The contract is being worked through.
        Running = "running",
        /// The crash is judged; the controller collects what is left and returns the machine.
        Collecting = "collecting",
        /// The machine is back; nothing more is expected.
        Done = "done",
        /// The lease ran out; what arrived until then was judged.
        Lost = "lost",
    }
}

impl AttemptState {
    /// Whether the machine is with the attempt no more, and its agents may not write.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Lost)
    }
}

text_enum! {
    /// Life cycle of a machine.
    MachineState {
        /// Known, never yet seen idle.
        Enrolled = "enrolled",
        /// Ready for a job.
        Available = "available",
        /// An attempt owns it.
        Leased = "leased",
        /// Kept as it is after a failure, for a person to look at.
        Held = "held",
        /// A person has it.
        Reserved = "reserved",
        /// Not trusted; the reason says why.
        Quarantined = "quarantined",
        /// Gone for good.
        Retired = "retired",
    }
}

text_enum! {
    /// Where an artifact is.
    ArtifactState {
        /// Bytes are still arriving.
        Open = "open",
        /// Every byte is there and the whole hash was equal.
        Complete = "complete",
        /// Its content was dropped by policy; name, size and hash stay.
        Dropped = "dropped",
    }
}

text_enum! {
    /// What a token may do.
    Scope {
        /// Everything, including tokens.
        Admin = "admin",
        /// Trees, checkouts, builds, plans, scenarios and runs.
        Submit = "submit",
        /// Enrol machines and claim attempts.
        Controller = "controller",
        /// Act inside one attempt, until it ends.
        Attempt = "attempt",
    }
}

text_enum! {
    /// What the owner of a reservation is told.
    NoticeEvent {
        /// Its end is near.
        EndsSoon = "ends-soon",
        /// It is over, and not on their word.
        Ended = "ended",
    }
}

text_enum! {
    /// What a controller shall do with an idle machine.
    ErrandKind {
        /// Power and consoles are tried.
        Check = "check",
        /// The machine is powered off, as a person had it.
        Off = "off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_reads_back_from_its_text() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(*status));
            assert_eq!(serde_json::to_value(status).expect("a string"), serde_json::json!(status.as_str()));
        }
        assert!("pass".parse::<Status>().is_err());
    }
}
