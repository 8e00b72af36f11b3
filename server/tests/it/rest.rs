//! The REST API: creating twice, lists in pages, clear errors.

use crate::harness::{Call, Server};
use axum::http::Method;
use crashyard_protocol::api::{Build, Checkout, NewRun, Page, Run, StoredScenario, Tree};
use crashyard_protocol::problem::kind;
use serde_json::{Value, json};

#[tokio::test]
async fn creating_the_same_thing_twice_gives_the_first() {
    let server = Server::new().await;
    let tree = Call::post("/api/v1/trees", &json!({ "name": "mainline" })).token(&server.submit);
    let first: Tree = server.call(tree.clone()).await.ok();
    assert_eq!(server.call(tree).await.ok::<Tree>(), first);
    let with_url = json!({ "name": "mainline", "git_url": "https://git.kernel.org/linux.git" });
    let named: Tree = server.call(Call::post("/api/v1/trees", &with_url).token(&server.submit)).await.ok();
    assert_eq!((&named.id, named.git_url.is_some()), (&first.id, true));

    let new = json!({ "tree": "mainline", "git_commit_hash": "8f3d9f354286745c751374f5f1fcafee6b3f3136" });
    let checkout = Call::post("/api/v1/checkouts", &new).token(&server.submit);
    let first: Checkout = server.call(checkout.clone()).await.ok();
    assert_eq!(server.call(checkout).await.ok::<Checkout>(), first);

    let build = |name: &str| {
        let new = json!({ "name": name, "architecture": "x86_64", "release": "6.1", "checkout": first.id });
        Call::post("/api/v1/builds", &new).token(&server.submit).header("idempotency-key", "pipeline 7")
    };
    let one: Build = server.call(build("linux")).await.ok();
    assert_eq!(server.call(build("linux")).await.ok::<Build>(), one);
    server.call(build("other")).await.problem(409, kind::CONFLICT);

    server.plan("smoke", 3, &[]).await;
    let run = |key: Option<&str>| {
        let new = NewRun { key: key.map(str::to_owned), ..NewRun::new(one.id.clone(), "smoke") };
        Call::post("/api/v1/runs", &new).token(&server.submit)
    };
    let first: Run = server.call(run(Some("pipeline 7"))).await.ok();
    assert_eq!(server.call(run(Some("pipeline 7"))).await.ok::<Run>(), first);
    assert_ne!(server.call(run(None)).await.ok::<Run>().id, first.id);
    let runs: Page<Run> = server.get("/api/v1/runs").await.ok();
    assert_eq!(runs.items.len(), 2);
}

#[tokio::test]
async fn lists_come_in_pages_newest_first() {
    let server = Server::new().await;
    for index in 0..5 {
        let new = json!({ "name": format!("tree-{index}") });
        server.call(Call::post("/api/v1/trees", &new).token(&server.submit)).await.ok::<Tree>();
    }
    let mut path = "/api/v1/trees?limit=2".to_owned();
    let mut names = Vec::new();
    loop {
        let page: Page<Tree> = server.get(&path).await.ok();
        assert!(page.items.len() <= 2);
        names.extend(page.items.into_iter().map(|tree| tree.name));
        let Some(next) = page.next else { break };
        path = format!("/api/v1/trees?limit=2&before={next}");
    }
    assert_eq!(names, ["tree-4", "tree-3", "tree-2", "tree-1", "tree-0"]);
    server.get("/api/v1/trees?before=nonsense").await.problem(400, kind::INVALID);
    server.get("/api/v1/trees?limit=-1").await.problem(400, kind::INVALID);
    assert_eq!(server.get("/api/v1/trees?limit=0").await.ok::<Page<Tree>>().items.len(), 1);
}

#[tokio::test]
async fn a_run_owes_its_jobs_from_the_start() {
    let server = Server::new().await;
    let run = server.run(3).await;
    assert_eq!(serde_json::to_value(&run.counts).unwrap(), json!({ "MISS": 3 }));
    let jobs = server.jobs(&run).await;
    assert_eq!(jobs.iter().map(|job| job.ordinal).collect::<Vec<_>>(), [0, 1, 2]);
    // The scenario is kept as it was.
    let mut changed = crate::harness::scenario("sysrq");
    changed["title"] = "changed".into();
    server.call(Call::put_json("/api/v1/scenarios/sysrq", &changed).token(&server.submit)).await.ok::<Value>();
    assert_eq!(server.jobs(&run).await[0].scenario.title, "plain sysrq");
}

