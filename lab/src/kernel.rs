//! Debian's own kernels, fetched and unpacked, never installed.
//!
//! The package manager of the machine resolves, downloads and checks them, so mirror, proxy and signatures are
//! whatever the machine is configured for.

use crate::{cache, command, vmlinux};
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel with its modules.
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// The bootable image.
    pub image: PathBuf,
    /// GNU build id of its vmlinux, lower-case hex.
    pub build_id: String,
    root: PathBuf,
}

/// The newest kernel that the meta package `meta` (e.g. `linux-image-cloud-amd64`) stands for.
pub fn debian(meta: &str) -> anyhow::Result<Kernel> {
    let package = resolve(meta)?;
    let release = package.trim_start_matches("linux-image-").trim_end_matches("-unsigned").to_owned();
    let version = candidate(&package)?;
    let key = format!("{package}_{}", version.replace(['/', ':'], "-"));
    let root = cache::get_or_build("debian-kernel", &key, |place| fetch(&package, &version, place))?;
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    let bytes = std::fs::read(&image).with_context(|| format!("{} has no {}", package, image.display()))?;
    let build_id = vmlinux::build_id(&bytes).with_context(|| format!("reading {}", image.display()))?;
    Ok(Kernel { release, image, build_id, root })
}

impl Kernel {
    /// The files of modules and of everything they need, in the order in which they must be loaded.
    ///
    /// Modules that are built in need no file and are left out.
    pub fn modules(&self, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for name in names {
            let mut modprobe = Command::new("modprobe");
            modprobe.arg("-d").arg(&self.root).args(["-S", &self.release, "--show-depends", name]);
            for line in command::text(&mut modprobe)?.lines() {
                if let Some(path) = line.trim().strip_prefix("insmod ") {
                    let path = PathBuf::from(path.trim());
                    if !files.contains(&path) {
                        files.push(path);
                    }
                }
            }
        }
        Ok(files)
    }
}

/// A module's bytes as `insmod` of busybox takes them: not compressed.
pub fn module_bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    match path.extension().and_then(std::ffi::OsStr::to_str) {
        Some("xz") => command::output(Command::new("xz").arg("-dc").arg(path)),
        Some("zst") => command::output(Command::new("zstd").arg("-dcq").arg(path)),
        _ => Ok(std::fs::read(path)?),
    }
}

fn resolve(meta: &str) -> anyhow::Result<String> {
    let depends = command::text(Command::new("apt-cache").args(["depends", "--important", meta]))?;
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("no package {meta}: run apt-get update, or is this not Debian?"))
}

fn candidate(package: &str) -> anyhow::Result<String> {
    let policy = command::text(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    match version {
        Some(version) if version != "(none)" => Ok(version.to_owned()),
        _ => bail!("{package} cannot be downloaded: run apt-get update"),
    }
}

fn fetch(package: &str, version: &str, place: &Path) -> anyhow::Result<()> {
    eprintln!("fetching {package} {version}");
    let mut apt = Command::new("apt-get");
    apt.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]).arg(format!("{package}={version}"));
    command::output(apt.current_dir(place)).context("apt-get update may help")?;
    let deb = std::fs::read_dir(place)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    command::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(place))?;
    std::fs::remove_file(deb)?;
    // modprobe looks below lib/modules; merged-usr packages have it in usr/.
    let (old, merged) = (place.join("lib"), place.join("usr/lib"));
    if !old.exists() && merged.exists() {
        std::os::unix::fs::symlink("usr/lib", old)?;
    }
    let release = package.trim_start_matches("linux-image-").trim_end_matches("-unsigned");
    command::output(Command::new("depmod").arg("-b").arg(place).arg(release))?;
    Ok(())
}
