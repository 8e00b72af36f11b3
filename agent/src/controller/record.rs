//! What the journal of an attempt means.
//!
//! The journal holds decisions ("about to power on") and observations (reports). Reading it back gives a [`Record`],
//! and the record together with a look at the machine says what to do next. An action whose intent is written and
//! whose outcome is not may or may not have happened; each action says in [`super::attempt`] what that means for it.

use crashyard_protocol::agent::{Claim, KeyPress, Numbered, Report};
use serde::{Deserialize, Serialize};

/// An action on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Power on and boot.
    On,
    /// Send a diagnostic NMI.
    Nmi,
    /// Power off.
    Off,
}

impl Action {
    /// The word of [`Report::Power`].
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Nmi => "nmi",
            Self::Off => "off",
        }
    }
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// The lease. Always the first line.
    Leased {
        /// Name of the machine in the configuration.
        machine: String,
        /// What the server gave.
        claim: Box<Claim>,
    },
    /// About to act on the machine.
    Acting {
        /// How.
        action: Action,
    },
    /// Something seen, about to be reported under this number. The outcome of an action is such a report.
    Seen {
        /// The numbered report.
        #[serde(flatten)]
        report: Numbered,
    },
    /// About to type into a console what a person typed.
    Typing {
        /// What.
        press: KeyPress,
    },
    /// The server wants the machine back; nothing more is done to it but collecting.
    Collecting,
    /// The lease was handed back, or lost and the machine stopped. Always the last line.
    Closed {
        /// How it ended.
        how: Ending,
    },
}

/// How an attempt ended for this controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Released.
    Released,
    /// The lease was lost.
    Lost,
}

/// How far an action is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// Not thought of.
    #[default]
    Untouched,
    /// Intended; may have happened.
    Intended,
    /// Happened.
    Done,
    /// Tried, and did not work.
    Failed,
}

/// Everything the journal says.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Name of the machine.
    pub machine: String,
    /// The lease.
    pub claim: Claim,
    /// Reports, numbered from 0 without gaps.
    pub reports: Vec<Numbered>,
    /// What was about to be typed and may or may not have been.
    pub typing: Option<KeyPress>,
    /// Number of what is to be typed next.
    pub next_press: u64,
    /// Power-on.
    pub on: Progress,
    /// NMI.
    pub nmi: Progress,
    /// Power-off.
    pub off: Progress,
    /// Whether collecting began.
    pub collecting: bool,
    /// Outcome of the health check.
    pub health: Option<(bool, String)>,
    /// The end.
    pub closed: Option<Ending>,
}

impl Record {
    /// Reads a journal back. `None` for one that was made and never written to: nothing was done under it.
    #[must_use]
    pub fn replay(entries: Vec<Entry>) -> Option<Self> {
        let mut entries = entries.into_iter();
        let Some(Entry::Leased { machine, claim }) = entries.next() else { return None };
        let mut record = Self {
            machine,
            claim: *claim,
            reports: Vec::new(),
            typing: None,
            next_press: 0,
            on: Progress::default(),
            nmi: Progress::default(),
            off: Progress::default(),
            collecting: false,
            health: None,
            closed: None,
        };
        for entry in entries {
            record.apply(&entry);
        }
        Some(record)
    }

    /// Takes one more line into account.
    pub fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Leased { .. } => {}
            Entry::Acting { action } => *self.progress(*action) = Progress::Intended,
            Entry::Typing { press } => self.typing = Some(press.clone()),
            Entry::Seen { report } => {
                self.reports.push(report.clone());
                match &report.report {
                    Report::Power { action, ok, .. } => {
                        let outcome = if *ok { Progress::Done } else { Progress::Failed };
                        for known in [Action::On, Action::Nmi, Action::Off] {
                            if known.word() == action {
                                *self.progress(known) = outcome;
                            }
                        }
                    }
                    Report::Typed { number, .. } => {
                        self.typing = None;
                        self.next_press = number.saturating_add(1);
                    }
                    Report::Health { healthy, detail } => self.health = Some((*healthy, detail.clone())),
                    _ => {}
                }
            }
            Entry::Collecting => self.collecting = true,
            Entry::Closed { how } => self.closed = Some(*how),
        }
    }

    fn progress(&mut self, action: Action) -> &mut Progress {
        match action {
            Action::On => &mut self.on,
            Action::Nmi => &mut self.nmi,
            Action::Off => &mut self.off,
        }
    }

    /// Whether a report of this kind is in the journal.
    #[must_use]
    pub fn has_seen(&self, wanted: impl Fn(&Report) -> bool) -> bool {
        self.reports.iter().any(|numbered| wanted(&numbered.report))
    }
}
