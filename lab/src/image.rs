//! Guest images: a kernel and one initramfs that serves the kernel under test and the capture kernel.
//!
//! The initramfs holds busybox, kexec, makedumpfile with their libraries from this host, kernel modules with the order
//! in which they are to be loaded, this workspace's agent (static), and `lab/image/init`. Everything that goes in decides
//! the image's name in the cache.

use crate::cache::Cache;
use crate::command::{filter, find, output};
use crate::kernel::{self, Flavour, Kernel};
use anyhow::{Context as _, bail, ensure};
use crashyard_agent::cpio::Archive;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// `/init` of the guest.
const INIT: &str = include_str!("../image/init");

/// Modules of QEMU's hardware. One that the kernel has built in, or does not have, is left out.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_net", "virtio_blk"];

/// Modules by which the kernel under test shows what the machine is made of: the CPU's registers, and the BMC. Each has a list of
/// its own as well: a scenario that needs the BMC has them loaded by name, and is told why one cannot be.
const INVENTORY: [&str; 3] = ["msr", "ipmi_devintf", "ipmi_si"];

/// Modules that scenarios load by name. They are looked for in kernels that somebody built only: Debian's lack the last two, and
/// KVM alone would just make their initramfs larger.
const BY_NAME: [&str; 3] = ["kvm_intel", "crashyard_vmx", "lkdtm"];

/// Programs from this host with the shared libraries they name.
const PROGRAMS: [&str; 2] = ["makedumpfile", "kexec"];

/// Counts up when this file builds something else from the same parts.
const RECIPE: u32 = 3;

/// Fast to unpack, and small enough: the kernel checks the hash of what kexec loads, byte by byte.
const ZSTD_LEVEL: i32 = 9;

/// A finished image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The package the kernel came from.
    pub package: String,
    /// `uname -r`.
    pub release: String,
    /// GNU build id of its vmlinux, where it could be read.
    pub build_id: Option<String>,
    /// The bootable kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

/// Modules as (path in the guest, content), in the order in which they are loaded, by the name of the list: `boot` in both
/// kernels, `target` in the kernel under test, a module's name when a scenario needs that module.
pub type Modules = BTreeMap<String, Vec<(String, Vec<u8>)>>;

/// What an image is made of, beside what is in all of them.
#[derive(Clone, Debug)]
pub struct Parts {
    /// What the kernel is known by.
    pub package: String,
    /// `uname -r`.
    pub release: String,
    /// The bootable kernel.
    pub kernel: PathBuf,
    /// Its kernel modules.
    pub modules: Modules,
    /// Whether the initramfs is compressed. On a machine whose CPU is emulated slowly, unpacking costs more than reading.
    pub compress: bool,
}

/// Arguments of `image`.
#[derive(clap::Args)]
pub struct Options {
    /// A kernel of yours (bzImage) in place of Debian's
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Where its modules were installed (INSTALL_MOD_PATH); without it, it must have built in what the machine needs
    #[arg(long, value_name = "DIRECTORY", requires = "kernel")]
    modules: Option<PathBuf>,
    /// A module that the machine needs beside those of QEMU: its network card's, say (may be repeated)
    #[arg(long = "module", value_name = "NAME")]
    extra: Vec<String>,
}

/// Builds the image that was asked for, and says where it is.
pub fn run(options: &Options, source: &Path) -> anyhow::Result<()> {
    let cache = Cache::open()?;
    let image = match &options.kernel {
        Some(file) => with(&cache, source, kernel::own(file, options.modules.as_deref())?, &options.extra, &BY_NAME)?,
        None => build(&cache, source, Flavour::Cloud, &options.extra)?,
    };
    println!("{}", serde_json::to_string_pretty(&image)?);
    Ok(())
}

/// Builds the image for QEMU with Debian's kernel, or finds it in the cache. With modules that a real machine needs, its
/// kernel is that for all hardware.
pub fn build(cache: &Cache, source: &Path, flavour: Flavour, extra: &[String]) -> anyhow::Result<Image> {
    let kernel = kernel::newest(cache, if extra.is_empty() { flavour } else { Flavour::Generic })?;
    with(cache, source, kernel, extra, &[])
}

fn with(cache: &Cache, source: &Path, kernel: Kernel, extra: &[String], by_name: &[&str]) -> anyhow::Result<Image> {
    let modules = lists(&kernel, extra, by_name)?;
    let Kernel { package, release, image, .. } = kernel;
    assemble(cache, &build_agent(cache, source)?, Parts { package, release, kernel: image, modules, compress: true })
}

/// What an image holds of a kernel's modules; of those that are loaded by name, what the kernel has.
fn lists(kernel: &Kernel, extra: &[String], by_name: &[&str]) -> anyhow::Result<Modules> {
    let hardware: Vec<&str> = MODULES.into_iter().chain(extra.iter().map(String::as_str)).collect();
    for name in extra {
        ensure!(!modules(kernel, &[name])?.is_empty(), "{} has no module {name}", kernel.package);
    }
    let mut lists = Modules::from([
        ("boot".to_owned(), modules(kernel, &hardware)?),
        ("target".to_owned(), modules(kernel, &INVENTORY)?),
    ]);
    for name in INVENTORY.iter().chain(by_name) {
        let found = modules(kernel, &[name])?;
        if !found.is_empty() {
            lists.insert((*name).to_owned(), found);
        }
    }
    Ok(lists)
}

