//! Making names stable: what differs between two runs of the same bug does not belong into a title.

/// Function name without the compiler's suffixes (`.isra.0`, `.constprop.3`, `.cold`, `.llvm.123`). powerpc's leading
/// dot goes as well. Rust paths stay whole.
pub fn function(name: &str) -> &str {
    if memchr::memchr2(b':', b'<', name.as_bytes()).is_some() {
        return name;
    }
    let name = name.strip_prefix('.').unwrap_or(name);
    memchr::memchr(b'.', name.as_bytes()).map_or(name, |at| &name[..at])
}

/// What a system call's wrapper is called in titles, and its other names: `__x64_sys_futex` is `sys_futex`.
pub fn syscall(name: &str) -> Option<(String, Vec<String>)> {
    for prefix in [
        "__x64_",
        "__ia32_",
        "__arm64_",
        "__arm_",
        "__s390x_",
        "__s390_",
        "__riscv_",
        "__powerpc_",
        "__loongarch_",
        "__mips_",
    ] {
        if let Some(rest) = name.strip_prefix(prefix)
            && (rest.starts_with("sys_") || rest.starts_with("compat_sys_"))
        {
            return Some((rest.to_owned(), vec![name.to_owned()]));
        }
    }
    for prefix in ["__se_", "__do_"] {
        if let Some(rest) = name.strip_prefix(prefix)
            && let Some(bare) = rest.strip_prefix("compat_sys_").or_else(|| rest.strip_prefix("sys_"))
        {
            return Some((bare.to_owned(), vec![name.to_owned(), format!("sys_{bare}")]));
        }
    }
    for prefix in ["SYSC_", "SyS_", "C_SYSC_", "compat_SyS_"] {
        if let Some(bare) = name.strip_prefix(prefix) {
            return Some((bare.to_owned(), vec![name.to_owned()]));
        }
    }
    None
}

/// Text captured from a header, with addresses, numbers and offsets replaced by words.
pub fn text(raw: &str) -> String {
    let bytes = raw.as_bytes();
    let mut out = String::with_capacity(raw.len());
    let mut i = 0;
    while i < bytes.len() {
        let boundary = i == 0 || !(bytes[i - 1].is_ascii_alphanumeric() || bytes[i - 1] == b'_');
        let word = bytes[i..].iter().take_while(|b| b.is_ascii_alphanumeric()).count();
        let here = &bytes[i..i + word];
        if let Some(offset) = bytes[i..].strip_prefix(b"+0x")
            && i > 0
            && (bytes[i - 1].is_ascii_alphanumeric() || bytes[i - 1] == b'_')
        {
            // `f+0x12/0x34` is just `f`.
            i += 3 + offset.iter().take_while(|b| b.is_ascii_hexdigit() || matches!(b, b'/' | b'x')).count();
            continue;
        }
        if boundary && word > 0 {
            let hex = here.strip_prefix(b"0x").filter(|h| !h.is_empty() && h.iter().all(u8::is_ascii_hexdigit));
            let address = hex.is_some()
                || (word >= 8 && here.iter().all(u8::is_ascii_hexdigit) && here.iter().any(u8::is_ascii_digit));
            if address {
                out.push_str("ADDR");
                i += word;
                continue;
            }
        }
        if bytes[i].is_ascii_digit() {
            let digits = bytes[i..].iter().take_while(|b| b.is_ascii_digit()).count();
            let after = bytes.get(i + digits);
            // Numbers inside identifiers (`ath10k`, `N_TTY2`) name something; free numbers count something.
            let inside = after.is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
                || (i > 0
                    && (bytes[i - 1] == b'_'
                        || (bytes[i - 1].is_ascii_alphabetic() && after.is_some_and(u8::is_ascii_alphanumeric))));
            if inside {
                out.push_str(&raw[i..i + digits]);
            } else {
                out.push_str("NUM");
            }
            i += digits;
            continue;
        }
        // Copy one whole character.
        let len = raw[i..].chars().next().map_or(1, char::len_utf8);
        out.push_str(&raw[i..i + len]);
        i += len;
    }
    truncate(&mut out, 160);
    out.trim().to_owned()
}

/// Text of a line; bytes that are no UTF-8 become the replacement character. Nearly all lines are ASCII, which is checked
/// much faster than it is repaired.
pub fn string(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes).into_owned(), str::to_owned)
}

/// Cuts at a character boundary.
pub fn truncate(s: &mut String, max: usize) {
    if s.len() > max {
        let mut at = max;
        while !s.is_char_boundary(at) {
            at -= 1;
        }
        s.truncate(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_suffixes_do_not_name_functions() {
        assert_eq!(function("do_it.isra.0"), "do_it");
        assert_eq!(function("do_it.constprop.3.cold"), "do_it");
        assert_eq!(function(".do_it"), "do_it");
        assert_eq!(function("<a::B>::c"), "<a::B>::c");
    }

    #[test]
    fn system_calls_have_one_name_on_all_architectures() {
        assert_eq!(syscall("__x64_sys_futex"), Some(("sys_futex".into(), vec!["__x64_sys_futex".into()])));
        assert_eq!(syscall("__se_sys_mremap").unwrap().0, "mremap");
        assert_eq!(syscall("vfs_read"), None);
    }

    #[test]
    fn numbers_and_addresses_do_not_survive_in_titles() {
        assert_eq!(text("unknown-block(0,12)"), "unknown-block(NUM,NUM)");
        assert_eq!(text("at addr ffff888012345678"), "at addr ADDR");
        assert_eq!(text("at 0x1234 in f+0x12/0x34"), "at ADDR in f");
        assert_eq!(text("ath10k USB"), "ath10k USB");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert!(text(&"é".repeat(500)).len() <= 160);
    }
}
