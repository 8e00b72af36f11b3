//! `crashyard-swarm load`: simulated labs work whole attempts on a server, and this says how it bore it.
//!
//! Machines start one after another over the warm-up, and the first attempt of each is cut, so that from then on as many end
//! as begin in every second. Figures are of the time after the warm-up alone. What is checked at the end is of all of it.

use crate::calls::{Call, Calls};
use crate::life::{Book, Lab, Pace};
use crate::progress::Shown;
use crate::{farm, process};
use anyhow::Context as _;
use crashyard_protocol::JobState;
use crashyard_protocol::agent::{EnrolRequest, Enrolled, MachineSpec, ReleaseRequest};
use crashyard_protocol::api::{NewPlan, NewRun, Policy, Run};
use crashyard_protocol::client::{Client, ClientError};
use crashyard_protocol::{BuildId, RunId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

/// Kinds of machines; each has a plan of its own.
const KINDS: usize = 20;
/// Jobs of one submission.
const JOBS: u32 = 50;
/// How often it is looked whether the queue needs more, and what the server uses.
const LOOK: Duration = Duration::from_secs(1);
/// How often a person opens a page.
const VISIT: Duration = Duration::from_secs(2);
/// Requests at once while the farm is set up and checked.
const AT_ONCE: usize = 16;

const HELP: &str = "\
What is measured, from the labs' side: the time of every call (a request that the server holds counts with what it took
longer than it was asked to hold), calls that had to be made again, the server's processor time and resident memory (from its
/metrics), and this program's own processor time, which matters where both share a machine.

What is checked: that no job was on two machines at once, that every attempt that was worked is done at the server, and that
every console there has all the bytes that were acknowledged. If any of that is not so, the exit status is 1.

The labs are named swarm-N, their machines have the label swarm=1 and take only jobs of this program, and real machines take
none of its jobs. At the end jobs that no machine took are cancelled and the machines withdrawn; build, plans, runs and
machines stay known. Ctrl-C hands back what is under way and cleans up in the same way. A server that is away for a while is
waited for, and the calls that it did not answer are made again. Try it on a farm of its own first.

Each machine holds a connection: allow open files for them (ulimit -n) here and for the server.

  crashyard-swarm load --server http://127.0.0.1:8480 --machines 100 --minutes 2
  crashyard-swarm load --machines 10000 --labs 500 --attempt-seconds 300 --warm-up 120 --minutes 10 --json";

/// Arguments of `load`.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// The server's address
    #[arg(long, env = "CRASHYARD_SERVER", default_value = "http://127.0.0.1:8480")]
    server: String,
    /// A token of scope admin; better given in the environment, where nobody sees it
    #[arg(long, env = "CRASHYARD_TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[command(flatten)]
    size: Size,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How much load.
#[derive(Clone, Copy, Debug, Serialize, clap::Args)]
pub struct Size {
    /// Simulated machines
    #[arg(long, default_value_t = 100)]
    pub machines: usize,
    /// Controllers that they are spread over; 0 is one for 20 machines
    #[arg(long, default_value_t = 0)]
    pub labs: usize,
    /// How long to measure, after the warm-up
    #[arg(long, default_value_t = 2.0)]
    pub minutes: f64,
    /// Seconds over which the machines start
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub warm_up: f64,
    /// How long an attempt takes, from the lease to the machine's return
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub attempt_seconds: f64,
    /// Console of an attempt, in kB
    #[arg(long, value_name = "KB", default_value_t = 32)]
    pub console_kb: usize,
    /// Pieces in which a console comes
    #[arg(long, default_value_t = 20)]
    pub writes: usize,
    /// Dump of an attempt, in kB; at most 4096
    #[arg(long, value_name = "KB", default_value_t = 64)]
    pub dump_kb: usize,
}

/// How the server bore it.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The load.
    pub size: Size,
    /// Seconds measured.
    pub seconds: f64,
    /// Attempts worked, from the beginning to the end.
    pub attempts: usize,
    /// Calls a second while it was measured.
    pub calls_per_second: f64,
    /// Each kind of call.
    pub calls: Vec<Call>,
    /// All calls together.
    pub all: Call,
    /// Calls that had to be made again.
    pub repeated: u64,
    /// Jobs that were on two machines at once.
    pub doubled: usize,
    /// Attempts and consoles that are not at the server as they were worked, in words.
    pub lost: Vec<String>,
    /// Processor cores the server used, on average.
    pub server_cores: Option<f64>,
    /// Most resident memory of the server, in bytes.
    pub server_bytes: Option<f64>,
    /// Processor cores this program used, on average.
    pub own_cores: f64,
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let client = Client::new(&args.server, args.token.clone());
    let outcome = Load::new(client, args.size).run(&Shown::new("load")).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        print(&outcome);
    }
    anyhow::ensure!(outcome.lost.is_empty() && outcome.doubled == 0, "work was lost or doubled");
    Ok(())
}

