//! The crashed kernel: memory, symbols, types and unwind tables in one place.
//!
//! Whatever of these a dump lacks is absent and warned about; everything built on top works with what is there.

use crate::btf::{Btf, TypeId};
use crate::error::{Error, Fault, Limits};
use crate::format::Dump;
use crate::hooks::Hooks;
use crate::kallsyms::Kallsyms;
use crate::memory::Memory;
use crate::modules::{self, Module};
use crate::orc;
use crate::tables::{self, TableCache, Tables};
use crate::typed::Object;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

/// Endings of the labels inside the system call entries (`SYM_INNER_LABEL` in arch/x86/entry) that a return address follows.
const INNER_LABELS: [&str; 2] = ["_after_hwframe", "_safe_stack"];
/// Warnings kept; a broken dump repeats itself.
const MAX_WARNINGS: usize = 64;

/// See the module head.
pub struct Kernel<'a> {
    memory: Memory<'a>,
    limits: Limits,
    symbols: Option<Kallsyms>,
    btf: Option<Arc<Btf>>,
    orc: Option<(orc::Layout, orc::Place)>,
    text: std::ops::Range<u64>,
    modules: OnceCell<Vec<Module>>,
    known: RefCell<HashMap<u64, Option<orc::Entry>>>,
    module_bytes: Cell<u64>,
    trampolines: OnceCell<Vec<Trampoline>>,
    hooks: OnceCell<Hooks>,
    scans: Cell<u32>,
    warnings: RefCell<Vec<String>>,
}

/// Code that ftrace copied: its unwind information is that of the original.
struct Trampoline {
    range: std::ops::Range<u64>,
    original: u64,
}

impl<'a> Kernel<'a> {
    /// Reads the tables of the kernel in `dump`, or takes them from `cache`.
    ///
    /// # Errors
    /// As [`Memory::new`]. Missing tables are warnings.
    pub fn open(dump: Dump<'a>, limits: &Limits, cache: Option<&TableCache>) -> Result<Self, Error> {
        let memory = Memory::new(dump, limits)?;
        let build_id = memory.info().build_id().map(str::to_ascii_lowercase);
        let known = cache.zip(build_id.as_ref()).and_then(|(cache, id)| cache.get(id));
        let mut this = Self {
            symbols: None,
            btf: None,
            orc: None,
            text: 0..0,
            limits: limits.clone(),
            modules: OnceCell::new(),
            known: RefCell::default(),
            module_bytes: Cell::new(limits.module_bytes),
            trampolines: OnceCell::new(),
            hooks: OnceCell::new(),
            scans: Cell::new(limits.scans),
            warnings: RefCell::default(),
            memory,
        };
        this.symbols = this.note("kallsyms", tables::kallsyms(&this.memory, limits, known.as_ref()));
        this.btf = this.note("BTF", this.load_btf(known.as_ref()));
        if let (Some(start), Some(end)) = (this.symbol("_stext"), this.symbol("_end")) {
            this.text = start..end;
        }
        this.orc = this.load_orc();
        if this.orc.is_none() {
            this.warn("no ORC tables: stacks cannot be unwound".into());
        }
        if let Some((cache, id)) = cache.zip(build_id) {
            let kallsyms = this.symbols.as_ref().map(Kallsyms::table);
            cache.put(&id, &Tables { kallsyms, btf: this.btf.clone() });
        }
        Ok(this)
    }

    fn note<T>(&self, what: &str, result: Result<T, Fault>) -> Option<T> {
        result.inspect_err(|fault| self.warn(format!("{what}: {fault}"))).ok()
    }

    fn load_btf(&self, known: Option<&Tables>) -> Result<Arc<Btf>, Fault> {
        let symbol = |name| self.symbol(name).ok_or(Fault::NoSuch("__start_BTF symbol"));
        let (start, end) = (symbol("__start_BTF")?, symbol("__stop_BTF")?);
        let len = end.wrapping_sub(start);
        if let Some(btf) = known.and_then(|k| k.btf.as_ref())
            && btf.raw().len() as u64 == len
            && tables::samples_agree(&self.memory, start, btf.raw())
        {
            return Ok(btf.clone());
        }
        let data = self.memory.read_table(start, len, self.limits.table_bytes)?;
        Btf::parse(data, None).map(Arc::new).ok_or(Fault::Damaged(start))
    }

