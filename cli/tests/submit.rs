//! From a kernel's file to a verdict and an exit status: the program itself, against a real server with a lab in memory, and
//! where the story needs it against a stand-in that cuts the line.

mod farm;
mod stand_in;

use crashyard_protocol::api::{Build, Run};
use crashyard_protocol::{ArtifactState, RunState};
use farm::{BUILD, Farm, command, stderr};
use stand_in::Reply;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_goes_from_its_file_to_its_results() {
    let farm = Farm::start().await;
    let build = farm.build().await;
    assert_eq!(farm.build().await, build, "the same command is the same build");
    let mut more = BUILD.to_vec();
    more[3] = "linux 6.1 and more";
    more.extend([
        "--file",
        "modules=initrd",
        "--tree",
        "mainline",
        "--commit",
        "0123456789012345678901234567890123456789",
    ]);
    assert_ne!(farm.ok(&more).await.trim(), build, "what is not the same is another");
    let mut json = BUILD.to_vec();
    json.push("--json");
    let sent: Build = serde_json::from_str(&farm.ok(&json).await).unwrap();
    assert_eq!((sent.id.as_str(), sent.release.as_str()), (build.as_str(), "6.1.0-test"), "read from the kernel");
    for (name, file) in [("kernel", "bzImage"), ("initrd", "initrd")] {
        let artifact = sent.artifacts.iter().find(|artifact| artifact.name == name).unwrap();
        let hash = blake3::hash(&std::fs::read(farm.dir.path().join(file)).unwrap()).to_hex().to_string();
        assert_eq!((artifact.state, artifact.blake3.as_ref()), (ArtifactState::Complete, Some(&hash)), "{name}");
    }

    let (mut lab, mut wire) = farm.lab().await;
    let lab = async {
        loop {
            lab.step(&mut wire).await;
            tokio::task::yield_now().await;
        }
    };
    let mut submit = farm.command(&["submit", "linux 6.1", "--plan", "smoke", "--wait", "--key", "pipeline 7"]);
    let done = tokio::select! {
        done = submit.output() => done.unwrap(),
        () = lab => unreachable!("the lab works for ever"),
    };
    // The lab's dumps are noise.
    let told = stderr(&done);
    assert_eq!(done.status.code(), Some(3), "{told}");
    for line in ["placed on lab-", "✔ provisioned", "✔ dumped", "✘ verified", "verdict FAIL", "result FAIL"] {
        for job in ["sysrq #1  ", "sysrq #2  "] {
            assert!(told.contains(&format!("{job}{line}")), "{job}{line} in {told}");
        }
    }
    let table = String::from_utf8(done.stdout).unwrap();
    assert_eq!(table.matches("FAIL       verified").count(), 2, "{table}");
    assert!(table.contains(&format!("2 FAIL: {}/runs/", farm.address)), "{table}");

    // A pipeline that starts again gets the same run, and its results at once.
    let mut again = farm.command(&["submit", &build, "--plan", "smoke", "--wait", "--key", "pipeline 7"]);
    let again = again.output().await.unwrap();
    assert_eq!(again.status.code(), Some(3), "{}", stderr(&again));
    assert_eq!(String::from_utf8(again.stdout).unwrap(), table);
    farm.state.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_build_come_back_as_they_were_sent() {
    let farm = Farm::start().await;
    let build = farm.build().await;
    let to = farm.dir.path().join("repro").display().to_string();
    let fetch = ["build", "fetch", build.trim(), "--dir", &to];
    let paths = farm.ok(&fetch).await;
    for (name, sent) in [("kernel", "bzImage"), ("initrd", "initrd")] {
        let path = format!("{to}/{name}");
        assert!(paths.lines().any(|line| line == path), "{path} in {paths}");
        assert!(std::fs::read(path).unwrap() == std::fs::read(farm.dir.path().join(sent)).unwrap(), "{name}");
    }
    let again: serde_json::Value = {
        let arguments: Vec<&str> = fetch.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&farm.ok(&arguments).await).unwrap()
    };
    assert_eq!(again.as_array().unwrap().len(), 2, "{again}");
    farm.state.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_cannot_name_a_file_out_of_the_directory() {
    let id = "01JDB4Q1W5Z8N6K3X0V7T2R9MF";
    for name in ["../out", "/out", "..", "a/b", ""] {
        let address = stand_in::serve(move |_, _| {
            let file = serde_json::json!({ "id": id, "build": id, "attempt": null, "name": name, "state": "complete",
                "size": 1, "blake3": blake3::hash(b"x").to_hex().to_string(), "created_at": 0, "dropped": null });
            Reply::ok(
                serde_json::json!({ "id": id, "checkout": null, "name": "one", "architecture": "x86_64",
                "release": "6.1", "build_id": null, "config_name": null, "cmdline": "", "created_at": 0,
                "artifacts": [file] })
                .to_string(),
            )
        });
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in");
        let mut fetch =
            command(dir.path(), &address, "none", &["build", "fetch", id, "--dir", inside.to_str().unwrap()]);
        let fetched = fetch.output().await.unwrap();
        assert!(!fetched.status.success() && stderr(&fetched).contains("no name for one here"), "{}", stderr(&fetched));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_job_waits_is_said_anew_when_that_changes_and_ends_with_where_it_went() {
    let farm = Farm::start().await;
    let build = farm.build().await;
    let run = farm.ok(&["submit", &build, "--plan", "smoke"]).await;
    let jobs: serde_json::Value = {
        let jobs = reqwest::get(format!("{}/api/v1/runs/{}/jobs", farm.address, run.trim())).await.unwrap();
        jobs.json().await.unwrap()
    };
    let job = jobs[0]["id"].as_str().unwrap().to_owned();
    let follow = |json: bool| {
        let mut arguments = vec!["job", "why", &job, "--follow"];
        arguments.extend(json.then_some("--json"));
        let mut child = farm.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    };
    let (mut told, mut lines) = follow(false);
    let (mut told_json, mut json) = follow(true);
    assert!(lines.next_line().await.unwrap().unwrap().ends_with(" UTC"), "when that was");
    let first = lines.next_line().await.unwrap().unwrap();
    assert!(first.contains("no machine is enrolled"), "{first}");
    let first: serde_json::Value = serde_json::from_str(&json.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!((&first["state"], &first["fitting"]), (&"queued".into(), &0.into()));

    let (mut lab, mut wire) = farm.lab().await;
    while lab.holding().len() < 2 {
        lab.step(&mut wire).await;
    }
    let mut rest = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        rest.push(line);
    }
    assert!(told.wait().await.unwrap().success() && told_json.wait().await.unwrap().success());
    let last = rest.last().unwrap();
    assert!(last.starts_with("Placed on lab-") && last.contains(&format!("{}/attempts/", farm.address)), "{rest:?}");
    let mut last = first;
    while let Some(line) = json.next_line().await.unwrap() {
        last = serde_json::from_str(&line).unwrap();
    }
    assert_eq!(last["state"], "leased");
    farm.state.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_machine_takes_in_time_is_missing_and_no_failure() {
    let farm = Farm::start().await;
    let build = farm.build().await;
    let mut submit = farm.command(&["submit", &build, "--plan", "smoke", "--wait", "--start-within", "1s"]);
    let done = submit.output().await.unwrap();
    assert_eq!(done.status.code(), Some(4), "{}", stderr(&done));
    let table = String::from_utf8_lossy(&done.stdout);
    assert!(table.contains("2 MISS: ") && stderr(&done).contains("sysrq #2  result MISS"), "{table}");
    farm.state.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_the_waiting_is_told_how_to_take_it_up_and_the_run_goes_on() {
    let farm = Farm::start().await;
    let build = farm.build().await;
    let mut child = farm.command(&["submit", &build, "--plan", "smoke", "--wait"]);
    let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
    let mut told = tokio::io::BufReader::new(child.stderr.take().unwrap());
    let mut first = String::new();
    told.read_line(&mut first).await.unwrap();
    let run = first.split_whitespace().nth(1).unwrap().to_owned();
    let kill = Command::new("kill").args(["-INT", &child.id().unwrap().to_string()]).status().await.unwrap();
    assert!(kill.success());
    let mut rest = String::new();
    told.read_to_string(&mut rest).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(130), "{first}{rest}");
    assert!(rest.contains(&format!("  crashyard run {run} --wait\n")), "{rest}");
    // What they print, whatever their exit status says of the kernel.
    let printed =
        async |arguments: &[&str]| String::from_utf8(farm.command(arguments).output().await.unwrap().stdout).unwrap();
    let run_now: Run = serde_json::from_str(&printed(&["run", &run, "--json"]).await).unwrap();
    assert_eq!(run_now.state, RunState::Open);
    let shown = printed(&["run", &run]).await;
    assert!(shown.contains("sysrq #1  queued") && shown.contains("crashyard job why "), "{shown}");
    farm.state.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_is_said_and_is_no_result() {
    let farm = Farm::start().await;
    let build = farm.build().await;
    let submit = async |arguments: &[&str]| {
        let done = farm.command(&[&["submit"], arguments].concat()).output().await.unwrap();
        (done.status.code(), stderr(&done))
    };
    let (status, told) = submit(&[&build, "--plan", "smok"]).await;
    assert!(status == Some(1) && told.contains("plan"), "{told}");
    let (status, told) = submit(&["linux 7", "--plan", "smoke"]).await;
    assert!(status == Some(1) && told.contains("crashyard build list"), "{told}");
    assert_eq!(submit(&[&build, "--plan", "smoke", "--priority", "soon"]).await.0, Some(2));
    assert_eq!(submit(&[&build, "--plan", "smoke", "--policy", "{\"trys\": 1}"]).await.0, Some(2));
    assert_eq!(submit(&[&build, "--plan", "smoke", "--key", "k", "--priority", "bulk"]).await.0, Some(0));
    farm.file("other.toml", "name = \"other\"\nscenarios = [\"sysrq\"]\nrepetitions = 1\n");
    farm.ok(&["plan", "put", "other.toml"]).await;
    let (status, told) = submit(&[&build, "--plan", "other", "--key", "k"]).await;
    assert!(status == Some(1) && told.contains("submitted with this key"), "{told}");
    // Nobody is there: without a key it must not be repeated blindly.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (status, told) = submit(&[&build, "--plan", "smoke", "--server", &format!("http://{nobody}")]).await;
    assert!(status == Some(1) && told.contains("with --key it may be repeated"), "{told}");
    farm.state.stop.cancel();
}

const ID: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MF";

/// A server whose event stream is cut behind the second event. Returns its address, and what it is asked for.
fn one_that_is_cut() -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let run = serde_json::json!({
        "id": ID, "build": ID, "name": "linux · smoke", "plan": "smoke", "state": "done", "status": "PASS",
        "counts": { "PASS": 1 }, "created_at": 0, "finished_at": 9, "last_event": 4,
    });
    let job = serde_json::json!([{
        "id": ID, "run": ID, "ordinal": 0, "selector": {}, "state": "done", "status": "PASS", "reason": null,
        "blamed_stage": null, "attempts": [], "created_at": 0, "finished_at": 9,
        "scenario": { "name": "sysrq", "title": "t\u{1b}[31m", "trigger": "sysrq-c", "expect": { "panic": "sysrq" } },
    }]);
    let event = |seq: u32, body: &str| {
        format!("id: {seq}\ndata: {{\"seq\":{seq},\"at\":0,\"job\":\"{ID}\",\"attempt\":null,{body}}}\n\n")
    };
    let first = event(1, "\"kind\":\"attempt_started\",\"machine\":\"m1\\u001b[2J\",\"number\":1")
        + &event(2, "\"kind\":\"something_new\",\"of\":[1]");
    let second = event(3, "\"kind\":\"job\",\"state\":\"done\",\"status\":\"PASS\"") + "event: complete\ndata: {}\n\n";
    let address = stand_in::serve(move |path, _| {
        seen.lock().unwrap().push(path.to_owned());
        Reply::ok(match path.strip_prefix(&format!("/api/v1/runs/{ID}")) {
            Some("") => run.to_string(),
            Some("/jobs") => job.to_string(),
            Some("/events?after=0") => first.clone(),
            _ => second.clone(),
        })
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_stream_is_taken_up_behind_what_was_seen_and_all_pass_is_a_success() {
    let (address, asked) = one_that_is_cut();
    let dir = tempfile::tempdir().unwrap();
    let done = command(dir.path(), &address, "", &["run", ID, "--wait"]).output().await.unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert_eq!(stderr(&done), "sysrq  placed on m1\\x1b[2J (attempt 1)\nsysrq  result PASS\n");
    let table = String::from_utf8(done.stdout).unwrap();
    assert_eq!(table, format!("{ID}  sysrq  PASS\n1 PASS: {address}/runs/{ID}\n"));
    let asked = asked.lock().unwrap();
    let events: Vec<&String> = asked.iter().filter(|path| path.contains("/events")).collect();
    assert_eq!(events.len(), 2, "{asked:?}");
    // What this version cannot read it has not seen, and asks for again; nothing is told twice.
    assert!(events[0].ends_with("after=0") && events[1].ends_with("after=1"), "{asked:?}");
}
