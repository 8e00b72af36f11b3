//! The build id of a bootable kernel image.
//!
//! A bzImage carries the compressed vmlinux at `payload_offset` of its setup header
//! (`Documentation/arch/x86/boot.rst`, protocol 2.08); the vmlinux has the build id as an ELF note.

use anyhow::{Context as _, bail};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Offset of `setup_sects` in the setup header: 512-byte sectors of setup code, 0 meaning 4.
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the magic `HdrS`.
const MAGIC: usize = 0x202;
/// Offset of `payload_offset`, relative to the protected-mode code.
const PAYLOAD_OFFSET: usize = 0x248;
/// Offset of `payload_length`; its last four bytes are the uncompressed size.
const PAYLOAD_LENGTH: usize = 0x24c;

/// How payloads begin, and what unpacks them.
const UNPACKERS: &[(&[u8], &[&str])] = &[
    (b"\x1f\x8b", &["gzip", "-dc"]),
    (b"\xfd7zXZ\0", &["xz", "-dc", "--single-stream"]),
    (b"\x28\xb5\x2f\xfd", &["zstd", "-dcq"]),
    (b"\x02\x21\x4c\x18", &["lz4", "-dc"]),
];

/// GNU build id of the vmlinux inside a bzImage, lower-case hex.
pub fn build_id(image: &[u8]) -> anyhow::Result<String> {
    let payload = payload(image)?;
    let Some((_, unpacker)) = UNPACKERS.iter().find(|(magic, _)| payload.starts_with(magic)) else {
        bail!("a kernel compressed in a way this does not know");
    };
    let vmlinux = pipe(unpacker, payload)?;
    let elf = ElfFile64::<Endianness>::parse(vmlinux.as_slice()).context("the payload is not an ELF file")?;
    let id = elf.build_id().context("unreadable notes")?.context("a kernel without a build id")?;
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn payload(image: &[u8]) -> anyhow::Result<&[u8]> {
    let number = |at: usize| -> Option<usize> {
        usize::try_from(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?)).ok()
    };
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        bail!("not a bzImage");
    }
    let sectors = match image[SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let begin = (sectors + 1) * 512 + number(PAYLOAD_OFFSET).context("a cut bzImage")?;
    let end = begin + number(PAYLOAD_LENGTH).context("a cut bzImage")?;
    image.get(begin..end).context("a cut bzImage")
}

/// Feeds `input` to a program. The four bytes of size behind the payload make some of them complain after they have
/// written everything, so what counts is the output, not the exit status.
fn pipe(program: &[&str], input: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}: apt-get install {}", program[0], program[0]))?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    let _ = feeder.join();
    if output.stdout.is_empty() {
        bail!("{} unpacked nothing", program[0]);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::build_id;

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        assert!(build_id(b"").is_err());
        assert!(build_id(&[0; 4096]).unwrap_err().to_string().contains("not a bzImage"));
    }
}
