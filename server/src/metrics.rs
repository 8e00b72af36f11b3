//! What is counted, in Prometheus' text format at `/metrics`.
//!
//! One recorder for each server, not the process-wide one: tests run many servers in one process.

use metrics::{Key, KeyName, Label, Level, Metadata, Recorder as _, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::time::Duration;

/// Buckets for times, in seconds.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

static META: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// The server's counters.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Counters at zero.
    #[must_use]
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new();
        let builder = builder.set_buckets(SECONDS).expect("the list of buckets is not empty");
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        for (name, unit, text) in [
            ("crashyard_http_requests_total", Unit::Count, "Requests answered, by status."),
            ("crashyard_console_bytes_total", Unit::Bytes, "Console bytes stored."),
            ("crashyard_upload_bytes_total", Unit::Bytes, "Bytes of uploads stored."),
            ("crashyard_claims_total", Unit::Count, "Leases given."),
            ("crashyard_leases_lost_total", Unit::Count, "Leases that ran out."),
            ("crashyard_preemptions_total", Unit::Count, "Attempts that gave way to others."),
            ("crashyard_judgements_total", Unit::Count, "Judgements written."),
            ("crashyard_findings_failures_total", Unit::Count, "Attempts whose evidence could not be read, each time."),
            ("crashyard_pass_failures_total", Unit::Count, "Passes that failed, by pass."),
        ] {
            recorder.describe_counter(KeyName::from(name), Some(unit), text.into());
        }
        let text = "Things owed and not delivered when it was last looked, by kind.";
        recorder.describe_gauge(KeyName::from("crashyard_owed"), Some(Unit::Count), text.into());
        let text = "Processor time this server has used.";
        recorder.describe_gauge(KeyName::from("process_cpu_seconds_total"), Some(Unit::Seconds), text.into());
        let text = "Memory this server has in use.";
        recorder.describe_gauge(KeyName::from("process_resident_memory_bytes"), Some(Unit::Bytes), text.into());
        let text = "Time from a request to the head of its answer, by route.";
        recorder.describe_histogram(KeyName::from("crashyard_http_seconds"), Some(Unit::Seconds), text.into());
        Self { recorder, handle }
    }

    /// Adds to a counter.
    pub fn add(&self, name: &'static str, labels: Vec<Label>, count: u64) {
        self.recorder.register_counter(&Key::from_parts(name, labels), &META).increment(count);
    }

    /// Sets what is so many now.
    pub fn set(&self, name: &'static str, labels: Vec<Label>, count: usize) {
        // Exact below 2^32, which is more than is ever counted like this.
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        self.recorder.register_gauge(&Key::from_parts(name, labels), &META).set(count);
    }

    /// Processor time and resident memory out of `stat` (proc(5): fields 14 and 15 in ticks of 10 ms, 24 in pages of 4 KiB).
    fn use_of_process(&self, stat: &str) {
        let Some((_, after_name)) = stat.rsplit_once(')') else { return };
        let field = |number: usize| after_name.split_whitespace().nth(number - 3)?.parse::<f64>().ok();
        let gauges = [
            ("process_cpu_seconds_total", field(14).zip(field(15)).map(|(user, system)| (user + system) / 100.0)),
            ("process_resident_memory_bytes", field(24).map(|pages| pages * 4096.0)),
        ];
        for (name, value) in gauges {
            if let Some(value) = value {
                self.recorder.register_gauge(&Key::from_name(name), &META).set(value);
            }
        }
    }

    /// Records a time.
    pub fn time(&self, name: &'static str, labels: Vec<Label>, took: Duration) {
        self.recorder.register_histogram(&Key::from_parts(name, labels), &META).record(took.as_secs_f64());
    }

    /// Everything, as Prometheus reads it.
    #[must_use]
    pub fn render(&self) -> String {
        // Where there is no such file, these two are just not there.
        if let Ok(stat) = std::fs::read_to_string("/proc/self/stat") {
            self.use_of_process(&stat);
        }
        self.handle.run_upkeep();
        self.handle.render()
    }
}
