//! What this kernel says about itself.

use anyhow::Context as _;
use crashyard_protocol::VmxState;
use crashyard_protocol::agent::Report;
use crashyard_protocol::chunk::hex;

/// Type of the ELF note that holds the linker's build id (`NT_GNU_BUILD_ID`, elf.h).
const NT_GNU_BUILD_ID: u32 = 3;

/// The report `kernel`.
pub fn kernel() -> anyhow::Result<Report> {
    let name = nix::sys::utsname::uname().context("uname")?;
    let notes = std::fs::read("/sys/kernel/notes").unwrap_or_default();
    let online = online_cpus()?.len();
    Ok(Report::Kernel {
        release: name.release().to_string_lossy().into_owned(),
        version: name.version().to_string_lossy().into_owned(),
        build_id: build_id(&notes),
        cpus_online: u32::try_from(online).unwrap_or(u32::MAX),
    })
}

/// The report `armed`: what the kernel says, not what the steps hoped for.
pub fn armed(vmx: VmxState) -> anyhow::Result<Report> {
    let number = |name: &str| -> anyhow::Result<u64> {
        let path = format!("/sys/kernel/{name}");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        text.trim().parse().with_context(|| format!("understand {path}"))
    };
    Ok(Report::Armed {
        crash_kernel_loaded: number("kexec_crash_loaded")? == 1,
        crash_kernel_bytes: number("kexec_crash_size")?,
        vmx,
    })
}

/// Finds the GNU build id in ELF notes: words `name size`, `content size`, `type`, then both padded to four bytes.
#[must_use]
pub fn build_id(mut notes: &[u8]) -> Option<String> {
    while let Some((head, rest)) = notes.split_first_chunk::<12>() {
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name_size, size, kind) = (word(0) as usize, word(4) as usize, word(8));
        let name = rest.get(..name_size)?;
        let content_at = name_size.next_multiple_of(4);
        let content = rest.get(content_at..content_at.checked_add(size)?)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(hex(content));
        }
        notes = rest.get(content_at + size.next_multiple_of(4)..)?;
    }
    None
}

/// The CPUs that are online.
pub fn online_cpus() -> anyhow::Result<Vec<u32>> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").context("read the online CPUs")?;
    Ok(cpus(&list))
}

/// The CPUs of a kernel CPU list such as `0-3,5`.
fn cpus(list: &str) -> Vec<u32> {
    list.trim()
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse().ok()?..=last.parse::<u32>().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [name.len(), content.len(), kind as usize] {
            bytes.extend_from_slice(&u32::try_from(word).unwrap().to_le_bytes());
        }
        for part in [name, content] {
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        let mut notes = note(b"Xen\0", 5, b"abcde");
        notes.extend(note(b"Linux\0", 3, b"not it"));
        notes.extend(note(b"GNU\0", 3, &[0xab, 0x01, 0xff]));
        assert_eq!(build_id(&notes), Some("ab01ff".into()));
    }

    #[test]
    fn cut_or_absurd_notes_have_no_build_id() {
        let whole = note(b"GNU\0", 3, &[1; 20]);
        for cut in 0..whole.len() {
            assert_eq!(build_id(&whole[..cut]), None, "cut at {cut}");
        }
        assert_eq!(build_id(&[0xff; 64]), None);
    }

    #[test]
    fn cpu_lists_are_understood() {
        for (list, expected) in
            [("0\n", &[0][..]), ("0-3\n", &[0, 1, 2, 3]), ("0-1,3,8-9\n", &[0, 1, 3, 8, 9]), ("\n", &[])]
        {
            assert_eq!(cpus(list), expected, "{list:?}");
        }
    }
}