/// Puts an image together, or finds it in the cache.
pub fn assemble(cache: &Cache, agent: &Path, parts: Parts) -> anyhow::Result<Image> {
    let Parts { package, release, kernel: bzimage, modules, compress } = parts;
    let files = collect(modules, agent)?;
    let kernel_bytes = std::fs::read(&bzimage).with_context(|| format!("read {}", bzimage.display()))?;
    let mut key = blake3::Hasher::new();
    key.update(format!("{RECIPE} {package} {} {compress}", blake3::hash(&kernel_bytes)).as_bytes());
    name(&mut key, &files);
    let key = key.finalize().to_hex();
    let directory = cache.directory(&format!("images/{}", &key[..32]), |into| {
        std::fs::write(into.join("kernel"), &kernel_bytes)?;
        let plain = archive(&files);
        let initrd = if compress { zstd::encode_all(&plain[..], ZSTD_LEVEL)? } else { plain };
        std::fs::write(into.join("initrd"), initrd)?;
        let facts = (&package, &release, kernel::build_id(&kernel_bytes));
        std::fs::write(into.join("facts.json"), serde_json::to_vec(&facts)?)?;
        Ok(())
    })?;
    let facts = std::fs::read(directory.join("facts.json"))?;
    let (package, release, build_id) = serde_json::from_slice(&facts).context("read the image's facts")?;
    Ok(Image { package, release, build_id, kernel: directory.join("kernel"), initrd: directory.join("initrd") })
}

/// Builds the agent for the guest: static, small, in a target directory of its own.
pub fn build_agent(cache: &Cache, source: &Path) -> anyhow::Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    // A directory for each checkout: cargo tells fresh from stale by time stamps, which mean nothing between two of them.
    let checkout = source.canonicalize().with_context(|| format!("find {}", source.display()))?;
    let checkout = blake3::hash(checkout.as_os_str().as_encoded_bytes()).to_hex();
    let target_dir = cache.path(&format!("guest-target-{}", &checkout[..16]));
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = std::process::Command::new(cargo)
        .args(["build", "--quiet", "--locked", "--profile", "guest", "-p", "crashyard-agent", "--target", TARGET])
        .current_dir(source)
        .env("CARGO_TARGET_DIR", &target_dir)
        // `--target` keeps build scripts and macros dynamic; they cannot be static.
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("start cargo (install a Rust toolchain)")?;
    if !status.success() {
        bail!("building the guest's agent in {}: {status}", source.display());
    }
    Ok(target_dir.join(TARGET).join("guest/crashyard-agent"))
}

/// A file of an image.
pub struct File {
    /// Its permission bits.
    pub permissions: u32,
    /// Its bytes.
    pub content: Vec<u8>,
}

impl File {
    pub fn read(path: &Path, permissions: u32) -> anyhow::Result<Self> {
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { permissions, content })
    }
}

/// Everything that goes in, by its path in the guest.
fn collect(modules: Modules, agent: &Path) -> anyhow::Result<BTreeMap<String, File>> {
    let mut files = userland(INIT, modules)?;
    files.insert("bin/crashyard-agent".into(), File::read(agent, 0o755)?);
    Ok(files)
}

/// Makes everything that goes in part of an image's name.
pub fn name(key: &mut blake3::Hasher, files: &BTreeMap<String, File>) {
    for (path, file) in files {
        key.update(format!("{path} {:o} {}\n", file.permissions, file.content.len()).as_bytes());
        key.update(&file.content);
    }
}

/// What every guest has: its init, busybox, the programs of kdump, and modules with the orders in which to load them.
pub fn userland(init: &str, modules: Modules) -> anyhow::Result<BTreeMap<String, File>> {
    let mut files = BTreeMap::new();
    files.insert("init".into(), File { permissions: 0o755, content: init.as_bytes().to_vec() });
    files.insert("bin/busybox".into(), static_file("busybox")?);
    for program in PROGRAMS {
        let path = find(program)?;
        for library in libraries(&path)? {
            let name = library.to_string_lossy().trim_start_matches('/').to_owned();
            files.entry(name).or_insert(File::read(&library, 0o755)?);
        }
        files.insert(format!("sbin/{program}"), File::read(&path, 0o755)?);
    }
    for (list, modules) in modules {
        let order: String = modules.iter().map(|(path, _)| format!("/{path}\n")).collect();
        let order = File { permissions: 0o644, content: order.into_bytes() };
        files.insert(format!("lib/modules/{list}.order"), order);
        files.extend(modules.into_iter().map(|(path, content)| (path, File { permissions: 0o644, content })));
    }
    Ok(files)
}

