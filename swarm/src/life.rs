//! The life of a simulated machine: attempts, one after another, as a controller and the agents on the machine work them.
//!
//! Every request is one that the real ones make, in their order, with their tokens: the lease is renewed by requests that the
//! server holds, console bytes come in pieces, the target agent reports and waits for its trigger, the capture agent sends a
//! dump (noise, and small: what the server makes of dumps is not the question here).

use crate::calls::Calls;
use anyhow::Context as _;
use bytes::Bytes;
use crashyard_protocol::agent::{
    CHUNK_BYTES, Claim, ClaimRequest, CompleteRequest, Directive, Numbered, ReleaseRequest, RenewRequest, Report,
    Reports, Role,
};
use crashyard_protocol::chunk::{chunk_hash, hex};
use crashyard_protocol::client::{Client, ClientError};
use crashyard_protocol::retry::Backoff;
use crashyard_protocol::{AttemptId, ControllerId, JobId, MachineId, VmxState};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// How long a claim is held, as real controllers ask.
const CLAIM_SECONDS: u32 = 30;

/// What an attempt is like.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From the lease to the machine's return.
    pub length: Duration,
    /// Console bytes.
    pub console_bytes: usize,
    /// Pieces in which they come.
    pub writes: usize,
    /// Bytes of the dump; at most one chunk.
    pub dump_bytes: usize,
}

/// What the labs know of their work.
#[derive(Debug, Default)]
pub struct Book {
    /// Attempts under way, and the epochs of their leases.
    pub live: HashMap<JobId, (AttemptId, u64)>,
    /// Attempts that were begun.
    pub begun: usize,
    /// Jobs that were on two machines at once.
    pub doubled: usize,
    /// Attempts that were worked to their end, with the bytes of their console.
    pub done: BTreeMap<AttemptId, u64>,
    /// Attempts that ended otherwise, and how.
    pub lost: Vec<String>,
}

/// What all machines share.
#[derive(Clone)]
pub struct Lab {
    /// With a controller's token.
    pub client: Client,
    /// What an attempt is like.
    pub pace: Pace,
    /// How long calls took.
    pub calls: Arc<Calls>,
    /// What was done.
    pub book: Arc<Mutex<Book>>,
    /// No new attempts from here on.
    pub stop: Arc<AtomicBool>,
}

/// One attempt under way.
struct Attempt<'a> {
    lab: &'a Lab,
    claim: &'a Claim,
    controller: Client,
    agent: Client,
    begun: Instant,
    length: Duration,
}

type Answer<T> = Result<T, ClientError>;

impl Lab {
    /// What was done so far.
    pub fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call until it is answered, and notes how long the answer took.
    pub async fn call<T, F>(&self, name: &'static str, call: impl Fn() -> F) -> Answer<T>
    where
        F: Future<Output = Answer<T>>,
    {
        let (answer, took) = self.answered(call).await;
        self.calls.took(name, took);
        answer
    }

    /// Makes a call until it is answered; the answer, and how long it took.
    async fn answered<T, F>(&self, call: impl Fn() -> F) -> (Answer<T>, Duration)
    where
        F: Future<Output = Answer<T>>,
    {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            match call().await {
                Err(error) if error.is_transient() => {
                    self.calls.repeat();
                    backoff.wait().await;
                }
                answer => return (answer, begun.elapsed()),
            }
        }
    }

    /// Lives until it is stopped; the first attempt is cut to `first` of its length, so that not all machines end theirs at
    /// the same moment.
    pub async fn live(&self, controller: ControllerId, machine: MachineId, first: f64) {
        let mut length = self.pace.length.mul_f64(first);
        let request = ClaimRequest { controller, machines: vec![machine], wait_seconds: CLAIM_SECONDS, errands: false };
        while !self.stop.load(Ordering::Relaxed) {
            let (claim, took) = Box::pin(self.answered(|| self.client.claim(&request))).await;
            let claim = match claim {
                Ok(Some(claim)) => claim,
                // Held to its end, as asked.
                Ok(None) => continue,
                Err(error) => {
                    self.book().lost.push(format!("claim: {error}"));
                    return;
                }
            };
            self.calls.took("claim", took);
            let ended = Box::pin(self.attempt(&claim, length)).await;
            self.end(&claim, ended);
            length = self.pace.length;
        }
    }

