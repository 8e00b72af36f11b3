//! The vmlinux with debuginfo that belongs to a dump: a file, or what a debuginfod server has.
//!
//! A vmlinux of another build shows wrong stacks with great confidence. So its build id is compared first, wherever it comes
//! from, and one that does not match is never used.

use crate::fetch::{self, bar};
use crate::triage::vmcore::text;
use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ReadCache};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Names the servers, separated by blanks, as for every other client of debuginfod.
pub const SERVERS: &str = "DEBUGINFOD_URLS";

/// The vmlinux that belongs to a kernel: the one given, which must be it, or the first that is, of the usual places.
pub fn find(release: &str, build_id: Option<&str>, given: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
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
pub fn build_id_of(file: &Path) -> anyhow::Result<Option<String>> {
    let cache = ReadCache::new(File::open(file)?);
    let elf = ElfFile64::<Endianness, _>::parse(&cache)?;
    let id = elf.build_id()?;
    Ok(id.map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Whether there are debuginfod servers to ask.
pub fn has_servers() -> bool {
    !servers().is_empty()
}

fn servers() -> Vec<String> {
    let urls = std::env::var(SERVERS).unwrap_or_default();
    urls.split_whitespace().map(|url| url.trim_end_matches('/').to_owned()).collect()
}

/// Asks the debuginfod servers; `None` if none of them has it. Fetched once and kept.
pub async fn fetch(build_id: &str) -> anyhow::Result<Option<PathBuf>> {
    // It becomes part of an address and of a path.
    if build_id.is_empty() || !build_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("{} is no build id", text::safe(build_id));
    }
    let build_id = build_id.to_ascii_lowercase();
    let dir = fetch::cache("debuginfo")?.join(&build_id);
    let (whole, part) = (dir.join("vmlinux"), dir.join("vmlinux.part"));
    if whole.is_file() {
        return Ok(Some(whole));
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for server in servers() {
        let address = format!("{server}/buildid/{build_id}/debuginfo");
        match download(&address, &part).await {
            Ok(false) => continue,
            Ok(true) => {}
            // Another server may do better.
            Err(error) => {
                eprintln!("{}: {}", text::safe(&server), text::safe(&format!("{error:#}")));
                continue;
            }
        }
        let found = build_id_of(&part).ok().flatten();
        if found.is_some_and(|found| found.eq_ignore_ascii_case(&build_id)) {
            std::fs::rename(&part, &whole)?;
            return Ok(Some(whole));
        }
        eprintln!("{}: what it sent is not of build id {build_id}, and was thrown away", text::safe(&server));
        std::fs::remove_file(&part)?;
    }
    Ok(None)
}

/// Writes what is at this address to a file; `false` if there is nothing.
async fn download(address: &str, to: &Path) -> anyhow::Result<bool> {
    let response = reqwest::get(address).await?;
    if response.status() == reqwest::StatusCode::NOT_FOUND {
        return Ok(false);
    }
    let response = response.error_for_status()?;
    let length = response.content_length();
    let bar = bar("debuginfo", length.unwrap_or(0));
    let mut out = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut have = 0;
    let mut stream = response.bytes_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes?;
        out.write_all(&bytes)?;
        have += bytes.len() as u64;
        bar.set_position(have);
    }
    bar.finish_and_clear();
    if length.is_some_and(|length| length != have) {
        bail!("the connection was closed too early");
    }
    Ok(true)
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
        let given = |id| find("6.1", id, Some(file.path()));
        assert_eq!(given(Some("ABCDEF01")).unwrap().as_deref(), Some(file.path()));
        let error = given(Some("abcdef02")).unwrap_err().to_string();
        assert!(error.contains("another kernel") && error.contains("abcdef01"), "{error}");
        assert_eq!(find("6.1", None, None).unwrap(), None, "nothing found by chance is trusted");
    }

    #[test]
    fn a_file_that_is_no_vmlinux_is_said_to_be_none() {
        let text = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(text.path(), "no program").unwrap();
        assert!(build_id_of(text.path()).is_err());
        let error = find("6.1", Some("ab"), Some(text.path())).unwrap_err().to_string();
        assert!(error.contains("is no vmlinux"), "{error}");
    }
}
