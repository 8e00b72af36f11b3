//! What a kernel's image says of itself.

/// The release (`uname -r`) in the header of a bzImage, of which the first 64 KiB are enough; `None` if it is none
/// (`Documentation/arch/x86/boot.rst`: `kernel_version` is the offset of a text behind the boot sector).
#[must_use]
pub fn release(head: &[u8]) -> Option<String> {
    if head.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = usize::from(u16::from_le_bytes(head.get(0x20e..0x210)?.try_into().ok()?)) + 0x200;
    let text = head.get(at..)?.split(|byte| *byte == 0).next()?;
    let release = std::str::from_utf8(text).ok()?.split_whitespace().next()?;
    Some(release.to_owned())
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn the_release_is_read_from_a_kernels_header_and_from_nothing_else() {
        let mut head = vec![0; 0x400];
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        let text = b"6.1.0-test (builder@host) #1 SMP\0rest";
        head[0x300..0x300 + text.len()].copy_from_slice(text);
        assert_eq!(release(&head).as_deref(), Some("6.1.0-test"));
        for cut in [0, 0x202, 0x20f, 0x2ff] {
            assert_eq!(release(&head[..cut]), None, "{cut}");
        }
        assert_eq!(release(&[0xff; 0x400]), None);
    }
}
