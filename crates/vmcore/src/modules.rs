//! Loaded modules: where they lie, their symbols, their types, their unwind tables.
//!
//! All of it is read when it is first asked for: a stack that never enters a module costs nothing. Layouts: `core_layout` and
//! `init_layout` before 6.4, the `mem[]` array since.

use crate::btf::Btf;
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::kernel::Kernel;
use crate::names::NameIndex;
use crate::orc;
use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

/// A loaded module.
pub struct Module {
    /// Its name.
    pub name: String,
    /// Address of its `struct module`.
    pub address: u64,
    /// Memory it occupies, text first.
    pub ranges: Vec<Range<u64>>,
    /// Taint bits it brought.
    pub taints: u64,
    symbols: OnceCell<Option<Symbols>>,
    orc: OnceCell<Option<orc::Place>>,
    btf: OnceCell<Option<Arc<Btf>>>,
}

/// Symbols of one module, sorted by address.
struct Symbols {
    strings: Vec<u8>,
    entries: Vec<Entry>,
    by_name: NameIndex,
}

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    size: u32,
    name: u32,
}

/// A symbol found by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModuleSymbol {
    /// Where it is; for a per-CPU variable, what to add the CPU's offset to.
    pub address: u64,
    /// Its size in bytes, as the module's ELF symbol table says.
    pub size: u64,
}

impl Module {
    /// True when the address lies in this module.
    pub fn contains(&self, va: u64) -> bool {
        self.ranges.iter().any(|r| r.contains(&va))
    }

    /// The symbol an address lies in: name and start.
    pub fn symbolise(&self, kernel: &Kernel, va: u64) -> Option<(String, u64)> {
        let symbols = self.symbols(kernel)?;
        let after = symbols.entries.partition_point(|e| e.address <= va);
        let start = symbols.entries[..after].last()?.address;
        // Symbols of other sections may sort before this one: a start outside the module names nothing.
        self.contains(start).then_some(())?;
        let first = symbols.entries.partition_point(|e| e.address < start);
        Some((crate::bytes::text(symbols.name(symbols.entries[first].name)), start))
    }

    /// Finds a symbol by name.
    pub fn lookup(&self, kernel: &Kernel, name: &str) -> Option<ModuleSymbol> {
        let symbols = self.symbols(kernel)?;
        let same = |i: u32| symbols.entries.get(i as usize).is_some_and(|e| symbols.name(e.name) == name.as_bytes());
        let entry = symbols.entries[symbols.by_name.find(name.as_bytes(), same)? as usize];
        Some(ModuleSymbol { address: entry.address, size: u64::from(entry.size) })
    }

    fn symbols(&self, kernel: &Kernel) -> Option<&Symbols> {
        self.symbols.get_or_init(|| Symbols::load(self, kernel)).as_ref()
    }

    pub(crate) fn orc(&self, kernel: &Kernel) -> Option<orc::Place> {
        *self.orc.get_or_init(|| {
            let module = kernel.object("module", self.address)?;
            let count = module.number("arch.num_orcs").ok()?;
            let (ips, entries) = (module.number("arch.orc_unwind_ip").ok()?, module.number("arch.orc_unwind").ok()?);
            Some(orc::Place { ips, entries, count: u32::try_from(count).ok()? })
        })
    }

    /// The module's own types on top of the kernel's.
    pub fn btf(&self, kernel: &Kernel) -> Option<Arc<Btf>> {
        self.btf.get_or_init(|| load_btf(kernel, self.address)).clone()
    }
}

impl Symbols {
    fn load(module: &Module, kernel: &Kernel) -> Option<Self> {
        const SYM: u64 = 24;
        let table = kernel.object("module", module.address)?.follow("kallsyms").ok()??;
        let count = table.number("num_symtab").ok()? & 0xffff_ffff;
        let (symtab, strtab) = (table.number("symtab").ok()?, table.number("strtab").ok()?);
        let raw = kernel.module_table(symtab, count * SYM)?;
        let wanted = raw.chunks_exact(SYM as usize).filter(|s| u16_at(s, 6) != 0 && u32_at(s, 0) != 0);
        let mut entries: Vec<Entry> =
            wanted.map(|s| Entry { name: u32_at(s, 0), address: u64_at(s, 8), size: u32_at(s, 16) }).collect();
        // The string table has no length of its own; the last name is short.
        let end = entries.iter().map(|e| u64::from(e.name)).max()? + 512;
        let strings = kernel.module_table_prefix(strtab, end)?;
        let mut this = Self { strings, entries: Vec::new(), by_name: NameIndex::with_capacity(entries.len()) };
        // Local labels of the assembler are no function names.
        entries.retain(|e| !this.name(e.name).is_empty() && !this.name(e.name).starts_with(b".L"));
        entries.sort_by_key(|e| e.address);
        for (i, e) in entries.iter().enumerate() {
            let name = this.strings.get(e.name as usize..).unwrap_or_default();
            let name = &name[..name.iter().take(512).position(|&b| b == 0).unwrap_or(0)];
            this.by_name.add(name, i as u32);
        }
        this.entries = entries;
        Some(this)
    }

    fn name(&self, at: u32) -> &[u8] {
        let tail = self.strings.get(at as usize..).unwrap_or_default();
        &tail[..tail.iter().take(512).position(|&b| b == 0).unwrap_or(0)]
    }
}

/// Lists the modules, newest first, as the kernel does.
pub(crate) fn list(kernel: &Kernel) -> Vec<Module> {
    let (Some(head), Some(btf)) = (kernel.symbol("modules"), kernel.btf()) else { return Vec::new() };
    let Some(ty) = btf.composite("module") else { return Vec::new() };
    let (entries, fault) = kernel.list_at(head, ty, "list");
    if let Some(fault) = fault {
        kernel.warn(format!("module list: {fault}"));
    }
    let module = |m: &crate::typed::Object| {
        let name = m.text("name").ok()?;
        let mut ranges = Vec::new();
        let mut add = |base: u64, size: u64| {
            if size > 0
                && size < 1 << 32
                && let Some(end) = base.checked_add(size)
            {
                ranges.push(base..end);
            }
        };
        if let Ok(mem) = m.field("mem") {
            for i in 0..mem.count().min(64) {
                let part = mem.element(i).ok()?;
                add(part.number("base").ok()?, part.number("size").ok()?);
            }
        } else {
            for layout in ["core_layout", "init_layout"] {
                let part = m.field(layout).ok()?;
                add(part.number("base").ok()?, part.number("size").ok()?);
            }
        }
        Some(Module {
            name,
            address: m.address(),
            ranges,
            taints: m.number("taints").unwrap_or(0),
            symbols: OnceCell::new(),
            orc: OnceCell::new(),
            btf: OnceCell::new(),
        })
    };
    entries.iter().filter_map(module).collect()
}

/// `module.btf_data` is freed after loading; the kernel keeps a list of what it parsed.
fn load_btf(kernel: &Kernel, module: u64) -> Option<Arc<Btf>> {
    let base = kernel.btf()?;
    let (entries, _) = kernel.list_at(kernel.symbol("btf_modules")?, base.composite("btf_module")?, "list");
    let entry = entries.iter().find(|e| e.number("module").is_ok_and(|m| m == module))?;
    let btf = entry.follow("btf").ok()??;
    let data = kernel.module_table(btf.number("data").ok()?, btf.number("data_size").ok()?)?;
    Btf::parse(data, Some(base)).map(Arc::new)
}
