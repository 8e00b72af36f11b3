//! Kernel and initramfs for machines that boot from the network: an HTTP service for iPXE.
//!
//! A machine's boot loader is told once, in the DHCP server, to chain to `http://CONTROLLER/boot/MACHINE/boot.ipxe`. While
//! an attempt wants the machine to boot its kernel, that script does so; at any other time it hands back to the
//! firmware, which goes on with the disk. What is offered lies in the attempt's directory, so it outlives this process.
//!
//! An offer is for one boot: with the last byte of the initramfs, which is fetched last, it is taken. A machine that always
//! tries the network first and resets in the middle of a crash boots its disk as well, and does not run the kernel under
//! test again as if nothing had been.
//!
//! The initramfs carries the attempt's token, so files lie under a path that only the script names, and are offered from
//! power-on until they are taken, or to power-off. Whoever may listen to or ask on this network could read them: it is the
//! lab's, not a public one.

use super::machine::BootPlan;
use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Segments, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio_util::io::{InspectReader, ReaderStream};

/// The card that the machine booted from, and its address, netmask and gateway, as iPXE has them from DHCP.
const NETWORK: &str = "crashyard.mac=${netX/mac} crashyard.net=${netX/ip}/${netX/netmask}/${netX/gateway}";

/// What a script says when there is nothing to boot.
const NOTHING: &str = "#!ipxe\nexit\n";

/// What a machine fetches last.
const LAST: &str = "initrd";

/// Name of an offer in an attempt's directory.
const OFFER: &str = "netboot.json";

/// The service in the controller's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetbootConfig {
    /// Where to listen, on the machines' network.
    pub listen: SocketAddr,
}

/// What a machine is to boot next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    machine: String,
    /// The part of the path that nobody can guess.
    secret: String,
    kernel: PathBuf,
    initrd: PathBuf,
    cmdline: String,
    /// Whether it is on offer, and not only remembered.
    open: bool,
}

impl Offer {
    /// For a machine.
    #[must_use]
    pub fn new(machine: &str, plan: &BootPlan) -> Self {
        Self {
            machine: machine.to_owned(),
            secret: secret(),
            kernel: plan.kernel.clone(),
            initrd: plan.initrd.clone(),
            cmdline: plan.cmdline.clone(),
            open: true,
        }
    }

    /// What is offered in a directory.
    pub fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        match std::fs::read(directory.join(OFFER)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).context("what is offered for booting")?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Offers it, durably: after a power cut it must be known that the machine was to be powered on.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let new = directory.join("netboot.new");
        let file = std::fs::File::create(&new)?;
        serde_json::to_writer(&file, self)?;
        file.sync_all()?;
        std::fs::rename(&new, directory.join(OFFER))?;
        Ok(std::fs::File::open(directory)?.sync_all()?)
    }

    fn script(&self) -> String {
        let Self { secret, cmdline, .. } = self;
        // Names are relative to the script's own address. What iPXE has learnt of the network goes on to the kernel, before the
        // words of the scenario, which has the last one.
        format!(
            "#!ipxe\nkernel {secret}/kernel initrd=initrd {NETWORK} {cmdline}\ninitrd --name initrd {secret}/initrd\nboot\n"
        )
    }
}

/// Ends an offer, because it was taken or the machine goes off; that there was one is remembered.
pub fn withdraw(directory: &Path) -> anyhow::Result<()> {
    match Offer::read(directory)? {
        Some(offer) if offer.open => Offer { open: false, ..offer }.write(directory),
        _ => Ok(()),
    }
}

/// 160 random bits.
fn secret() -> String {
    ulid::Ulid::generate().to_string() + &ulid::Ulid::generate().to_string()
}

/// Serves what the attempts below `attempts` offer. Returns only with an error.
pub async fn serve(config: &NetbootConfig, attempts: PathBuf) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(config.listen);
    let listener = listener.await.with_context(|| format!("listen for machines at {}", config.listen))?;
    tracing::info!(address = %listener.local_addr()?, "serving kernels for booting from the network");
    axum::serve(listener, router(attempts)).await.context("serve kernels")
}

fn router(attempts: PathBuf) -> Router {
    Router::new()
        .route("/boot/{machine}/boot.ipxe", get(script))
        .route("/boot/{machine}/{secret}/{file}", get(file))
        .with_state(attempts)
}

