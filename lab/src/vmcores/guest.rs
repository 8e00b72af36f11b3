//! The guest of a crash: a kernel and an initramfs that holds only what telling the truth and dumping need.

use super::trigger;
use crate::cache::Cache;
use crate::command::script;
use crate::image::{self, File, archive};
use crate::kernel::Kernel;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `/init` of the guest.
const INIT: &str = include_str!("../../vmcores/init");
/// The disk that dumps go to, and what brings VMCOREINFO to QEMU.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "qemu_fw_cfg", "btrfs"];
/// Names the kernel of lab/kernel/build.
pub const LAB: &str = "lab";

/// A kernel that is ready to be crashed.
#[derive(Debug)]
pub struct Guest {
    /// `uname -r`.
    pub release: String,
    /// The bootable image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The lab's own kernel. It knows how to die, finds a CPU that hangs with interrupts off by itself, and has no
    /// `/proc/PID/stack`.
    pub own: bool,
}

impl Guest {
    /// Gets a kernel and builds its initramfs, or finds both in the cache.
    pub fn build(cache: &Cache, source: &Path, kernel: &str) -> anyhow::Result<Self> {
        if kernel == LAB { Self::lab(cache, source) } else { Self::debian(cache, source, kernel) }
    }

    /// Debian's newest cloud kernel whose release begins like this. It has no way to oops or to hang; those are made.
    fn debian(cache: &Cache, source: &Path, prefix: &str) -> anyhow::Result<Self> {
        let root = script(&source.join("lab/vmcores/kernel"), &[prefix])?;
        let release = root.file_name().context("a kernel's directory has a name")?.to_string_lossy().into_owned();
        let image = root.join(format!("boot/vmlinuz-{release}"));
        let kernel = Kernel { package: release.clone(), release: release.clone(), image: image.clone(), root };
        let mut modules = BTreeMap::from([("boot".to_owned(), image::modules(&kernel, &MODULES)?)]);
        let donor = image::modules(&kernel, &[trigger::DONOR])?;
        let (_, donor) = donor.last().with_context(|| format!("{release} has no module {}", trigger::DONOR))?;
        for (name, code) in [("oops", trigger::OOPS), ("lockup", trigger::LOCKUP)] {
            modules.insert(name.to_owned(), vec![(format!("lib/modules/{name}.ko"), trigger::module(donor, code)?)]);
        }
        Self::assemble(cache, release, image, modules, false)
    }

    /// The lab's own kernel, whose LKDTM knows how to die.
    fn lab(cache: &Cache, source: &Path) -> anyhow::Result<Self> {
        let root = script(&source.join("lab/kernel/build"), &[])?;
        let release = std::fs::read_to_string(root.join("release")).context("the lab kernel's release")?;
        let lkdtm = std::fs::read(root.join("modules/lkdtm.ko")).context("the lab kernel's lkdtm")?;
        let modules = BTreeMap::from([("boot".to_owned(), vec![("lib/modules/lkdtm.ko".to_owned(), lkdtm)])]);
        Self::assemble(cache, release.trim().to_owned(), root.join("bzImage"), modules, true)
    }

    fn assemble(
        cache: &Cache,
        release: String,
        kernel: PathBuf,
        modules: image::Modules,
        own: bool,
    ) -> anyhow::Result<Self> {
        let mut files = image::userland(INIT, modules)?;
        // The capture kernel is the same one again.
        files.insert("kernel".into(), File::read(&kernel, 0o644)?);
        let mut key = blake3::Hasher::new();
        image::name(&mut key, &files);
        let key = key.finalize().to_hex();
        let directory = cache.directory(&format!("images/vmcores-{}", &key[..32]), |into| {
            Ok(std::fs::write(into.join("initrd"), zstd::encode_all(&archive(&files)[..], 3)?)?)
        })?;
        Ok(Self { release, kernel, initrd: directory.join("initrd"), own })
    }
}
