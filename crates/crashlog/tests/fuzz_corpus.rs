//! Replays the fuzzer's minimised corpus (`fuzz/corpus/parse`): what once reached a new corner of the engine must still be
//! read without a panic, and in pieces as in one. The first byte of a file chooses the length of the pieces, as in the target.

use crashyard_crashlog::{Intent, Options, Parser, parse};

#[test]
fn everything_the_fuzzer_kept_is_read_the_same_in_pieces() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/parse");
    let options = || Options { intent: Some(Intent::new("sysrq triggered crash")) };
    let mut read = 0;
    for file in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
        let data = std::fs::read(&file).unwrap();
        let (first, bytes) = data.split_first().unwrap_or((&0, &[]));
        let mut parser = Parser::new(options());
        for piece in bytes.chunks(usize::from(*first) + 1) {
            parser.feed(piece);
        }
        assert_eq!(parser.finish(), parse(bytes, options()), "{}", file.display());
        read += 1;
    }
    assert!(read > 100, "only {read} files in {}", dir.display());
}
