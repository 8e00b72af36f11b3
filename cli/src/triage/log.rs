//! `crashyard triage log`: crash reports in console logs, for people and for machines.
//!
//! Reads files of any size piece by piece. Machine output is one JSON object a file; the report objects are the
//! engine's own, so the schema has one source. Human output must never pass bytes of a log to the terminal
//! unfiltered: a log may come from a machine that somebody else controls (`human::safe`).

mod human;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use crashyard_crashlog::{Intent, Options, Outcome, Parser};

/// The panic that a scenario asks for unless it says otherwise.
const USUAL_PANIC: &str = "sysrq triggered crash";

/// Arguments of `triage log`.
#[derive(clap::Args)]
pub struct Args {
    /// Files to read; `-` is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Print one indented JSON object a file
    #[arg(long, conflicts_with = "jsonl")]
    json: bool,
    /// Print one JSON object a file, each on one line
    #[arg(long)]
    jsonl: bool,
    /// The crash that was asked for: part of its header or title, `*` stands for anything
    #[arg(long, default_value = USUAL_PANIC, value_name = "PATTERN")]
    expect: String,
    /// Only a crash after the trigger marker with this text (for example `attempt=01J…`) can be the one asked for
    #[arg(long, value_name = "TEXT")]
    marker: Option<String>,
    /// Nothing was asked for: do not judge any crash intended
    #[arg(long, conflicts_with_all = ["expect", "marker"])]
    no_intent: bool,
}

#[derive(serde::Serialize)]
struct Line<'a> {
    file: &'a str,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let intent = (!args.no_intent).then(|| Intent { marker: args.marker.clone(), expect: args.expect.clone() });
    let mut unreadable = 0;
    for file in &args.files {
        let outcome = match parse(file, Options { intent: intent.clone() }) {
            Ok(outcome) => outcome,
            Err(error) => {
                // The other files are still wanted.
                anstream::eprintln!("{error:#}");
                unreadable += 1;
                continue;
            }
        };
        match print(args, file, &outcome) {
            // Whoever read our output has seen enough (`| head`).
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.context("cannot write the result")?,
        }
    }
    anyhow::ensure!(unreadable == 0, "{unreadable} of {} files could not be read", args.files.len());
    Ok(())
}

fn print(args: &Args, file: &Path, outcome: &Outcome) -> std::io::Result<()> {
    let name = file.to_string_lossy();
    let line = Line { file: &name, outcome };
    if args.json || args.jsonl {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if args.jsonl {
            serde_json::to_writer(&mut out, &line)?;
        } else {
            serde_json::to_writer_pretty(&mut out, &line)?;
        }
        out.write_all(b"\n")?;
        return out.flush();
    }
    human::print(&mut anstream::stdout().lock(), &name, outcome)
}

fn parse(file: &Path, options: Options) -> anyhow::Result<Outcome> {
    let mut input: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?)
    };
    let mut parser = Parser::new(options);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(parser.finish()),
            Ok(n) => parser.feed(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        }
    }
}
