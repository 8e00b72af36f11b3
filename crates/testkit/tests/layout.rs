//! What the layout promises: who may know whom (by `cargo metadata`), and who may know the time.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
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
    ("crashyard-swarm", &["crashyard-protocol", "crashyard-testkit"]),
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

/// The clock of a machine that has just crashed is nobody's to believe, and a controller's may jump as well. Both are
/// harmless as long as no agent asks what time it is and no message of one has room for an answer.
#[test]
fn an_agents_clock_may_jump_because_no_agent_asks_it_and_no_message_carries_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = vec![root.join("crates/protocol/src/agent.rs")];
    collect(&root.join("agent/src"), &mut files);
    assert!(files.len() > 20, "the agent's sources are where they were: {files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source file");
        // Civil time (a BMC's log has it) knows nothing of now.
        for word in ["SystemTime", "SystemClock", "Timestamp", "Zoned", "chrono::"] {
            assert!(!text.contains(word), "{} knows {word}", file.display());
        }
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
