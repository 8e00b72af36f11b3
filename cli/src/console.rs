//! `crashyard console`: a live attempt's console, to read and to type into.
//!
//! What is typed goes by the server to the attempt's controller, is kept with who typed it, and the attempt's history says
//! whether the console took it. Nothing is ever sent twice from here: after an error nobody knows whether it was typed.

use crate::server::{Server, said};
use crate::triage::vmcore::text;
use anyhow::Context as _;
use clap::Args;
use crashyard_protocol::AttemptId;
use crashyard_protocol::agent::Keys;
use crashyard_protocol::api::Compared;
use crashyard_protocol::client::Client;
use serde::Deserialize;
use std::io::Write as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Arguments of `console`.
#[derive(Args)]
#[command(after_help = "\
Without --type, --sysrq or --break it prints the console as it grows until the attempt is over, and types each line that is
entered. A line that begins with ~ is for this program: ~b sends a break, ~s KEY a SysRq key, ~. ends, ~~ types a tilde.

  crashyard console 01JDB4Q1W5Z8N6K3X0V7T2R9MF
  crashyard console 01JDB4Q1W5Z8N6K3X0V7T2R9MF --sysrq t
  crashyard console 01JDB4Q1W5Z8N6K3X0V7T2R9MF --beside net
  crashyard console 01JDB4Q1W5Z8N6K3X0V7T2R9MF --type 'dmesg -n 8\\n'

What is typed is evidence: the attempt's page shows it, with the name of your token.")]
pub struct Console {
    /// Id of the attempt; its page and `crashyard machine show NAME` have it
    #[arg(value_name = "ATTEMPT")]
    id: String,
    /// Which of its consoles
    #[arg(long, default_value = "serial")]
    source: String,
    /// Type this and end; \n, \r, \t and \\ are understood
    #[arg(long = "type", value_name = "TEXT", conflicts_with_all = ["sysrq", "break_"])]
    text: Option<String>,
    /// Send a break and this key, which Linux takes for SysRq, and end
    #[arg(long, value_name = "KEY", conflicts_with = "break_")]
    sysrq: Option<char>,
    /// Send a break and end
    #[arg(long = "break")]
    break_: bool,
    /// Show another console beside it: `>` marks what only the other heard, `<` what only this one did
    #[arg(long, value_name = "SOURCE", conflicts_with_all = ["text", "sysrq", "break_"])]
    beside: Option<String>,
    /// Print JSON (with --type, --sysrq, --break or --beside)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

impl Console {
    pub async fn run(self) -> anyhow::Result<()> {
        let id: AttemptId = self.id.parse().ok().with_context(|| format!("{:?} is no id of an attempt", self.id))?;
        let client = self.server.client();
        if let Some(other) = &self.beside {
            let compared = client.compared(&id, &self.source, other).await.map_err(|error| said(&error))?;
            if self.json {
                println!("{}", serde_json::to_string_pretty(&compared)?);
            } else {
                print!("{}", side_by_side(&compared, &self.source, other));
            }
            return Ok(());
        }
        let keys = match (&self.text, self.sysrq, self.break_) {
            (Some(text), ..) => Some(Keys::Text(unescape(text))),
            (None, Some(key), _) => Some(Keys::Sysrq(key)),
            (None, None, true) => Some(Keys::Break),
            (None, None, false) => None,
        };
        let Some(keys) = keys else {
            return tokio::select! {
                ended = follow(&client, &id, &self.source) => ended,
                ended = type_lines(&client, &id, &self.source) => ended,
            };
        };
        let taken = client.press(&id, &self.source, &keys).await.map_err(|error| said(&error))?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&taken)?);
        } else {
            println!("The server has it; whether the console took it is in the attempt's history.");
        }
        Ok(())
    }
}

/// Arguments of `repro`.
#[derive(Args)]
#[command(after_help = "\
Kernel with its files, command line, microcode, firmware, VMX capabilities, scenario with every input, what nobody chooses, and
the commands that do it again on the same machine.

  crashyard repro 01JDB4Q1W5Z8N6K3X0V7T2R9MF
  crashyard repro 01JDB4Q1W5Z8N6K3X0V7T2R9MF --json > repro.json
  crashyard repro 01JDB4Q1W5Z8N6K3X0V7T2R9MF --scenario > mine.toml")]
pub struct Repro {
    /// Id of the attempt
    #[arg(value_name = "ATTEMPT")]
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the scenario alone, as `crashyard scenario put` takes it
    #[arg(long, conflicts_with = "json")]
    scenario: bool,
    #[command(flatten)]
    server: Server,
}

impl Repro {
    pub async fn run(self) -> anyhow::Result<()> {
        let id: AttemptId = self.id.parse().ok().with_context(|| format!("{:?} is no id of an attempt", self.id))?;
        let repro = self.server.client().repro(&id).await.map_err(|error| said(&error))?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&repro)?);
            return Ok(());
        }
        if self.scenario {
            // Its strings are the server's, and TOML escapes control characters.
            print!("{}", toml::to_string(&repro.scenario)?);
            return Ok(());
        }
        println!("kernel      {} ({})", text::safe(&repro.build.release), text::safe(&repro.build.name));
        println!("build id    {}", text::safe(repro.build.build_id.as_deref().unwrap_or("unknown")));
        println!("machine     {}", text::safe(&repro.machine));
        println!("scenario    {}", text::safe(&serde_json::to_string(&repro.scenario)?));
        repro.steps.iter().for_each(|step| println!("            {}", text::safe(step)));
        println!("seed        none: no step draws a random number. Left open:");
        repro.left_open.iter().for_each(|one| println!("            {}", text::safe(one)));
        for (name, value) in &repro.facts {
            println!("{}", text::safe(&format!("{name:<20} {value}")));
        }
        println!();
        repro.commands.iter().for_each(|command| println!("{}", text::safe(command)));
        Ok(())
    }
}

