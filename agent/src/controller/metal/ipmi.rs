//! Power of a real machine by IPMI over LAN.
//!
//! Cipher suite 3 is spoken by `ipmi-rs`, with commands of our own for chassis and event log; every other suite by a child
//! `ipmitool`.
//!
//! What makes `ipmi-rs` safe to use, all of it seen to be needed: it does not compare a reply with what was asked, so
//! **every operation has a socket and a session of its own**, dropped afterwards whatever came of it, and a late reply
//! finds nobody; it panics on some network errors, so it works on a thread whose panic is an error here; it never
//! raises the session above USER, so we do; and it sends nothing twice, so questions are asked again in a new session.
//! A command is never repeated unless its outcome can be seen: powering on and off is, an NMI and a reset are not.

use super::chassis::Chassis;
use crate::ipmi::chassis::{ChassisControl, ChassisIdentify, ChassisStatus, Control, NetworkBoot};
use crate::ipmi::command;
use crate::ipmi::sel::{self, Reading};
use anyhow::{Context as _, bail, ensure};
use async_trait::async_trait;
use ipmi_rs::connection::{IpmiCommand, Message, NetFn, NotEnoughData};
use ipmi_rs::{Ipmi, rmcp::Rmcp};
use std::fmt;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::process::Command;

/// How long one reply may take.
const REPLY: Duration = Duration::from_secs(3);

/// How long `ipmitool` may take for one command, with its own repetitions.
const CHILD: Duration = Duration::from_secs(30);

/// Sessions that a question is asked in, or power is switched in, before that counts as failed.
const TRIES: u32 = 3;

/// The one suite that `ipmi-rs` speaks (RAKP-HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128).
pub const BUILTIN_SUITE: u8 = 3;

/// Where a BMC is and how to log in. `Debug` does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Bmc {
    /// Host name or address, without port.
    pub host: String,
    /// UDP port, 623 by the standard.
    pub port: u16,
    /// An account with the privilege Administrator.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Cipher suite (IPMI 2.0, table 22-20).
    pub suite: u8,
}

impl fmt::Debug for Bmc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{} (suite {})", self.user, self.host, self.port, self.suite)
    }
}

impl Bmc {
    async fn ask_power(&self) -> anyhow::Result<bool> {
        if self.suite == BUILTIN_SUITE {
            return self.session(ChassisStatus).await;
        }
        let said = self.ipmitool(&["chassis", "power", "status"]).await?;
        match said.trim() {
            "Chassis Power is on" => Ok(true),
            "Chassis Power is off" => Ok(false),
            other => bail!("ipmitool said {other:?}"),
        }
    }

    /// Sends one chassis command, once. After an error it may or may not have been carried out.
    pub async fn control(&self, control: Control) -> anyhow::Result<()> {
        let sent = if self.suite == BUILTIN_SUITE {
            self.session(ChassisControl(control)).await
        } else {
            self.ipmitool(&["chassis", "power", control.word()]).await.map(drop)
        };
        sent.with_context(|| format!("chassis control {} by {self:?}", control.word()))
    }

    /// One command in a session of its own.
    async fn session<C>(&self, command: C) -> anyhow::Result<C::Output>
    where
        C: IpmiCommand + Send + 'static,
        C::Output: Send,
        C::Error: fmt::Debug,
    {
        self.in_session(|ipmi| ipmi.send_recv(command).map_err(|error| anyhow::anyhow!("{error:?}"))).await
    }

