//! The `Code:` line: bytes around the faulting instruction, disassembled for x86.

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

use crate::model::{Code, Instruction};

/// Longest `Code:` line worth reading, in bytes of code; the kernel prints 64.
const MAX_CODE: usize = 256;

/// Parses a `Code:` line's content. `bits` is 64 or 32 for x86; other architectures print words, which are kept as text.
pub fn code(content: &[u8], bits: Option<u32>) -> Code {
    let mut bytes: Vec<u8> = Vec::with_capacity(64);
    let mut trap = None;
    for word in content.split(|b| *b == b' ').filter(|w| !w.is_empty()) {
        let marked = word.strip_prefix(b"<").and_then(|w| w.strip_suffix(b">"));
        let digits = marked.unwrap_or(word);
        if digits.len() != 2 || bytes.len() == MAX_CODE {
            break;
        }
        let (Some(high), Some(low)) = (char::from(digits[0]).to_digit(16), char::from(digits[1]).to_digit(16)) else {
            break;
        };
        if marked.is_some() {
            trap = Some(bytes.len());
        }
        bytes.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"));
    }
    let instructions = match (bits, trap) {
        (Some(bits), Some(trap)) => disassemble(&bytes, trap, bits),
        _ => Vec::new(),
    };
    Code { line: String::from_utf8_lossy(content).trim().to_owned(), trap, instructions }
}

/// Instructions before and from the trapping one. The code before it begins in the middle of nowhere, so the start is
/// searched from which decoding meets the trapping byte exactly.
fn disassemble(bytes: &[u8], trap: usize, bits: u32) -> Vec<Instruction> {
    let mut out = Vec::new();
    // Instructions are at most 15 bytes: a start among the first 15 bytes always meets if any does. Only a short
    // stretch before the trap is shown.
    let earliest = trap.saturating_sub(32);
    let aligned = (earliest..trap.min(earliest + 15)).find(|start| meets(&bytes[*start..trap], bits));
    if let Some(start) = aligned {
        decode(&bytes[start..trap], start, trap, bits, &mut out);
    }
    decode(&bytes[trap..], trap, trap, bits, &mut out);
    out
}

/// Whether decoding consumes the bytes exactly, in valid instructions.
fn meets(bytes: &[u8], bits: u32) -> bool {
    let mut decoder = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE);
    let mut instruction = iced_x86::Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return false;
        }
    }
    true
}

/// Decodes from `start`. An instruction cut off by the end of the bytes is left out.
fn decode(bytes: &[u8], start: usize, trap: usize, bits: u32, out: &mut Vec<Instruction>) {
    let mut decoder = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE);
    let mut formatter = GasFormatter::new();
    while decoder.can_decode() {
        let at = decoder.position();
        let instruction = decoder.decode();
        let end = decoder.position();
        if instruction.is_invalid() && end == bytes.len() && bytes.len() - at < 15 && start + end > trap {
            break;
        }
        let mut text = String::with_capacity(32);
        if instruction.is_invalid() {
            text.push_str("(bad)");
        } else {
            formatter.format(&instruction, &mut text);
        }
        let offset = i32::try_from(start + at).unwrap_or(0) - i32::try_from(trap).unwrap_or(0);
        out.push(Instruction { offset, bytes: hex(&bytes[at..end]), text });
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 3);
    for (i, b) in bytes.iter().enumerate() {
        if i > 0 {
            out.push(' ');
        }
        for digit in [b >> 4, b & 15] {
            out.push(char::from_digit(u32::from(digit), 16).expect("four bits are one hexadecimal digit"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trapping_instruction_is_found_and_disassembled() {
        let c = code(b"48 89 c7 <48> 8b 0a 48 39 d0", Some(64));
        assert_eq!(c.trap, Some(3));
        let at = c.instructions.iter().find(|i| i.offset == 0).unwrap();
        assert_eq!((at.bytes.as_str(), at.text.as_str()), ("48 8b 0a", "mov (%rdx),%rcx"));
        assert_eq!(c.instructions[0].text, "mov %rax,%rdi");
    }

    #[test]
    fn other_architectures_keep_their_line() {
        let c = code(b"d4210000 (f9400000)", None);
        assert_eq!(c.line, "d4210000 (f9400000)");
        assert!(c.instructions.is_empty());
    }

    #[test]
    fn bytes_without_a_mark_are_not_guessed_at() {
        assert!(code(b"48 8b 0a", Some(64)).instructions.is_empty());
    }
}
