//! `crashyard vmcore`: dumps that the server keeps.
//!
//! `open` brings a dump here, checks every byte of it, and starts a debugger where the person has one and the debuginfo
//! that belongs to the kernel; otherwise it prints our own triage, which needs neither, and says what to install.
//! Whatever comes from the server or from a dump is text from a stranger and passes `text::safe` on its way to the terminal.

mod tools;

use crate::fetch;
use crate::server::{Server, said};
use crate::triage::vmcore::text;
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use crashyard_protocol::api::{Artifact, Attempt, CAPSULE, NewHold};
use crashyard_protocol::client::Client;
use crashyard_protocol::problem::kind;
use crashyard_protocol::{ArtifactState, AttemptId, JobId};
use crashyard_vmcore::Capsule;
use std::io::{self, Write as _};
use std::path::PathBuf;

/// What to do with a dump.
#[derive(Subcommand)]
pub enum Vmcore {
    /// Fetch a dump and open it in drgn or crash, or print its triage
    #[command(after_help = "\
The dump is kept in the cache directory and fetched only once; a download that was cut goes on where it was. Without
debuginfo, or without drgn and crash, the triage is printed: panic, stacks of all CPUs and tasks, modules, the end of
the kernel log. It needs nothing but the dump, and `crashyard triage vmcore FILE` shows more of it.

A dump that the server has dropped to save space is shown by its capsule, which the server keeps.

  crashyard vmcore open 01JDB4Q1W5Z8N6K3X0V7T2R9MF
  crashyard vmcore open 01JDB4Q1W5Z8N6K3X0V7T2R9MF --with crash --vmlinux ./vmlinux")]
    Open(Open),
    /// Hold a dump: no rule drops it until it is released
    Hold(Hold),
    /// Let go of a held dump: the server's rules count for it again
    Release(Which),
}

/// Which dump.
#[derive(Args)]
pub struct Which {
    /// Id of an attempt, or of a job (its newest attempt with a dump)
    #[arg(value_name = "JOB|ATTEMPT")]
    id: String,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `vmcore open`.
#[derive(Args)]
pub struct Open {
    #[command(flatten)]
    which: Which,
    /// Where to keep the dump [default: the cache directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// A vmlinux with debuginfo; without it, the places where distributions put it are searched, and then the servers in
    /// DEBUGINFOD_URLS
    #[arg(long)]
    vmlinux: Option<PathBuf>,
    /// What to open it with
    #[arg(long, value_enum, default_value_t = With::Auto)]
    with: With,
}

/// Arguments of `vmcore hold`.
#[derive(Args)]
pub struct Hold {
    #[command(flatten)]
    which: Which,
    /// Why; people read it on the attempt's page
    #[arg(long)]
    reason: String,
}

/// What to open a dump with.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum With {
    /// drgn or crash if there is debuginfo, else our triage
    Auto,
    /// drgn
    Drgn,
    /// crash
    Crash,
    /// Our triage
    Triage,
    /// Nothing: fetch it and print where it is
    Nothing,
}

impl Vmcore {
    pub fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        match self {
            Self::Open(args) => open(&args, &runtime),
            Self::Hold(args) => runtime.block_on(hold(&args)),
            Self::Release(which) => runtime.block_on(release(&which)),
        }
    }
}

impl Which {
    /// The attempt that is meant and its dump, if it has one.
    async fn find(&self, client: &Client) -> anyhow::Result<(Attempt, Option<Artifact>)> {
        let not_an_id = || format!("{:?} is no id; copy one from the address of a job or an attempt", self.id);
        let id: AttemptId = self.id.parse().ok().with_context(not_an_id)?;
        match client.attempt(&id).await {
            Ok(attempt) => Ok(with_dump(attempt)),
            Err(error) if error.is(kind::NOT_FOUND) => {
                let id: JobId = self.id.parse().ok().with_context(not_an_id)?;
                self.newest_of(client, &id).await
            }
            Err(error) => Err(said(&error)),
        }
    }

