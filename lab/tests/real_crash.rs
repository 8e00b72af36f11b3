//! The whole farm at its main job, as a person sees it: real kernels crash in an emulated machine, and a real browser
//! watches. One large test, because the four crashes are the expensive part and everything else looks at them; the
//! small one beside it has what a browser adds nothing to.

mod support;

use crashyard_protocol::agent::Report;
use crashyard_protocol::api::{Attempt, Evidence, Job, Page, Run};
use crashyard_protocol::client::Client;
use crashyard_protocol::{Proof, StageName, StageState, Status};
use fantoccini::Locator;
use std::time::Duration;
use support::{Browser, Demo};

/// Far more than four crashes take, even on a loaded machine; a deadline of the contract fires long before.
const PATIENCE: Duration = Duration::from_secs(900);

#[tokio::test(flavor = "multi_thread")]
async fn four_real_crashes_are_judged_as_predicted_while_a_browser_watches() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let mut demo = Demo::start(data.path(), &[]);
    let browser = Browser::start(1280, 1500).await;
    let page = &browser.page;

    // From the list to the run, by clicking, and then no reload: the grid must fill by itself.
    page.goto(&demo.url).await.unwrap();
    page.wait().at_most(PATIENCE).for_element(Locator::Css("[data-run] a")).await.unwrap().click().await.unwrap();
    page.execute("window.neverReloaded = true", vec![]).await.unwrap();
    let armed = Locator::Css("td[data-stage=armed][data-state=proven]");
    page.wait().at_most(PATIENCE).for_element(armed).await.expect("the first job is armed, live");
    let verified = Locator::Css("td[data-stage=verified][data-state=proven]");
    page.wait().at_most(PATIENCE).for_element(verified).await.expect("the first dump is verified, live");
    let kept = page.execute("return window.neverReloaded === true", vec![]).await.unwrap();
    assert_eq!(kept, serde_json::json!(true), "the page filled without being loaded again");

    demo.wait_for("4 of 4 as predicted");
    let client = Client::new(&demo.url, None);
    let runs: Page<Run> = client.get("/api/v1/runs").await.unwrap();
    let jobs = client.run_jobs(&runs.items[0].id).await.unwrap();
    let job = |name: &str| jobs.iter().find(|job| job.scenario.name == name).expect("a job of the demo");

    all_stages_of_a_plain_crash_are_proven(&client, job("sysrq-c")).await;
    an_unarmed_machine_says_what_to_do(job("no-crash-kernel"));
    a_killed_upload_resumes_without_sending_anything_twice(&client, job("capture-agent-killed")).await;

    // The page a person is sent to, with its proofs.
    let attempt = &job("sysrq-c").attempts[0];
    page.goto(&format!("{}/attempts/{attempt}", demo.url)).await.unwrap();
    let title = page.title().await.unwrap();
    assert!(title.contains("PASS"), "the title carries the state: {title}");
    keep_screenshot(&browser.picture().await);
    let proof = page.find(Locator::Css("[data-stage=panicked] a[data-proof]")).await.expect("a link to the console");
    proof.click().await.unwrap();
    let target = page.execute("return document.querySelector(':target')?.textContent ?? ''", vec![]).await.unwrap();
    assert!(target.as_str().unwrap_or("").contains("Kernel panic - not syncing: sysrq"), "the proof leads to {target}");
    page.find(Locator::Css("a[data-findings]")).await.expect("a link to the findings").click().await.unwrap();
    let report = page.find(Locator::Css("[data-report='1']")).await.expect("a crash report").text().await.unwrap();
    assert!(report.contains("sysrq triggered crash") && report.contains("what the scenario asked for"), "{report}");
    page.find(Locator::Css("[data-compared=equal]")).await.expect("console and dump tell of the same crash");
    let dump = page.find(Locator::Css("#dump")).await.expect("the machine in the dump").text().await.unwrap();
    assert!(
        dump.contains("panicked") && dump.contains("sysrq_handle_crash"),
        "the panic's stack, from the dump: {dump}"
    );
    page.goto(&format!("{}/machines", demo.url)).await.unwrap();
    page.find(Locator::Css("[data-machine=qemu-1][data-state=available]")).await.expect("the machine is back");

    browser.close().await;
    let (status, out) = demo.interrupt();
    assert!(status.success(), "the demo ended with {status}: {out}");
    assert!(client.run(&runs.items[0].id).await.is_err(), "the server is gone with the demo");
    let left = leftovers(data.path());
    assert!(left.is_empty(), "processes left behind: {left:?}");
}

#[tokio::test]
async fn a_dump_leaves_a_machine_without_network_on_a_disk() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let mut demo = Demo::start(data.path(), &["dump-to-disk"]);
    demo.wait_for("1 of 1 as predicted");
    let client = Client::new(&demo.url, None);
    let runs: Page<Run> = client.get("/api/v1/runs").await.unwrap();
    let jobs = client.run_jobs(&runs.items[0].id).await.unwrap();
    all_stages_of_a_plain_crash_are_proven(&client, &jobs[0]).await;
    let evidence: Vec<Evidence> =
        client.get(&format!("/api/v1/attempts/{}/evidence", jobs[0].attempts[0])).await.unwrap();
    let called = evidence.iter().any(|e| matches!(e.report, Report::CaptureStarted { .. }));
    assert!(!called, "the capture agent had no way to call");
    assert!(demo.interrupt().0.success());
}

