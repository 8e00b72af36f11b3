//! Stacks with names, each stored once.

use crate::capsule::{Addr, Frame, Stack};
use crate::kernel::Kernel;
use crate::unwind::{RawFrame, RawStack};
use std::collections::HashMap;

/// Longest name that is kept of a symbol.
const MAX_SYMBOL: usize = 512;

#[derive(Default)]
pub(super) struct Stacks {
    list: Vec<Stack>,
    seen: HashMap<Vec<(u64, bool, bool)>, u32>,
    names: HashMap<(u64, bool), (Option<String>, Option<String>)>,
}

impl Stacks {
    /// Puts a stack into the list, or finds the equal one that is there.
    pub(super) fn add(&mut self, kernel: &Kernel, raw: &RawStack) -> u32 {
        let key: Vec<_> = raw.frames.iter().map(|f| (f.pc, f.interrupted, f.guess)).collect();
        if let Some(&index) = self.seen.get(&key) {
            return index;
        }
        let frames = raw.frames.iter().map(|f| self.frame(kernel, f)).collect();
        let index = self.list.len() as u32;
        self.list.push(Stack { frames, end: raw.end });
        self.seen.insert(key, index);
        index
    }

    fn frame(&mut self, kernel: &Kernel, raw: &RawFrame) -> Frame {
        let name = self.names.entry((raw.pc, raw.interrupted)).or_insert_with(|| named(kernel, raw));
        Frame {
            pc: Addr(raw.pc),
            symbol: name.0.clone(),
            module: name.1.clone(),
            interrupted: raw.interrupted,
            guess: raw.guess,
            source: Vec::new(),
        }
    }

    pub(super) fn get(&self, index: Option<u32>) -> Option<&Stack> {
        self.list.get(index? as usize)
    }

    pub(super) fn into_list(self) -> Vec<Stack> {
        self.list
    }
}

fn named(kernel: &Kernel, raw: &RawFrame) -> (Option<String>, Option<String>) {
    // A return address after a call that never returns may lie in the next function: look up the call. To a trampoline
    // there was none.
    let at = if raw.interrupted || kernel.hooks().is_one(raw.pc) { raw.pc } else { raw.pc.wrapping_sub(1) };
    match kernel.symbolise(at) {
        Some((name, start, module)) => {
            let mut text = demangled(&name);
            text.push_str(&format!("+{:#x}", raw.pc.wrapping_sub(start)));
            (Some(text), module.map(str::to_owned))
        }
        None => (None, None),
    }
}

fn demangled(name: &str) -> String {
    match rustc_demangle::try_demangle(name) {
        Ok(rust) => {
            let mut text = format!("{rust:#}");
            let cut = (0..=MAX_SYMBOL.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
            text.truncate(cut);
            text
        }
        Err(_) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_names_are_demangled_and_c_names_are_left_alone() {
        assert_eq!(demangled("_RNvNtCs1234_7mycrate3foo3bar"), "mycrate::foo::bar");
        assert_eq!(demangled("__handle_sysrq.cold"), "__handle_sysrq.cold");
    }
}
