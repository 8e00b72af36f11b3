//! `crashyard build`: kernels on their way to the farm.
//!
//! A build is submitted under a key made of all that it is, its bytes included. So the same command given again, after a cut
//! connection or by a CI job that was restarted, gets the same build and sends only what is not there yet.

use crate::debuginfo;
use crate::fetch::{bar, fetch};
use crate::server::{Server, patiently, said, wait};
use crate::time::when;
use crate::triage::vmcore::text;
use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use crashyard_protocol::agent::{CHUNK_BYTES, CompleteRequest};
use crashyard_protocol::api::{Build, NewBuild, NewCheckout, NewTree};
use crashyard_protocol::bzimage;
use crashyard_protocol::chunk::{chunk_hash, hex, whole_hash};
use crashyard_protocol::client::Client;
use crashyard_protocol::{ArtifactState, BuildId, CheckoutId};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// What to do with builds.
#[derive(Subcommand)]
pub enum BuildCommand {
    /// Give the farm a kernel: its image, its initramfs with the agent, and what else belongs to it
    #[command(after_help = "\
Its id goes to standard output, for `crashyard submit`. The same command given again gets the same build, and sends only
what is not there yet.

  crashyard-lab image --kernel arch/x86/boot/bzImage --modules mods > image.json
  crashyard build add --name \"linux $(git describe)\" --image image.json \\
      --vmlinux vmlinux --config kvm --tree mainline --commit $(git rev-parse HEAD)

With the build id, from --vmlinux or --build-id, the farm is sure that this kernel is what booted; without it, it has the
release alone. The initramfs holds the agent (`crashyard-lab image` makes one, for Debian's kernel without --kernel). With --tree its runs take the tree's share
of the machines, without it yours.")]
    Add(Box<Add>),
    /// List builds, newest first
    List(List),
    /// Bring the files of a build here, as they are booted
    #[command(after_help = "\
A file that is here already is only checked; a download that was cut goes on where it was. A file has its name only when
every byte of it is what the server has.

  crashyard build fetch 01JDB4Q1W5Z8N6K3X0V7T2R9MF --dir bad-kernel")]
    Fetch(Fetch),
}

/// Arguments of `build add`.
#[derive(Args)]
pub struct Add {
    /// Name for people
    #[arg(long)]
    name: String,
    /// The bootable kernel (bzImage)
    #[arg(long, value_name = "FILE", required_unless_present = "image")]
    kernel: Option<PathBuf>,
    /// The initramfs that serves it and its capture kernel
    #[arg(long, value_name = "FILE", required_unless_present = "image")]
    initrd: Option<PathBuf>,
    /// What `crashyard-lab image` printed, for all that is not given
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Another file of it; may be repeated
    #[arg(long = "file", value_name = "NAME=FILE", value_parser = named)]
    files: Vec<(String, PathBuf)>,
    /// `uname -r`; read from the kernel if it is not given
    #[arg(long)]
    release: Option<String>,
    /// GNU build id of its vmlinux, in hexadecimal
    #[arg(long, value_name = "HEX", conflicts_with = "vmlinux")]
    build_id: Option<String>,
    /// Its vmlinux, to read the build id from; it is not sent
    #[arg(long, value_name = "FILE")]
    vmlinux: Option<PathBuf>,
    /// KCIDB's name of its architecture
    #[arg(long, default_value = "x86_64")]
    architecture: String,
    /// Name of its configuration
    #[arg(long, value_name = "NAME")]
    config: Option<String>,
    /// What is added to the command line of every boot of it
    #[arg(long, default_value = "", hide_default_value = true)]
    cmdline: String,
    /// The tree it was built from; the server learns of it
    #[arg(long, requires = "commit")]
    tree: Option<String>,
    /// The commit, in full
    #[arg(long, requires = "tree", value_name = "HASH")]
    commit: Option<String>,
    /// The branch
    #[arg(long, requires = "tree")]
    branch: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `build list`.
#[derive(Args)]
pub struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `build fetch`.
#[derive(Args)]
pub struct Fetch {
    /// Id of the build
    #[arg(value_name = "BUILD")]
    id: BuildId,
    /// Where to put its files
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Print JSON: each file's name, path, size and hash
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

/// What `crashyard-lab image` prints.
#[derive(Deserialize)]
struct Image {
    release: String,
    build_id: Option<String>,
    kernel: PathBuf,
    initrd: PathBuf,
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    let parts = text.split_once('=').filter(|(name, file)| !name.is_empty() && !file.is_empty());
    parts.map(|(name, file)| (name.to_owned(), file.into())).ok_or_else(|| "say it as NAME=FILE".into())
}

impl BuildCommand {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add(args) => wait(add(*args)),
            Self::List(args) => wait(list(&args)),
            Self::Fetch(args) => wait(bring(&args)),
        }
    }
}

async fn list(args: &List) -> anyhow::Result<()> {
    let page = args.server.client().builds(None).await.map_err(|error| said(&error))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&page.items)?);
        return Ok(());
    }
    for build in &page.items {
        println!("{}", line(build));
    }
    if page.next.is_some() {
        eprintln!("These are the newest {}; the others are at /api/v1/builds.", page.items.len());
    }
    Ok(())
}

