//! Builds the agent for the guest: static, small, the same source as everywhere.

use crate::{cache, command};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Naming a target keeps build scripts and macros dynamic while the agent itself is linked statically.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the guest's agent with the workspace's `guest` profile and returns its path.
pub fn build() -> anyhow::Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let target_dir = cache::folder()?.join("agent-target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .current_dir(workspace)
        .args(["build", "--quiet", "--locked", "--profile", "guest", "-p", "crashyard-agent", "--bin"])
        .args(["crashyard-agent", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    eprintln!("building the guest's agent");
    command::output(&mut build).context("building the guest's agent")?;
    Ok(target_dir.join(TARGET).join("guest/crashyard-agent"))
}