#[tokio::test]
async fn a_job_that_waits_can_be_withdrawn_and_ends_its_run() {
    let server = Server::new().await;
    let run = server.run(1).await;
    let job = &server.jobs(&run).await[0];
    let cancel = Call::post(format!("/api/v1/jobs/{}/cancel", job.id), &json!({})).token(&server.submit);
    let cancelled: Value = server.call(cancel.clone()).await.ok();
    assert_eq!((&cancelled["state"], &cancelled["status"]), (&json!("cancelled"), &json!("SKIP")));
    server.call(cancel).await.ok::<Value>();
    let run: Run = server.get(format!("/api/v1/runs/{}", run.id)).await.ok();
    assert_eq!(run.state, crashyard_protocol::RunState::Done);
    let enrolled = server.enrol(&["m1"]).await;
    server.call(server.claim_call(&enrolled, 0)).await.no_content();
}

#[tokio::test]
async fn a_job_that_a_machine_has_cannot_be_withdrawn() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    let cancel = Call::post(format!("/api/v1/jobs/{}/cancel", claim.brief.job), &json!({})).token(&server.submit);
    server.call(cancel).await.problem(409, kind::CONFLICT);
}

#[tokio::test]
async fn wrong_paths_methods_ids_and_bodies_are_problems_with_advice() {
    let server = Server::new().await;
    server.get("/api/v1/nothing").await.problem(404, kind::NOT_FOUND);
    let wrong = server.call(Call::get("/api/v1/trees").method(Method::DELETE)).await;
    wrong.problem(405, kind::INVALID);
    assert!(wrong.header("allow").contains("GET"), "{}", wrong.header("allow"));
    server.get("/api/v1/runs/not-an-id").await.problem(400, kind::INVALID);
    server.get("/api/v1/runs/01JDB4Q1W5Z8N6K3X0V7T2R9MF").await.problem(404, kind::NOT_FOUND);
    let put = Call::put("/api/v1/scenarios/x", "{ not json").token(&server.submit);
    server.call(put).await.problem(400, kind::INVALID);
    let mut typo = crate::harness::scenario("x");
    typo["expects"] = json!({});
    let put = Call::put_json("/api/v1/scenarios/x", &typo).token(&server.submit);
    let problem = server.call(put).await.problem(400, kind::INVALID);
    assert!(problem.detail.contains("expects"), "the mistyped field is named: {}", problem.detail);
    let large = Call::put("/api/v1/scenarios/x", vec![b' '; 3 << 20]).token(&server.submit);
    server.call(large).await.problem(413, kind::TOO_LARGE);
}

#[tokio::test]
async fn nonsense_in_scenarios_plans_and_builds_is_refused() {
    let server = Server::new().await;
    let scenario = |change: fn(&mut Value)| {
        let mut scenario = crate::harness::scenario("x");
        change(&mut scenario);
        Call::put_json("/api/v1/scenarios/x", &scenario).token(&server.submit)
    };
    let changes: [fn(&mut Value); 6] = [
        |s| s["name"] = "y".into(),
        |s| s["expect"]["panic"] = "".into(),
        |s| s["capture"] = json!({ "dump_level": 32 }),
        |s| s["boot"] = json!({ "cmdline": "a\nb" }),
        |s| s["boot"] = json!({ "cpus": 0 }),
        |s| s["trigger"] = "pull-the-plug".into(),
    ];
    for change in changes {
        server.call(scenario(change)).await.problem(400, kind::INVALID);
    }
    let plan = |body: Value| Call::put_json("/api/v1/plans/p", &body).token(&server.submit);
    server
        .call(plan(json!({ "name": "p", "scenarios": ["nope"], "repetitions": 1 })))
        .await
        .problem(404, kind::NOT_FOUND);
    server.call(plan(json!({ "name": "p", "scenarios": [], "repetitions": 1 }))).await.problem(400, kind::INVALID);
    server
        .call(plan(json!({ "name": "p", "scenarios": ["x"], "repetitions": 4_000_000 })))
        .await
        .problem(400, kind::INVALID);
    let build = json!({ "name": "x", "architecture": "x86_64", "release": "6.1", "build_id": "NOT HEX" });
    server.call(Call::post("/api/v1/builds", &build).token(&server.submit)).await.problem(400, kind::INVALID);
    let checkout = json!({ "tree": "nope", "git_commit_hash": "8f3d9f354286745c751374f5f1fcafee6b3f3136" });
    server.call(Call::post("/api/v1/checkouts", &checkout).token(&server.submit)).await.problem(404, kind::NOT_FOUND);
}