/// Prints the console from its beginning until the attempt is over.
async fn follow(client: &Client, id: &AttemptId, source: &str) -> anyhow::Result<()> {
    let mut answer = client.console_text(id, source).await.map_err(|error| said(&error))?;
    let mut rest = Vec::new();
    while let Some(bytes) = answer.chunk().await.context("the server has gone")? {
        rest.extend_from_slice(&bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if let Some(text) = printed(&String::from_utf8_lossy(&line)) {
                print!("{}", text::safe_lines(&text.replace('\r', "")));
                std::io::stdout().flush()?;
            }
        }
    }
    Ok(())
}

/// Two consoles in one text.
fn side_by_side(compared: &Compared, first: &str, second: &str) -> String {
    let mut out = String::new();
    for line in &compared.lines {
        let mark = match (line.first, line.second) {
            (true, true) => ' ',
            (true, false) => '<',
            (false, _) => '>',
        };
        out.push_str(&format!("{mark} {}\n", text::safe(&line.text)));
    }
    let Compared { both, first_only, second_only, .. } = compared;
    let counts = format!("both heard {both}, {first} alone {first_only}, {second} alone {second_only}");
    out + &format!("\nOf the kernel's lines, {}.\n", text::safe(&counts))
}

#[derive(Deserialize)]
struct Piece {
    text: String,
}

/// What one line of the event stream prints.
fn printed(line: &str) -> Option<String> {
    let data = line.strip_prefix("data:")?;
    serde_json::from_str(data.trim()).ok().map(|piece: Piece| piece.text)
}

/// Types what is entered, until there is no more or `~.`.
async fn type_lines(client: &Client, id: &AttemptId, source: &str) -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match entered(&line) {
            Entered::Type(keys) => {
                client.press(id, source, &keys).await.map_err(|error| said(&error))?;
            }
            Entered::End => return Ok(()),
            Entered::Unknown => eprintln!("[~b sends a break, ~s KEY a SysRq key, ~. ends, ~~ types a tilde]"),
        }
    }
    // Nobody types any more, and somebody may still read.
    std::future::pending().await
}

#[derive(Debug, PartialEq, Eq)]
enum Entered {
    Type(Keys),
    End,
    Unknown,
}

fn entered(line: &str) -> Entered {
    let Some(command) = line.strip_prefix('~') else { return Entered::Type(Keys::Text(format!("{line}\n"))) };
    let mut sysrq = command.strip_prefix("s ").into_iter().flat_map(str::chars);
    match (command, sysrq.next(), sysrq.next()) {
        ("b", ..) => Entered::Type(Keys::Break),
        (".", ..) => Entered::End,
        (_, Some(key), None) => Entered::Type(Keys::Sysrq(key)),
        _ if command.starts_with('~') => Entered::Type(Keys::Text(format!("{command}\n"))),
        _ => Entered::Unknown,
    }
}

/// Reads the escapes of `--type`.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, (c == '\\').then(|| chars.next()).flatten()) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('r')) => out.push('\r'),
            ('\\', Some('t')) => out.push('\t'),
            ('\\', Some('\\')) => out.push('\\'),
            ('\\', Some(other)) => out.extend(['\\', other]),
            (c, _) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_typed_and_a_tilde_is_for_this_program() {
        assert_eq!(entered("ls"), Entered::Type(Keys::Text("ls\n".into())));
        assert_eq!(entered(""), Entered::Type(Keys::Text("\n".into())));
        assert_eq!(entered("~b"), Entered::Type(Keys::Break));
        assert_eq!(entered("~s t"), Entered::Type(Keys::Sysrq('t')));
        assert_eq!(entered("~."), Entered::End);
        assert_eq!(entered("~~x"), Entered::Type(Keys::Text("~x\n".into())));
        assert_eq!(entered("~s tt"), Entered::Unknown);
        assert_eq!(entered("~?"), Entered::Unknown);
    }

    #[test]
    fn escapes_are_read_and_everything_else_stays() {
        assert_eq!(unescape(r"dmesg -n 8\n"), "dmesg -n 8\n");
        assert_eq!(unescape(r"a\\n\q\"), "a\\n\\q\\");
    }

    #[test]
    fn two_consoles_are_marked_and_counted() {
        use crashyard_protocol::api::ComparedLine;
        let line = |text: &str, first, second| ComparedLine { text: text.into(), first, second };
        let lines = vec![line("a", true, true), line("b\u{1b}", true, false), line("c", false, true)];
        let compared = Compared { lines, both: 1, first_only: 1, second_only: 1, cut: false };
        let text = side_by_side(&compared, "serial", "net");
        assert_eq!(text, "  a\n< b\\x1b\n> c\n\nOf the kernel's lines, both heard 1, serial alone 1, net alone 1.\n");
    }

    #[test]
    fn the_event_streams_text_is_printed_and_nothing_else() {
        assert_eq!(printed("data: {\"offset\":0,\"text\":\"up\\n\"}\n"), Some("up\n".into()));
        assert_eq!(printed("id: 4\n"), None);
        assert_eq!(printed("data: {}\n"), None);
    }
}
