//! The API's description is locked: a change of the wire shows in review.

use crate::harness::Server;

#[tokio::test]
async fn the_description_is_what_the_snapshot_says() {
    let served: serde_json::Value = Server::new().await.get("/api/v1/openapi.json").await.ok();
    insta::assert_json_snapshot!("openapi", served);
}

#[test]
fn every_operation_has_an_id_of_its_own_and_a_summary() {
    let document = serde_json::to_value(crashyard_server::routes::openapi()).unwrap();
    let mut ids = std::collections::BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!(operation["summary"].is_string() || operation["description"].is_string(), "{method} {path}");
        }
    }
}