    async fn attempt(&self, claim: &Claim, length: Duration) -> anyhow::Result<u64> {
        {
            let mut book = self.book();
            book.begun += 1;
            let before = book.live.insert(claim.brief.job.clone(), (claim.attempt.clone(), claim.epoch));
            book.doubled += usize::from(before.is_some_and(|(before, _)| before != claim.attempt));
        }
        let attempt = Attempt {
            lab: self,
            claim,
            controller: self.client.at_epoch(claim.epoch),
            agent: self.client.with_token(&claim.attempt_token).at_epoch(claim.epoch),
            begun: Instant::now(),
            length,
        };
        let sent = tokio::select! {
            sent = attempt.work() => sent?,
            error = attempt.renew() => return Err(error),
        };
        // Not beside the renewals, which might hear of it first.
        Box::pin(attempt.release()).await?;
        Ok(sent)
    }

    fn end(&self, claim: &Claim, ended: anyhow::Result<u64>) {
        let mut book = self.book();
        book.live.remove(&claim.brief.job);
        match ended {
            Ok(sent) => {
                book.done.insert(claim.attempt.clone(), sent);
            }
            Err(error) => book.lost.push(format!("attempt {}: {error:#}", claim.attempt)),
        }
    }
}

impl Attempt<'_> {
    /// Waits until so much of the attempt is over.
    async fn until(&self, part: f64) {
        sleep_until(self.begun + self.length.mul_f64(part)).await;
    }

    /// Renews for ever; ends when the lease is lost.
    async fn renew(&self) -> anyhow::Error {
        let wait = (self.claim.lease_seconds / 3).clamp(1, 30);
        let (request, held) =
            (RenewRequest { wait_seconds: wait, keys: Some(0) }, Duration::from_secs(u64::from(wait)));
        loop {
            let renew = || self.controller.renew(&self.claim.attempt, &request);
            let (reply, took) = Box::pin(self.lab.answered(renew)).await;
            match reply {
                // Whatever the server took longer than it was to hold the request.
                Ok(reply) if reply.directive == Directive::Continue => {
                    self.lab.calls.took("renew", took.saturating_sub(held));
                }
                // Nothing can change any more that is worth holding a request for.
                Ok(_) => sleep(held).await,
                Err(error) => return anyhow::Error::new(error).context("renew"),
            }
        }
    }

    async fn work(&self) -> anyhow::Result<u64> {
        let sent = self.course().await?;
        Box::pin(self.power_off()).await?;
        Ok(sent)
    }

    async fn report(&self, by: Role, seq: u64, report: Report) -> anyhow::Result<Directive> {
        let client = if by == Role::Controller { &self.controller } else { &self.agent };
        let reports = Reports { by, reports: vec![Numbered { seq, report }] };
        let call = || client.report(&self.claim.attempt, &reports);
        Ok(self.lab.call("report", call).await.context("report")?.directive)
    }

    async fn print(&self, offset: &mut u64, text: Bytes) -> anyhow::Result<()> {
        let call = || self.controller.put_console(&self.claim.attempt, "serial0", *offset, text.clone());
        *offset = self.lab.call("console", call).await.context("console")?.next_offset;
        Ok(())
    }

    /// From power on to the end of the dump; the bytes of its console.
    async fn course(&self) -> anyhow::Result<u64> {
        let power = Report::Power { action: "on".into(), ok: true, detail: "simulated".into() };
        Box::pin(self.report(Role::Controller, 0, power)).await?;
        let release = &self.claim.brief.build.release;
        let boot =
            format!("[    0.000000] Linux version {release} (swarm)\n[    0.000000] Command line: console=ttyS0\n");
        let mut sent = 0;
        let (half, piece) = (self.lab.pace.writes / 2, self.lab.pace.console_bytes / self.lab.pace.writes.max(1));
        self.until(0.05).await;
        Box::pin(self.print(&mut sent, boot.clone().into())).await?;
        for number in 0..half {
            self.until(0.05 + 0.35 * number as f64 / half as f64).await;
            let text = lines(sent, piece);
            Box::pin(self.print(&mut sent, text)).await?;
        }
        self.until(0.4).await;
        Box::pin(self.arm()).await?;
        self.until(0.6).await;
        let marker = self.claim.brief.marker.clone();
        Box::pin(self.report(Role::Target, 3, Report::Triggering { marker: marker.clone() })).await?;
        let panic = &self.claim.brief.scenario.expect.panic;
        let crash = format!(
            "[    9.000000] {marker}\n[    9.100000] sysrq: Trigger a crash\n\
             [    9.200000] Kernel panic - not syncing: {panic}\n{boot}[    0.000000] Command line: elfcorehdr=753012K\n"
        );
        Box::pin(self.print(&mut sent, crash.into())).await?;
        for number in 0..half {
            self.until(0.6 + 0.1 * number as f64 / half as f64).await;
            let text = lines(sent, piece);
            Box::pin(self.print(&mut sent, text)).await?;
        }
        self.until(0.7).await;
        Box::pin(self.dump()).await?;
        self.until(1.0).await;
        Ok(sent)
    }

    async fn arm(&self) -> anyhow::Result<()> {
        let next = || self.agent.next_report(&self.claim.attempt, Role::Target);
        self.lab.call("next report", next).await.context("next report")?;
        let build = &self.claim.brief.build;
        let kernel = Report::Kernel {
            release: build.release.clone(),
            version: "#1 SMP swarm".into(),
            build_id: build.build_id.clone(),
            cpus_online: 2,
        };
        self.report(Role::Target, 0, kernel).await?;
        self.until(0.5).await;
        let step = Report::Step {
            name: "load-crash-kernel".into(),
            command: Some("kexec -p".into()),
            code: Some(0),
            ok: true,
            output: String::new(),
            took_ms: 1,
        };
        self.report(Role::Target, 1, step).await?;
        let armed = Report::Armed { crash_kernel_loaded: true, crash_kernel_bytes: 192 << 20, vmx: VmxState::None };
        self.report(Role::Target, 2, armed).await?;
        Ok(())
    }

    async fn dump(&self) -> anyhow::Result<()> {
        let attempt = &self.claim.attempt;
        let mut dump = vec![0; self.lab.pace.dump_bytes.clamp(1, usize::try_from(CHUNK_BYTES)?)];
        blake3::Hasher::new().update(attempt.as_str().as_bytes()).finalize_xof().fill(&mut dump);
        let (dump, bytes) = (Bytes::from(dump.clone()), dump.len() as u64);
        let blake3 = blake3::hash(&dump).to_string();
        let release = self.claim.brief.build.release.clone();
        let started = Report::CaptureStarted { release, start: 1, vmcore_bytes: Some(bytes) };
        self.report(Role::Capture, 0, started).await?;
        let hash = hex(&chunk_hash(0, &dump));
        let put = || self.agent.put_chunk(attempt, "vmcore", 0, &hash, dump.clone());
        self.lab.call("dump", put).await.context("dump")?;
        let done = CompleteRequest { size: bytes, blake3: blake3.clone() };
        let complete = || self.agent.complete(attempt, "vmcore", &done);
        self.lab.call("dump complete", complete).await.context("dump complete")?;
        self.until(0.8).await;
        let finished = Report::DumpFinished { bytes, blake3, sent_bytes: bytes, skipped_bytes: 0 };
        self.report(Role::Capture, 1, finished).await?;
        Ok(())
    }

    async fn power_off(&self) -> anyhow::Result<()> {
        let off = Report::Power { action: "off".into(), ok: true, detail: "simulated".into() };
        self.report(Role::Controller, 1, off).await?;
        self.report(Role::Controller, 2, Report::Health { healthy: true, detail: "simulated".into() }).await?;
        Ok(())
    }

    async fn release(&self) -> anyhow::Result<()> {
        let release = ReleaseRequest { healthy: true, detail: "simulated".into() };
        let call = || self.controller.release(&self.claim.attempt, &release);
        self.lab.call("release", call).await.context("release")
    }
}

/// Lines as a kernel prints them.
fn lines(from: u64, bytes: usize) -> Bytes {
    let mut text = String::with_capacity(bytes + 80);
    let mut number = from;
    while text.len() < bytes {
        text.push_str(&format!("[{:>5}.{:06}] pci 0000:00:{:02x}.0: reg 0x10\n", number / 997, number, number % 32));
        number += 1;
    }
    text.into()
}
