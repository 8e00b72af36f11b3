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
        let mut all: Vec<&mut SourceLine> =
            capsule.stacks.iter_mut().flat_map(|s| &mut s.frames).flat_map(|f| &mut f.source).collect();
        below_the_source(&mut all);
        capsule.stacks.iter().flat_map(|stack| &stack.frames).filter(|frame| !frame.source.is_empty()).count()
    }

    fn lines(&self, frame: &Frame, offset: u64) -> Vec<SourceLine> {
        // As for its symbol: a return address belongs to the call before it.
        let at = if frame.interrupted { frame.pc.0 } else { frame.pc.0.wrapping_sub(1) };
        let Ok(mut found) = self.loader.find_frames(at.wrapping_sub(offset)) else { return Vec::new() };
        let mut lines = Vec::new();
        while let Ok(Some(one)) = found.next() {
            let place = one.location.as_ref().and_then(|place| Some((place.file?.to_owned(), place.line)));
            let Some((file, line)) = place else { continue };
            let function = one.function.and_then(|name| name.demangle().ok().map(std::borrow::Cow::into_owned));
            lines.push(SourceLine { function, file, line });
        }
        lines
    }
}

/// Builders put the source wherever they like. What all files have in common says nothing and is left out.
fn below_the_source(lines: &mut [&mut SourceLine]) {
    for line in lines.iter_mut() {
        line.file = line.file.replace("/./", "/");
    }
    let absolute = || lines.iter().map(|line| line.file.as_str()).filter(|file| file.starts_with('/'));
    let Some(first) = absolute().next() else { return };
    let common = |one: &str, other: &str| one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let shared = absolute().map(|file| common(first, file)).min().unwrap_or(0);
    let root = first[..shared.min(first.len())].rfind('/').map_or(0, |slash| slash + 1);
    let root = first[..root].to_owned();
    for line in lines.iter_mut() {
        if let Some(short) = line.file.strip_prefix(&root).filter(|short| !short.is_empty()) {
            line.file = short.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tells_files_apart_is_kept_of_their_names() {
        let line = |file: &str| SourceLine { function: None, file: file.into(), line: Some(1) };
        let mut lines = ["/build/linux-6.1/./kernel/panic.c", "/build/linux-6.1/kernel/exit.c", "/build/linux-6.1/é/x.c", "rel.c"].map(line);
        below_the_source(&mut lines.iter_mut().collect::<Vec<_>>());
        assert_eq!(lines.map(|line| line.file), ["kernel/panic.c", "kernel/exit.c", "é/x.c", "rel.c"]);
    }
}
