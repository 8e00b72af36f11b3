//! Starts drgn or crash where they are and the debuginfo belongs to the crashed kernel; otherwise says what is missing.
//!
//! A vmlinux of another build shows wrong stacks with great confidence, so its build id is compared first, and one that
//! does not match is never used.

use super::{With, print, text};
use anyhow::{Context as _, bail};
use crashyard_vmcore::{Limits, ReadAt as _, rearranged};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ReadCache};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// Opens a dump as was asked.
pub fn open(file: &Path, with: With, vmlinux: Option<&Path>) -> anyhow::Result<()> {
    let source = File::open(file).with_context(|| file.display().to_string())?;
    if with == With::Triage {
        return triage(&source);
    }
    let capsule = crashyard_vmcore::summarise(&source, &Limits::default())?;
    let debuginfo = debuginfo(&capsule.release, capsule.build_id.as_deref(), vmlinux)?;
    let wanted: &[With] = match with {
        With::Auto => &[With::Drgn, With::Crash],
        With::Crash => &[With::Crash],
        _ => &[With::Drgn],
    };
    let tool = wanted.iter().find_map(|tool| Some((*tool, program(tool.name()?)?)));
    match (tool, debuginfo) {
        (Some((tool, program)), Some(vmlinux)) => start(tool, &program, file, &source, &vmlinux),
        (tool, debuginfo) => {
            let advice = advice(tool.is_some(), debuginfo.is_some(), &text::safe(&capsule.release));
            if with != With::Auto {
                bail!("{advice}");
            }
            triage(&source)?;
            eprintln!("\n{advice}\nMore of this dump without any of that: crashyard triage vmcore {}", file.display());
            Ok(())
        }
    }
}

impl With {
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Drgn => Some("drgn"),
            Self::Crash => Some("crash"),
            _ => None,
        }
    }
}

fn triage(source: &File) -> anyhow::Result<()> {
    print(&crashyard_vmcore::capsule(source, &crashyard_vmcore::Options::default())?)
}

/// What to install, one line for each thing that is missing.
fn advice(tool: bool, debuginfo: bool, release: &str) -> String {
    let mut lines = Vec::new();
    if !tool {
        lines.push(
            "drgn and crash are not installed: apt install crash, dnf install crash, or pip install drgn".to_owned(),
        );
    }
    if !debuginfo {
        lines.push(format!(
            "no vmlinux with debuginfo for {release} was found: apt install linux-image-{release}-dbg (Debian), \
             dnf debuginfo-install kernel-{release} (Fedora), or --vmlinux FILE for a kernel of your own"
        ));
    }
    lines.join("\n")
}

/// A program of this name in `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The vmlinux that belongs to a kernel: the one given, which must be it, or the first that is, of the usual places.
fn debuginfo(release: &str, build_id: Option<&str>, given: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    if let Some(given) = given {
        let found = build_id_of(given).with_context(|| format!("{} is no vmlinux", given.display()))?;
        if let (Some(wanted), Some(found)) = (build_id, &found)
            && !found.eq_ignore_ascii_case(wanted)
        {
            bail!(
                "{} is of another kernel: its build id is {found}, the dump's is {}",
                given.display(),
                text::safe(wanted)
            );
        }
        return Ok(Some(given.to_owned()));
    }
    // Only a build id proves that a file found by chance belongs to the dump.
    let Some(wanted) = build_id else { return Ok(None) };
    let fits = |file: &PathBuf| {
        let found = build_id_of(file).ok().flatten();
        found.is_some_and(|found| found.eq_ignore_ascii_case(wanted))
    };
    Ok(places(release, wanted).into_iter().find(fits))
}

/// Where distributions and builders put a vmlinux.
fn places(release: &str, build_id: &str) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some((first, rest)) = build_id.split_at_checked(2) {
        places.push(format!("/usr/lib/debug/.build-id/{first}/{rest}.debug"));
    }
    // The release is text from a dump: as part of a path it must stay one name.
    if !release.is_empty() && !release.contains('/') && release != ".." {
        places.extend([
            format!("/usr/lib/debug/boot/vmlinux-{release}"),
            format!("/usr/lib/debug/lib/modules/{release}/vmlinux"),
            format!("/usr/lib/debug/usr/lib/modules/{release}/vmlinux"),
            format!("/lib/modules/{release}/build/vmlinux"),
            format!("/boot/vmlinux-{release}"),
        ]);
    }
    places.into_iter().map(PathBuf::from).collect()
}

