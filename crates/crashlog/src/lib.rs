//! Text of a kernel console → crash reports, signatures and stage events.
//!
//! The engine reads bytes as they come from real consoles (any prefix, cut and interleaved lines, several boots, a
//! tail that still grows) and hands out every crash report in order, named by the field's conventions, with the
//! reasons; and the events that the crash contract is judged by. It is pure: no I/O, no clock, no threads.
//!
//! What it must never do: fail or panic on content, take more than linear time or unbounded memory, or give another
//! answer when the same bytes come in other pieces.
//!
//! ```
//! use crashyard_crashlog::{Options, Parser};
//!
//! let mut parser = Parser::new(Options::default());
//! parser.feed(b"[    1.000000] Kernel panic - not syncing: out of coffee\n[    1.00000");
//! parser.feed(b"1] CPU: 3 PID: 1 Comm: init Not tainted 7.3.4 #1\n");
//! let outcome = parser.finish();
//! assert_eq!(outcome.reports[0].title, "kernel panic: out of coffee");
//! assert_eq!(outcome.reports[0].cpu, Some(3));
//! ```

mod belonging;
mod build;
mod cause;
mod class;
mod details;
mod disasm;
mod events;
mod finder;
mod frames;
mod line;
mod model;
mod names;
mod normal;
mod open;
mod options;
mod parser;
mod scan;
mod stacks;
mod template;
mod told;
mod trace;

pub use events::recognise as event;
pub use model::{
    Code, ErrorCode, Event, EventKind, Fingerprint, Frame, Instruction, Kind, Outcome, RULE_VERSION, Register, Report,
    Stack, TaintFlag, Warning,
};
pub use open::OpenReport;
pub use options::{Intent, Options};
pub use parser::Parser;
pub use scan::literals;

/// Parses a whole input at once.
#[must_use]
pub fn parse(bytes: &[u8], options: Options) -> Outcome {
    let mut parser = Parser::new(options);
    parser.feed(bytes);
    parser.finish()
}
