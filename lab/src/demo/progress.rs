//! Follows a run in the terminal, from the server's event stream: each stage as it is settled, and the dump as it
//! arrives. Without a terminal the same lines come out without the moving parts.

use crashyard_agent::retry::Backoff;
use crashyard_protocol::agent::Report;
use crashyard_protocol::api::{Event, EventBody};
use crashyard_protocol::client::Client;
use crashyard_protocol::{JobId, RunId, Stage, StageState};
use eventsource_stream::Eventsource as _;
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest reason that is shown with a stage.
const REASON: usize = 110;

/// Something that takes a while and has no measure.
pub fn spinner(text: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(text.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Bytes on their way.
pub fn bytes(name: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:10} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(name.to_owned())
}

/// Follows the run until its last job has its verdict. A cut stream is taken up where it was cut.
pub async fn follow(client: &Client, run: &RunId) -> anyhow::Result<()> {
    let mut names = BTreeMap::new();
    for job in client.run_jobs(run).await? {
        names.insert(job.id, job.scenario.name);
    }
    let mut view = View { names, dump: None, width: 0 };
    view.width = view.names.values().map(String::len).max().unwrap_or(0);
    let mut after = 0;
    let mut backoff = Backoff::default();
    loop {
        let path = format!("/api/v1/runs/{run}/events?after={after}");
        let response = match client.send(client.request(Method::GET, &path)).await {
            Ok(response) => response,
            Err(error) if error.is_transient() => {
                backoff.wait().await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut stream = response.bytes_stream().eventsource();
        while let Some(Ok(message)) = stream.next().await {
            if message.event == "complete" {
                view.end_dump();
                return Ok(());
            }
            let event: Event = serde_json::from_str(&message.data)?;
            after = event.seq;
            backoff = Backoff::default();
            view.show(&event);
        }
        backoff.wait().await;
    }
}

struct View {
    names: BTreeMap<JobId, String>,
    width: usize,
    dump: Option<ProgressBar>,
}

impl View {
    fn show(&mut self, event: &Event) {
        let name = event.job.as_ref().and_then(|job| self.names.get(job)).cloned().unwrap_or_default();
        match &event.body {
            EventBody::AttemptStarted { machine, number } => {
                self.line(&name, &format!("placed on {machine} (attempt {number})"));
            }
            EventBody::Stage { stage } => self.stage(&name, stage),
            EventBody::DumpProgress { bytes } => self.dump_bar().set_position(*bytes),
            EventBody::Report { report: Report::CaptureStarted { start, .. }, .. } if *start > 1 => {
                self.line(&name, &format!("capture agent started again (start {start}), upload goes on"));
            }
            EventBody::Report { report: Report::DumpFinished { bytes, sent_bytes, skipped_bytes, .. }, .. } => {
                self.end_dump();
                let mib = |bytes: &u64| *bytes >> 20;
                let (all, sent, skipped) = (mib(bytes), mib(sent_bytes), mib(skipped_bytes));
                self.line(&name, &format!("dump of {all} MiB: {sent} MiB sent, {skipped} MiB were there already"));
            }
            EventBody::AttemptJudged { verdict, .. } => {
                self.end_dump();
                self.line(&name, &format!("verdict {verdict}"));
            }
            _ => {}
        }
    }

    fn stage(&mut self, name: &str, stage: &Stage) {
        let sign = match stage.state {
            StageState::Proven => '✔',
            StageState::Failed => '✘',
            StageState::Pending | StageState::Active | StageState::Skipped => return,
        };
        let took = match (stage.started_at, stage.settled_at) {
            (Some(start), Some(end)) => format!("{:.1} s", end.since(start).as_secs_f64()),
            _ => String::new(),
        };
        let reason: String = stage.reason.as_deref().unwrap_or_default().chars().take(REASON).collect();
        self.line(name, &format!("{sign} {:<11} {took:>7}  {reason}", stage.name.as_str()));
    }

    fn dump_bar(&mut self) -> &ProgressBar {
        self.dump.get_or_insert_with(|| {
            // How large a filtered dump becomes is known only at its end.
            let style = ProgressStyle::with_template("{spinner} vmcore {bytes} {bytes_per_sec}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::new_spinner().with_style(style)
        })
    }

    fn end_dump(&mut self) {
        if let Some(bar) = self.dump.take() {
            bar.finish_and_clear();
        }
    }

    fn line(&self, name: &str, text: &str) {
        let line = format!("{name:width$}  {text}", width = self.width);
        match &self.dump {
            Some(bar) if !bar.is_hidden() => bar.println(line),
            _ => println!("{line}"),
        }
    }
}
