//! The direction of dependencies, held by `cargo metadata`: who may know whom.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Our crates that each of our crates may depend on, outside of its tests.
const ALLOWED: &[(&str, &[&str])] = &[
    ("crashyard-protocol", &[]),
    ("crashyard-crashlog", &[]),
    ("crashyard-vmcore", &[]),
    ("crashyard-testkit", &["crashyard-protocol"]),
    ("crashyard-server", &["crashyard-protocol", "crashyard-crashlog", "crashyard-vmcore"]),
    ("crashyard-agent", &["crashyard-protocol"]),
    ("crashyard-cli", &["crashyard-protocol", "crashyard-crashlog", "crashyard-vmcore"]),
    ("crashyard-swarm", &["crashyard-protocol"]),
    ("crashyard-lab", &["crashyard-protocol", "crashyard-agent", "crashyard-vmcore"]),
];

#[test]
fn our_crates_depend_only_on_whom_the_layout_allows() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ALLOWED.iter().map(|(name, may)| (*name, may.iter().copied().collect())).collect();

    let packages = metadata["packages"].as_array().expect("a list");
    assert_eq!(packages.len(), allowed.len(), "a new crate must be entered in the table above");
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} is not in the table above"));
        for dependency in package["dependencies"].as_array().expect("a list") {
            let on = dependency["name"].as_str().expect("a name");
            if dependency["kind"] != "dev" && on.starts_with("crashyard-") {
                assert!(may.contains(on), "{name} must not depend on {on}");
            }
        }
    }
}
