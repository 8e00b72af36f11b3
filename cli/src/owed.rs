//! `crashyard owed`: what the farm owes and has not delivered.

use crate::server::{Server, said};
use crate::time::when;
use crate::triage::vmcore::text;
use anyhow::bail;
use clap::Args;
use crashyard_protocol::api::{Owed as Found, OwedKind};

/// Arguments of `owed`.
#[derive(Args)]
pub struct Owed {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

impl Owed {
    pub async fn run(self) -> anyhow::Result<()> {
        let found = self.server.client().owed().await.map_err(|error| said(&error))?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&found)?);
        } else {
            found.iter().for_each(|one| println!("{}", line(one)));
        }
        match found.len() {
            0 => {
                eprintln!("Nothing is owed.");
                Ok(())
            }
            many => bail!("{many} things are owed and not delivered"),
        }
    }
}

fn line(one: &Found) -> String {
    let what = match one.kind {
        OwedKind::JobWaits => "job waits for a day or longer (crashyard job why)",
        OwedKind::JobWithoutAttempt => "job is leased, and no attempt could settle it",
        OwedKind::AttemptWithoutLease => "attempt's lease ran out, and nobody has ended it",
        OwedKind::MachineWithoutAttempt => "machine is leased, and its attempt is over",
        OwedKind::RunWithoutJobs => "run is open, and has nothing left to do",
    };
    let name = one.name.as_deref().unwrap_or_default();
    text::safe(&format!("{}  since {}  {what}  {name}", one.id, when(one.since))).to_string()
}
