//! KVM and VMX: who uses virtualization, and which VMCSs are still loaded where.
//!
//! `loaded_vmcss_on_cpu` is the list that a crash must empty with VMCLEAR; a list that was never initialised, or whose links do not
//! agree, is what made the crash path fault in the bug this farm was born from. So the links are checked both ways and what is
//! wrong is said.

use super::vmx::vmcs_page;
use crate::btf::{Btf, TypeId};
use crate::capsule::{Addr, Guest, Kvm, KvmCpu, LoadedVmcs, Vcpu};
use crate::kernel::Kernel;
use crate::registers;
use crate::typed::{Object, walk};
use std::sync::Arc;

const CR4_VMXE: u64 = 1 << 13;

/// Modules that hold parts of KVM when it is not built in.
const MODULES: [&str; 3] = ["kvm", "kvm_intel", "kvm_amd"];

pub(super) fn read(kernel: &Kernel) -> Option<Kvm> {
    let loaded = MODULES.iter().any(|m| kernel.module(m).is_some()) || kernel.symbol("vm_list").is_some();
    let mut kvm = Kvm {
        usage_count: symbol(kernel, "kvm_usage_count").and_then(|at| kernel.memory().u32(at).ok()).map(u64::from),
        guests: guests(kernel),
        cpus: Vec::new(),
    };
    let present = registers::cpumask(kernel.memory(), kernel.symbols()?, "__cpu_present_mask", kernel.limits())?;
    kvm.cpus = present.into_iter().map(|cpu| on_cpu(kernel, cpu)).collect();
    let vmx_on = kvm.cpus.iter().any(|c| c.vmxe == Some(true) || c.users.is_some_and(|n| n != 0));
    (loaded || vmx_on).then_some(kvm)
}

/// A symbol of KVM, wherever KVM is.
fn symbol(kernel: &Kernel, name: &str) -> Option<u64> {
    let in_module = |m: &str| kernel.module(m)?.lookup(kernel, name).map(|s| s.address);
    kernel.symbol(name).or_else(|| MODULES.iter().find_map(|m| in_module(m)))
}

/// A struct of KVM, wherever its BTF is.
fn composite(kernel: &Kernel, name: &str) -> Option<(Arc<Btf>, TypeId)> {
    let module = |m: &&str| kernel.module(m)?.btf(kernel);
    let all = ["kvm_intel", "kvm", "kvm_amd"].iter().filter_map(module).chain(kernel.btf());
    all.into_iter().find_map(|btf| btf.composite(name).map(|ty| (btf, ty)))
}

fn object<'k, 'a>(kernel: &'k Kernel<'a>, name: &str, at: u64) -> Option<Object<'k, 'a>> {
    composite(kernel, name).map(|(btf, ty)| kernel.object_of(btf, ty, at))
}

fn guests(kernel: &Kernel) -> Vec<Guest> {
    let (Some(head), Some((btf, ty))) = (symbol(kernel, "vm_list"), composite(kernel, "kvm")) else {
        return Vec::new();
    };
    let (guests, fault) = kernel.object_of(btf, ty, head).list(ty, "vm_list", kernel.limits().list);
    if let Some(fault) = fault {
        kernel.warn(format!("KVM guests: {fault}"));
    }
    let guest = |kvm: &Object| Guest { address: Addr(kvm.address()), vcpus: vcpus(kernel, kvm) };
    guests.iter().map(guest).collect()
}

fn vcpus(kernel: &Kernel, kvm: &Object) -> Vec<Vcpu> {
    let mut found = Vec::new();
    if let Ok(root) = kvm.number("vcpu_array.xa_head") {
        xarray(kernel, root, 0, &mut found);
    }
    found.into_iter().filter_map(|at| vcpu(kernel, at)).collect()
}

fn vcpu(kernel: &Kernel, at: u64) -> Option<Vcpu> {
    let vcpu = object(kernel, "kvm_vcpu", at)?;
    let cpu = vcpu.number("cpu").ok().map(u64::cast_signed).and_then(|c| u32::try_from(c).ok());
    // `struct vcpu_vmx` starts with its `struct kvm_vcpu`.
    let vmcs = object(kernel, "vcpu_vmx", at).and_then(|v| v.number("loaded_vmcs").ok()).filter(|&a| a != 0).map(Addr);
    Some(Vcpu { id: vcpu.number("vcpu_id").ok()? as u32, address: Addr(at), cpu, loaded_vmcs: vmcs })
}

