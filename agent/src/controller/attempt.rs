//! One attempt, from the lease to the machine's return, by a controller that may die at any point.
//!
//! ```text
//! lease ─► images ─► consoles open ─► power on ─► wait ─► collect: power off, consoles to the end, logs, dump disk
//!                                                           ─► health check ─► release
//! ```
//!
//! The order of journal and act is what makes it safe: intent is synced, then the act, then its outcome. What a
//! missing outcome means is decided for each act: powering on is done again only on a machine that was never on,
//! an NMI is never sent twice, powering off may be repeated at will.

use super::Farm;
use super::forward::{self, ForwardError};
use super::machine::{Attached, BootPlan, Driver, PowerStatus};
use super::record::{Action, Ending, Entry, Progress, Record};
use super::reports::Ledger;
use crate::disk;
use crate::http::LONG_POLL;
use crate::journal::Journal;
use crate::retry::persist;
use crate::upload::{self, Destination, UploadError};
use anyhow::Context as _;
use crashyard_protocol::agent::{Claim, Directive, KeyPress, ReleaseRequest, RenewRequest, Report, Ticket};
use crashyard_protocol::api::DUMP;
use crashyard_protocol::client::{Client, ClientError};
use crashyard_protocol::problem::kind;
use crashyard_protocol::retry::Backoff;
use crashyard_protocol::{Scenario, Transport, Trigger};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Name of the journal in an attempt's directory.
pub const JOURNAL: &str = "journal.jsonl";

/// What every machine boots with: a console that shows what the agents say, and a panic that stays to be looked at.
const BASE_CMDLINE: &str = "console=ttyS0,115200 printk.devkmsg=on panic=0";

/// An attempt in the controller's hands.
pub struct Attempt {
    farm: Arc<Farm>,
    driver: Arc<dyn Driver>,
    /// Added to the command line of every boot of this machine.
    cmdline: String,
    directory: PathBuf,
    client: Client,
    claim: Claim,
    ledger: Arc<Ledger>,
    machine: Attached,
}

impl Attempt {
    /// Writes a new lease down.
    pub fn begin(directory: &Path, machine: &str, claim: &Claim) -> anyhow::Result<()> {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let (mut journal, _) = Journal::open::<Entry>(&directory.join(JOURNAL))?;
        journal.append(&Entry::Leased { machine: machine.to_owned(), claim: Box::new(claim.clone()) })
    }

    /// What is written down about an attempt; `None` if nothing was done under it.
    pub fn look(directory: &Path) -> anyhow::Result<Option<Record>> {
        Ok(Record::replay(Journal::open(&directory.join(JOURNAL))?.1))
    }

    /// Takes an attempt up where its journal ends.
    pub fn take_up(
        farm: &Arc<Farm>,
        driver: &Arc<dyn Driver>,
        cmdline: &str,
        directory: &Path,
    ) -> anyhow::Result<Option<Self>> {
        let (journal, entries) = Journal::open(&directory.join(JOURNAL))?;
        let Some(record) = Record::replay(entries) else { return Ok(None) };
        let claim = record.claim.clone();
        Ok(Some(Self {
            farm: farm.clone(),
            driver: driver.clone(),
            cmdline: cmdline.to_owned(),
            directory: directory.to_owned(),
            // The controller speaks with its own token: only it may renew and release.
            client: farm.client.at_epoch(claim.epoch),
            machine: driver.attach(directory)?,
            claim,
            ledger: Arc::new(Ledger::new(journal, record)),
        }))
    }

    /// Works to the end. An error is this host's trouble (its disk, its emulator); the attempt can be taken up again.
    pub async fn work(&self) -> anyhow::Result<Ending> {
        if let Some(how) = self.ledger.read(|record| record.closed) {
            return Ok(how);
        }
        let collect = CancellationToken::new();
        let pressed = watch::Sender::new(self.ledger.read(|record| record.next_press));
        let ending = tokio::select! {
            why = self.renew(&collect, &pressed) => {
                tracing::warn!(%why, attempt = %self.claim.attempt, "the lease is lost");
                if !why.is(kind::MACHINE_TAKEN) {
                    self.stop_machine().await;
                }
                Ending::Lost
            }
            ended = self.course(&collect) => {
                ended?;
                // Not beside the renewals: one of them might hear of the release first, and take it for a lost lease.
                self.release().await?
            }
            trouble = self.type_keys(pressed.subscribe()) => return Err(trouble),
        };
        self.ledger.write(&Entry::Closed { how: ending })?;
        Ok(ending)
    }

