//! The demo's scenarios and what must come of them.

use anyhow::{Context as _, ensure};
use crashyard_protocol::{Scenario, StageName, Status};

/// A scenario with its prediction.
#[derive(Clone, Debug)]
pub struct Story {
    /// The scenario.
    pub scenario: Scenario,
    /// Its verdict.
    pub verdict: Status,
    /// The stage where the contract must stop.
    pub blamed: Option<StageName>,
    /// Words the reason must contain: it must say what to do.
    pub reason_says: &'static str,
    /// Whether the upload must have been taken up by a second start of the capture agent.
    pub resumed: bool,
}

/// All stories, or those with the given names.
pub fn chosen(names: &[String]) -> anyhow::Result<Vec<Story>> {
    let mut stories = all()?;
    for name in names {
        ensure!(stories.iter().any(|story| story.scenario.name == *name), "there is no scenario named {name}");
    }
    stories.retain(|story| names.is_empty() || names.contains(&story.scenario.name));
    Ok(stories)
}

fn all() -> anyhow::Result<Vec<Story>> {
    let story = |text: &str, verdict, blamed, reason_says, resumed| {
        let scenario = toml::from_str(text).with_context(|| format!("a scenario of the demo: {text}"))?;
        anyhow::Ok(Story { scenario, verdict, blamed, reason_says, resumed })
    };
    Ok(vec![
        story(include_str!("../../scenarios/sysrq-c.toml"), Status::Pass, None, "", false)?,
        story(
            include_str!("../../scenarios/no-crash-kernel.toml"),
            Status::Error,
            Some(StageName::Armed),
            "crashkernel=",
            false,
        )?,
        story(
            include_str!("../../scenarios/capture-kernel-panics.toml"),
            Status::Fail,
            Some(StageName::Captured),
            "",
            false,
        )?,
        story(include_str!("../../scenarios/capture-agent-killed.toml"), Status::Pass, None, "", true)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_the_demo_is_one() {
        assert_eq!(chosen(&[]).unwrap().len(), 4);
        assert_eq!(chosen(&["sysrq-c".to_owned()]).unwrap().len(), 1);
        assert!(chosen(&["sysrq".to_owned()]).is_err());
    }
}