/// The open offer for a machine, and where it lies; there is at most one, as there is one lease.
fn offer(attempts: &Path, machine: &str) -> Option<(PathBuf, Offer)> {
    let directories = std::fs::read_dir(attempts).ok()?;
    directories
        .filter_map(|entry| {
            let directory = entry.ok()?.path();
            let offer = Offer::read(&directory).ok().flatten()?;
            Some((directory, offer))
        })
        .find(|(_, offer)| offer.open && offer.machine == machine)
}

async fn script(State(attempts): State<PathBuf>, Segments(machine): Segments<String>) -> Response {
    let offer = offer(&attempts, &machine);
    tracing::info!(machine, boots = offer.is_some(), "a machine asks what to boot");
    ([(header::CONTENT_TYPE, "text/plain")], offer.map_or_else(|| NOTHING.to_owned(), |(_, offer)| offer.script()))
        .into_response()
}

async fn file(
    State(attempts): State<PathBuf>,
    Segments((machine, secret, name)): Segments<(String, String, String)>,
) -> Response {
    let Some((directory, offer)) = offer(&attempts, &machine).filter(|(_, offer)| offer.secret == secret) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let path = match name.as_str() {
        "kernel" => &offer.kernel,
        LAST => &offer.initrd,
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let opened = async {
        let file = tokio::fs::File::open(path).await?;
        let length = file.metadata().await?.len();
        std::io::Result::Ok((file, length))
    };
    match opened.await {
        Ok((file, length)) => {
            let mut left = length;
            let read = InspectReader::new(file, move |bytes| {
                left = left.saturating_sub(bytes.len() as u64);
                // Before the last byte goes out, so that whoever has all of it finds nothing more. At the end of the file
                // it comes here once more.
                if left == 0 && !bytes.is_empty() && name == LAST {
                    take(&machine, &directory);
                }
            });
            ([(header::CONTENT_LENGTH, length)], Body::from_stream(ReaderStream::with_capacity(read, 1 << 16)))
                .into_response()
        }
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "cannot be served");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Notes that the machine has all that it needs to boot.
fn take(machine: &str, directory: &Path) {
    match withdraw(directory) {
        Ok(()) => tracing::info!(machine, "what was offered is taken"),
        Err(error) => tracing::error!(error = format!("{error:#}"), machine, "what is taken stays on offer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(url: String) -> (u16, String) {
        let http = crashyard_protocol::client::builder(&url).build().unwrap();
        let answer = http.get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    #[tokio::test]
    async fn a_machine_boots_what_is_offered_and_else_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let attempt = dir.path().join("attempts/1");
        std::fs::create_dir_all(&attempt).unwrap();
        std::fs::write(attempt.join("k"), "the kernel").unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/boot", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router(dir.path().join("attempts"))).into_future());
        let script = || get(format!("{base}/m1/boot.ipxe"));
        assert_eq!(script().await, (200, NOTHING.to_owned()));

        let plan = BootPlan {
            kernel: attempt.join("k"),
            initrd: attempt.join("gone"),
            cmdline: "console=ttyS0".into(),
            cpus: 1,
            memory_mib: 1,
        };
        let offer = Offer::new("m1", &plan);
        offer.write(&attempt).unwrap();
        let (_, text) = script().await;
        assert!(
            text.contains("kernel ") && text.contains("/kernel initrd=initrd crashyard.mac=${netX/mac} "),
            "{text}"
        );
        assert_eq!(get(format!("{base}/m2/boot.ipxe")).await.1, NOTHING, "another machine's kernel is not for it");
        let at = |name: &str| format!("{base}/m1/{}/{name}", offer.secret);
        assert_eq!(get(at("kernel")).await, (200, "the kernel".to_owned()));
        assert_eq!(get(at("initrd")).await.0, 500);
        assert_eq!(get(at("..%2f..%2fjournal.jsonl")).await.0, 404);
        assert_eq!(get(format!("{base}/m1/guessed/kernel")).await.0, 404);
        assert!(offer.secret.len() > 40 && Offer::new("m1", &plan).secret != offer.secret);

        std::fs::write(attempt.join("gone"), vec![7; 200_000]).unwrap();
        assert_eq!(get(at("initrd")).await.1.len(), 200_000);
        assert_eq!(script().await.1, NOTHING, "it has taken what was offered, and boots its disk after a reset");
        assert_eq!(get(at("initrd")).await.0, 404);
        assert!(Offer::read(&attempt).unwrap().is_some(), "but it is remembered that it was powered on");

        offer.write(&attempt).unwrap();
        assert!(script().await.1.contains("boot"));
        withdraw(&attempt).unwrap();
        assert_eq!(script().await.1, NOTHING, "after power-off it is not offered any more");
        assert_eq!(get(at("kernel")).await.0, 404);
    }
}