fn print(outcome: &Outcome) {
    println!(
        "{} machines, {} attempts worked, {:.0} s measured",
        outcome.size.machines, outcome.attempts, outcome.seconds
    );
    println!("{:<14} {:>9} {:>10} {:>10} {:>10}", "call", "count", "p50 ms", "p99 ms", "max ms");
    for call in outcome.calls.iter().chain([&outcome.all]) {
        println!(
            "{:<14} {:>9} {:>10.1} {:>10.1} {:>10.1}",
            call.call, call.count, call.p50_ms, call.p99_ms, call.max_ms
        );
    }
    println!("{:.0} calls/s, {} made again", outcome.calls_per_second, outcome.repeated);
    println!("{} jobs doubled, {} attempts or consoles lost", outcome.doubled, outcome.lost.len());
    for lost in outcome.lost.iter().take(10) {
        println!("  {lost}");
    }
    match (outcome.server_cores, outcome.server_bytes) {
        (Some(cores), Some(bytes)) => println!("server: {cores:.2} cores, {:.0} MB at most", bytes / 1e6),
        _ => println!("server: its /metrics does not say what it uses"),
    }
    println!("this program: {:.2} cores", outcome.own_cores);
}

/// Simulated labs on one server.
pub struct Load {
    admin: Client,
    size: Size,
    lab: Lab,
    runs: Arc<Mutex<Vec<RunId>>>,
}

impl Load {
    /// On the server of this client, whose token is an admin's.
    #[must_use]
    pub fn new(admin: Client, size: Size) -> Self {
        let pace = Pace {
            length: Duration::from_secs_f64(size.attempt_seconds),
            console_bytes: size.console_kb * 1000,
            writes: size.writes,
            dump_bytes: size.dump_kb * 1000,
        };
        let lab = Lab {
            client: admin.clone(),
            pace,
            calls: Arc::new(Calls::default()),
            book: Arc::new(Mutex::new(Book::default())),
            stop: Arc::new(AtomicBool::new(false)),
        };
        Self { admin, size, lab, runs: Arc::default() }
    }

