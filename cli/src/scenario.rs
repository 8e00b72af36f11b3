//! `crashyard scenario`: the catalogue of what can be done to a machine, in files and on the server.
//!
//! A file holds one scenario, or a catalogue that makes many (`catalogue = "…"` at its top). Both are checked here by the
//! same rules as on the server, so that a file can be checked without one.

use crate::server::{Server, said, wait};
use crate::triage::vmcore::text;
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use crashyard_protocol::catalogue::Catalogue;
use crashyard_protocol::{Scenario, VmxState};
use std::path::{Path, PathBuf};

/// What to do with scenarios.
#[derive(Subcommand)]
pub enum ScenarioCommand {
    /// Say what a file makes, or what is wrong with it; needs no server
    #[command(after_help = "\
A file is one scenario, or a catalogue: states of VMX times triggers times CPUs.

  crashyard scenario check lab/scenarios/vmx.toml
  crashyard scenario check my.toml --json")]
    Check(Files),
    /// Store a file's scenarios on the server; runs that were submitted before keep what they had
    #[command(after_help = "\
  crashyard scenario put lab/scenarios/vmx.toml --only vmx-list-
  crashyard repro ATTEMPT --scenario | crashyard scenario put /dev/stdin --as mine")]
    Put(Put),
    /// List the stored scenarios
    List(List),
    /// Say what a stored scenario does, and what it expects
    Show(Show),
}

/// Arguments of `scenario check`.
#[derive(Args)]
pub struct Files {
    /// TOML files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the scenarios as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `scenario put`.
#[derive(Args)]
pub struct Put {
    /// TOML files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only scenarios whose name begins with this
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,
    /// Under this name, where it is one scenario
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Print what was stored as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `scenario list`.
#[derive(Args)]
pub struct List {
    /// Only those of this VMX state
    #[arg(long)]
    vmx: Option<VmxState>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `scenario show`.
#[derive(Args)]
pub struct Show {
    /// Name of the scenario; `crashyard scenario list` has them
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

impl ScenarioCommand {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check(args) => {
                let scenarios = read_all(&args.files)?;
                if args.json {
                    println!("{}", serde_json::to_string_pretty(&scenarios)?);
                } else {
                    scenarios.iter().for_each(|scenario| println!("{}", line(scenario)));
                    eprintln!("{} scenarios, nothing wrong.", scenarios.len());
                }
                Ok(())
            }
            Self::Put(args) => wait(put(args)),
            Self::List(args) => wait(list(args)),
            Self::Show(args) => wait(show(args)),
        }
    }
}

async fn put(args: Put) -> anyhow::Result<()> {
    let mut scenarios = read_all(&args.files)?;
    scenarios.retain(|scenario| scenario.name.starts_with(&args.only));
    if scenarios.is_empty() {
        bail!("no scenario's name begins with {:?}; crashyard scenario check prints the names", args.only);
    }
    if let Some(name) = args.name {
        let [scenario] = scenarios.as_mut_slice() else {
            bail!("one name is for one scenario, and these are {}; --only chooses", scenarios.len())
        };
        scenario.name = name;
        scenario.check().map_err(anyhow::Error::msg)?;
    }
    let client = args.server.client();
    for scenario in &mut scenarios {
        let stored = client.put_scenario(scenario).await;
        *scenario = stored.map_err(|error| said(&error)).with_context(|| scenario.name.clone())?.scenario;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&scenarios)?);
    } else {
        println!("{} scenarios stored; see {}/scenarios", scenarios.len(), args.server.address());
    }
    Ok(())
}

async fn list(args: List) -> anyhow::Result<()> {
    let stored = args.server.client().scenarios().await.map_err(|error| said(&error))?;
    let mut scenarios: Vec<Scenario> = stored.into_iter().map(|stored| stored.scenario).collect();
    scenarios.retain(|scenario| args.vmx.is_none_or(|vmx| scenario.vmx == vmx));
    scenarios.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&scenarios)?);
    } else {
        scenarios.iter().for_each(|scenario| println!("{}", line(scenario)));
    }
    Ok(())
}

async fn show(args: Show) -> anyhow::Result<()> {
    let stored = args.server.client().scenario(&args.name).await.map_err(|error| said(&error))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&stored.scenario)?);
        return Ok(());
    }
    let scenario = &stored.scenario;
    let mut lines = vec![format!("{}: {}", scenario.name, scenario.title), String::new(), "It does:".into()];
    lines.extend(scenario.does().iter().enumerate().map(|(at, step)| format!("  {}. {step}", at + 1)));
    lines.extend([String::new(), "It expects:".into()]);
    lines.extend(scenario.expects().iter().map(|expected| format!("  - {expected}")));
    lines.iter().for_each(|line| println!("{}", text::safe(line)));
    Ok(())
}

/// The scenarios of all files; nothing is done with any of them if one is wrong.
fn read_all(files: &[PathBuf]) -> anyhow::Result<Vec<Scenario>> {
    let mut all = Vec::new();
    for file in files {
        all.extend(read(file).with_context(|| format!("{}", file.display()))?);
    }
    Ok(all)
}

fn read(file: &Path) -> anyhow::Result<Vec<Scenario>> {
    parse(&std::fs::read_to_string(file)?)
}

fn parse(text: &str) -> anyhow::Result<Vec<Scenario>> {
    // Looked at before the rest, so that what is wrong is said about the form that was meant.
    let table: toml::Table = toml::from_str(text)?;
    if table.contains_key("catalogue") {
        let catalogue: Catalogue = toml::from_str(text)?;
        return catalogue.scenarios().map_err(anyhow::Error::msg);
    }
    let scenario: Scenario = toml::from_str(text)?;
    scenario.check().map_err(anyhow::Error::msg)?;
    Ok(vec![scenario])
}

fn line(scenario: &Scenario) -> String {
    let cpu = scenario.cpu.map_or_else(|| "any CPU".to_owned(), |cpu| format!("CPU {cpu}"));
    // By their text: a width pads strings only.
    let (vmx, trigger) = (scenario.vmx.as_str(), scenario.trigger.as_str());
    let what = format!("{:<36} {vmx:<13} {trigger:<17} {cpu:<8} {}", scenario.name, scenario.title);
    text::safe(&what).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "name = \"a\"\ntitle = \"A\"\ntrigger = \"sysrq-c\"\n[expect]\npanic = \"sysrq\"\n";

    fn said(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn a_file_is_one_scenario_or_a_catalogue() {
        assert_eq!(parse(ONE).unwrap().len(), 1);
        let catalogue = include_str!("../../lab/scenarios/vmx.toml");
        let scenarios = parse(catalogue).unwrap();
        assert!(scenarios.len() > 200, "{}", scenarios.len());
        assert!(line(&scenarios[0]).contains("vmx-none"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_or_with_what_to_write() {
        let typo = said(&ONE.replace("trigger", "triger"));
        assert!(typo.contains("line 3") && typo.contains("unknown field `triger`"), "{typo}");
        assert!(said(&ONE.replace("sysrq-c", "sysrq")).contains("`sysrq-c`"), "the known words are listed");
        assert!(said(&ONE.replace("\"sysrq\"", "\"\"")).contains("say in expect.panic"));
        assert!(said(&format!("vmx_number = 3\n{ONE}")).contains("takes no vmx_number: leave it out"));
        assert!(said("catalogue = \"x\"\nstate = []\ntrigger = []\n").contains("at least one [[state]]"));
    }
}
