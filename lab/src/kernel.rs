//! The guest kernel: Debian's own for virtual machines, downloaded as a package and unpacked, never installed.

use crate::cache::Cache;
use crate::command::{filter, output, output_in};
use anyhow::{Context as _, bail};
use crashyard_protocol::bzimage;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Which of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines: small.
    Cloud,
    /// For all hardware.
    Generic,
}

impl Flavour {
    /// The package that always depends on the newest kernel of its kind.
    fn meta_package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
        }
    }
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Package and version, what it is known by in the cache.
    pub package: String,
    /// `uname -r`.
    pub release: String,
    /// The bootable image.
    pub image: PathBuf,
    /// Directory above `lib/modules`.
    pub root: PathBuf,
}

/// Gets the newest kernel; without a package list or mirror, the newest one that was got before.
pub fn newest(cache: &Cache, flavour: Flavour) -> anyhow::Result<Kernel> {
    let (package, root) = match resolve(flavour.meta_package()).and_then(|(name, version)| {
        let package = format!("{name}_{version}");
        let root = cache.directory(&format!("kernels/{package}"), |into| fetch(&name, &version, into))?;
        Ok((package, root))
    }) {
        Ok(found) => found,
        Err(error) => {
            let kept = newest_kept(cache, flavour)
                .with_context(|| format!("{error:#}; and no kernel was kept from before"))?;
            eprintln!("Using the kernel kept from before: {error:#}");
            kept
        }
    };
    let release = only_entry(&root.join("lib/modules"))?;
    let image = root.join(format!("boot/vmlinuz-{release}"));
    if !image.is_file() {
        bail!("{} has no {}", package, image.display());
    }
    Ok(Kernel { package, release, image, root })
}

/// Name and version of the package behind the meta package. Updates the package lists if they do not know it.
fn resolve(meta: &str) -> anyhow::Result<(String, String)> {
    let show = || output("apt-cache", ["show", "--no-all-versions", meta]);
    let text = match show() {
        Ok(text) => text,
        Err(_) => {
            output("apt-get", ["update"]).context("the package lists are empty and cannot be updated")?;
            show()?
        }
    };
    parse_depends(&String::from_utf8_lossy(&text)).with_context(|| format!("what {meta} depends on"))
}

/// Reads `Depends: NAME (= VERSION)`.
fn parse_depends(record: &str) -> Option<(String, String)> {
    let line = record.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let (name, rest) = line.split_once(" (= ")?;
    let (version, _) = rest.split_once(')')?;
    Some((name.trim().to_owned(), version.to_owned()))
}

fn fetch(name: &str, version: &str, into: &Path) -> anyhow::Result<()> {
    let download =
        || output_in(into, "apt-get", &["download", "-o", "APT::Sandbox::User=root", &format!("{name}={version}")]);
    if download().is_err() {
        // An old package list names versions the mirror no longer has.
        output("apt-get", ["update"])?;
        download()?;
    }
    let package = std::fs::read_dir(into)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    output("dpkg-deb", [Path::new("-x"), &package, into])?;
    std::fs::remove_file(package)?;
    // On a merged-/usr system packages may ship either path.
    if !into.join("lib/modules").is_dir() && into.join("usr/lib/modules").is_dir() {
        std::os::unix::fs::symlink("usr/lib", into.join("lib"))?;
    }
    let release = only_entry(&into.join("lib/modules"))?;
    output("depmod", [Path::new("-b"), into, Path::new(&release)])?;
    Ok(())
}

/// A kernel that somebody built: its image, and the directory that its modules were installed in (`INSTALL_MOD_PATH`).
pub fn own(image: &Path, modules: Option<&Path>) -> anyhow::Result<Kernel> {
    let bytes = std::fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let release = bzimage::release(&bytes).with_context(|| format!("{} is no bzImage", image.display()))?;
    let root = modules.unwrap_or(Path::new("/nonexistent")).to_owned();
    if modules.is_some() && !root.join("lib/modules").join(&release).join("modules.dep").is_file() {
        bail!(
            "{} has no modules of {release}: make modules_install INSTALL_MOD_PATH={}",
            root.display(),
            root.display()
        );
    }
    Ok(Kernel { package: format!("linux {release}"), release, image: image.to_owned(), root })
}

