//! Parses files and prints one JSON object a file: `crashlog-json FILE..`, for scoring without the command line tool.

use std::io::{Read, Write};

use crashyard_crashlog::{Intent, Options, Outcome, Parser};

#[derive(serde::Serialize)]
struct Line<'a> {
    file: &'a str,
    #[serde(flatten)]
    outcome: Outcome,
}

fn main() -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    for file in std::env::args().skip(1) {
        let mut parser = Parser::new(Options { intent: Some(Intent::new("sysrq triggered crash")) });
        let mut input = std::fs::File::open(&file)?;
        loop {
            let n = input.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            parser.feed(&buffer[..n]);
        }
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &Line { file: &file, outcome: parser.finish() })?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
