//! Brings a file of the server here, a dump or a kernel: resumed where it was cut, and hashed before anybody trusts it.
//!
//! Bytes go to `NAME.part`; only a file whose BLAKE3 is the server's gets its name. So a file of that name is whole, whatever
//! happened while it came.

use crate::server::said;
use crate::triage::vmcore::text;
use anyhow::{Context as _, bail, ensure};
use crashyard_protocol::api::Artifact;
use crashyard_protocol::client::{Client, ClientError};
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Component, Path, PathBuf};

/// Tries in a row that brought no byte.
const FRUITLESS: u32 = 3;
/// HTTP status of an answer that honours the range.
const PARTIAL: u16 = 206;

/// Where things of this kind are kept unless somebody says otherwise.
pub fn cache(kind: &str) -> anyhow::Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")));
    Ok(root.context("no cache directory: set HOME, or say where with --dir")?.join("crashyard").join(kind))
}

/// Fetches a complete file into `dir` under the name it has at the server, unless it is there already.
pub async fn fetch(client: &Client, file: &Artifact, dir: &Path) -> anyhow::Result<PathBuf> {
    // A server is a stranger: its names go nowhere but into this directory.
    let mut parts = Path::new(&file.name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    ensure!(plain, "the server calls a file {}, which is no name for one here", text::safe(&file.name));
    let wanted = file
        .blake3
        .as_deref()
        .with_context(|| format!("the server does not say the hash of {}", text::safe(&file.name)))?;
    let (whole, part) = (dir.join(&file.name), dir.join(format!("{}.part", file.name)));
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if std::fs::metadata(&whole).is_ok_and(|there| there.len() == file.size) {
        if hash(&whole, file.size)? == wanted {
            return Ok(whole);
        }
        eprintln!("{} is not what the server has, so it is fetched again.", whole.display());
        std::fs::remove_file(&whole)?;
    }
    let mut here = OpenOptions::new().read(true).append(true).create(true).open(&part);
    let here = here.as_mut().map_err(|error| anyhow::anyhow!("cannot write {}: {error}", part.display()))?;
    download(client, file, here).await?;
    here.sync_all()?;
    if hash(&part, file.size)? != wanted {
        std::fs::remove_file(&part)?;
        bail!(
            "the bytes that came are not {} (another BLAKE3), so they were thrown away. Run the same command again.",
            text::safe(&file.name)
        );
    }
    std::fs::rename(&part, &whole)?;
    Ok(whole)
}

async fn download(client: &Client, wanted: &Artifact, file: &mut File) -> anyhow::Result<()> {
    let mut have = file.metadata()?.len();
    if have > wanted.size {
        // Of another one.
        have = truncate(file)?;
    }
    let bar = bar("fetching", wanted.size);
    bar.set_position(have);
    bar.reset_eta();
    let mut fruitless = 0;
    while have < wanted.size {
        let before = have;
        let cut = match piece(client, wanted, file, &mut have, &bar).await {
            Ok(()) => "the connection was closed too early".to_owned(),
            Err(Failure::Here(error)) => return Err(error),
            Err(Failure::There(error)) if !error.is_transient() => return Err(said(&error)),
            Err(Failure::There(error)) => error.to_string(),
        };
        fruitless = if have > before { 0 } else { fruitless + 1 };
        if have < wanted.size && fruitless == FRUITLESS {
            bar.abandon();
            bail!(
                "{} at byte {have} of {}. What came is kept: run the same command again, and it goes on from there.",
                text::safe(&cut),
                wanted.size
            );
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Why a piece ended early.
enum Failure {
    /// On the way, or at the server.
    There(ClientError),
    /// On this machine.
    Here(anyhow::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Here(anyhow::Error::new(error).context("cannot write it here"))
    }
}

/// One connection's worth of bytes.
async fn piece(
    client: &Client,
    wanted: &Artifact,
    file: &mut File,
    have: &mut u64,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let response = client.download(&wanted.id, *have).await.map_err(Failure::There)?;
    if *have > 0 && response.status().as_u16() != PARTIAL {
        *have = truncate(file)?;
    }
    let mut stream = response.bytes_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|error| Failure::There(error.into()))?;
        // Never more than was announced, whatever a server sends.
        let room = usize::try_from(wanted.size.saturating_sub(*have)).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        file.write_all(bytes)?;
        *have += bytes.len() as u64;
        bar.set_position(*have);
        if *have == wanted.size {
            break;
        }
    }
    Ok(())
}

fn truncate(file: &mut File) -> std::io::Result<u64> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))
}

/// BLAKE3 of a file, with a bar.
fn hash(path: &Path, size: u64) -> anyhow::Result<String> {
    let bar = bar("checking", size);
    let mut file = bar.wrap_read(File::open(path)?);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        };
    }
    bar.finish_and_clear();
    Ok(hasher.finalize().to_hex().to_string())
}

/// Bytes on their way; nothing is drawn where nobody watches.
pub fn bar(what: &'static str, total: u64) -> ProgressBar {
    let template = "{msg:9} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(what)
}
