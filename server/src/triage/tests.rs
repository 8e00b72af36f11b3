//! Stories that machines tell, and what the judge makes of them.

mod console;
mod dump;
mod properties;
mod stories;
mod story;