fn newest_kept(cache: &Cache, flavour: Flavour) -> anyhow::Result<(String, PathBuf)> {
    let newest = std::fs::read_dir(cache.path("kernels"))?
        .filter_map(Result::ok)
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .filter(|entry| entry.file_name().to_string_lossy().contains("-cloud-") == (flavour == Flavour::Cloud))
        .max_by_key(|entry| entry.metadata().and_then(|metadata| metadata.modified()).ok())
        .context("the cache is empty")?;
    Ok((newest.file_name().to_string_lossy().into_owned(), newest.path()))
}

fn only_entry(directory: &Path) -> anyhow::Result<String> {
    let mut entries = std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    match (entries.next().transpose()?, entries.next()) {
        (Some(entry), None) => Ok(entry.file_name().to_string_lossy().into_owned()),
        _ => bail!("{} should hold exactly one kernel's modules", directory.display()),
    }
}

/// The GNU build id of the vmlinux inside a bzImage, lower-case hex. `None` if the image is of another make.
///
/// (`Documentation/arch/x86/boot.rst`: `payload_offset` is relative to the protected-mode code, which starts behind
/// the boot sector and `setup_sects` more; the payload ends in the 4-byte size of what it unpacks to.)
pub fn build_id(image: &[u8]) -> Option<String> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS" || image.get(0x1fe..0x200)? != [0x55, 0xaa] {
        return None;
    }
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4,
        count => usize::from(count),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let payload = image.get(start..start.checked_add(word(0x24c)?)?)?;
    notes_of_elf(&unpack(payload)?)
}

fn unpack(payload: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match payload {
        [0x1f, 0x8b, ..] => {
            // The size behind the stream is not gzip's; what came before it counts.
            let _ = flate2::read::GzDecoder::new(payload).read_to_end(&mut out);
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let _ = zstd::stream::read::Decoder::new(payload).ok()?.single_frame().read_to_end(&mut out);
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => out = filter("xz", &["-dc", "--single-stream"], payload).ok()?.1,
        [0x02, 0x21, 0x4c, 0x18, ..] => out = filter("lz4", &["-dc"], payload).ok()?.1,
        _ => return None,
    }
    Some(out)
}

/// Looks through the note segments of a 64-bit little-endian ELF file.
fn notes_of_elf(elf: &[u8]) -> Option<String> {
    const PT_NOTE: u64 = 4;
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    (0..count).find_map(|index| {
        let at = usize::try_from(table + index * size).ok()?;
        if number(at, 4)? != PT_NOTE {
            return None;
        }
        let (offset, length) = (number(at + 8, 8)?, number(at + 0x20, 8)?);
        let offset = usize::try_from(offset).ok()?;
        let notes = elf.get(offset..offset.checked_add(usize::try_from(length).ok()?)?)?;
        crashyard_agent::target::build_id(notes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_names_the_kernel() {
        let record = "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        let expected = ("linux-image-6.1.0-56-cloud-amd64".to_owned(), "6.1.192-2".to_owned());
        assert_eq!(parse_depends(record), Some(expected));
        assert_eq!(parse_depends("Depends: a, b\n"), None);
    }

    #[test]
    fn an_image_of_another_make_has_no_build_id_and_does_no_harm() {
        assert_eq!(build_id(b""), None);
        assert_eq!(build_id(&vec![0xff; 4096]), None);
        let mut image = vec![0; 4096];
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(build_id(&image), None);
        assert_eq!(notes_of_elf(b"\x7fELF\x02\x01"), None);
    }
}