/// Entries of an xarray: a pointer, or a node of 64 slots marked by low bits `10`.
fn xarray(kernel: &Kernel, entry: u64, depth: u32, found: &mut Vec<u64>) {
    const MAX_DEPTH: u32 = 3;
    if entry == 0 || found.len() as u32 >= kernel.limits().cpus || depth > MAX_DEPTH {
        return;
    }
    if entry & 3 != 2 {
        if entry & 3 == 0 {
            found.push(entry);
        }
        return;
    }
    let slots = kernel.object("xa_node", entry - 2).and_then(|n| n.field("slots").ok());
    let Some(slots) = slots else { return };
    for i in 0..slots.count().min(64) {
        if let Ok(next) = kernel.memory().u64(slots.address().wrapping_add(u64::from(i) * 8)) {
            xarray(kernel, next, depth + 1, found);
        }
    }
}

fn on_cpu(kernel: &Kernel, cpu: u32) -> KvmCpu {
    let per_cpu = |name| registers::per_cpu(kernel.memory(), kernel.symbols()?, symbol(kernel, name)?, cpu);
    let pointer = |name| kernel.memory().u64(per_cpu(name)?).ok().filter(|&p| p != 0);
    let cr4 = per_cpu("cpu_tlbstate").and_then(|at| kernel.object("tlb_state", at)?.number("cr4").ok());
    let mut this = KvmCpu {
        cpu,
        vmxe: cr4.map(|v| v & CR4_VMXE != 0),
        users: per_cpu("virtualization_nr_users").and_then(|at| kernel.memory().u32(at).ok()).map(u64::from),
        running_vcpu: pointer("kvm_running_vcpu").map(Addr),
        loaded_vmcss: None,
        list_error: None,
    };
    if let Some(head) = per_cpu("loaded_vmcss_on_cpu") {
        let (list, error) = loaded(kernel, head);
        (this.loaded_vmcss, this.list_error) = (Some(list), error);
    }
    this
}

fn loaded(kernel: &Kernel, head: u64) -> (Vec<LoadedVmcs>, Option<String>) {
    const LINK: &str = "loaded_vmcss_on_cpu_link";
    if kernel.memory().u64(head) == Ok(0) {
        return (Vec::new(), Some("the list head was never initialised".into()));
    }
    let link =
        composite(kernel, "loaded_vmcs").and_then(|(btf, ty)| Some((btf.path(ty, LINK)?.bit_offset / 8, btf, ty)));
    let Some((offset, btf, ty)) = link else { return (Vec::new(), Some("no BTF of struct loaded_vmcs".into())) };
    let mut list = Vec::new();
    let mut error = None;
    let mut before = head;
    let walked = walk(kernel.memory(), head, kernel.limits().list, |node| {
        // A crash may interrupt an insertion or a removal: the two links of a neighbour then differ.
        if error.is_none() && kernel.memory().u64(node.wrapping_add(8)) != Ok(before) {
            error = Some(format!("the entry at {node:#x} does not point back to {before:#x}"));
        }
        before = node;
        let vmcs = kernel.object_of(btf.clone(), ty, node.wrapping_sub(offset));
        let number = |name| vmcs.number(name).ok();
        let region = number("vmcs");
        list.push(LoadedVmcs {
            address: Addr(vmcs.address()),
            vmcs: region.map(Addr),
            page: region.and_then(|at| vmcs_page(kernel, at)),
            cpu: number("cpu").map(|c| c as i32),
            launched: number("launched").map(|l| l != 0),
        });
    });
    let back = kernel.memory().u64(head.wrapping_add(8));
    if walked.is_ok() && error.is_none() && back != Ok(before) {
        error = Some("the list head does not point back to the last entry".into());
    }
    (list, walked.err().map(|fault| fault.to_string()).or(error))
}
