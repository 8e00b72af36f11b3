//! What a CI system does: build, scenarios, plan, run.

use super::progress;
use super::stories::Story;
use crate::image::Image;
use anyhow::Context as _;
use crashyard_agent::upload::{self, Destination};
use crashyard_protocol::api::{NewBuild, NewPlan, NewRun, Policy};
use crashyard_protocol::client::Client;
use crashyard_protocol::{BuildId, RunId};
use std::collections::BTreeMap;
use std::path::Path;

/// What is submitted beside the image and the scenarios.
pub struct Submission<'a> {
    /// Name of the build; the package the kernel came from, where that says enough.
    pub build: &'a str,
    /// Name of its configuration.
    pub config: &'a str,
    /// Name of the plan.
    pub plan: &'a str,
    /// Driver of the machines that may take it.
    pub driver: &'a str,
}

/// Submits everything and returns the run.
pub async fn everything(
    client: &Client,
    what: &Submission<'_>,
    image: &Image,
    stories: &[Story],
) -> anyhow::Result<RunId> {
    let build = client
        .create_build(&NewBuild {
            checkout: None,
            name: what.build.to_owned(),
            architecture: "x86_64".into(),
            release: image.release.clone(),
            build_id: image.build_id.clone(),
            config_name: Some(what.config.to_owned()),
            cmdline: String::new(),
        })
        .await
        .context("submit the build")?
        .id;
    for (name, path) in [("kernel", &image.kernel), ("initrd", &image.initrd)] {
        send(client, &build, name, path).await.with_context(|| format!("upload the {name}"))?;
    }
    for story in stories {
        client.put_scenario(&story.scenario).await.with_context(|| format!("store {}", story.scenario.name))?;
    }
    let plan = NewPlan {
        name: what.plan.to_owned(),
        scenarios: stories.iter().map(|story| story.scenario.name.clone()).collect(),
        selector: BTreeMap::from([("driver".into(), what.driver.to_owned())]),
        requires: Vec::new(),
        repetitions: 1,
        policy: Policy::default(),
    };
    client.put_plan(&plan).await.context("store the plan")?;
    Ok(client.create_run(&NewRun::new(build, what.plan)).await.context("submit the run")?.id)
}

async fn send(client: &Client, build: &BuildId, name: &str, path: &Path) -> anyhow::Result<()> {
    let file = tokio::fs::File::open(path).await?;
    let bar = progress::bytes(name, file.metadata().await?.len());
    let destination = Destination::Build(build.clone(), name.to_owned());
    let sent = upload::send(client, &destination, file, |bytes| bar.set_position(bytes)).await?;
    bar.finish_and_clear();
    destination.complete(client, &sent).await?;
    Ok(())
}