#[tokio::test]
async fn a_request_id_is_taken_from_a_proxy_or_made_and_always_said() {
    let server = Server::new().await;
    let given = server.call(Call::get("/nothing").header("x-request-id", "proxy-17")).await;
    assert_eq!(given.header("x-request-id"), "proxy-17");
    assert_eq!(given.problem(404, kind::NOT_FOUND).request_id.as_deref(), Some("proxy-17"));
    let odd = server.call(Call::get("/nothing").header("x-request-id", "a b<c>")).await;
    assert_eq!(odd.header("x-request-id").len(), 26, "an id of the server's own");
}

#[tokio::test]
async fn the_server_counts_what_it_does() {
    let server = Server::new().await;
    server.claimed().await;
    let text = String::from_utf8(server.get("/metrics").await.body.to_vec()).unwrap();
    assert!(text.contains("crashyard_claims_total 1"), "{text}");
    assert!(text.contains(r#"crashyard_http_requests_total{status="200"}"#), "{text}");
    assert!(text.contains(r#"crashyard_http_seconds_bucket{route="/agent/v1/claim""#), "{text}");
}

#[tokio::test]
async fn what_a_run_looks_like_on_the_wire() {
    let server = Server::new().await;
    let run = server.run(1).await;
    let jobs: Value = server.get(format!("/api/v1/runs/{}/jobs", run.id)).await.ok();
    insta::assert_json_snapshot!("run", run);
    insta::assert_json_snapshot!("jobs", jobs);
    let enrolled = server.enrol(&["m1"]).await;
    let claim: Value = server.call(server.claim_call(&enrolled, 0)).await.ok();
    insta::assert_json_snapshot!("claim", claim);
    let machine = enrolled.machines["m1"].clone();
    insta::assert_json_snapshot!("machine", server.get(format!("/api/v1/machines/{machine}")).await.ok::<Value>());
    insta::assert_json_snapshot!("problem", server.get("/nothing").await.json::<Value>());
}

#[tokio::test]
async fn the_catalogue_is_listed_in_pages_and_shown_to_people_without_believing_its_words() {
    let server = Server::new().await;
    for name in ["vmx-none", "vmx-vmxon", "vmx-kvm-loaded"] {
        let mut scenario = crate::harness::scenario(name);
        scenario["title"] = json!("<script>title of it</script>");
        scenario["vmx"] = json!(&name["vmx-".len()..]);
        let put = Call::put_json(format!("/api/v1/scenarios/{name}"), &scenario);
        server.call(put.clone()).await.problem(401, kind::UNAUTHORIZED);
        server.call(put.token(&server.submit)).await.ok::<StoredScenario>();
    }
    let first: Page<StoredScenario> = server.get("/api/v1/scenarios?limit=2").await.ok();
    let before = first.next.clone().expect("there is a third");
    let last: Page<StoredScenario> = server.get(format!("/api/v1/scenarios?limit=2&before={before}")).await.ok();
    let names = |page: &Page<StoredScenario>| -> Vec<String> {
        page.items.iter().map(|stored| stored.scenario.name.clone()).collect()
    };
    assert_eq!(names(&first), ["vmx-kvm-loaded", "vmx-vmxon"]);
    assert_eq!((names(&last), last.next), (vec!["vmx-none".to_owned()], None));
    let one: StoredScenario = server.get("/api/v1/scenarios/vmx-vmxon").await.ok();
    assert_eq!(one.scenario.name, "vmx-vmxon");
    server.get("/api/v1/scenarios/vmx-other").await.problem(404, kind::NOT_FOUND);

    for (path, shown) in [("/scenarios", "vmx-kvm-loaded"), ("/scenarios/vmx-vmxon", "title of it")] {
        let page = server.get(path).await;
        let html = String::from_utf8(page.body.to_vec()).expect("a page is text");
        assert_eq!(page.status, 200, "{path}: {html}");
        assert!(html.contains(shown) && !html.contains("<script>title"), "{path}: {html}");
    }
    assert_eq!(server.get("/scenarios/vmx-other").await.status, 404);
}