    /// Keeps the lease, and says when the server wants the machine back and how often people typed. Ends only when the lease is
    /// lost.
    async fn renew(&self, collect: &CancellationToken, pressed: &watch::Sender<u64>) -> ClientError {
        let mut lease = Duration::from_secs(u64::from(self.claim.lease_seconds));
        loop {
            let third = (lease / 3).clamp(Duration::from_secs(1), LONG_POLL);
            let wait_seconds = u32::try_from(third.as_secs()).unwrap_or(1);
            let request = RenewRequest { wait_seconds, keys: Some(*pressed.borrow()) };
            let reply = persist("renew", || self.client.renew(&self.claim.attempt, &request)).await;
            match reply {
                Ok(reply) => {
                    lease = Duration::from_secs(u64::from(reply.lease_seconds));
                    pressed.send_if_modified(|count| {
                        let more = reply.keys > *count;
                        *count = reply.keys.max(*count);
                        more
                    });
                    if reply.directive == Directive::Collect {
                        collect.cancel();
                        // Nothing can change any more that is worth holding a request for.
                        tokio::time::sleep(third).await;
                    }
                }
                // A token that has died with its attempt says the same as a stale epoch.
                Err(error) => return error,
            }
        }
    }

    /// Types what people want typed, each once: what a restart interrupted is told, and not typed again. Returns only with
    /// this host's trouble.
    async fn type_keys(&self, pressed: watch::Receiver<u64>) -> anyhow::Error {
        match self.type_until_trouble(pressed).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn type_until_trouble(&self, mut count: watch::Receiver<u64>) -> anyhow::Result<Infallible> {
        if let Some(press) = self.ledger.read(|record| record.typing.clone()) {
            let text = "the controller was restarted while it typed; it is not typed twice";
            self.typed(press, Err(std::io::Error::other(text)))?;
        }
        loop {
            let next = self.ledger.read(|record| record.next_press);
            // The sender lives as long as this does.
            let Ok(_) = count.wait_for(|count| *count > next).await else { return std::future::pending().await };
            let asked = persist("ask what was typed", || self.client.keys(&self.claim.attempt, next)).await;
            // Whatever the server refuses here, renewing says it to the one who acts on it.
            let Ok(pressed) = asked else { return std::future::pending().await };
            for press in pressed {
                self.ledger.write(&Entry::Typing { press: press.clone() })?;
                let console = self.machine.consoles.iter().find(|(name, _)| *name == press.source);
                let outcome = match console {
                    Some((_, console)) => console.press(&press.keys).await,
                    None => Err(std::io::Error::other("the machine has no console of this name")),
                };
                self.typed(press, outcome)?;
            }
        }
    }

    fn typed(&self, press: KeyPress, outcome: std::io::Result<()>) -> anyhow::Result<()> {
        let ok = outcome.is_ok();
        let detail = outcome.map_or_else(|error| error.to_string(), |()| "the console took it".into());
        let KeyPress { number, source, by, keys } = press;
        self.ledger.report(Report::Typed { number, source, by, keys, ok, detail })
    }

    /// The attempt as it should go, until its lease can be handed back.
    async fn course(&self, collect: &CancellationToken) -> anyhow::Result<()> {
        let machine_off = CancellationToken::new();
        let mut consoles = self.send_consoles(&machine_off);
        let said = CancellationToken::new();
        let mut reports = self.send_reports(&said);

        if !self.ledger.read(|record| record.collecting) {
            tokio::select! {
                trouble = self.run() => return Err(trouble),
                () = collect.cancelled() => self.ledger.write(&Entry::Collecting)?,
            }
        }
        let off = self.power_off().await?;
        machine_off.cancel();
        while let Some(joined) = consoles.join_next().await {
            self.note_console(joined.context("a console's sender")?)?;
        }
        if off {
            self.collect_files().await?;
        }
        self.check(off).await?;
        said.cancel();
        while let Some(joined) = reports.join_next().await {
            if let Err(error) = joined.context("the sender of reports")? {
                return Err(self.refused(error).await);
            }
        }
        Ok(())
    }

    /// The server refuses what this attempt needs: with a lost lease the renewal ends everything, so wait for it.
    async fn refused(&self, error: ClientError) -> anyhow::Error {
        if error.is_lease_lost() {
            std::future::pending::<()>().await;
        }
        error.into()
    }

    fn send_consoles(&self, machine_off: &CancellationToken) -> JoinSet<(String, Result<u64, ForwardError>)> {
        let mut senders = JoinSet::new();
        for (source, console) in &self.machine.consoles {
            let (client, attempt) = (self.client.clone(), self.claim.attempt.clone());
            let (source, console, off) = (source.clone(), console.clone(), machine_off.clone());
            senders.spawn(async move {
                let result = forward::forward(&client, &attempt, &source, console.as_ref(), &off).await;
                (source, result)
            });
        }
        senders
    }

    fn note_console(&self, (source, result): (String, Result<u64, ForwardError>)) -> anyhow::Result<()> {
        match result {
            Ok(bytes) => {
                tracing::info!(source, bytes, "console complete");
                Ok(())
            }
            // Renewing says the same, to the one who acts on it.
            Err(ForwardError::Refused(error)) if error.is_lease_lost() => Ok(()),
            Err(error) => self.ledger.report(Report::Note { text: format!("console {source}: {error}") }),
        }
    }

    fn send_reports(&self, said: &CancellationToken) -> JoinSet<Result<(), ClientError>> {
        let (ledger, client, said) = (self.ledger.clone(), self.client.clone(), said.clone());
        let mut sender = JoinSet::new();
        sender.spawn(async move { ledger.send(&client, &said).await });
        sender
    }

    /// Boots the machine and watches it. Returns only with this host's trouble.
    async fn run(&self) -> anyhow::Error {
        let result = async {
            if self.boot().await? {
                tokio::try_join!(self.watch_for_the_end(), self.cue_nmi())?;
            }
            anyhow::Ok(())
        };
        match result.await {
            // Nothing left to do but to wait for the server's word.
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    }

    /// Powers on, unless that was done. `false` if the machine cannot be booted; that is reported.
    async fn boot(&self) -> anyhow::Result<bool> {
        let power = &self.machine.power;
        match self.ledger.read(|record| record.on) {
            Progress::Done => return Ok(true),
            Progress::Failed => return Ok(false),
            Progress::Intended => match power.status().await? {
                PowerStatus::NeverOn => {}
                PowerStatus::On => return self.powered(Action::On, Ok("found running after a restart".into())),
                PowerStatus::Ended(how) => {
                    return self.powered(Action::On, Ok(format!("found after a restart to have run and ended: {how}")));
                }
            },
            Progress::Untouched => {}
        }
        let brief = &self.claim.brief;
        let ticket = Ticket {
            server: self.farm.server_from(&*self.driver, &self.ledger.read(|record| record.machine.clone())),
            attempt: self.claim.attempt.clone(),
            epoch: self.claim.epoch,
            token: self.claim.attempt_token.clone(),
        };
        let (kernel, initrd) = match self
            .farm
            .images
            .prepare(&self.client, brief, &ticket, self.driver.carries_build(), &self.directory)
            .await
        {
            Ok(files) => files,
            Err(error) => return self.powered(Action::On, Err(error.context("prepare the build's files"))),
        };
        let boot = &self.scenario().boot;
        let plan = BootPlan {
            kernel,
            initrd,
            cmdline: boot_cmdline(&self.cmdline, self.scenario()),
            cpus: boot.cpus,
            memory_mib: boot.memory_mib,
        };
        self.ledger.write(&Entry::Acting { action: Action::On })?;
        let outcome = power.on(&plan).await;
        self.powered(Action::On, outcome)
    }

    /// Reports the outcome of an action, and whether it worked.
    fn powered(&self, action: Action, outcome: anyhow::Result<String>) -> anyhow::Result<bool> {
        let ok = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|error| format!("{error:#}"));
        self.ledger.report(Report::Power { action: action.word().into(), ok, detail })?;
        Ok(ok)
    }

    async fn watch_for_the_end(&self) -> anyhow::Result<()> {
        if self.ledger.read(|record| record.has_seen(|report| matches!(report, Report::MachineEnded { .. }))) {
            return Ok(());
        }
        let detail = self.machine.power.ended().await?;
        // What the machine left on its disk belongs to the attempt before its end does: the end may be judged at once.
        self.collect_dump_disk().await?;
        self.ledger.report(Report::MachineEnded { detail })
    }

    /// Sends the NMI of a scenario that wants one, when its marker is on the console.
    async fn cue_nmi(&self) -> anyhow::Result<()> {
        if self.scenario().trigger != Trigger::Nmi {
            return Ok(());
        }
        match self.ledger.read(|record| record.nmi) {
            Progress::Done | Progress::Failed => return Ok(()),
            Progress::Intended => {
                let text = "the controller was restarted while it sent the NMI; it is not sent twice";
                return self.powered(Action::Nmi, Err(anyhow::anyhow!(text))).map(drop);
            }
            Progress::Untouched => {}
        }
        let (_, console) = self.machine.consoles.first().context("a machine without a console shows no marker")?;
        forward::wait_for_line(console.as_ref(), self.claim.brief.marker.as_bytes()).await?;
        self.ledger.write(&Entry::Acting { action: Action::Nmi })?;
        let outcome = self.machine.power.nmi().await;
        self.powered(Action::Nmi, outcome).map(drop)
    }

    fn scenario(&self) -> &Scenario {
        &self.claim.brief.scenario
    }

    /// Powers off, whatever the journal says: an emulator that was started just before a `kill -9` must not stay.
    async fn power_off(&self) -> anyhow::Result<bool> {
        if self.ledger.read(|record| record.off) == Progress::Done {
            return Ok(true);
        }
        self.ledger.write(&Entry::Acting { action: Action::Off })?;
        let outcome = self.machine.power.off().await;
        self.powered(Action::Off, outcome)
    }

    /// After a lost lease nobody waits for reports, but the machine must not go on.
    async fn stop_machine(&self) {
        let mut backoff = Backoff::default();
        while let Err(error) = self.machine.power.off().await {
            tracing::error!(error = format!("{error:#}"), "cannot power the machine off; trying again");
            backoff.wait().await;
        }
    }

    /// Sends what the driver left behind.
    async fn collect_files(&self) -> anyhow::Result<()> {
        self.collect_dump_disk().await?;
        for (name, path) in &self.machine.logs {
            match tokio::fs::metadata(path).await {
                Ok(file) if file.len() > 0 => {
                    let file = tokio::fs::File::open(path).await?;
                    self.send_file(name, file).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn collect_dump_disk(&self) -> anyhow::Result<()> {
        let Some(image) = &self.machine.dump_disk else { return Ok(()) };
        if self.scenario().capture.transport != Transport::Disk {
            return Ok(());
        }
        match disk::open(image, &self.claim.attempt) {
            Ok(None) => Ok(()),
            Ok(Some((header, file))) => {
                let file = tokio::fs::File::from_std(file).take(header.bytes);
                self.send_file(DUMP, file).await
            }
            Err(error) => self.ledger.report(Report::Note { text: format!("dump disk: {error:#}") }),
        }
    }

    /// Sends one file as evidence. A refusal is told, and does not keep the machine from its next job.
    async fn send_file(&self, name: &str, file: impl tokio::io::AsyncRead + Unpin) -> anyhow::Result<()> {
        let destination = Destination::Evidence(self.claim.attempt.clone(), name.to_owned());
        let sent = async {
            let sent = upload::send(&self.client, &destination, file, |_| {}).await?;
            destination.complete(&self.client, &sent).await?;
            Ok::<_, UploadError>(sent)
        };
        match sent.await {
            Ok(sent) => {
                tracing::info!(name, bytes = sent.bytes, "collected");
                Ok(())
            }
            Err(UploadError::Refused(error)) if error.is_lease_lost() => Err(self.refused(error).await),
            Err(error) => self.ledger.report(Report::Note { text: format!("{name}: {error}") }),
        }
    }

    async fn check(&self, off: bool) -> anyhow::Result<()> {
        if self.ledger.read(|record| record.health.is_some()) {
            return Ok(());
        }
        let found =
            if off { self.machine.power.check().await } else { Err(anyhow::anyhow!("it cannot be powered off")) };
        let healthy = found.is_ok();
        let detail = found.unwrap_or_else(|error| format!("{error:#}"));
        self.ledger.report(Report::Health { healthy, detail })
    }

    async fn release(&self) -> anyhow::Result<Ending> {
        let (healthy, detail) = self.ledger.read(|record| record.health.clone()).context("released before checked")?;
        let request = ReleaseRequest { healthy, detail };
        let released = persist("release", || self.client.release(&self.claim.attempt, &request)).await;
        match released {
            Ok(()) => Ok(Ending::Released),
            // Released before this controller was killed, or lost: either way it is over, and the machine is off.
            Err(_) => Ok(Ending::Lost),
        }
    }
}

/// The command line of the kernel under test. The scenario speaks last.
fn boot_cmdline(machine: &str, scenario: &Scenario) -> String {
    let mut words: Vec<&str> =
        [BASE_CMDLINE, machine, &scenario.boot.cmdline].map(str::split_whitespace).into_iter().flatten().collect();
    let crashkernel = format!("crashkernel={}", scenario.boot.crashkernel);
    if !scenario.boot.crashkernel.is_empty() {
        words.push(&crashkernel);
    }
    words.join(" ")
}