    /// Sets up, works, and cleans up, whatever came of it; also when it is interrupted.
    pub async fn run(self, shown: &Shown) -> anyhow::Result<Outcome> {
        shown.say("setting up".into());
        let build = farm::prepare(&self.admin, 1).await.context("a build to test")?;
        self.put_plans().await?;
        let labs = self.enrol().await?;
        let mut feeding = tokio::spawn(feed(self.lab.clone(), self.admin.clone(), self.runs.clone(), build, self.size));
        let outcome = tokio::select! {
            outcome = self.work(&labs, &mut feeding, shown) => outcome,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted; what was under way is handed back")),
        };
        self.lab.stop.store(true, Ordering::SeqCst);
        shown.say("cleaning up; Ctrl-C leaves it as it is".into());
        let cleaned = tokio::select! {
            cleaned = self.clean_up(&labs, feeding) => cleaned,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        };
        let cleaned = cleaned.context("jobs of runs of swarm-* are still queued, or its machines still there");
        match (outcome, cleaned) {
            (Ok(outcome), cleaned) => cleaned.map(|()| outcome),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(left)) => Err(error.context(format!("{left:#}"))),
        }
    }

    /// Warms up, measures, lets everything end, and checks.
    async fn work(
        &self,
        labs: &[Enrolled],
        feeding: &mut JoinHandle<anyhow::Result<()>>,
        shown: &Shown,
    ) -> anyhow::Result<Outcome> {
        let warm = Instant::now() + Duration::from_secs_f64(self.size.warm_up);
        let mut lives = self.start(labs, warm);
        lives.spawn(visit(self.lab.clone(), self.admin.clone()));
        while Instant::now() < warm {
            sleep_until(warm.min(Instant::now() + LOOK)).await;
            let left = warm.saturating_duration_since(Instant::now());
            shown.say(format!("warming up, {} s left; {}", left.as_secs(), self.so_far()));
        }
        let measured = self.measure(shown).await?;
        self.lab.stop.store(true, Ordering::SeqCst);
        feeding.await??;
        while let Some(ended) = lives.join_next().await {
            ended?;
            shown.say(format!("letting attempts end, {} under way", self.lab.book().live.len()));
        }
        shown.say("looking whether all is there".into());
        let mut lost = self.lab.book().lost.clone();
        lost.extend(self.differ().await?);
        let (calls, all) = self.lab.calls.figures();
        let book = self.lab.book();
        Ok(Outcome {
            size: self.size,
            seconds: measured.seconds,
            attempts: book.done.len(),
            calls_per_second: all.count as f64 / measured.seconds,
            calls,
            all,
            repeated: self.lab.calls.repeated(),
            doubled: book.doubled,
            lost,
            server_cores: measured.server_cores,
            server_bytes: measured.server_bytes,
            own_cores: measured.own_cores,
        })
    }

    fn so_far(&self) -> String {
        let book = self.lab.book();
        format!(
            "{} attempts under way, {} worked, {} calls made again",
            book.live.len(),
            book.done.len(),
            self.lab.calls.repeated()
        )
    }

    async fn put_plans(&self) -> anyhow::Result<()> {
        for kind in 0..KINDS {
            let selector = [("swarm", "1".to_owned()), ("kind", kind.to_string())];
            let plan = NewPlan {
                name: plan(kind),
                scenarios: vec!["bench-0".into()],
                selector: selector.into_iter().map(|(label, value)| (label.to_owned(), value)).collect(),
                requires: Vec::new(),
                repetitions: JOBS,
                policy: Policy { tries: Some(1), ..Policy::default() },
            };
            self.admin.put_plan(&plan).await?;
        }
        Ok(())
    }

    async fn enrol(&self) -> anyhow::Result<Vec<Enrolled>> {
        let count = if self.size.labs == 0 { self.size.machines.div_ceil(20) } else { self.size.labs };
        let mut enrolled = Vec::new();
        for lab in 0..count {
            let machines = (lab..self.size.machines).step_by(count).map(|number| MachineSpec {
                name: format!("swarm-m{number}"),
                driver: "simulated".into(),
                labels: BTreeMap::from([
                    ("swarm".to_owned(), "1".to_owned()),
                    ("kind".to_owned(), (number % KINDS).to_string()),
                ]),
            });
            let machines = machines.collect();
            let request = EnrolRequest { name: format!("swarm-{lab}"), version: "swarm".into(), machines };
            enrolled.push(self.admin.enrol(&request).await?);
        }
        Ok(enrolled)
    }

    /// Starts the machines evenly until `warm`, each at another place of its first attempt.
    fn start(&self, labs: &[Enrolled], warm: Instant) -> JoinSet<()> {
        let mut lives = JoinSet::new();
        let (begun, total) = (Instant::now(), self.size.machines.max(1) as f64);
        let all = labs.iter().flat_map(|lab| lab.machines.values().map(|id| (lab.controller.clone(), id.clone())));
        for (number, (controller, machine)) in all.enumerate() {
            let (lab, part) = (self.lab.clone(), number as f64 / total);
            let at = begun + (warm - begun).mul_f64(part);
            lives.spawn(async move {
                tokio::time::sleep_until(at).await;
                // At least a tenth, so that no attempt is a burst of requests.
                lab.live(controller, machine, 0.1 + 0.9 * (part * 7.0).fract()).await;
            });
        }
        lives
    }

    async fn measure(&self, shown: &Shown) -> anyhow::Result<Measured> {
        let length = Duration::from_secs_f64(self.size.minutes * 60.0);
        let (begun, own) = (Instant::now(), process::processor("self")?);
        let mut used = Used::default();
        self.usage().await.into_iter().for_each(|usage| used.add(usage));
        self.lab.calls.count(true);
        while begun.elapsed() < length {
            sleep(LOOK).await;
            self.usage().await.into_iter().for_each(|usage| used.add(usage));
            let left = length.saturating_sub(begun.elapsed());
            shown.say(format!("measuring, {} s left; {}", left.as_secs(), self.so_far()));
        }
        self.lab.calls.count(false);
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Measured {
            seconds,
            server_cores: used.last.map(|_| used.seconds / seconds),
            server_bytes: used.last.map(|_| used.bytes),
            own_cores: (process::processor("self")? - own) / seconds,
        })
    }

    /// The server's processor seconds and resident bytes, if it says so.
    async fn usage(&self) -> Option<(f64, f64)> {
        let request = self.admin.request(reqwest::Method::GET, "/metrics");
        let text = async { self.admin.send(request).await?.text().await.map_err(ClientError::from) };
        let text = text.await.inspect_err(|_| self.lab.calls.repeat()).ok()?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            line.trim().parse::<f64>().ok()
        };
        value("process_cpu_seconds_total").zip(value("process_resident_memory_bytes"))
    }

    /// Attempts that are not at the server as they were worked.
    async fn differ(&self) -> anyhow::Result<Vec<String>> {
        let done = self.lab.book().done.clone();
        let looked = each(done, |(id, sent)| {
            let admin = self.admin.clone();
            async move {
                let attempt = admin.attempt(&id).await?;
                let console = attempt.artifacts.iter().find(|file| file.name == "console-serial0");
                let has = console.map_or(0, |console| console.size);
                let state = attempt.state.as_str();
                let fine = state == "done" && has == sent;
                Ok((!fine).then(|| format!("attempt {id}: {state}, console {has} of {sent} bytes")))
            }
        });
        Ok(looked.await?.into_iter().flatten().collect())
    }

    /// Hands back what is under way, cancels what no machine took, and withdraws the machines.
    async fn clean_up(&self, labs: &[Enrolled], feeding: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
        // It may be about to submit another run. If it has ended, what came of it is known.
        if !feeding.is_finished() {
            feeding.await??;
        }
        let under_way: Vec<_> = self.lab.book().live.values().cloned().collect();
        each(under_way, |(attempt, epoch)| {
            let controller = self.admin.at_epoch(epoch);
            async move {
                let release = ReleaseRequest { healthy: true, detail: "the load was ended".into() };
                match controller.release(&attempt, &release).await {
                    // It was handed back a moment ago.
                    Err(error) if error.is_lease_lost() => Ok(()),
                    answer => answer,
                }
            }
        })
        .await?;
        let runs = self.runs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        each(runs, |run| {
            let admin = self.admin.clone();
            async move {
                for job in admin.run_jobs(&run).await? {
                    if job.state == JobState::Queued {
                        let path = format!("/api/v1/jobs/{}/cancel", job.id);
                        admin.post::<crashyard_protocol::api::Job>(&path, &serde_json::json!({})).await?;
                    }
                }
                Ok(())
            }
        })
        .await?;
        for lab in 0..labs.len() {
            let request = EnrolRequest { name: format!("swarm-{lab}"), version: "swarm".into(), machines: Vec::new() };
            self.admin.enrol(&request).await?;
        }
        Ok(())
    }
}

