//! The guest of a crash: a kernel and an initramfs that holds only what telling the truth and dumping need.

use crate::cache::Cache;
use crate::command::output;
use crate::image::{self, File, archive};
use crate::kernel::Kernel;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `/init` of the guest.
const INIT: &str = include_str!("../../vmcores/init");
/// The disk that dumps go to, and what brings VMCOREINFO to QEMU.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "qemu_fw_cfg", "btrfs"];

/// A kernel that is ready to be crashed.
#[derive(Debug)]
pub struct Guest {
    /// `uname -r`.
    pub release: String,
    /// The bootable image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

impl Guest {
    /// Gets the newest kernel of this kind and builds its initramfs, or finds both in the cache.
    pub fn build(cache: &Cache, source: &Path, prefix: &str) -> anyhow::Result<Self> {
        let script = source.join("lab/vmcores/kernel");
        let said = output(&script.display().to_string(), [prefix])?;
        let root = PathBuf::from(String::from_utf8_lossy(&said).trim());
        let release = root.file_name().context("a kernel's directory has a name")?.to_string_lossy().into_owned();
        let image = root.join(format!("boot/vmlinuz-{release}"));
        let kernel = Kernel { package: release.clone(), release: release.clone(), image: image.clone(), root };
        let mut files =
            image::userland(INIT, BTreeMap::from([("boot".to_owned(), image::modules(&kernel, &MODULES)?)]))?;
        // The capture kernel is the same one again.
        files.insert("kernel".into(), File::read(&kernel.image, 0o644)?);
        let mut key = blake3::Hasher::new();
        image::name(&mut key, &files);
        let key = key.finalize().to_hex();
        let directory = cache.directory(&format!("images/vmcores-{}", &key[..32]), |into| {
            Ok(std::fs::write(into.join("initrd"), zstd::encode_all(&archive(&files)[..], 3)?)?)
        })?;
        Ok(Self { release, kernel: image, initrd: directory.join("initrd") })
    }
}
