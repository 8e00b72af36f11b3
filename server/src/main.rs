//! The `crashyard-server` command.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use crashyard_protocol::Scope;
use crashyard_server::config::{Config, DEFAULT_TOML, LogFormat};
use crashyard_server::{api, serve};
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Also of SQLite, which asks for memory in each statement many times: that was an eighth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The farm's server.
#[derive(Parser)]
#[command(name = "crashyard-server", version)]
struct Args {
    /// Configuration file; without one, defaults and CRASHYARD_… in the environment count.
    #[arg(long, global = true, env = "CRASHYARD_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM.
    Serve,
    /// Prints the default configuration.
    DefaultConfig,
    /// Brings the database up to date and ends.
    Migrate,
    /// Prints the API's description (OpenAPI).
    Openapi,
    /// Tokens.
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Makes a token and prints its secret, once. Works beside a running server.
    Create {
        /// What it may do: admin, submit or controller.
        #[arg(long)]
        scope: Scope,
        /// For people.
        #[arg(long, default_value = "made on the command line")]
        name: String,
        /// Days until it stops working; it works for ever if absent.
        #[arg(long)]
        days: Option<u32>,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.command {
        Command::DefaultConfig => {
            print!("{DEFAULT_TOML}");
            return Ok(());
        }
        Command::Openapi => {
            println!("{}", crashyard_server::routes::openapi().to_pretty_json()?);
            return Ok(());
        }
        _ => {}
    }
    let config = Config::load(args.config.as_deref(), |name| std::env::var(name).ok())?;
    log_to_stderr(&config)?;
    match args.command {
        Command::Serve => serve::serve(config).await,
        Command::Migrate => {
            serve::open(config).await?.db.close().await;
            Ok(())
        }
        Command::Token(TokenCommand::Create { scope, name, days }) => create_token(config, scope, name, days).await,
        Command::DefaultConfig | Command::Openapi => Ok(()),
    }
}

fn log_to_stderr(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_filter).context("log_filter cannot be read")?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

async fn create_token(config: Config, scope: Scope, name: String, days: Option<u32>) -> anyhow::Result<()> {
    anyhow::ensure!(scope != Scope::Attempt, "tokens of attempts are made by claims");
    let state = serve::open(config).await?;
    let expires_at = days.map(|days| state.now().plus(Duration::from_secs(u64::from(days) * 86_400)));
    let made = api::tokens::make(&state, name, scope, expires_at).await;
    let (_, secret) = made.map_err(|error| anyhow::anyhow!("{error}"))?;
    println!("{secret}");
    state.db.close().await;
    Ok(())
}
