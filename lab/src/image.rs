//! The guest image: one kernel and one initramfs that serves both as the system under test and as capture system.
//!
//! Busybox, kexec-tools and makedumpfile come from the machine's own Debian packages with the libraries they link,
//! the agent is ours and static, the modules are the kernel's. The initramfs is not compressed: emulated machines
//! unpack slowly. Images are cached by the hash of everything in them.

use crate::kernel::Kernel;
use crate::{cache, command, kernel};
use anyhow::Context as _;
use crashyard_agent::cpio::Archive;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const INIT: &[u8] = include_bytes!("../image/init");

/// What the guest needs to reach the network and a dump disk.
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "virtio_blk"];

/// Programs of the machine that go into the guest, and their places there.
const PROGRAMS: &[(&str, &str)] =
    &[("busybox", "bin/busybox"), ("kexec", "sbin/kexec"), ("makedumpfile", "usr/bin/makedumpfile")];

/// A bootable guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// The kernel (bzImage).
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// `uname -r`.
    pub release: String,
    /// GNU build id of the kernel, lower-case hex.
    pub build_id: String,
}

/// Builds the image of a kernel with the given agent, or finds it in the cache.
pub fn build(kernel: &Kernel, agent: &Path) -> anyhow::Result<Image> {
    let initrd = initrd(kernel, agent)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&initrd).update(kernel.build_id.as_bytes());
    let key = &hasher.finalize().to_hex()[..16];
    let place = cache::get_or_build("image", key, |place| {
        std::fs::copy(&kernel.image, place.join("kernel"))?;
        std::fs::write(place.join("initrd"), &initrd)?;
        Ok(())
    })?;
    Ok(Image {
        kernel: place.join("kernel"),
        initrd: place.join("initrd"),
        release: kernel.release.clone(),
        build_id: kernel.build_id.clone(),
    })
}

fn initrd(kernel: &Kernel, agent: &Path) -> anyhow::Result<Vec<u8>> {
    let mut files: BTreeMap<String, (u32, Vec<u8>)> = BTreeMap::new();
    files.insert("init".into(), (0o755, INIT.to_vec()));
    files.insert("bin/crashyard-agent".into(), (0o755, std::fs::read(agent).context("the guest agent")?));
    let mut libraries = BTreeSet::new();
    for (program, place) in PROGRAMS {
        let path = find(program)?;
        libraries.extend(linked(&path)?);
        files.insert((*place).into(), (0o755, std::fs::read(path)?));
    }
    for library in libraries {
        let place = library.to_string_lossy().trim_start_matches('/').to_owned();
        files.insert(place, (0o755, std::fs::read(&library)?));
    }
    let mut order = String::new();
    for path in kernel.modules(MODULES)? {
        let name = path.file_stem().context("a module's name")?.to_string_lossy();
        let name = format!("{}.ko", name.trim_end_matches(".ko"));
        files.insert(format!("lib/modules/{name}"), (0o644, kernel::module_bytes(&path)?));
        order += &format!("{name}\n");
    }
    files.insert("lib/modules/order".into(), (0o644, order.into_bytes()));
    Ok(archive(&files))
}

fn archive(files: &BTreeMap<String, (u32, Vec<u8>)>) -> Vec<u8> {
    let mut archive = Archive::new();
    let mut folders = BTreeSet::from(["dev".to_owned(), "tmp".to_owned(), "crashyard".to_owned()]);
    for path in files.keys() {
        let parents = Path::new(path).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
        folders.extend(parents.map(|parent| parent.to_string_lossy().into_owned()));
    }
    // Sorted, so a parent comes before what is in it.
    for folder in &folders {
        archive.directory(folder);
    }
    // The kernel opens it before anything is mounted.
    archive.character("dev/console", 0o600, 5, 1);
    for (path, (permissions, bytes)) in files {
        archive.file(path, *permissions, bytes);
    }
    archive.finish()
}

/// Where the machine has a program; administrators' programs are not in everybody's `PATH`.
fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"])
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not installed; `make packages` installs what the lab needs"))
}

/// The libraries a program is linked with, the dynamic linker included (ldd(1)).
fn linked(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let Ok(text) = command::text(Command::new("ldd").arg(program)) else {
        // ldd fails on static programs.
        return Ok(Vec::new());
    };
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
