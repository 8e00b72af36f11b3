//! Starts and stops a server.

use crate::app::AppState;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::db::{self, Db};
use crate::{accept, api, passes, relay, routes};
use anyhow::Context as _;
use crashyard_protocol::Scope;
use crashyard_protocol::clock::SystemClock;
use rand::SeedableRng as _;
use rand::rngs::{StdRng, SysRng};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long requests may take to end after the server was told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Opens everything a server needs.
pub async fn open(config: Config) -> anyhow::Result<AppState> {
    let db = Db::open(&config.database_url, config.database_connections).await?;
    let blobs = Blobs::open(&config.blobs)?;
    let random = StdRng::try_from_rng(&mut SysRng).context("the system has no randomness")?;
    Ok(AppState::new(db, blobs, Arc::new(SystemClock), Box::new(random), config))
}

/// Serves until SIGTERM or SIGINT.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let _lock = db::lock_for_server(&config.database_url)?;
    let listen = config.listen;
    let state = open(config).await?;
    first_token(&state).await?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    tracing::info!(listen = %listener.local_addr()?, "serving");
    let stop = state.stop.clone();
    tokio::spawn(async move {
        if let Err(error) = asked_to_stop().await {
            tracing::error!(%error, "cannot listen for signals");
        }
        tracing::info!("stopping");
        stop.cancel();
    });
    run(state, listener).await
}

/// Serves on a listener until [`crate::app::App::stop`] is cancelled.
pub async fn run(state: AppState, listener: TcpListener) -> anyhow::Result<()> {
    // Before anything is read: what other servers say from here on is heard.
    let _relay = relay::start(&state).await?;
    start_work(&state).await?;
    let mut passes = passes::start(&state);
    let stop = state.stop.clone();
    let routes = routes::router(state.clone());
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        () = accept::serve(listener, &routes, &stop) => {}
        () = late => tracing::warn!("requests were still open; what they wrote is safe"),
    }
    // Passes are safe to interrupt, but their connections should be back before the pools close.
    let _ = tokio::time::timeout(GRACE, async { while passes.join_next().await.is_some() {} }).await;
    state.db.close().await;
    Ok(())
}

/// What a server that starts does first: notes how long none was there, and marks what may be unjudged.
pub async fn start_work(state: &AppState) -> anyhow::Result<()> {
    let failed = |error: crate::error::AppError| anyhow::anyhow!("{error}");
    passes::presence::tick(state).await.map_err(failed)?;
    passes::deadlines::judge_live(state).await.map_err(failed)
}

async fn asked_to_stop() -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// On the first start, writes an admin token where only the server's user can read it.
async fn first_token(state: &AppState) -> anyhow::Result<()> {
    let path = state.config.admin_token_file.clone();
    if path.as_os_str().is_empty() || db::token::any_admin(&state.db).await? {
        return Ok(());
    }
    let (_, secret) = api::tokens::make(state, "first start".into(), Scope::Admin, None)
        .await
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    write_secret(&path, &secret).with_context(|| format!("cannot write {}", path.display()))?;
    tracing::info!(file = %path.display(), "wrote the first admin token");
    Ok(())
}

fn write_secret(path: &Path, secret: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{secret}")?;
    file.sync_all()
}