/// What the server used while it was looked at.
#[derive(Default)]
struct Used {
    /// Processor seconds that it had used at the last look.
    last: Option<f64>,
    seconds: f64,
    /// Most resident bytes.
    bytes: f64,
}

impl Used {
    /// A server that was started anew counts from nothing.
    fn add(&mut self, (processor, bytes): (f64, f64)) {
        let before = self.last.replace(processor).unwrap_or(processor);
        self.seconds += if processor < before { processor } else { processor - before };
        self.bytes = self.bytes.max(bytes);
    }
}

struct Measured {
    seconds: f64,
    server_cores: Option<f64>,
    server_bytes: Option<f64>,
    own_cores: f64,
}

fn plan(kind: usize) -> String {
    format!("swarm-{kind}")
}

/// Does something for each of many, some at once.
async fn each<T, R, F>(all: impl IntoIterator<Item = T>, work: impl Fn(T) -> F) -> anyhow::Result<Vec<R>>
where
    F: Future<Output = Result<R, ClientError>>,
{
    use futures::StreamExt as _;
    let results: Vec<_> = futures::stream::iter(all.into_iter().map(work)).buffer_unordered(AT_ONCE).collect().await;
    Ok(results.into_iter().collect::<Result<_, _>>()?)
}

/// Keeps at least two jobs queued for each machine that may become free within a look, in every kind.
async fn feed(lab: Lab, admin: Client, runs: Arc<Mutex<Vec<RunId>>>, build: BuildId, size: Size) -> anyhow::Result<()> {
    let (mut submitted, mut number) = (0, 0);
    while !lab.stop.load(Ordering::Relaxed) {
        let needed = lab.book().begun + 2 * size.machines + KINDS * JOBS as usize;
        while submitted < needed && !lab.stop.load(Ordering::Relaxed) {
            // Submitted again, it is the same one.
            let key = Some(format!("{build}-{number}"));
            let new = NewRun { key, ..NewRun::new(build.clone(), &plan(number % KINDS)) };
            let run: Run = lab.call("submit", || admin.create_run(&new)).await?;
            runs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(run.id);
            submitted += JOBS as usize;
            number += 1;
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Somebody looks at pages.
async fn visit(lab: Lab, admin: Client) {
    let pages = [("page: runs", "/"), ("page: machines", "/machines"), ("list machines", "/api/v1/machines?limit=200")];
    let mut next = pages.iter().cycle();
    while !lab.stop.load(Ordering::Relaxed) {
        if let Some((name, path)) = next.next() {
            let begun = Instant::now();
            let page = async {
                admin.send(admin.request(reqwest::Method::GET, path)).await?.bytes().await.map_err(ClientError::from)
            };
            match page.await {
                Ok(_) => lab.calls.took(name, begun.elapsed()),
                Err(_) => lab.calls.repeat(),
            }
        }
        sleep(VISIT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::Used;

    #[test]
    fn a_server_that_was_started_anew_has_used_what_both_used() {
        let mut used = Used::default();
        for (processor, bytes) in [(5.0, 30.0), (7.0, 90.0), (0.5, 40.0), (1.0, 50.0)] {
            used.add((processor, bytes));
        }
        assert_eq!((used.seconds, used.bytes), (3.0, 90.0));
    }
}
