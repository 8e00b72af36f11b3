//! Any bytes, any cuts: never panics, never loops, the pieces give what the whole gives, and a parser that is drained
//! after each piece hands out the same events.
//!
//! The first byte of the input chooses the length of the pieces.

#![no_main]

use crashyard_crashlog::{Intent, Options, Parser, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let options = || Options { intent: Some(Intent::new("sysrq triggered crash")) };
    let whole = parse(bytes, options());
    let mut parser = Parser::new(options());
    let mut drained = Parser::new(options());
    let (mut events, mut known) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(usize::from(*first) + 1) {
        parser.feed(piece);
        drained.feed(piece);
        events.extend(drained.drain().events);
        let names: Vec<_> = drained.open().map(|report| (report.start(), report.lines())).collect();
        for report in drained.open().filter(|report| !known.contains(&(report.start(), report.lines()))) {
            drop(report.title());
        }
        known = names;
    }
    assert_eq!(parser.events(), events);
    assert_eq!(parser.finish(), whole);
});
