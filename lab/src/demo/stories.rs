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

/// How many stories a demo tells that was not asked for particular ones.
const SHOWN: usize = 4;

/// The stories with the given names; without names, those a newcomer should see.
pub fn chosen(names: &[String]) -> anyhow::Result<Vec<Story>> {
    let mut stories = all()?;
    let known: Vec<_> = stories.iter().map(|story| story.scenario.name.clone()).collect();
    for name in names {
        ensure!(known.contains(name), "there is no scenario named {name}; there are {}", known.join(", "));
    }
    if names.is_empty() {
        stories.truncate(SHOWN);
    } else {
        stories.retain(|story| names.contains(&story.scenario.name));
    }
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
        story(include_str!("../../scenarios/dump-to-disk.toml"), Status::Pass, None, "", false)?,
        story(include_str!("../../scenarios/nmi.toml"), Status::Pass, None, "", false)?,
        story(include_str!("../../scenarios/bmc-nmi.toml"), Status::Pass, None, "", false)?,
        story(
            include_str!("../../scenarios/bmc-refuses.toml"),
            Status::Miss,
            Some(StageName::Panicked),
            "the BMC refuses",
            false,
        )?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_the_demo_is_one() {
        assert_eq!(chosen(&[]).unwrap().len(), SHOWN);
        assert_eq!(chosen(&["dump-to-disk".to_owned()]).unwrap().len(), 1);
        assert_eq!(chosen(&["sysrq-c".to_owned()]).unwrap().len(), 1);
        assert!(chosen(&["sysrq".to_owned()]).is_err());
    }
}