    /// Work in a session of its own, which is dropped afterwards.
    async fn in_session<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ipmi<Rmcp>) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let this = self.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut link = Rmcp::new((this.host.as_str(), this.port), REPLY).context("open a socket")?;
            // Its errors have no text of their own; a wrong password, user and role all look the same.
            link.activate(true, Some(&this.user), Some(this.password.as_bytes()))
                .map_err(|error| anyhow::anyhow!("log in with suite 3 (address, user, password, role?): {error:?}"))?;
            let close = session_id(&link).map(CloseSession);
            let mut ipmi = Ipmi::new(link);
            ipmi.send_recv(Administrator).map_err(|error| anyhow::anyhow!("become administrator: {error:?}"))?;
            let answer = work(&mut ipmi);
            // A BMC has few sessions, and ends one that is left open after a minute. After an error the next answer could be
            // that of the command, so nothing more is asked.
            if let (Ok(_), Some(close)) = (&answer, close) {
                let _ = ipmi.send_recv(close);
            }
            answer
        });
        work.await.context("the IPMI library failed")?
    }

    /// The event log in one session, as one for each of a thousand entries would take minutes. What breaks off is gone on with
    /// in another, as often as that gets further.
    async fn event_log(&self) -> anyhow::Result<Vec<String>> {
        let reading = Arc::new(Mutex::new(Reading::begin()));
        let (mut known, mut left) = (0, TRIES);
        loop {
            let log = reading.clone();
            let Err(error) = self.in_session(move |ipmi| locked(&log).read(ipmi)).await else { break };
            let now = locked(&reading).lines().len();
            left = if now > known { TRIES } else { left - 1 };
            known = now;
            if left == 0 {
                return Err(error);
            }
        }
        let lines = locked(&reading).lines().to_vec();
        Ok(lines)
    }

    async fn event_list(&self) -> anyhow::Result<Vec<String>> {
        let said = self.ipmitool(&["sel", "list"]).await?;
        let lines: Vec<_> = said.lines().map(|line| line.trim().to_owned()).collect();
        ensure!(lines.len() <= sel::ENTRIES, "it has more than {} entries: clear it", sel::ENTRIES);
        Ok(lines)
    }

    /// Serial over LAN by `ipmitool`, not started: `activate` or `deactivate`.
    #[must_use]
    pub fn sol(&self, action: &str) -> Command {
        let mut command = self.child();
        command.args(["sol", action]);
        command
    }

    fn child(&self) -> Command {
        let mut command = Command::new("ipmitool");
        command
            // The suite is always given: to find one out takes ipmitool ten seconds.
            .args(["-I", "lanplus", "-C", &self.suite.to_string(), "-H", &self.host, "-p", &self.port.to_string()])
            .args(["-U", &self.user, "-E"])
            .env("IPMI_PASSWORD", &self.password)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// One run of `ipmitool`; the password goes through the environment, where other users do not see it.
    async fn ipmitool(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut child = self.child();
        let run = child.args(arguments).output();
        let output = tokio::time::timeout(CHILD, run).await.context("ipmitool does not end")?;
        let output = output.context("start ipmitool (Debian package ipmitool)")?;
        if !output.status.success() {
            bail!("ipmitool: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[async_trait]
impl Chassis for Bmc {
    fn what(&self) -> String {
        format!("IPMI at {}", self.host)
    }

    fn who(&self) -> &'static str {
        "the BMC"
    }

    async fn is_on(&self) -> anyhow::Result<bool> {
        let mut last = None;
        for _ in 0..TRIES {
            match self.ask_power().await {
                Ok(on) => return Ok(on),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no session was tried")?.context(format!("ask {self:?} for the power state")))
    }

    async fn switch(&self, on: bool) -> anyhow::Result<()> {
        let control = if on { Control::On } else { Control::Off };
        let mut sent = self.control(control).await;
        for _ in 1..TRIES {
            // A lost answer is not a lost command: what counts is what the next session sees.
            if sent.is_ok() || self.is_on().await? == on {
                return Ok(());
            }
            sent = self.control(control).await;
        }
        sent
    }

    async fn reset(&self) -> anyhow::Result<String> {
        self.control(Control::Reset).await?;
        Ok("the BMC took the reset".into())
    }

    async fn nmi(&self) -> anyhow::Result<String> {
        self.control(Control::Diagnostic).await?;
        Ok("the BMC took the diagnostic interrupt".into())
    }

    async fn boot_from_network_once(&self) -> anyhow::Result<String> {
        let set = if self.suite == BUILTIN_SUITE {
            self.session(NetworkBoot).await
        } else {
            self.ipmitool(&["chassis", "bootdev", "pxe"]).await.map(drop)
        };
        set.context("set the boot source")?;
        Ok("its next boot is from the network".into())
    }

    async fn events(&self) -> anyhow::Result<Option<Vec<String>>> {
        let events = if self.suite == BUILTIN_SUITE { self.event_log().await } else { self.event_list().await };
        events.with_context(|| format!("read the event log of {self:?}")).map(Some)
    }

    async fn identify(&self, seconds: u8) -> anyhow::Result<String> {
        let sent = if self.suite == BUILTIN_SUITE {
            self.session(ChassisIdentify(seconds)).await
        } else {
            self.ipmitool(&["chassis", "identify", &seconds.to_string()]).await.map(drop)
        };
        sent.context("chassis identify")?;
        Ok(if seconds == 0 { "its light is off".into() } else { format!("its light is on for {seconds} s") })
    }

    async fn can_nmi(&self) -> anyhow::Result<String> {
        bail!("IPMI does not say whether the BMC takes a diagnostic interrupt; only sending one shows it")
    }
}

/// The library may have panicked meanwhile; an entry is either read or it is not.
fn locked(reading: &Mutex<Reading>) -> MutexGuard<'_, Reading> {
    reading.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The BMC's number of this session. The library has no other way to it than what it shows of itself.
fn session_id(link: &Rmcp) -> Option<u32> {
    let shown = format!("{link:?}");
    let (_, after) = shown.split_once("session_id: ")?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Close Session, section 22.19.
struct CloseSession(u32);

/// Set Session Privilege Level, IPMI 2.0 section 22.18.
struct Administrator;

command!(Administrator, _this, App, 0x3b, vec![4], (), |data: &[u8]| data.first().map(|_| ()));
command!(CloseSession, this, App, 0x3c, this.0.to_le_bytes().to_vec(), (), |_: &[u8]| Some(()));
