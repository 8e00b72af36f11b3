//! Who may do what.

use crate::harness::{Call, Server, note};
use crashyard_protocol::agent::{ReleaseRequest, Role};
use crashyard_protocol::api::{Token, TokenWithSecret};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::problem::kind;
use serde_json::json;

#[tokio::test]
async fn every_write_needs_a_token() {
    let server = Server::new().await;
    let openapi: serde_json::Value = server.get("/api/v1/openapi.json").await.ok();
    let mut writes = 0;
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|method| *method != "get") {
            let path =
                path.replace("{id}", "01JDB4Q1W5Z8N6K3X0V7T2R9MF").replace("{attempt}", "01JDB4Q1W5Z8N6K3X0V7T2R9MF");
            let path = path.replace("{name}", "x").replace("{source}", "x").replace("{by}", "target");
            let call = Call::post(path.clone(), &json!({})).method(method.to_uppercase().parse().unwrap());
            let problem = server.call(call).await.problem(401, kind::UNAUTHORIZED);
            assert!(problem.next.contains("token"), "{path}");
            writes += 1;
        }
    }
    assert!(writes > 15, "{writes} writes found");
}

#[tokio::test]
async fn an_unknown_token_is_refused_and_a_malformed_header_explained() {
    let server = Server::new().await;
    let call = Call::post("/api/v1/trees", &json!({ "name": "mainline" }));
    server.call(call.clone().token("crashyard_nobody")).await.problem(401, kind::UNAUTHORIZED);
    let problem = server.call(call.header("authorization", "Token x")).await.problem(401, kind::UNAUTHORIZED);
    assert!(problem.detail.contains("Bearer"));
}

#[tokio::test]
async fn a_token_does_only_what_its_scope_says() {
    let server = Server::new().await;
    let tree = json!({ "name": "mainline" });
    server.call(Call::post("/api/v1/trees", &tree).token(&server.controller)).await.problem(403, kind::FORBIDDEN);
    server.call(Call::get("/api/v1/tokens").token(&server.submit)).await.problem(403, kind::FORBIDDEN);
    let enrol = json!({ "name": "lab", "version": "1", "machines": [] });
    server.call(Call::post("/agent/v1/enrol", &enrol).token(&server.submit)).await.problem(403, kind::FORBIDDEN);
    // An administrator may do everything.
    server.call(Call::post("/api/v1/trees", &tree).token(&server.admin)).await.ok::<serde_json::Value>();
    server.call(Call::post("/agent/v1/enrol", &enrol).token(&server.admin)).await.ok::<serde_json::Value>();
}

#[tokio::test]
async fn a_token_stops_working_when_it_expires_and_when_it_is_revoked() {
    let server = Server::new().await;
    let expires_at = Timestamp(crate::harness::START.0 + 60_000);
    let new = json!({ "name": "ci", "scope": "submit", "expires_at": expires_at });
    let made: TokenWithSecret = server.call(Call::post("/api/v1/tokens", &new).token(&server.admin)).await.ok();
    let write = Call::post("/api/v1/trees", &json!({ "name": "mainline" })).token(&made.secret);
    server.call(write.clone()).await.ok::<serde_json::Value>();
    server.advance(60);
    server.call(write).await.problem(401, kind::UNAUTHORIZED);

    let new = json!({ "name": "ci", "scope": "submit" });
    let made: TokenWithSecret = server.call(Call::post("/api/v1/tokens", &new).token(&server.admin)).await.ok();
    let revoke = Call::post(format!("/api/v1/tokens/{}/revoke", made.token.id), &json!({})).token(&server.admin);
    let first: Token = server.call(revoke.clone()).await.ok();
    server.advance(1);
    assert_eq!(server.call(revoke).await.ok::<Token>(), first, "revoking again changes nothing");
    let write = Call::post("/api/v1/trees", &json!({ "name": "mainline" })).token(&made.secret);
    server.call(write).await.problem(401, kind::UNAUTHORIZED);
}

#[tokio::test]
async fn secrets_are_not_in_the_database() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.state.db.close().await;
    let secrets = [&server.admin, &server.submit, &server.controller, &claim.attempt_token];
    for entry in std::fs::read_dir(server.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let Ok(bytes) = std::fs::read(&path) else { continue };
        for secret in secrets {
            let raw = secret.strip_prefix("crashyard_").unwrap().as_bytes();
            assert!(!bytes.windows(raw.len()).any(|window| window == raw), "a secret is in {}", path.display());
        }
    }
}

