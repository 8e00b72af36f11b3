//! Configuration: one flat struct, from a TOML file, then from the environment (`CRASHYARD_` and the key in capitals).
//!
//! Unknown keys are refused: a typing mistake must not quietly leave a default in place.

use crate::db::settle::Care;
use crate::trust::Rule;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything an operator can set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// `sqlite:PATH` or `postgres://…`.
    pub database_url: String,
    /// Connections to PostgreSQL: more than a few times its processor cores only wait for each other. SQLite has one writer and
    /// eight readers.
    pub database_connections: u32,
    /// Where bytes are kept: `dir:PATH`, or `s3://BUCKET/PREFIX` (with `AWS_*` in the environment).
    pub blobs: String,
    /// Whether anybody may read; writing always needs a token.
    pub public_read: bool,
    /// Where the first start writes an admin token; empty writes none.
    pub admin_token_file: PathBuf,
    /// How long a lease lasts without being renewed, in seconds.
    pub lease_seconds: u32,
    /// How many attempts a job gets when the lab does not deliver.
    pub max_attempts: u32,
    /// A machine is quarantined when so many of its last attempts failed without a kernel's doing; 0 never.
    pub quarantine_failures: u32,
    /// How many of its last attempts are looked at for that.
    pub quarantine_window: u32,
    /// Minutes of a first quarantine; each in a row lasts twice as long.
    pub quarantine_minutes: u32,
    /// Name of the plan by which machines are checked, with the kernel that its policy calls known to be good; empty checks
    /// none.
    pub health_plan: String,
    /// How often each machine is checked.
    pub health_hours: u32,
    /// Program and arguments that tell people that the machine they have goes back to the jobs; empty tells nobody.
    pub notify_command: Vec<String>,
    /// Minutes after which a waiting job counts as one priority higher.
    pub promote_after_minutes: u32,
    /// Largest single artifact, in bytes.
    pub max_artifact_bytes: u64,
    /// Bytes one attempt may store in all.
    pub max_attempt_bytes: u64,
    /// Bytes one build may store in all.
    pub max_build_bytes: u64,
    /// Full dumps kept of each signature (`/signatures`), or of each scenario of a run where a crash has none; 0 keeps all.
    pub keep_dumps_each: u32,
    /// Days that full dumps are kept; 0 is for ever.
    pub keep_dumps_days: u32,
    /// Bytes that all full dumps may have together; 0 is no limit.
    pub max_dumps_bytes: u64,
    /// `text` or `json`.
    pub log_format: LogFormat,
    /// Which log lines to write, e.g. `info,crashyard_server=debug`.
    pub log_filter: String,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object for each line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8480)),
            database_url: "sqlite:crashyard.db".into(),
            database_connections: 8,
            blobs: "dir:blobs".into(),
            public_read: true,
            admin_token_file: "admin.token".into(),
            lease_seconds: 60,
            max_attempts: 2,
            quarantine_failures: 3,
            quarantine_window: 10,
            quarantine_minutes: 60,
            health_plan: String::new(),
            health_hours: 24,
            notify_command: Vec::new(),
            promote_after_minutes: 360,
            max_artifact_bytes: 8 << 30,
            max_attempt_bytes: 16 << 30,
            max_build_bytes: 8 << 30,
            keep_dumps_each: 3,
            keep_dumps_days: 90,
            max_dumps_bytes: 200 << 30,
            log_format: LogFormat::Text,
            log_filter: "info".into(),
        }
    }
}

/// The default configuration with a line on every key; a test holds it to [`Config::default`].
pub const DEFAULT_TOML: &str = include_str!("../../deploy/server.toml");

impl Config {
    /// Reads the file (if one is given) and the environment.
    pub fn load(file: Option<&Path>, environment: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let mut table = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                text.parse::<toml::Table>().with_context(|| format!("{} is not TOML", path.display()))?
            }
            None => toml::Table::new(),
        };
        let defaults = toml::Table::try_from(Self::default()).context("the defaults are TOML")?;
        for (key, default) in &defaults {
            let name = format!("CRASHYARD_{}", key.to_uppercase());
            let Some(text) = environment(&name) else { continue };
            let value = match default {
                toml::Value::Boolean(_) => {
                    toml::Value::Boolean(text.parse().with_context(|| format!("{name} must be true or false"))?)
                }
                toml::Value::Integer(_) => {
                    toml::Value::Integer(text.parse().with_context(|| format!("{name} must be a number"))?)
                }
                toml::Value::Array(_) => {
                    let words: Vec<String> = serde_json::from_str(&text)
                        .with_context(|| format!("{name} must be a list of texts, as JSON"))?;
                    words.into()
                }
                _ => toml::Value::String(text),
            };
            table.insert(key.clone(), value);
        }
        let config: Self = table.try_into().context("the configuration is not valid")?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.lease_seconds >= 3, "lease_seconds must be at least 3");
        anyhow::ensure!(self.max_attempts >= 1, "max_attempts must be at least 1");
        anyhow::ensure!(
            (self.quarantine_failures..=1000).contains(&self.quarantine_window),
            "quarantine_window must be at least quarantine_failures and at most 1000"
        );
        anyhow::ensure!(self.quarantine_minutes >= 1, "quarantine_minutes must be at least 1");
        anyhow::ensure!(self.health_hours >= 1, "health_hours must be at least 1");
        anyhow::ensure!(self.promote_after_minutes >= 1, "promote_after_minutes must be at least 1");
        anyhow::ensure!(self.database_connections >= 2, "database_connections must be at least 2");
        Ok(())
    }

    /// How long a job waits until it counts as one priority higher.
    #[must_use]
    pub fn promote_after(&self) -> Duration {
        Duration::from_secs(u64::from(self.promote_after_minutes) * 60)
    }

    /// How failures are dealt with.
    #[must_use]
    pub fn care(&self) -> Care {
        Care {
            tries: self.max_attempts,
            rule: Rule {
                failures: self.quarantine_failures,
                window: self.quarantine_window,
                probation: Duration::from_secs(u64::from(self.quarantine_minutes) * 60),
            },
        }
    }

    /// How long a lease lasts without being renewed.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_secs(u64::from(self.lease_seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_defaults_are_the_defaults_and_name_every_key() {
        let printed: Config = toml::from_str(DEFAULT_TOML).unwrap();
        assert_eq!(printed, Config::default());
        for key in toml::Table::try_from(Config::default()).unwrap().keys() {
            assert!(DEFAULT_TOML.contains(&format!("\n{key} = ")), "{key} is not printed");
        }
    }

    #[test]
    fn the_environment_wins_over_the_file_and_keeps_types() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("server.toml");
        std::fs::write(&file, "lease_seconds = 30\npublic_read = true\n").unwrap();
        let environment = |name: &str| match name {
            "CRASHYARD_PUBLIC_READ" => Some("false".to_owned()),
            "CRASHYARD_MAX_ATTEMPTS" => Some("5".to_owned()),
            "CRASHYARD_NOTIFY_COMMAND" => Some(r#"["/bin/tell", "a b"]"#.to_owned()),
            _ => None,
        };
        let config = Config::load(Some(&file), environment).unwrap();
        assert_eq!((config.lease_seconds, config.public_read, config.max_attempts), (30, false, 5));
        assert_eq!(config.notify_command, ["/bin/tell", "a b"]);
    }

    #[test]
    fn a_mistyped_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("server.toml");
        std::fs::write(&file, "lease_second = 30\n").unwrap();
        let error = format!("{:#}", Config::load(Some(&file), |_| None).unwrap_err());
        assert!(error.contains("lease_second"), "{error}");
    }
}
