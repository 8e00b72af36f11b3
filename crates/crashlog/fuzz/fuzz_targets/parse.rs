//! Any bytes, any cuts: never panics, never loops, and the pieces give what the whole gives.
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
    for piece in bytes.chunks(usize::from(*first) + 1) {
        parser.feed(piece);
    }
    assert_eq!(parser.finish(), whole);
});
