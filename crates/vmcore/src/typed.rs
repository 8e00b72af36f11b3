//! Typed access to kernel memory: an address and a type, and members by name.
//!
//! ```
//! # use crashyard_vmcore::{Fault, Kernel};
//! # fn name_and_parent(kernel: &Kernel<'_>, address: u64) -> Result<(), Fault> {
//! if let Some(task) = kernel.object("task_struct", address) {
//!     let name = task.text("comm")?;
//!     let parent = task.follow("real_parent")?.map(|parent| parent.number("pid")).transpose()?;
//!     println!("{name}, child of {parent:?}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Readers written on top of this are a few lines each and follow the layout of whatever kernel they meet.

use crate::btf::{Btf, Kind, Member, TypeId};
use crate::error::Fault;
use crate::memory::Memory;
use std::sync::Arc;

/// A value in kernel memory.
#[derive(Clone)]
pub struct Object<'m, 'a> {
    memory: &'m Memory<'a>,
    btf: Arc<Btf>,
    ty: TypeId,
    address: u64,
}

impl<'m, 'a> Object<'m, 'a> {
    pub(crate) fn new(memory: &'m Memory<'a>, btf: Arc<Btf>, ty: TypeId, address: u64) -> Self {
        Self { memory, btf, ty, address }
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its type.
    pub fn type_id(&self) -> TypeId {
        self.ty
    }

    fn at(&self, path: &str) -> Result<Member, Fault> {
        self.btf.path(self.ty, path).ok_or(Fault::NoSuch("member of that name"))
    }

    /// True when the type has such a member.
    pub fn has(&self, path: &str) -> bool {
        self.btf.path(self.ty, path).is_some()
    }

    /// A member as an object of its own.
    ///
    /// # Errors
    /// [`Fault::NoSuch`] when this kernel's type has no such member.
    pub fn field(&self, path: &str) -> Result<Object<'m, 'a>, Fault> {
        let member = self.at(path)?;
        let address = self.address.wrapping_add(member.bit_offset / 8);
        Ok(Self { ty: member.ty, address, btf: self.btf.clone(), memory: self.memory })
    }

    /// An integer, enum, pointer or bit field, zero- or sign-extended as its type says.
    ///
    /// # Errors
    /// No such member, a member that is no number, or memory that is not in the dump.
    pub fn number(&self, path: &str) -> Result<u64, Fault> {
        read_number(self.memory, &self.btf, self.address, &self.at(path)?)
    }

    /// The value itself, when it is a number.
    ///
    /// # Errors
    /// As [`Object::number`].
    pub fn value(&self) -> Result<u64, Fault> {
        read_number(self.memory, &self.btf, self.address, &Member { bit_offset: 0, bits: None, ty: self.ty })
    }

    /// A character array as text.
    ///
    /// # Errors
    /// As [`Object::number`].
    pub fn text(&self, path: &str) -> Result<String, Fault> {
        let field = self.field(path)?;
        let size = self.btf.size(field.ty).ok_or(Fault::NoSuch("size"))?.min(4096);
        let mut raw = vec![0u8; size as usize];
        self.memory.read(field.address, &mut raw)?;
        Ok(crate::bytes::text(&raw))
    }

    /// The object a pointer member points to; `None` for a null pointer.
    ///
    /// # Errors
    /// As [`Object::number`], or a member that is no pointer.
    pub fn follow(&self, path: &str) -> Result<Option<Object<'m, 'a>>, Fault> {
        let member = self.at(path)?;
        let ty = self.btf.target(member.ty).ok_or(Fault::NoSuch("pointer of that name"))?;
        let address = read_number(self.memory, &self.btf, self.address, &member)?;
        Ok((address != 0).then(|| Self { ty, address, btf: self.btf.clone(), memory: self.memory }))
    }

    /// Element `index` of an array.
    ///
    /// # Errors
    /// [`Fault::NoSuch`] when this is no array or the index is outside it.
    pub fn element(&self, index: u32) -> Result<Object<'m, 'a>, Fault> {
        let ty = self.btf.target(self.ty).ok_or(Fault::NoSuch("array"))?;
        if self.btf.array_len(self.ty).is_none_or(|n| index >= n) {
            return Err(Fault::NoSuch("array element"));
        }
        let size = self.btf.size(ty).ok_or(Fault::NoSuch("size"))?;
        let address = self.address.wrapping_add(size.wrapping_mul(u64::from(index)));
        Ok(Self { ty, address, btf: self.btf.clone(), memory: self.memory })
    }

    /// Elements of this array; 0 when it is none.
    pub fn count(&self) -> u32 {
        self.btf.array_len(self.ty).unwrap_or(0)
    }

    /// Walks a `struct list_head` that is the value itself: the entries, without the head. `member` is the path of the list
    /// inside `entry`. Stops at `max` entries, at the first fault, and when the list meets itself.
    pub fn list(&self, entry: TypeId, member: &str, max: u32) -> (Vec<Object<'m, 'a>>, Option<Fault>) {
        let mut found = Vec::new();
        let Some(offset) = self.btf.path(entry, member).map(|m| m.bit_offset / 8) else {
            return (found, Some(Fault::NoSuch("list member")));
        };
        let fault = walk(self.memory, self.address, max, |node| {
            let address = node.wrapping_sub(offset);
            found.push(Self { ty: entry, address, btf: self.btf.clone(), memory: self.memory });
        });
        (found, fault.err())
    }

    /// A readable rendering, members one a line, nested to `depth`.
    pub fn render(&self, depth: u32) -> String {
        let mut out = String::new();
        self.render_into(&mut out, 0, depth, &mut 2000);
        out
    }

    fn render_into(&self, out: &mut String, indent: usize, depth: u32, lines: &mut u32) {
        use std::fmt::Write as _;
        let ty = self.btf.strip(self.ty);
        match self.btf.kind(ty) {
            Kind::Struct | Kind::Union if depth > 0 => {
                out.push_str("{\n");
                for (name, member) in self.btf.members(ty) {
                    if *lines == 0 {
                        break;
                    }
                    *lines -= 1;
                    let _ = write!(out, "{:w$}.{name} = ", "", w = indent + 2);
                    let inner = Self {
                        ty: member.ty,
                        address: self.address.wrapping_add(member.bit_offset / 8),
                        btf: self.btf.clone(),
                        memory: self.memory,
                    };
                    match member.bits {
                        Some(_) => {
                            out.push_str(&number_text(read_number(self.memory, &self.btf, self.address, &member)));
                        }
                        None => inner.render_into(out, indent + 2, depth - 1, lines),
                    }
                    out.push_str(",\n");
                }
                let _ = write!(out, "{:indent$}}}", "");
            }
            Kind::Struct | Kind::Union => out.push_str("{…}"),
            Kind::Array => self.render_array(out, indent, depth, lines),
            Kind::Enum | Kind::Enum64 => {
                let value = self.value();
                let name = value.ok().and_then(|v| {
                    self.btf.enumerators(ty).into_iter().find(|(_, n)| n.cast_unsigned() == v).map(|(name, _)| name)
                });
                out.push_str(&name.unwrap_or_else(|| number_text(value)));
            }
            Kind::Int if self.btf.is_signed(ty) => match self.value() {
                Ok(v) => out.push_str(&v.cast_signed().to_string()),
                Err(fault) => out.push_str(&number_text(Err(fault))),
            },
            _ => out.push_str(&number_text(self.value())),
        }
    }

    fn render_array(&self, out: &mut String, indent: usize, depth: u32, lines: &mut u32) {
        let element = self.btf.target(self.ty).unwrap_or(0);
        if self.btf.size(element) == Some(1) {
            let mut raw = vec![0u8; self.count().min(256) as usize];
            match self.memory.read(self.address, &mut raw) {
                Ok(()) if raw.iter().take_while(|&&b| b != 0).all(|b| (0x20..0x7f).contains(b)) => {
                    out.push_str(&format!("{:?}", crate::bytes::text(&raw)));
                }
                Ok(()) => raw.iter().take(32).for_each(|b| out.push_str(&format!("{b:02x} "))),
                Err(fault) => out.push_str(&number_text(Err(fault))),
            }
            return;
        }
        out.push('[');
        for i in 0..self.count().min(16) {
            if *lines == 0 {
                break;
            }
            *lines -= 1;
            if i > 0 {
                out.push_str(", ");
            }
            if let Ok(element) = self.element(i) {
                element.render_into(out, indent + 2, depth.saturating_sub(1), lines);
            }
        }
        out.push_str(if self.count() > 16 { ", …]" } else { "]" });
    }
}

fn number_text(value: Result<u64, Fault>) -> String {
    match value {
        Ok(v) if v < 4096 => v.to_string(),
        Ok(v) => format!("{v:#x}"),
        Err(fault) => format!("<{fault}>"),
    }
}

fn read_number(memory: &Memory, btf: &Btf, base: u64, member: &Member) -> Result<u64, Fault> {
    let ty = btf.strip(member.ty);
    if !matches!(btf.kind(ty), Kind::Int | Kind::Pointer | Kind::Enum | Kind::Enum64) {
        return Err(Fault::NoSuch("number of that name"));
    }
    let size = btf.size(ty).filter(|s| (1..=8).contains(s)).ok_or(Fault::NoSuch("number of that size"))?;
    let (first, shift) = (member.bit_offset / 8, (member.bit_offset % 8) as u32);
    let bits = member.bits.unwrap_or(size as u32 * 8).clamp(1, 64);
    let len = ((shift + bits).div_ceil(8) as usize).min(9);
    let mut raw = [0u8; 16];
    memory.read(base.wrapping_add(first), &mut raw[..len])?;
    let value = (u128::from_le_bytes(raw) >> shift) as u64;
    let unused = 64 - bits;
    Ok(match btf.is_signed(ty) {
        true => ((value << unused).cast_signed() >> unused).cast_unsigned(),
        false => value << unused >> unused,
    })
}

/// Walks a circular list of `struct list_head` by `next`.
pub(crate) fn walk(memory: &Memory, head: u64, max: u32, mut each: impl FnMut(u64)) -> Result<(), Fault> {
    let mut node = memory.u64(head)?;
    // Brent: a corrupted list may run into a circle that does not pass the head.
    let (mut anchor, mut steps, mut lap) = (head, 0u32, 1u32);
    for _ in 0..max {
        if node == head {
            return Ok(());
        }
        if node == anchor || node == 0 {
            return Err(Fault::Damaged(node));
        }
        each(node);
        steps += 1;
        if steps == lap {
            (anchor, steps, lap) = (node, 0, lap.saturating_mul(2));
        }
        node = memory.u64(node)?;
    }
    Err(Fault::TooLarge(head))
}