async fn bring(args: &Fetch) -> anyhow::Result<()> {
    let client = args.server.client();
    let build = patiently(|| client.build(&args.id)).await.map_err(|error| said(&error))?;
    ensure!(
        build.artifacts.iter().any(|file| file.state == ArtifactState::Complete),
        "this build has no complete file; `crashyard build add` gives it some"
    );
    let mut brought = Vec::new();
    for file in &build.artifacts {
        if file.state != ArtifactState::Complete {
            eprintln!("{} is left out: its upload is not complete.", text::safe(&file.name));
            continue;
        }
        let path = fetch(&client, file, &args.dir).await?;
        if args.json {
            brought.push(json!({ "name": file.name, "path": path, "size": file.size, "blake3": file.blake3 }));
        } else {
            println!("{}", text::safe(&path.display().to_string()));
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&brought)?);
    }
    Ok(())
}

fn line(build: &Build) -> String {
    let open = build.artifacts.iter().any(|file| file.state == ArtifactState::Open);
    let open = if open { "  (its upload is not complete)" } else { "" };
    text::safe(&format!("{}  {}  {:<28} {}{open}", build.id, when(build.created_at), build.release, build.name))
}

async fn add(args: Add) -> anyhow::Result<()> {
    let image = args.image.as_deref().map(image).transpose()?;
    let path = |given: &Option<PathBuf>, from: fn(&Image) -> &PathBuf| {
        given
            .clone()
            .or_else(|| image.as_ref().map(|image| from(image).clone()))
            .context("neither given nor in --image")
    };
    let kernel = path(&args.kernel, |image| &image.kernel).context("the kernel")?;
    let initrd = path(&args.initrd, |image| &image.initrd).context("the initramfs")?;
    let release = match args.release.or_else(|| image.as_ref().map(|image| image.release.clone())) {
        Some(release) => release,
        None => release_of(&kernel)?,
    };
    let build_id = match &args.vmlinux {
        Some(file) => debuginfo::build_id_of(file)
            .with_context(|| format!("{} is no vmlinux", file.display()))?
            .with_context(|| format!("{} has no build id", file.display()))?
            .into(),
        None => args.build_id.or_else(|| image.and_then(|image| image.build_id)),
    };
    let mut parts = Vec::new();
    let files = [("kernel".to_owned(), kernel), ("initrd".to_owned(), initrd)].into_iter().chain(args.files);
    for (name, path) in files {
        parts.push(Part::read(name, &path).with_context(|| format!("{}", path.display()))?);
    }
    let names: BTreeSet<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    ensure!(
        names.len() == parts.len(),
        "each file of a build has a name of its own: {}",
        Vec::from_iter(names).join(", ")
    );

    let client = args.server.client();
    let checkout = match args.tree.zip(args.commit) {
        Some((tree, commit)) => Some(checkout(&client, tree, commit, args.branch).await?),
        None => None,
    };
    let new = NewBuild {
        checkout,
        name: args.name,
        architecture: args.architecture,
        release,
        build_id,
        config_name: args.config,
        cmdline: args.cmdline,
    };
    let key = key(&new, &parts)?;
    let build = patiently(|| client.create_build_once(&new, &key)).await.map_err(|error| said(&error))?;
    for part in &mut parts {
        let name = part.name.clone();
        part.send(&client, &build.id).await.with_context(|| format!("the upload of {name:?}"))?;
    }
    if args.json {
        let build = patiently(|| client.build(&build.id)).await.map_err(|error| said(&error))?;
        println!("{}", serde_json::to_string_pretty(&build)?);
    } else {
        println!("{}", build.id);
    }
    Ok(())
}