/// GNU build id of an ELF file, lower-case hexadecimal.
fn build_id_of(file: &Path) -> anyhow::Result<Option<String>> {
    let cache = ReadCache::new(File::open(file)?);
    let elf = ElfFile64::<Endianness, _>::parse(&cache)?;
    let id = elf.build_id()?;
    Ok(id.map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect()))
}

fn start(tool: With, program: &Path, file: &Path, source: &File, vmlinux: &Path) -> anyhow::Result<()> {
    let plain = plain(file, source)?;
    let mut command = Command::new(program);
    match tool {
        With::Crash => command.arg(vmlinux).arg(&plain),
        _ => command.arg("-c").arg(&plain).arg("-s").arg(vmlinux),
    };
    eprintln!("Starting {} with {}", program.display(), vmlinux.display());
    let status = command.status().with_context(|| format!("cannot start {}", program.display()))?;
    if !status.success() {
        bail!(
            "{} ended with {status}. It may not know this kernel; --with triage needs no help from it.",
            program.display()
        );
    }
    Ok(())
}

/// The dump as a file that every tool reads: a flattened one is put together beside it, once.
fn plain(file: &Path, source: &File) -> anyhow::Result<PathBuf> {
    let Some(flat) = rearranged(source, &Limits::default())? else { return Ok(file.to_owned()) };
    let (plain, part) = (file.with_extension("plain"), file.with_extension("plain.part"));
    if plain.is_file() {
        return Ok(plain);
    }
    eprintln!("Putting the flattened dump together for it");
    let out = File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < flat.len() {
        let count = flat.read_at(at, &mut buffer)?;
        if count == 0 {
            bail!("the dump ends at byte {at}, earlier than it says");
        }
        // What is zero stays a hole.
        if buffer[..count].iter().any(|byte| *byte != 0) {
            out.write_all_at(&buffer[..count], at)?;
        }
        at += count as u64;
    }
    out.set_len(flat.len())?;
    out.sync_all()?;
    std::fs::rename(&part, &plain)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_from_a_hostile_dump_is_never_a_path() {
        for release in ["../../etc", "..", "a/b", ""] {
            assert_eq!(places(release, "abcd").len(), 1, "{release}");
        }
        assert!(places("6.1.0-56-amd64", "é").iter().all(|place| place.starts_with("/")));
        assert_eq!(places("6.1.0", "abcdef")[0], Path::new("/usr/lib/debug/.build-id/ab/cdef.debug"));
    }

    /// A 64-bit ELF file with one note segment, which holds this build id.
    fn vmlinux(id: &[u8]) -> tempfile::NamedTempFile {
        let mut note = [4u32, u32::try_from(id.len()).unwrap(), 3].map(u32::to_le_bytes).concat();
        note.extend(b"GNU\0");
        note.extend(id);
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2u16, 62].iter().flat_map(|v| v.to_le_bytes()));
        file.extend(1u32.to_le_bytes());
        file.extend([0u64, 64, 0].iter().flat_map(|v| v.to_le_bytes()));
        file.extend(0u32.to_le_bytes());
        file.extend([64u16, 56, 1, 64, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
        file.extend([4u32, 4].iter().flat_map(|v| v.to_le_bytes()));
        let length = note.len() as u64;
        file.extend([120, 0, 0, length, length, 4].iter().flat_map(|v: &u64| v.to_le_bytes()));
        file.extend(note);
        let out = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(out.path(), file).unwrap();
        out
    }

    #[test]
    fn only_a_vmlinux_with_the_dumps_build_id_is_used() {
        let file = vmlinux(&[0xab, 0xcd, 0xef, 0x01]);
        assert_eq!(build_id_of(file.path()).unwrap().as_deref(), Some("abcdef01"));
        let given = |id| debuginfo("6.1", id, Some(file.path()));
        assert_eq!(given(Some("ABCDEF01")).unwrap().as_deref(), Some(file.path()));
        let error = given(Some("abcdef02")).unwrap_err().to_string();
        assert!(error.contains("another kernel") && error.contains("abcdef01"), "{error}");
        assert_eq!(debuginfo("6.1", None, None).unwrap(), None, "nothing found by chance is trusted");
    }

    #[test]
    fn a_file_that_is_no_vmlinux_is_said_to_be_none() {
        let text = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(text.path(), "no program").unwrap();
        assert!(build_id_of(text.path()).is_err());
        let error = debuginfo("6.1", Some("ab"), Some(text.path())).unwrap_err().to_string();
        assert!(error.contains("is no vmlinux"), "{error}");
    }
}
