//! Source lines and inlined functions, for those who have the kernel's debuginfo at hand. Nothing else in this crate needs it.
//!
//! Works on a finished capsule, so it can be done at any time later and anywhere, without the dump.

use crate::capsule::{Capsule, Frame, SourceLine};
use std::collections::HashMap;
use std::path::Path;

/// A vmlinux with DWARF.
pub struct Lines {
    loader: addr2line::Loader,
}

impl Lines {
    /// Opens a vmlinux. That it is the one of the dump is for the caller to know: compare the build ids.
    ///
    /// # Errors
    /// A file that cannot be read, or is no ELF file with debug information.
    pub fn open(vmlinux: &Path) -> Result<Self, String> {
        addr2line::Loader::new(vmlinux).map(|loader| Self { loader }).map_err(|error| error.to_string())
    }

    /// Adds source lines to every frame of the kernel proper; modules have debuginfo of their own. Says how many frames of the
    /// kernel got some.
    pub fn annotate(&self, capsule: &mut Capsule) -> usize {
        let offset = capsule.kernel_offset.map_or(0, |offset| offset.0);
        let mut known: HashMap<(u64, bool), Vec<SourceLine>> = HashMap::new();
        let frames = capsule.stacks.iter_mut().flat_map(|stack| &mut stack.frames);
        for frame in frames.filter(|frame| frame.module.is_none()) {
            let lines = known.entry((frame.pc.0, frame.interrupted)).or_insert_with(|| self.lines(frame, offset));
            frame.source.clone_from(lines);
        }
        capsule.stacks.iter().flat_map(|stack| &stack.frames).filter(|frame| !frame.source.is_empty()).count()
    }

    fn lines(&self, frame: &Frame, offset: u64) -> Vec<SourceLine> {
        // As for its symbol: a return address belongs to the call before it.
        let at = if frame.interrupted { frame.pc.0 } else { frame.pc.0.wrapping_sub(1) };
        let Ok(mut found) = self.loader.find_frames(at.wrapping_sub(offset)) else { return Vec::new() };
        let mut lines = Vec::new();
        while let Ok(Some(one)) = found.next() {
            let place =
                one.location.as_ref().and_then(|place| Some((below_the_source(place.file?).to_owned(), place.line)));
            let Some((file, line)) = place else { continue };
            let function = one.function.and_then(|name| name.demangle().ok().map(std::borrow::Cow::into_owned));
            lines.push(SourceLine { function, file, line });
        }
        lines
    }
}

/// Builders put the source wherever they like, and say so in every name: what comes before the kernel's own directories is
/// left out.
fn below_the_source(file: &str) -> &str {
    const TOP: [&str; 18] = [
        "arch", "block", "certs", "crypto", "drivers", "fs", "include", "init", "io_uring", "ipc", "kernel", "lib",
        "mm", "net", "rust", "security", "sound", "virt",
    ];
    let is_top = |rest: &str| rest.split_once('/').is_some_and(|(first, _)| TOP.contains(&first));
    let mut starts = std::iter::once(0).chain(file.match_indices('/').map(|(slash, _)| slash + 1));
    starts.find(|&start| is_top(&file[start..])).map_or(file, |start| &file[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_as_the_kernels_source_names_them() {
        for (file, name) in [
            ("/build/linux-6.1/kernel/panic.c", "kernel/panic.c"),
            ("debian/build/amd64/./arch/x86/include/asm/kexec.h", "arch/x86/include/asm/kexec.h"),
            ("drivers/net/virtio_net.c", "drivers/net/virtio_net.c"),
            ("/usr/é/other.c", "/usr/é/other.c"),
            ("", ""),
        ] {
            assert_eq!(below_the_source(file), name);
        }
    }
}