    async fn newest_of(&self, client: &Client, job: &JobId) -> anyhow::Result<(Attempt, Option<Artifact>)> {
        let job = client.job(job).await.map_err(|error| match error {
            error if error.is(kind::NOT_FOUND) => anyhow::anyhow!("the server knows no job and no attempt {}", self.id),
            error => said(&error),
        })?;
        let mut newest = None;
        for id in job.attempts.iter().rev() {
            let found = with_dump(client.attempt(id).await.map_err(|error| said(&error))?);
            if found.1.is_some() {
                return Ok(found);
            }
            newest = newest.or(Some(found));
        }
        newest.with_context(|| format!("job {} has had no attempt yet", self.id))
    }

    async fn dump(&self, client: &Client) -> anyhow::Result<(Attempt, Artifact)> {
        let (attempt, dump) = self.find(client).await?;
        let Some(dump) = dump else {
            let why = attempt.reason.as_deref().map(|why| format!(": {}", text::safe(why))).unwrap_or_default();
            bail!("attempt {} left no dump ({}{why})", attempt.id, attempt.verdict);
        };
        Ok((attempt, dump))
    }
}

fn with_dump(attempt: Attempt) -> (Attempt, Option<Artifact>) {
    let dump = attempt.dump().cloned();
    (attempt, dump)
}

fn open(args: &Open, runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
    let client = args.which.server.client();
    let (attempt, dump) = runtime.block_on(args.which.dump(&client))?;
    match dump.state {
        ArtifactState::Complete => {}
        ArtifactState::Dropped => return runtime.block_on(show_dropped(&client, &attempt, &dump)),
        ArtifactState::Open => bail!(
            "the dump of attempt {} is not whole: {} bytes have arrived. While it arrives, the attempt's page shows what \
             can be read of it: {}/attempts/{}",
            attempt.id,
            dump.size,
            args.which.server.address(),
            attempt.id
        ),
    }
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => fetch::cache("dumps")?.join(attempt.id.as_str()),
    };
    let file = runtime.block_on(fetch::fetch(&client, &dump, &dir))?;
    eprintln!("The dump is {}", file.display());
    if args.with == With::Nothing {
        return Ok(());
    }
    tools::open(&file, args.with, args.vmlinux.as_deref(), runtime)
}

/// The capsule of a dump that is gone.
async fn show_dropped(client: &Client, attempt: &Attempt, dump: &Artifact) -> anyhow::Result<()> {
    let why = dump.dropped.as_ref().map_or_else(String::new, |dropped| text::safe(&dropped.reason));
    let hash = text::safe(dump.blake3.as_deref().unwrap_or("unknown"));
    eprintln!("The server dropped this dump ({} bytes, BLAKE3 {hash}): {why}.", dump.size);
    let Some(capsule) = attempt.newest(CAPSULE) else { bail!("no capsule was made of it, so nothing else is left") };
    eprintln!("This is its capsule.\n");
    let bytes = client.download(&capsule.id, 0).await.map_err(|error| said(&error))?.bytes().await?;
    let capsule: Capsule = serde_json::from_slice(&bytes).context("the stored capsule cannot be read")?;
    print(&capsule)
}

/// Prints a triage; a reader that has seen enough is no error.
fn print(capsule: &Capsule) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match text::report(&mut out, capsule).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

async fn hold(args: &Hold) -> anyhow::Result<()> {
    let client = args.which.server.client();
    let (attempt, dump) = args.which.dump(&client).await?;
    client.hold_dump(&dump.id, &NewHold { reason: args.reason.clone() }).await.map_err(|error| said(&error))?;
    println!("The dump of attempt {} is held.", attempt.id);
    Ok(())
}

async fn release(which: &Which) -> anyhow::Result<()> {
    let client = which.server.client();
    let (attempt, dump) = which.dump(&client).await?;
    client.release_dump(&dump.id).await.map_err(|error| said(&error))?;
    println!("The dump of attempt {} is released: the server's rules count for it again.", attempt.id);
    Ok(())
}
