//! Follows a run in the terminal, from the server's event stream: each stage as it is settled, and the dump as it
//! arrives. Without a terminal the same lines come out without the moving parts.

use crashyard_protocol::agent::Report;
use crashyard_protocol::api::{Event, EventBody};
use crashyard_protocol::client::Client;
use crashyard_protocol::retry::Backoff;
use crashyard_protocol::{JobId, RunId};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::time::Duration;

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
    let (mut events, mut backoff) = (client.run_events(run), Backoff::default());
    loop {
        match events.next().await {
            Ok(Some(event)) => {
                backoff = Backoff::default();
                view.show(&event);
            }
            Ok(None) => {
                view.end_dump();
                return Ok(());
            }
            Err(cut) if cut.is_transient() => backoff.wait().await,
            Err(error) => return Err(error.into()),
        }
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
            EventBody::DumpProgress { bytes } => self.dump_bar().set_position(*bytes),
            EventBody::Report { report: Report::DumpFinished { .. }, .. } | EventBody::AttemptJudged { .. } => {
                self.end_dump();
            }
            _ => {}
        }
        if let Some(line) = event.body.line() {
            self.line(&name, &line);
        }
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
