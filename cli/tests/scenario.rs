//! Scenarios on their way to a server and back, and what a repro says to do with them: the program itself, against a real
//! server.

mod farm;

use crashyard_protocol::Scenario;
use crashyard_protocol::api::Repro;
use crashyard_protocol::client::Client;
use farm::{Farm, stderr};
use std::path::Path;

#[tokio::test(flavor = "multi_thread")]
async fn a_repro_stores_the_scenario_as_it_was_beside_the_one_that_has_its_name_now() {
    let farm = Farm::start().await;
    let build = farm.build().await;
    let run = farm.ok(&["submit", &build, "--plan", "smoke"]).await;
    let (mut lab, mut wire) = farm.lab().await;
    while lab.holding().is_empty() {
        lab.step(&mut wire).await;
    }
    let client = Client::new(&farm.address, Some(farm.token.clone()));
    let jobs = client.run_jobs(&run.trim().parse().unwrap()).await.unwrap();
    let attempt = jobs.iter().find_map(|job| job.attempts.first()).unwrap().as_str();
    let before = farm.ok(&["scenario", "show", "sysrq", "--json"]).await;
    let before: Scenario = serde_json::from_str(&before).unwrap();
    let changed = std::fs::read_to_string(farm.dir.path().join("sysrq.toml")).unwrap();
    farm.file("sysrq.toml", format!("cpu = 1\n{changed}"));
    farm.ok(&["scenario", "put", "sysrq.toml"]).await;

    let repro: Repro = serde_json::from_str(&farm.ok(&["repro", attempt, "--json"]).await).unwrap();
    let line = repro.commands.iter().find(|line| line.contains("crashyard scenario put")).unwrap();
    let beside = Path::new(env!("CARGO_BIN_EXE_crashyard")).parent().unwrap();
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", line]).current_dir(farm.dir.path());
    shell.env("PATH", format!("{}:{}", beside.display(), std::env::var("PATH").unwrap()));
    let done = shell.env("CRASHYARD_SERVER", &farm.address).env("CRASHYARD_TOKEN", &farm.token).output().await.unwrap();
    assert!(done.status.success(), "{line}: {}", stderr(&done));

    let name = format!("repro-{}", attempt.to_lowercase());
    let stored: Scenario = serde_json::from_str(&farm.ok(&["scenario", "show", &name, "--json"]).await).unwrap();
    assert_eq!(stored, Scenario { name, ..before });
    farm.state.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_is_said_and_one_name_is_for_one_scenario() {
    let farm = Farm::start().await;
    let stored = farm.ok(&["scenario", "put", "sysrq.toml", "--as", "mine", "--json"]).await;
    let stored: Vec<Scenario> = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored.iter().map(|scenario| scenario.name.as_str()).collect::<Vec<_>>(), ["mine"]);
    let refused = async |name: &str, files: &[&str]| {
        let done = farm.command(&[&["scenario", "put", "--as", name], files].concat()).output().await.unwrap();
        assert_eq!(done.status.code(), Some(1));
        stderr(&done)
    };
    let two = refused("mine", &["sysrq.toml", "sysrq.toml"]).await;
    assert!(two.contains("these are 2") && two.contains("--only"), "{two}");
    let wrong = refused("Not Mine", &["sysrq.toml"]).await;
    assert!(wrong.contains("lower-case"), "{wrong}");
    farm.state.stop.cancel();
}