fn image(path: &Path) -> anyhow::Result<Image> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not what crashyard-lab image prints", path.display()))
}

/// The checkout of this commit. Both the tree and it may be there already.
async fn checkout(client: &Client, tree: String, commit: String, branch: Option<String>) -> anyhow::Result<CheckoutId> {
    let new = NewTree { name: tree.clone(), git_url: None };
    patiently(|| client.create_tree(&new)).await.map_err(|error| said(&error))?;
    let new = NewCheckout { tree, git_commit_hash: commit, git_repository_branch: branch, git_commit_name: None };
    Ok(patiently(|| client.create_checkout(&new)).await.map_err(|error| said(&error))?.id)
}

/// Names a build by all that it is.
fn key(new: &NewBuild, parts: &[Part]) -> anyhow::Result<String> {
    let files: BTreeMap<&str, &str> = parts.iter().map(|part| (part.name.as_str(), part.blake3.as_str())).collect();
    Ok(format!("build {}", blake3::hash(&serde_json::to_vec(&(new, files))?).to_hex()))
}

fn release_of(kernel: &Path) -> anyhow::Result<String> {
    let mut head = Vec::new();
    File::open(kernel)
        .and_then(|file| file.take(64 << 10).read_to_end(&mut head))
        .with_context(|| format!("cannot read {}", kernel.display()))?;
    bzimage::release(&head)
        .with_context(|| format!("{} does not say its release: give it with --release", kernel.display()))
}

/// A file of a build.
struct Part {
    name: String,
    file: File,
    size: u64,
    blake3: String,
}

impl Part {
    /// Reads it once, for its hash.
    fn read(name: String, path: &Path) -> anyhow::Result<Self> {
        let mut file = File::open(path)?;
        let (mut size, mut values, mut first) = (0, Vec::new(), None);
        while let Some(chunk) = chunk(&mut file)? {
            values.push(chunk_hash(size, &chunk));
            first.get_or_insert_with(|| blake3::hash(&chunk));
            size += chunk.len() as u64;
        }
        let Some(hash) = whole_hash(&values).or(first) else { bail!("it is empty") };
        Ok(Self { name, file, size, blake3: hash.to_hex().to_string() })
    }

    /// Sends what the server lacks, and has it check the whole.
    async fn send(&mut self, client: &Client, build: &BuildId) -> anyhow::Result<()> {
        let name = &self.name;
        let has = patiently(|| client.build_upload(build, name)).await.map_err(|error| said(&error))?;
        if has.complete {
            return Ok(());
        }
        let has: BTreeMap<u64, String> = has.chunks.into_iter().map(|chunk| (chunk.offset, chunk.hash)).collect();
        let bar = bar("sending", self.size);
        self.file.seek(SeekFrom::Start(0))?;
        let mut offset = 0;
        while let Some(chunk) = chunk(&mut self.file)? {
            let length = chunk.len() as u64;
            let hash = hex(&chunk_hash(offset, &chunk));
            if has.get(&offset) != Some(&hash) {
                let body = bytes::Bytes::from(chunk);
                patiently(|| client.put_build_chunk(build, name, offset, &hash, body.clone()))
                    .await
                    .map_err(|error| said(&error))?;
            }
            offset += length;
            bar.set_position(offset);
        }
        bar.finish_and_clear();
        let done = CompleteRequest { size: self.size, blake3: self.blake3.clone() };
        patiently(|| client.complete_build_artifact(build, name, &done)).await.map_err(|error| said(&error))?;
        Ok(())
    }
}

/// The next chunk of a file; the last may be short.
fn chunk(file: &mut File) -> std::io::Result<Option<Vec<u8>>> {
    let mut chunk = Vec::new();
    file.take(CHUNK_BYTES).read_to_end(&mut chunk)?;
    Ok((!chunk.is_empty()).then_some(chunk))
}
