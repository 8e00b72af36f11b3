//! 64 consoles at once, every byte durable before its acknowledgement.

use crate::farm;
use crate::figures::Figure;
use crate::server::Server;
use crashyard_protocol::agent::Claim;
use crashyard_protocol::client::Client;
use futures::future::try_join_all;
use std::io::Write as _;
use std::time::Instant;

const STREAMS: usize = 64;
const WRITES: usize = 16;
const WRITE_BYTES: usize = 1 << 20;

/// 64 streams of 16 MiB in 1 MiB writes, one write of each stream under way at a time.
pub async fn measure() -> anyhow::Result<Figure> {
    let server = Server::start().await?;
    let build = farm::prepare(&server.admin, STREAMS).await?;
    let lab = farm::enrol(&server.admin, "lab", STREAMS).await?;
    farm::submit(&server.admin, &build).await?;
    let claims = farm::claim_all(&server.admin, &lab).await?;
    let text = lines();
    let begun = Instant::now();
    try_join_all(claims.iter().map(|claim| stream(&server.admin, claim, &text))).await?;
    let rate = (STREAMS * WRITES * WRITE_BYTES) as f64 / begun.elapsed().as_secs_f64() / 1e6;
    let disk = synced_write_rate(server.data.path())?;
    Ok(Figure {
        what: "console ingest, 64 streams".into(),
        measured: format!("{rate:.0} MB/s"),
        bar: ">= 200 MB/s".into(),
        reached: rate >= 200.0,
        limit: format!(
            "1 MiB files written and synced one by one by one thread here: {disk:.0} MB/s; durable = file and directory synced, row committed"
        ),
    })
}

async fn stream(admin: &Client, claim: &Claim, text: &bytes::Bytes) -> anyhow::Result<()> {
    let client = admin.at_epoch(claim.epoch);
    let mut offset = 0;
    for _ in 0..WRITES {
        offset = client.put_console(&claim.attempt, "serial", offset, text.clone()).await?.next_offset;
    }
    anyhow::ensure!(offset == (WRITES * WRITE_BYTES) as u64, "the server has {offset} bytes");
    Ok(())
}

/// Kernel-like lines, so that reading them for reports costs what it costs.
fn lines() -> bytes::Bytes {
    let mut text = Vec::with_capacity(WRITE_BYTES + 128);
    let mut i = 0_u64;
    while text.len() < WRITE_BYTES {
        let line = format!(
            "[{:>5}.{:06}] pci 0000:00:{:02x}.0: reg 0x10: [mem 0x{:08x}-0x{:08x}]\n",
            i / 997,
            i,
            i % 32,
            i * 4096,
            i * 4096 + 4095
        );
        text.extend_from_slice(line.as_bytes());
        i += 1;
    }
    text.truncate(WRITE_BYTES);
    text.into()
}

fn synced_write_rate(dir: &std::path::Path) -> anyhow::Result<f64> {
    let bytes = vec![0x5a; WRITE_BYTES];
    let begun = Instant::now();
    for i in 0..128 {
        let path = dir.join(format!("floor-{i}"));
        let mut file = std::fs::File::create(&path)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::File::open(dir)?.sync_all()?;
    }
    let rate = (128 * WRITE_BYTES) as f64 / begun.elapsed().as_secs_f64() / 1e6;
    for i in 0..128 {
        std::fs::remove_file(dir.join(format!("floor-{i}")))?;
    }
    Ok(rate)
}
