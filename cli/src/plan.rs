//! `crashyard plan`: which scenarios run how often, on which machines.

use crate::server::{Server, said, wait};
use crate::triage::vmcore::text;
use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use crashyard_protocol::api::NewPlan;
use std::path::PathBuf;

/// What to do with plans.
#[derive(Subcommand)]
pub enum PlanCommand {
    /// Store a plan; runs that were submitted before keep what they had
    #[command(after_help = "\
A plan names stored scenarios (`crashyard scenario put`), and says what their machines must be like:

  name = \"vmx\"
  scenarios = [\"vmx-none-panic-cpu0\", \"vmx-none-oops-cpu0\"]
  repetitions = 3
  requires = [\"vmx.unrestricted\", \"memory_mib >= 4096\"]
  [selector]
  driver = \"metal\"
  [policy]
  tries = 3

  crashyard plan put vmx.toml")]
    Put(Put),
    /// List the stored plans
    List(List),
}

/// Arguments of `plan put`.
#[derive(Args)]
pub struct Put {
    /// A TOML file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `plan list`.
#[derive(Args)]
pub struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

impl PlanCommand {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Put(args) => wait(put(&args)),
            Self::List(args) => wait(list(&args)),
        }
    }
}

async fn put(args: &Put) -> anyhow::Result<()> {
    let name = || args.file.display().to_string();
    let plan = std::fs::read_to_string(&args.file).with_context(name)?;
    let plan = parse(&plan).with_context(name)?;
    let stored = args.server.client().put_plan(&plan).await.map_err(|error| said(&error))?.plan;
    let jobs = stored.scenarios.len() * stored.repetitions as usize;
    println!("{} is stored; a run of it has {jobs} jobs", text::safe(&stored.name));
    Ok(())
}

async fn list(args: &List) -> anyhow::Result<()> {
    let plans = args.server.client().plans().await.map_err(|error| said(&error))?;
    let plans: Vec<NewPlan> = plans.into_iter().map(|stored| stored.plan).collect();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&plans)?);
        return Ok(());
    }
    for plan in &plans {
        let labels = plan.selector.iter().map(|(label, value)| format!("{label} = {value}"));
        let machines: Vec<String> = labels.chain(plan.requires.iter().cloned()).collect();
        let (scenarios, times) = (plan.scenarios.len(), plan.repetitions);
        let line = format!("{:<24} {scenarios:>4} scenarios × {times:<4} {}", plan.name, machines.join(", "));
        println!("{}", text::safe(line.trim_end()));
    }
    Ok(())
}

/// What a plan may say; a word that nobody knows is a mistake and no wish.
const WORDS: [&str; 6] = ["name", "scenarios", "selector", "requires", "repetitions", "policy"];

fn parse(text: &str) -> anyhow::Result<NewPlan> {
    let table: toml::Table = toml::from_str(text)?;
    if let Some(word) = table.keys().find(|key| !WORDS.contains(&key.as_str())) {
        ensure!(false, "a plan has no {word:?}; it may have: {}", WORDS.join(", "));
    }
    Ok(toml::from_str(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crashyard_protocol::api::Policy;

    const PLAN: &str = "name = \"vmx\"\nscenarios = [\"a\"]\nrepetitions = 3\nrequires = [\"vmx.unrestricted\"]\n\
        [selector]\ndriver = \"metal\"\n[policy]\ntries = 3\n";

    #[test]
    fn a_plan_is_read_and_every_word_of_one_is_known() {
        let plan = parse(PLAN).unwrap();
        assert_eq!((plan.repetitions, plan.policy.tries), (3, Some(3)));
        assert_ne!(plan.policy, Policy::default());
        let words = serde_json::to_value(&plan).unwrap();
        let words: Vec<&str> = words.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(words.len() == WORDS.len() && words.iter().all(|word| WORDS.contains(word)), "{words:?}");
    }

    #[test]
    fn a_word_that_nobody_knows_is_refused_with_those_that_are() {
        let said = |text: &str| format!("{:#}", parse(text).unwrap_err());
        let typo = said(&PLAN.replace("requires", "require"));
        assert!(typo.contains("\"require\"") && typo.contains("requires, repetitions"), "{typo}");
        assert!(said(&PLAN.replace("tries", "trys")).contains("unknown field `trys`"));
        assert!(said("scenarios = []").contains("missing field"));
    }
}
