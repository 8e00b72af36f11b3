//! Ways to die that no stock kernel offers: an oops, and a CPU that hangs with interrupts off.
//!
//! Debian's kernels have no LKDTM, and building a module for each of them would need each one's headers and compiler. But
//! they load unsigned modules, and every module starts with code of its own choice. So a stock module is taken, the first
//! instructions of its init function are overwritten, and relocations and signature that no longer fit are taken away.
//! The code comes before anything is pushed, so the module's own unwind information stays right for it.

use anyhow::{Context as _, bail, ensure};
use object::elf::{FileHeader64, SHT_RELA, SHT_SYMTAB};
use object::read::elf::{FileHeader as _, SectionHeader as _, Sym as _};
use object::{LittleEndian as LE, SectionIndex};

/// The module that gives its body; its init function passes a pointer on and does nothing else, in every kernel.
pub const DONOR: &str = "ts_fsm";

/// Reads from address 0: an oops.
pub const OOPS: &[u8] = &[
    0x31, 0xc0, // xor eax, eax
    0x8b, 0x00, // mov eax, [rax]
];

/// Hangs with interrupts off, after it has sent a line end to the first serial port: the host sees when it is so far.
pub const LOCKUP: &[u8] = &[
    0xfa, // cli
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'\n', // mov al, '\n'
    0xee,  // out dx, al
    0xf3,
    0x90, // pause: without it an emulated CPU keeps the others from running for a tenth of a second each time
    0xeb, 0xfc, // jmp to the pause
];

/// What an appended signature ends with, and the length of the descriptor before it (`struct module_signature`).
const SIGNED: &[u8] = b"~Module signature appended~\n";
const DESCRIPTOR: usize = 12;
const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
const RELA: usize = 24;

/// A module whose init function begins with this code.
pub fn module(donor: &[u8], code: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut module = unsigned(donor)?.to_vec();
    let (start, relocations) = places(&module)?;
    let start = if module[start..].starts_with(ENDBR64) { start + ENDBR64.len() } else { start };
    module.get_mut(start..start + code.len()).context("the init function is cut")?.copy_from_slice(code);
    for (place, target) in relocations {
        // A relocation changes four or eight bytes; none may fall into the code.
        if target + 8 > start && target < start + code.len() {
            // `r_info` 0: R_X86_64_NONE of no symbol.
            module[place + 8..place + 16].fill(0);
        }
    }
    Ok(module)
}

/// The module without its signature: a wrong one is refused, none only taints.
fn unsigned(module: &[u8]) -> anyhow::Result<&[u8]> {
    let Some(signed) = module.strip_suffix(SIGNED) else { return Ok(module) };
    let (rest, descriptor) = signed.split_last_chunk::<DESCRIPTOR>().context("the module's signature is cut")?;
    let length = u32::from_be_bytes([descriptor[8], descriptor[9], descriptor[10], descriptor[11]]) as usize;
    rest.get(..rest.len().saturating_sub(length)).context("the module's signature is cut")
}

/// Where in the file the init function begins, and every relocation of its section: where it is, and what it changes.
fn places(module: &[u8]) -> anyhow::Result<(usize, Vec<(usize, usize)>)> {
    let elf = FileHeader64::<LE>::parse(module)?;
    let sections = elf.sections(LE, module)?;
    let symbols = sections.symbols(LE, module, SHT_SYMTAB)?;
    let named = symbols.iter().find(|symbol| symbols.symbol_name(LE, symbol).is_ok_and(|name| name == b"init_module"));
    let init = named.context("the module has no init_module")?;
    let index = SectionIndex(init.st_shndx(LE).0.into());
    let section = sections.section(index)?;
    let offset = usize::try_from(section.sh_offset(LE))?;
    let start = offset + usize::try_from(init.st_value(LE))?;
    ensure!(start < module.len(), "init_module lies outside the module");
    let mut relocations = Vec::new();
    for table in sections.iter().filter(|s| s.sh_type(LE) == SHT_RELA && s.sh_info(LE) as usize == index.0) {
        let (at, size) = table.file_range(LE).context("a relocation section has no bytes")?;
        let at = usize::try_from(at)?;
        for place in (at..at + usize::try_from(size)?).step_by(RELA) {
            let Some(target) = module.get(place..).and_then(|entry| entry.first_chunk()) else {
                bail!("the relocations are cut");
            };
            relocations.push((place, offset + usize::try_from(u64::from_le_bytes(*target))?));
        }
    }
    Ok((start, relocations))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_taken_away_and_an_unsigned_module_stays_as_it_is() {
        let mut signed = b"module".to_vec();
        signed.extend(b"sign");
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
        signed.extend(SIGNED);
        assert_eq!(unsigned(&signed).unwrap(), b"module");
        assert_eq!(unsigned(b"module").unwrap(), b"module");
        assert!(unsigned(SIGNED).is_err());
    }
}
