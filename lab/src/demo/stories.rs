//! The demo's scenarios and what must become of them.

use anyhow::Context as _;
use crashyard_protocol::{Scenario, StageName, Status};
use serde::Deserialize;

/// A scenario and its predicted verdict.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Story {
    /// The predicted verdict.
    pub verdict: Status,
    /// The stage where the contract must stop, if it must.
    pub stage: Option<StageName>,
    /// What is done.
    pub scenario: Scenario,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    story: Vec<Story>,
}

/// The stories, or those of the given names.
pub fn all(only: &[String]) -> anyhow::Result<Vec<Story>> {
    let file: File = toml::from_str(include_str!("../../scenarios/demo.toml")).context("scenarios/demo.toml")?;
    let known: Vec<String> = file.story.iter().map(|story| story.scenario.name.clone()).collect();
    for name in only {
        anyhow::ensure!(known.contains(name), "no scenario {name}; there are {}", known.join(", "));
    }
    Ok(file.story.into_iter().filter(|story| only.is_empty() || only.contains(&story.scenario.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::all;

    #[test]
    fn the_demo_has_its_four_stories() {
        assert_eq!(all(&[]).unwrap().len(), 4);
        assert!(all(&["nonsense".to_owned()]).is_err());
    }
}