fn static_file(program: &str) -> anyhow::Result<File> {
    let path = find(program)?;
    if !libraries(&path)?.is_empty() {
        bail!("{} is not statically linked; install the Debian package {program}-static", path.display());
    }
    File::read(&path, 0o755)
}

/// The shared libraries of a program, its loader included; none for a static one.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    // ldd fails for a static program, with a text that says so.
    let text = match output("ldd", [program]) {
        Ok(text) => text,
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    parse_ldd(&String::from_utf8_lossy(&text)).with_context(|| format!("the libraries of {}", program.display()))
}

/// Reads ldd's lines: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader; the vDSO has no path.
fn parse_ldd(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        let target = line.split_once(" => ").map_or(line, |(_, target)| target);
        if target.starts_with("not found") {
            bail!("{line}");
        }
        if target.starts_with('/') {
            paths.push(target.split(" (").next().unwrap_or(target).into());
        }
    }
    Ok(paths)
}

/// Modules of a kernel and what they need, in the order in which they must be loaded, decompressed.
pub fn modules(kernel: &Kernel, names: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut seen = BTreeSet::new();
    let mut modules = Vec::new();
    for module in names {
        let root = kernel.root.as_os_str();
        let arguments =
            ["-d".as_ref(), root, "-S".as_ref(), kernel.release.as_ref(), "--show-depends".as_ref(), module.as_ref()];
        let Ok(text) = output("modprobe", arguments) else { continue };
        for line in String::from_utf8_lossy(&text).lines() {
            let Some(path) = line.trim().strip_prefix("insmod ") else { continue };
            let path = Path::new(path.split_whitespace().next().unwrap_or(path));
            if !seen.insert(path.to_owned()) {
                continue;
            }
            let file_name = path.file_name().unwrap_or_default().to_string_lossy();
            let stem = file_name.split(".ko").next().unwrap_or(&file_name);
            modules.push((format!("lib/modules/{stem}.ko"), decompressed(path)?));
        }
    }
    Ok(modules)
}

fn decompressed(module: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = std::fs::read(module).with_context(|| format!("read {}", module.display()))?;
    match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => match filter("xz", &["-dc"], &bytes)? {
            (true, plain) => Ok(plain),
            (false, _) => bail!("xz cannot unpack {}", module.display()),
        },
        Some("zst") => Ok(zstd::decode_all(&bytes[..])?),
        _ => Ok(bytes),
    }
}

pub fn archive(files: &BTreeMap<String, File>) -> Vec<u8> {
    let mut archive = Archive::new();
    let mut made = BTreeSet::new();
    let mut parents = |archive: &mut Archive, path: &str| {
        let parts: Vec<&str> = path.split('/').collect();
        for depth in 1..parts.len() {
            let directory = parts[..depth].join("/");
            if made.insert(directory.clone()) {
                archive.directory(&directory);
            }
        }
    };
    parents(&mut archive, "dev/console");
    // Where the kernel opens process 1's first files (`init/main.c`, console_on_rootfs).
    archive.character("dev/console", 0o600, 5, 1);
    for (path, file) in files {
        parents(&mut archive, path);
        archive.file(path, file.permissions, &file.content);
    }
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_and_a_missing_one_is_an_error() {
        let text = "\tlinux-vdso.so.1 (0x7f)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x7f)\n\t/lib64/ld-linux.so.2 (0x7f)\n";
        assert_eq!(parse_ldd(text).unwrap(), [Path::new("/lib/x/libz.so.1"), Path::new("/lib64/ld-linux.so.2")]);
        assert!(parse_ldd("\tlibfoo.so => not found\n").is_err());
    }

    #[test]
    fn a_module_that_scenarios_load_has_a_list_of_its_own_where_the_kernel_has_the_module() {
        let root = tempfile::tempdir().unwrap();
        let release = "6.1.0-test";
        let directory = root.path().join("lib/modules").join(release);
        std::fs::create_dir_all(&directory).unwrap();
        // What depmod takes for a module: an object file, here one without content.
        std::fs::write(root.path().join("empty.c"), "").unwrap();
        for name in ["lkdtm", "virtio_net"] {
            let module = directory.join(format!("{name}.ko"));
            output("gcc", ["-c".as_ref(), "-o".as_ref(), module.as_os_str(), root.path().join("empty.c").as_os_str()])
                .unwrap();
        }
        output("depmod", ["-b".as_ref(), root.path().as_os_str(), release.as_ref()]).unwrap();
        let (package, image) = (String::new(), PathBuf::new());
        let kernel = Kernel { package, release: release.into(), image, root: root.path().to_owned() };
        let lists = lists(&kernel, &[], &BY_NAME).unwrap();
        let paths = |list: &str| lists[list].iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>();
        assert_eq!(lists.keys().collect::<Vec<_>>(), ["boot", "lkdtm", "target"]);
        assert_eq!((paths("boot"), paths("lkdtm")), (vec!["lib/modules/virtio_net.ko"], vec!["lib/modules/lkdtm.ko"]));
    }
}