#[tokio::test]
async fn an_attempts_token_acts_only_inside_its_attempt_and_never_for_the_controller() {
    let server = Server::new().await;
    server.run(2).await;
    let enrolled = server.enrol(&["m1", "m2"]).await;
    let one: crashyard_protocol::agent::Claim = server.call(server.claim_call(&enrolled, 0)).await.ok();
    let mut rest = enrolled.clone();
    rest.machines.retain(|_, id| *id != one.machine);
    let two: crashyard_protocol::agent::Claim = server.call(server.claim_call(&rest, 0)).await.ok();

    let brief = Call::get(format!("/agent/v1/attempts/{}/brief", two.attempt)).token(&one.attempt_token);
    server.call(brief).await.problem(403, kind::FORBIDDEN);
    let reports = json!({ "by": "controller", "reports": [] });
    let reports = Call::post(format!("/agent/v1/attempts/{}/reports", one.attempt), &reports).by_agent(&one);
    server.call(reports).await.problem(403, kind::FORBIDDEN);
    let renew = Call::post(format!("/agent/v1/attempts/{}/renew", one.attempt), &json!({ "wait_seconds": 0 }));
    server.call(renew.by_agent(&one)).await.problem(403, kind::FORBIDDEN);
    let console = format!("/agent/v1/attempts/{}/console/serial0?offset=0", one.attempt);
    server.call(Call::put(console, "forged").by_agent(&one)).await.problem(403, kind::FORBIDDEN);
    server
        .call(Call::post("/api/v1/trees", &json!({ "name": "x" })).token(&one.attempt_token))
        .await
        .problem(403, kind::FORBIDDEN);
}

#[tokio::test]
async fn an_attempts_token_ends_with_its_attempt() {
    let server = Server::new().await;
    let claim = server.claimed().await;
    server.report(&claim, Role::Target, 0, note("alive")).await.ok::<serde_json::Value>();
    let release = ReleaseRequest { healthy: true, detail: String::new() };
    let release = Call::post(format!("/agent/v1/attempts/{}/release", claim.attempt), &release);
    server.call(release.by_controller(&server, &claim)).await.no_content();
    server.report(&claim, Role::Target, 1, note("still there")).await.problem(409, kind::LEASE_LOST);
}

#[tokio::test]
async fn a_private_server_shows_nothing_without_a_token() {
    let server = Server::with(|config| config.public_read = false).await;
    for path in ["/api/v1/runs", "/api/v1/machines", "/metrics", "/"] {
        let answer = server.get(path).await;
        answer.problem(401, kind::UNAUTHORIZED);
        assert!(answer.header("www-authenticate").contains("Basic"), "a browser can ask for it");
    }
    server.call(Call::get("/api/v1/runs").token(&server.controller)).await.ok::<serde_json::Value>();
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn on_a_private_server_an_attempts_token_reads_its_own_files_and_no_others() {
    let server = Server::with(|config| config.public_read = false).await;
    let claim = server.claimed().await;
    server.put_console(&claim, 0, "hello").await.ok::<serde_json::Value>();
    let path = format!("/api/v1/attempts/{}/artifacts", claim.attempt);
    let artifacts: Vec<crashyard_protocol::api::Artifact> =
        server.call(Call::get(path).token(&server.submit)).await.ok();
    let own = format!("/api/v1/artifacts/{}/content", artifacts[0].id);
    assert_eq!(server.call(Call::get(own).token(&claim.attempt_token)).await.body, "hello");

    let build = server.build().await;
    let path = format!("/api/v1/builds/{}/artifacts/kernel", build.id);
    let upload: crashyard_protocol::agent::Upload = server.call(Call::get(path).token(&server.submit)).await.ok();
    let other = format!("/api/v1/artifacts/{}/content", upload.artifact);
    server.call(Call::get(other).token(&claim.attempt_token)).await.problem(403, kind::FORBIDDEN);
    server.call(Call::get("/api/v1/runs").token(&claim.attempt_token)).await.problem(403, kind::FORBIDDEN);
}
