//! The guest of a crash: a kernel and an initramfs that holds only what telling the truth and dumping need.

use crate::cache::Cache;
use crate::command::{find, output};
use crate::image::{File, archive, libraries, modules, static_file};
use crate::kernel::Kernel;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `/init` of the guest.
const INIT: &str = include_str!("../../vmcores/init");
/// The disk that dumps go to, and what brings VMCOREINFO to QEMU.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "qemu_fw_cfg", "btrfs"];
/// Programs from this host.
const PROGRAMS: [&str; 2] = ["makedumpfile", "kexec"];

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
        let files = files(&kernel)?;
        let mut key = blake3::Hasher::new();
        for (path, file) in &files {
            key.update(format!("{path} {:o} {}\n", file.permissions, file.content.len()).as_bytes());
            key.update(&file.content);
        }
        let key = key.finalize().to_hex();
        let directory = cache.directory(&format!("images/vmcores-{}", &key[..32]), |into| {
            Ok(std::fs::write(into.join("initrd"), zstd::encode_all(&archive(&files)[..], 3)?)?)
        })?;
        Ok(Self { release, kernel: image, initrd: directory.join("initrd") })
    }
}

fn files(kernel: &Kernel) -> anyhow::Result<BTreeMap<String, File>> {
    let mut files = BTreeMap::new();
    files.insert("init".into(), File { permissions: 0o755, content: INIT.as_bytes().to_vec() });
    files.insert("bin/busybox".into(), static_file("busybox")?);
    // The capture kernel is the same one again.
    files.insert("kernel".into(), File::read(&kernel.image, 0o644)?);
    for program in PROGRAMS {
        let path = find(program)?;
        for library in libraries(&path)? {
            let name = library.to_string_lossy().trim_start_matches('/').to_owned();
            files.entry(name).or_insert(File::read(&library, 0o755)?);
        }
        files.insert(format!("sbin/{program}"), File::read(&path, 0o755)?);
    }
    let modules = modules(kernel, &MODULES)?;
    let order: String = modules.iter().map(|(path, _)| format!("/{path}\n")).collect();
    files.insert("lib/modules/order".into(), File { permissions: 0o644, content: order.into_bytes() });
    files.extend(modules.into_iter().map(|(path, content)| (path, File { permissions: 0o644, content })));
    Ok(files)
}
