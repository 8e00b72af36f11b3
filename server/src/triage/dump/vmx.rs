//! What a dump must show of VMX: that everything which was loaded when the crash came was cleared, and VMX was left.
//!
//! Why each oracle is right: `docs/VMX.md`. The module's record is what the crash callback noted; the VMCS pages and the
//! kernel's shadow of CR4 were written by others, so a callback that lies is caught by them. What the dump does not have
//! is *not evaluated*. A VMCS format that nobody has published is no such case: the oracle on it is not asked, and the
//! one before it says so.

#[cfg(test)]
mod tests;

use super::{Oracle, Outcome};
use crashyard_protocol::VmxState;
use crashyard_vmcore::{Kvm, SlotState, VmcsPage, Vmx, VmxCpu, VmxRecord};

/// What VMPTRST stores when there is no current VMCS.
const NO_VMCS: u64 = u64::MAX;

/// The oracles that a state asks for; none for a scenario without VMX.
pub(super) fn oracles(vmx: Option<&Vmx>, wanted: VmxState, online: Option<u32>) -> Vec<Oracle> {
    if wanted == VmxState::None {
        return Vec::new();
    }
    let Some(vmx) = vmx else {
        return vec![missing("vmx", "nothing was read of VMX in this dump")];
    };
    if wanted.is_of_module() { of_module(vmx, wanted, online) } else { of_kvm(vmx, wanted) }
}

fn missing(name: &str, text: impl Into<String>) -> Oracle {
    Oracle::new(name, Outcome::NotEvaluated, text.into())
}

/// Holds when nothing is wrong; says the first thing that is, else `fine`.
fn nothing_wrong(name: &str, wrong: impl IntoIterator<Item = String>, fine: String) -> Oracle {
    match wrong.into_iter().next() {
        Some(wrong) => Oracle::holds(name, false, wrong),
        None => Oracle::holds(name, true, fine),
    }
}

fn of_module(vmx: &Vmx, wanted: VmxState, online: Option<u32>) -> Vec<Oracle> {
    let Some(VmxRecord { cpus, error: None, .. }) = &vmx.record else {
        let why = vmx.record.as_ref().and_then(|record| record.error.clone());
        let why = why.unwrap_or_else(|| "the module that keeps it is not in the dump".into());
        return vec![missing("vmx-record", format!("the crash record could not be read: {why}"))];
    };
    if wanted == VmxState::VmxonFault {
        return vec![untouched(cpus)];
    }
    let used: Vec<&VmxCpu> = cpus.iter().filter(|cpu| cpu.state != 0).collect();
    let here = used.iter().filter(|cpu| cpu.state == number(wanted)).count();
    let everywhere = matches!(wanted, VmxState::Vmxon | VmxState::VmcsLoaded | VmxState::VmcsLaunched);
    let owed = if everywhere { online.unwrap_or(1).max(1) as usize } else { 1 };
    let list = used.iter().filter(|cpu| cpu.walk_end != 1).map(|cpu| {
        let how = match cpu.walk_end {
            0 => "was not walked",
            2 => "has a null pointer",
            3 => "does not end",
            _ => "was walked in a way that nobody knows",
        };
        format!("the list of VMCSes of CPU {} {how}", cpu.cpu)
    });
    let mut oracles = vec![
        Oracle::holds("vmx-state", here >= owed, format!("{here} of {owed} CPUs were in the state {wanted}")),
        nothing_wrong("vmcs-list", list, "each CPU's list of VMCSes leads back to its head".into()),
        vmclear(&used),
    ];
    let loaded = used.iter().flat_map(|cpu| cpu.slots.iter()).filter(|slot| slot.state.is_loaded());
    oracles.extend(launch_state(loaded.map(|slot| slot.page)));
    oracles.push(vmxoff(&used));
    oracles
}

/// After a VMXON that faulted everything must be as if it had never been tried: VMX off, and nothing for the callback to do.
fn untouched(cpus: &[VmxCpu]) -> Oracle {
    let wrong = cpus.iter().find_map(|cpu| match (cpu.state, cpu.ran) {
        (0, false) => None,
        (0, true) => Some(format!("VMX was on when the crash came to CPU {}: its callback ran", cpu.cpu)),
        (state, _) => Some(format!("CPU {} was in state {state}, not off", cpu.cpu)),
    });
    nothing_wrong("vmx-state", wrong, format!("VMX was off on each of {} CPUs, as before the fault", cpus.len()))
}

/// The record's number of a state.
fn number(state: VmxState) -> u32 {
    match state {
        VmxState::Vmxon => 1,
        VmxState::VmcsLoaded => 2,
        VmxState::VmcsLaunched => 3,
        VmxState::ListAddCut => 4,
        VmxState::ListDelCut => 5,
        VmxState::None | VmxState::KvmLoaded | VmxState::KvmUsed | VmxState::KvmRunning | VmxState::VmxonFault => 0,
    }
}

