//! The scenario catalogue: what can be done to a machine, and what must come of it.

use super::Shell;
use crate::pages::format::When;
use crate::pages::text::visible;
use askama::Template;
use crashyard_protocol::StageName;
use crashyard_protocol::api::StoredScenario;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{Scenario, VmxState};

/// The page at `/scenarios`.
#[derive(Debug, Template)]
#[template(path = "scenarios.html")]
pub struct ScenariosPage {
    shell: Shell,
    count: usize,
    /// There are more than are shown.
    cut: bool,
    groups: Vec<Group>,
}

/// The scenarios of one VMX state.
#[derive(Debug)]
struct Group {
    vmx: &'static str,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    title: String,
    trigger: &'static str,
    cpu: String,
    panic: String,
}

impl ScenariosPage {
    /// The page from stored scenarios in any order; `cut` if they are not all.
    #[must_use]
    pub fn new(scenarios: &[StoredScenario], cut: bool, now: Timestamp) -> Self {
        let mut sorted: Vec<&Scenario> = scenarios.iter().map(|stored| &stored.scenario).collect();
        sorted.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let groups = VmxState::ALL
            .iter()
            .map(|state| Group {
                vmx: state.as_str(),
                rows: sorted
                    .iter()
                    .filter(|scenario| scenario.vmx == *state)
                    .map(|scenario| Row::new(scenario))
                    .collect(),
            })
            .filter(|group| !group.rows.is_empty())
            .collect();
        Self { shell: Shell { section: "scenarios", now: Some(When(now)) }, count: scenarios.len(), cut, groups }
    }
}

impl Row {
    fn new(scenario: &Scenario) -> Self {
        Self {
            name: visible(&scenario.name).into_owned(),
            title: visible(&scenario.title).into_owned(),
            trigger: scenario.trigger.as_str(),
            cpu: scenario.cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string()),
            panic: visible(&scenario.expect.panic).into_owned(),
        }
    }
}

/// The page at `/scenarios/NAME`.
#[derive(Debug, Template)]
#[template(path = "scenario.html")]
pub struct ScenarioPage {
    shell: Shell,
    name: String,
    title: String,
    vmx: &'static str,
    trigger: &'static str,
    machine: String,
    changed: When,
    does: Vec<String>,
    expects: Vec<String>,
    deadlines: Vec<(&'static str, u64)>,
}

impl ScenarioPage {
    /// The page of one scenario.
    #[must_use]
    pub fn new(stored: &StoredScenario, now: Timestamp) -> Self {
        let scenario = &stored.scenario;
        let shown = |lines: Vec<String>| lines.iter().map(|line| visible(line).into_owned()).collect();
        Self {
            shell: Shell { section: "scenarios", now: Some(When(now)) },
            name: visible(&scenario.name).into_owned(),
            title: visible(&scenario.title).into_owned(),
            vmx: scenario.vmx.as_str(),
            trigger: scenario.trigger.as_str(),
            machine: format!("{} CPUs, {} MiB", scenario.boot.cpus, scenario.boot.memory_mib),
            changed: When(stored.updated_at),
            does: shown(scenario.does()),
            expects: shown(scenario.expects()),
            deadlines: StageName::ALL
                .iter()
                .map(|stage| (stage.as_str(), scenario.deadlines.of(*stage).as_secs()))
                .collect(),
        }
    }
}