    fn load_orc(&self) -> Option<(orc::Layout, orc::Place)> {
        let (ips, ips_end) = (self.symbol("__start_orc_unwind_ip")?, self.symbol("__stop_orc_unwind_ip")?);
        let entries = self.symbol("__start_orc_unwind")?;
        let count = u32::try_from(ips_end.checked_sub(ips)? / 4).ok().filter(|&n| n > 0)?;
        let place = orc::Place { ips, entries, count };
        let modern = self.symbol("orc_header").is_some();
        Some((orc::Layout::detect(&self.memory, self.btf.as_deref(), &place, modern), place))
    }

    /// Kernel memory.
    pub fn memory(&self) -> &Memory<'a> {
        &self.memory
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The kernel's own symbols.
    pub fn symbols(&self) -> Option<&Kallsyms> {
        self.symbols.as_ref()
    }

    /// The kernel's types.
    pub fn btf(&self) -> Option<Arc<Btf>> {
        self.btf.clone()
    }

    /// Address of a symbol of the kernel proper.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.symbols.as_ref()?.lookup(name)
    }

    /// Loaded modules.
    pub fn modules(&self) -> &[Module] {
        self.modules.get_or_init(|| modules::list(self))
    }

    /// A module by name.
    pub fn module(&self, name: &str) -> Option<&Module> {
        self.modules().iter().find(|m| m.name == name)
    }

    /// What could not be read so far.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.borrow().clone()
    }

    pub(crate) fn warn(&self, text: String) {
        let mut warnings = self.warnings.borrow_mut();
        if warnings.len() < MAX_WARNINGS && !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// An object of a struct type at an address; `None` when BTF has no such type.
    pub fn object(&self, type_name: &str, address: u64) -> Option<Object<'_, 'a>> {
        let btf = self.btf.clone()?;
        let ty = btf.composite(type_name)?;
        Some(Object::new(&self.memory, btf, ty, address))
    }

    /// An object whose type is known to a module's BTF.
    pub fn object_of(&self, btf: Arc<Btf>, ty: TypeId, address: u64) -> Object<'_, 'a> {
        Object::new(&self.memory, btf, ty, address)
    }

    /// Entries of the `list_head` at `head`.
    pub(crate) fn list_at(&self, head: u64, entry: TypeId, member: &str) -> (Vec<Object<'_, 'a>>, Option<Fault>) {
        let Some(btf) = self.btf.clone() else { return (Vec::new(), None) };
        Object::new(&self.memory, btf, entry, head).list(entry, member, self.limits.list)
    }

    /// Reads a table of a module; all modules together have a byte limit.
    pub(crate) fn module_table(&self, va: u64, len: u64) -> Option<Vec<u8>> {
        let left = self.module_bytes.get().checked_sub(len)?;
        self.module_bytes.set(left);
        self.memory.read_table(va, len, len).ok()
    }

    /// As [`Kernel::module_table`], but ends early at the first page that is not there.
    pub(crate) fn module_table_prefix(&self, va: u64, len: u64) -> Option<Vec<u8>> {
        let left = self.module_bytes.get().checked_sub(len)?;
        self.module_bytes.set(left);
        let mut out = Vec::new();
        while (out.len() as u64) < len {
            let at = va.wrapping_add(out.len() as u64);
            let n = (len - out.len() as u64).min(4096 - (at & 0xfff));
            match self.memory.read_table(at, n, n) {
                Ok(more) => out.extend(more),
                Err(_) => break,
            }
        }
        Some(out)
    }

    /// Where tracers let functions return to.
    pub(crate) fn hooks(&self) -> &Hooks {
        self.hooks.get_or_init(|| Hooks::of(self))
    }

    /// Takes one word of a stack from what may be searched; `false` when all is used up.
    pub(crate) fn may_scan(&self) -> bool {
        let left = self.scans.get();
        self.scans.set(left.saturating_sub(1));
        left > 0
    }

    /// True when an address can hold code: the kernel image, a module, or an ftrace trampoline.
    pub(crate) fn is_text(&self, va: u64) -> bool {
        self.text.contains(&va)
            || self.modules().iter().any(|m| m.contains(va))
            || self.trampolines().iter().any(|t| t.range.contains(&va))
    }

    /// The ORC entry for an instruction; `None` when nothing covers it.
    pub(crate) fn orc(&self, ip: u64) -> Result<Option<orc::Entry>, Fault> {
        if let Some(known) = self.known.borrow().get(&ip) {
            return Ok(*known);
        }
        let found = self.find_orc(ip)?;
        let mut known = self.known.borrow_mut();
        if known.len() < 1 << 16 {
            known.insert(ip, found);
        }
        Ok(found)
    }

    fn find_orc(&self, ip: u64) -> Result<Option<orc::Entry>, Fault> {
        let Some((layout, place)) = &self.orc else { return Ok(None) };
        if self.text.contains(&ip) {
            return orc::find(&self.memory, layout, place, ip);
        }
        if let Some(module) = self.modules().iter().find(|m| m.contains(ip)) {
            return match module.orc(self) {
                Some(place) => orc::find(&self.memory, layout, &place, ip),
                None => Ok(None),
            };
        }
        match self.trampolines().iter().find(|t| t.range.contains(&ip)) {
            Some(t) => orc::find(&self.memory, layout, place, t.original.wrapping_add(ip - t.range.start)),
            None => Ok(None),
        }
    }

    /// Trampolines of ftrace: copies of `ftrace_caller` or `ftrace_regs_caller`.
    fn trampolines(&self) -> &[Trampoline] {
        self.trampolines.get_or_init(|| self.list_trampolines().unwrap_or_default())
    }

    fn list_trampolines(&self) -> Option<Vec<Trampoline>> {
        const SAVE_REGS: u64 = 1 << 2;
        let end = self.symbol("ftrace_list_end")?;
        let (caller, regs_caller) = (self.symbol("ftrace_caller")?, self.symbol("ftrace_regs_caller")?);
        let mut at = self.memory.u64(self.symbol("ftrace_ops_list")?).ok()?;
        let mut found = Vec::new();
        for _ in 0..self.limits.list {
            if at == end || at == 0 {
                break;
            }
            let ops = self.object("ftrace_ops", at)?;
            let (start, size) = (ops.number("trampoline").ok()?, ops.number("trampoline_size").ok()?);
            if start != 0 && size < 1 << 16 {
                let original = if ops.number("flags").ok()? & SAVE_REGS != 0 { regs_caller } else { caller };
                found.push(Trampoline { range: start..start.saturating_add(size), original });
            }
            at = ops.number("next").ok()?;
        }
        Some(found)
    }

    /// Name, start and module of the symbol an address lies in.
    pub fn symbolise(&self, va: u64) -> Option<(String, u64, Option<&str>)> {
        if self.text.contains(&va) {
            let symbols = self.symbols.as_ref()?;
            let (name, start) = symbols.symbolise(va)?;
            // Kallsyms cannot tell a label inside an entry routine from a function; a debugger, which can, names the routine.
            let routine = INNER_LABELS.iter().find_map(|suffix| name.strip_suffix(suffix));
            if let Some(outer) = routine.and_then(|r| symbols.lookup(r)).filter(|&outer| outer <= start) {
                let len = routine.map_or(0, str::len);
                return Some((name[..len].to_owned(), outer, None));
            }
            return Some((name, start, None));
        }
        let module = self.modules().iter().find(|m| m.contains(va))?;
        let (name, start) = module.symbolise(self, va)?;
        Some((name, start, Some(&module.name)))
    }
}
