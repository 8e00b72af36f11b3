//! `crashyard-swarm bench`: each benchmark is a file, named like the line it prints.

mod claims;
mod console;
mod idle;
mod page;
mod placement;
mod share;
mod steady;
mod storm;
mod vmcore;

use crate::figures::{self, Figure};
use crate::progress::Shown;
use clap::ValueEnum;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these; without a name all, which takes about half an hour
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Name>,
    /// How long each storm of `kill -9` lasts
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    storm_seconds: u64,
    /// Print JSON, when all are done
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// From a job's submission to the start of its attempt
    Placement,
    /// Console bytes of 64 machines made durable
    Console,
    /// A dump on its way in, beside the disk alone
    Vmcore,
    /// Memory of a server to which a thousand idle agents are connected
    Idle,
    /// The page of a run with 200 jobs
    Page,
    /// Machine time of four submitters by their weights, one of which floods
    Share,
    /// Claims with a million queued jobs, SQLite
    ClaimsSqlite,
    /// The same on PostgreSQL, two servers
    ClaimsPostgres,
    /// Ten thousand machines on one server, PostgreSQL
    Steady,
    /// `kill -9` of the server every five seconds, SQLite
    StormSqlite,
    /// The same for two servers on PostgreSQL
    StormPostgres,
}

/// Runs the benchmarks one after another, each on a fresh server. Figures are printed as they come: a later benchmark that
/// fails takes none of them away.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let names = if args.names.is_empty() { Name::value_variants() } else { &args.names };
    let mut all = Vec::new();
    if !args.json {
        println!("cores: {}", figures::cores());
    }
    for name in names {
        let figures = measure(*name, args.storm_seconds).await?;
        if !args.json {
            figures::print(&figures);
        }
        all.extend(figures);
    }
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&serde_json::json!({ "cores": figures::cores(), "figures": all }))?
        );
    }
    Ok(())
}

async fn measure(name: Name, storm_seconds: u64) -> anyhow::Result<Vec<Figure>> {
    let shown = Shown::new(name.to_possible_value().as_ref().map_or("", |name| name.get_name()));
    Ok(match name {
        Name::Placement => vec![placement::measure().await?],
        Name::Console => vec![console::measure().await?],
        Name::Vmcore => vec![vmcore::measure().await?],
        Name::Idle => vec![idle::measure().await?],
        Name::Page => vec![page::measure().await?],
        Name::Share => vec![share::measure().await?],
        Name::ClaimsSqlite => claims::sqlite().await?,
        Name::ClaimsPostgres => claims::postgres().await?,
        Name::Steady => steady::measure(&shown).await?,
        Name::StormSqlite => vec![storm::sqlite(storm_seconds).await?],
        Name::StormPostgres => vec![storm::postgres(storm_seconds).await?],
    })
}