/// The machine's own BMC is QEMU's, which says what it is and takes no diagnostic interrupt. QEMU itself sends one.
#[tokio::test]
async fn an_nmi_from_outside_crashes_the_kernel_and_one_that_the_bmc_refuses_is_not_blamed_on_it() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let mut demo = Demo::start(data.path(), &["nmi", "bmc-refuses"]);
    demo.wait_for("2 of 2 as predicted");
    let client = Client::new(&demo.url, None);
    let runs: Page<Run> = client.get("/api/v1/runs").await.unwrap();
    let jobs = client.run_jobs(&runs.items[0].id).await.unwrap();
    let of = |name: &str| jobs.iter().find(|job| job.scenario.name == name).expect("its job");
    all_stages_of_a_plain_crash_are_proven(&client, of("nmi")).await;
    let reason = of("bmc-refuses").reason.as_deref().unwrap_or("");
    assert!(reason.contains("asked through /dev/ipmi0 for an NMI, the BMC refuses: "), "{reason}");
    let found = client.machine_inventory("qemu-1").await.unwrap();
    // What QEMU's says unless it is told otherwise (hw/ipmi/ipmi_bmc_sim.c), and a log that nobody has written to.
    for (fact, value) in
        [("manufacturer", "0"), ("product", "0"), ("firmware", "0.00"), ("ipmi", "2.0"), ("events", "0")]
    {
        assert_eq!(found.facts.get(&format!("bmc.{fact}")).map(String::as_str), Some(value), "{fact} in {found:?}");
    }
    assert!(demo.interrupt().0.success());
}

async fn all_stages_of_a_plain_crash_are_proven(client: &Client, job: &Job) {
    assert_eq!(job.status, Status::Pass, "{:?}", job.reason);
    let attempt: Attempt = client.attempt(&job.attempts[0]).await.unwrap();
    let proven: Vec<StageName> =
        attempt.stages.iter().filter(|stage| stage.state == StageState::Proven).map(|stage| stage.name).collect();
    assert_eq!(proven, StageName::ALL, "all eight stages are proven");
    assert!(attempt.stages.iter().all(|stage| !stage.proofs.is_empty()), "and each keeps its proof");
    let marker = attempt.stages.iter().find(|stage| stage.name == StageName::Triggered).map(|stage| &stage.proofs);
    let from_kernel =
        |proof: &Proof| matches!(proof, Proof::Console { text, .. } if text.contains("] crashyard: trigger"));
    assert!(marker.is_some_and(|proofs| proofs.iter().any(from_kernel)), "the kernel printed the marker: {marker:?}");
    let dump = attempt.artifacts.iter().find(|artifact| artifact.name == "vmcore").expect("a vmcore");
    assert!(dump.blake3.is_some() && dump.size > 1_000_000, "{dump:?}");
}

fn an_unarmed_machine_says_what_to_do(job: &Job) {
    assert_eq!((job.status, job.blamed_stage), (Status::Error, Some(StageName::Armed)), "{:?}", job.reason);
    let reason = job.reason.as_deref().unwrap_or("");
    assert!(reason.contains("crashkernel"), "a reason a person can act on: {reason}");
}

async fn a_killed_upload_resumes_without_sending_anything_twice(client: &Client, job: &Job) {
    assert_eq!(job.status, Status::Pass, "{:?}", job.reason);
    let attempt = &job.attempts[0];
    let evidence: Vec<Evidence> = client.get(&format!("/api/v1/attempts/{attempt}/evidence")).await.unwrap();
    let starts = evidence.iter().filter(|e| matches!(e.report, Report::CaptureStarted { .. })).count();
    assert_eq!(starts, 2, "the capture agent was started twice");
    let finished = evidence.iter().find_map(|e| match &e.report {
        Report::DumpFinished { bytes, sent_bytes, skipped_bytes, .. } => Some((*bytes, *sent_bytes, *skipped_bytes)),
        _ => None,
    });
    let (bytes, sent, skipped) = finished.expect("the dump was finished");
    assert!(skipped > 0, "the second start found bytes on the server");
    assert_eq!(sent + skipped, bytes, "and sent exactly the others");
}

/// `UPDATE_EXPECT=1` keeps the picture for the README.
fn keep_screenshot(png: &[u8]) {
    assert!(png.starts_with(b"\x89PNG") && png.len() > 20_000, "a picture with something on it");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/attempt.png");
        std::fs::write(path, png).expect("docs/attempt.png can be written");
    }
}

/// Processes whose command line names the demo's data folder.
fn leftovers(data: &std::path::Path) -> Vec<String> {
    let needle = data.to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").expect("proc").filter_map(Result::ok);
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|cmdline| String::from_utf8_lossy(&cmdline).replace('\0', " "))
        .filter(|cmdline| cmdline.contains(&needle))
        .collect()
}
