//! `crashyard-lab demo`: a whole farm on this machine, and four real crashes on it.
//!
//! Server and controller are the real programs, started as an operator would start them; everything this file knows
//! it knows through the public API. It judges nothing: it compares verdicts with the predictions in
//! `scenarios/demo.toml`.

mod children;
mod stories;
mod upload;
mod watch;

use crate::{agent, image, kernel};
use anyhow::Context as _;
use children::Children;
use crashyard_protocol::Scope;
use crashyard_protocol::api::{NewBuild, NewPlan, NewRun, NewToken};
use crashyard_protocol::client::Client;
use std::collections::BTreeMap;
use std::path::PathBuf;
use stories::Story;

/// Arguments of `demo`.
#[derive(clap::Args)]
pub struct Args {
    /// End when the verdicts are there; the exit status says whether all are as predicted
    #[arg(long)]
    exit: bool,
    /// Where to keep the farm's data
    #[arg(long, default_value = "demo-data")]
    data: PathBuf,
    /// Port of the dashboard on 127.0.0.1
    #[arg(long, default_value_t = 8480)]
    port: u16,
    /// Only these scenarios
    #[arg(long = "only", value_name = "SCENARIO")]
    only: Vec<String>,
    /// Debian's meta package of the kernel under test
    #[arg(long, default_value = "linux-image-cloud-amd64")]
    kernel: String,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the demo; true if every verdict is as predicted.
pub async fn run(args: &Args) -> anyhow::Result<bool> {
    let stories = stories::all(&args.only)?;
    let image = tokio::task::block_in_place(|| image::build(&kernel::debian(&args.kernel)?, &agent::build()?))?;
    std::fs::create_dir_all(&args.data).with_context(|| format!("making {}", args.data.display()))?;
    let data = args.data.canonicalize()?;
    let mut children = Children::new(&data);

    let url = format!("http://127.0.0.1:{}", args.port);
    let admin = children.start_server(&url, args.port).await?;
    let controller =
        admin.create_token(&NewToken { name: "demo lab".into(), scope: Scope::Controller, expires_at: None });
    let submit = admin.create_token(&NewToken { name: "demo CI".into(), scope: Scope::Submit, expires_at: None });
    let (controller, submit) = (controller.await?.secret, submit.await?.secret);
    children.start_controller(&url, &controller)?;
    eprintln!("dashboard: {url}");
    eprintln!("tokens: admin in {}, submit {submit}", children::admin_token_file(&data).display());
    eprintln!("         (send as `Authorization: Bearer TOKEN`; reading needs none)");

    let outcome = tokio::select! {
        outcome = crash(&admin.with_token(&submit), &image, &stories) => outcome?,
        ended = children.watch() => return Err(ended),
        () = interrupted() => anyhow::bail!("interrupted; `{url}` is gone, its data is in {}", data.display()),
    };
    let as_predicted = outcome.as_predicted();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        println!("{outcome}");
        println!("{url}/runs/{}", outcome.run);
    }
    if !args.exit {
        eprintln!("serving {url} until Ctrl-C");
        tokio::select! {
            ended = children.watch() => return Err(ended),
            () = interrupted() => {}
        }
    }
    Ok(as_predicted)
}

/// What an operator's CI would do: register the build, upload it, submit the plan, watch.
async fn crash(client: &Client, image: &image::Image, stories: &[Story]) -> anyhow::Result<watch::Outcome> {
    let build = NewBuild {
        checkout: None,
        name: format!("Debian {}", image.release),
        architecture: "x86_64".into(),
        release: image.release.clone(),
        build_id: Some(image.build_id.clone()),
        config_name: Some("cloud-amd64".into()),
        cmdline: String::new(),
    };
    let build = client.create_build(&build).await?;
    upload::file(client, &build.id, "kernel", &image.kernel).await?;
    upload::file(client, &build.id, "initrd", &image.initrd).await?;
    for story in stories {
        client.put_scenario(&story.scenario).await?;
    }
    let plan = NewPlan {
        name: "demo".into(),
        scenarios: stories.iter().map(|story| story.scenario.name.clone()).collect(),
        selector: BTreeMap::from([("driver".to_owned(), "qemu".to_owned())]),
        repetitions: 1,
    };
    client.put_plan(&plan).await?;
    let run = client.create_run(&NewRun { build: build.id, plan: plan.name, key: None }).await?;
    watch::run(client, &run.id, stories).await
}

async fn interrupted() {
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("signals can be waited for");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// The folder with the built programs: beside this one.
fn programs() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.parent().context("the program's folder")?.to_owned())
}
