//! Ten thousand machines on one server: whole attempts with consoles and small dumps, as many ending as beginning.

use crate::figures::Figure;
use crate::load::{Load, Size};
use crate::process;
use crate::progress::Shown;
use crate::server::Server;
use crashyard_testkit::Postgres;
use std::time::Instant;

/// Attempts of five minutes, as a real machine needs to boot, crash, dump and boot again.
const SIZE: Size = Size {
    machines: 10_000,
    labs: 500,
    minutes: 2.0,
    warm_up: 120.0,
    attempt_seconds: 300.0,
    console_kb: 32,
    writes: 10,
    dump_kb: 64,
};

/// One server on PostgreSQL.
pub async fn measure(shown: &Shown) -> anyhow::Result<Vec<Figure>> {
    let postgres = Postgres::start_durable()?;
    let server = Server::start_on(Some(&postgres.database("farm")?)).await?;
    let (begun, before) = (Instant::now(), process::processor_of_children(postgres.pid())?);
    let outcome = Load::new(server.admin.clone(), SIZE).run(shown).await?;
    let database = (process::processor_of_children(postgres.pid())? - before) / begun.elapsed().as_secs_f64();
    let megabytes = outcome.server_bytes.unwrap_or(f64::NAN) / 1e6;
    let slowest = outcome.calls.iter().max_by(|a, b| a.p99_ms.total_cmp(&b.p99_ms));
    let slowest = slowest.map_or_else(String::new, |call| format!("; slowest: {} {:.0} ms", call.call, call.p99_ms));
    let what = format!("{} machines, PostgreSQL, one server", SIZE.machines);
    Ok(vec![
        Figure {
            what: format!("{what}: p99 of calls"),
            measured: format!("{:.0} ms", outcome.all.p99_ms),
            bar: "< 100 ms".into(),
            reached: outcome.all.p99_ms < 100.0,
            limit: format!(
                "median {:.1} ms{slowest}; {:.0} calls/s, attempts of {:.0} s; cores: server {:.2}, this program {:.2}, database \
                 {database:.2} (over the whole run)",
                outcome.all.p50_ms,
                outcome.calls_per_second,
                SIZE.attempt_seconds,
                outcome.server_cores.unwrap_or(f64::NAN),
                outcome.own_cores
            ),
        },
        Figure {
            what: format!("{what}: memory of the server"),
            measured: format!("{megabytes:.0} MB"),
            bar: "< 500 MB".into(),
            reached: megabytes < 500.0,
            limit: "the most that it had resident while it was measured".into(),
        },
        Figure {
            what: format!("{what}: lost or doubled"),
            measured: format!("{} lost, {} doubled", outcome.lost.len(), outcome.doubled),
            bar: "0, 0".into(),
            reached: outcome.lost.is_empty() && outcome.doubled == 0,
            limit: format!("{} attempts worked, {} calls made again", outcome.attempts, outcome.repeated),
        },
    ])
}
