//! Writes BTF: just enough kinds for the structs the engine reads.

#[derive(Default)]
pub struct BtfWriter {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl BtfWriter {
    pub fn new() -> Self {
        Self { strings: vec![0], ..Self::default() }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(text.bytes().chain([0]));
        at
    }

    fn record(&mut self, name: &str, kind: u32, len: usize, flag: bool, size: u32, more: &[u32]) -> u32 {
        let info = kind << 24 | len as u32 | u32::from(flag) << 31;
        for word in [self.string(name), info, size].iter().chain(more) {
            self.types.extend(word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    pub fn int(&mut self, name: &str, size: u32, signed: bool) -> u32 {
        self.record(name, 1, 0, false, size, &[(u32::from(signed) << 24) | (size * 8)])
    }

    pub fn pointer(&mut self, to: u32) -> u32 {
        self.record("", 2, 0, false, to, &[])
    }

    pub fn array(&mut self, of: u32, len: u32) -> u32 {
        self.record("", 3, 0, false, 0, &[of, of, len])
    }

    pub fn typedef(&mut self, name: &str, of: u32) -> u32 {
        self.record(name, 8, 0, false, of, &[])
    }

    /// Members are (name, type, byte offset).
    pub fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let more: Vec<u32> = members.iter().flat_map(|(n, ty, at)| [self.string(n), *ty, at * 8]).collect();
        self.record(name, 4, members.len(), false, size, &more)
    }

    /// Members are (name, type, bit offset, bits); 0 bits means no bit field.
    pub fn bit_structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32, u32)]) -> u32 {
        let more: Vec<u32> =
            members.iter().flat_map(|(n, ty, at, bits)| [self.string(n), *ty, bits << 24 | at]).collect();
        self.record(name, 4, members.len(), true, size, &more)
    }

    /// The finished section.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(0xeb9fu16.to_le_bytes());
        out.extend([1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            out.extend(word.to_le_bytes());
        }
        out.extend(&self.types);
        out.extend(&self.strings);
        out
    }

    /// Number of types so far.
    pub fn count(&self) -> u32 {
        self.count
    }
}