/// Every VMCS that could be reached was VMCLEARed, the one that was only being added was not, and nothing else was seen.
fn vmclear(used: &[&VmxCpu]) -> Oracle {
    let wrong = used.iter().find_map(|cpu| {
        let reached = cpu.slots.iter().filter(|slot| slot.state.is_loaded() || slot.state == SlotState::REMOVAL_CUT);
        let owed = u32::try_from(reached.clone().count()).unwrap_or(u32::MAX);
        let mut left = reached.filter(|slot| slot.cleared != 1);
        let seen = cpu.slots.iter().find(|slot| slot.state == SlotState::INSERTION_CUT && slot.cleared != 0);
        if !cpu.ran {
            Some(format!("the crash callback never ran on CPU {}, so nothing was VMCLEARed there", cpu.cpu))
        } else if let Some(slot) = left.next() {
            Some(format!(
                "{} of {owed} loaded VMCSes of CPU {} got no VMCLEAR ({} first)",
                1 + left.count(),
                cpu.cpu,
                slot.vmcs
            ))
        } else if let Some(slot) = seen {
            Some(format!("the VMCS {} of CPU {} was still being added, and got a VMCLEAR", slot.vmcs, cpu.cpu))
        } else if cpu.visited != owed {
            Some(format!("the walk of CPU {} saw {} VMCSes, {owed} were loaded", cpu.cpu, cpu.visited))
        } else {
            (cpu.current_after.0 != NO_VMCS)
                .then(|| format!("CPU {} still had the current VMCS {} after its VMCLEARs", cpu.cpu, cpu.current_after))
        }
    });
    let count: u32 = used.iter().map(|cpu| cpu.vmclears).sum();
    nothing_wrong("vmclear", wrong, format!("{count} VMCLEARs on {} CPUs, one for each loaded VMCS", used.len()))
}

/// What the CPU left in the VMCSes: none is launched. Not asked where the format is not known, or nothing was loaded.
fn launch_state(pages: impl Iterator<Item = Option<VmcsPage>>) -> Option<Oracle> {
    const NAME: &str = "launch-state";
    let (mut clear, mut launched) = (0, 0);
    for page in pages {
        let Some(page) = page else { return Some(missing(NAME, "the page of a loaded VMCS is not in the dump")) };
        match page.launched()? {
            true => launched += 1,
            false => clear += 1,
        }
    }
    let text =
        format!("{launched} of {} VMCSes are still launched in memory: VMCLEAR leaves none so", launched + clear);
    (launched + clear > 0).then(|| Oracle::holds(NAME, launched == 0, text))
}

fn vmxoff(used: &[&VmxCpu]) -> Oracle {
    if let Some(cpu) = used.iter().find(|cpu| cpu.vmxoff == 2) {
        return Oracle::holds(
            "vmxoff",
            false,
            format!("CPU {} was still in VMX operation after the crash path", cpu.cpu),
        );
    }
    match used.iter().find(|cpu| cpu.vmxoff != 1) {
        Some(cpu) if cpu.vmxoff_observed => {
            Oracle::holds("vmxoff", false, format!("CPU {} never came to its VMXOFF", cpu.cpu))
        }
        Some(cpu) => missing("vmxoff", format!("nobody watched whether CPU {} left VMX operation", cpu.cpu)),
        None => Oracle::holds("vmxoff", true, format!("{} CPUs left VMX operation", used.len())),
    }
}

fn of_kvm(vmx: &Vmx, wanted: VmxState) -> Vec<Oracle> {
    let Some(Kvm { cpus, .. }) = &vmx.kvm else {
        return vec![missing("kvm", "KVM could not be found in the dump")];
    };
    let lists: Option<Vec<_>> = cpus.iter().map(|cpu| cpu.loaded_vmcss.as_ref()).collect();
    let Some(lists) = lists.filter(|lists| !lists.is_empty()) else {
        return vec![missing("vmcs-list", "KVM's lists of loaded VMCSes could not be read")];
    };
    let loaded: Vec<_> = lists.into_iter().flatten().collect();
    let torn = cpus.iter().filter_map(|cpu| {
        cpu.list_error.as_ref().map(|why| format!("KVM's list of loaded VMCSes on CPU {}: {why}", cpu.cpu))
    });
    let mut oracles =
        vec![nothing_wrong("vmcs-list", torn, format!("KVM's lists are whole; {} VMCSes are loaded", loaded.len()))];
    if wanted == VmxState::KvmRunning {
        let text = format!("{} VMCSes are loaded, a guest ran on each CPU", loaded.len());
        oracles.push(Oracle::holds("vmx-state", !loaded.is_empty(), text));
    }
    oracles.extend(launch_state(loaded.iter().map(|vmcs| vmcs.page)));
    oracles.push(match cpus.iter().find(|cpu| cpu.vmxe != Some(false)) {
        Some(cpu) if cpu.vmxe.is_none() => missing("vmxoff", format!("CR4 of CPU {} is not in the dump", cpu.cpu)),
        Some(cpu) => Oracle::holds("vmxoff", false, format!("CR4.VMXE of CPU {} is still set", cpu.cpu)),
        None => Oracle::holds("vmxoff", true, format!("CR4.VMXE is clear on {} CPUs", cpus.len())),
    });
    oracles
}
