//! A dump in which everything was cleared holds; each single thing that was not breaks the oracle that is about it.

use super::*;
use crashyard_vmcore::{Addr, KvmCpu, LoadedVmcs, VmxSlot};

const BOCHS: u32 = 0x2b;
const SILICON: u32 = 0x12;

fn page(revision: u32, word2: u32) -> Option<VmcsPage> {
    Some(VmcsPage { revision, word2 })
}

fn slot(state: SlotState, cleared: u32) -> VmxSlot {
    VmxSlot { vmcs: Addr(0xffff_8880_0000_1000), state, cleared, page: page(BOCHS, 0) }
}

fn cpu(number: u32) -> VmxCpu {
    VmxCpu {
        cpu: number,
        state: 3,
        ran: true,
        walk_end: 1,
        visited: 2,
        vmclears: 2,
        vmclears_failed: 0,
        vmclear_faults: 0,
        current_after: Addr(u64::MAX),
        vmxoff: 1,
        vmxoff_observed: true,
        slots: vec![slot(SlotState::LOADED, 1), slot(SlotState::LAUNCHED, 1)],
    }
}

fn of_module() -> Vmx {
    let cpus = vec![cpu(0), cpu(1)];
    let record = VmxRecord { module: "crashyard_vmx".into(), address: Addr(0), cpus, error: None };
    Vmx { record: Some(record), ..Vmx::default() }
}

fn kvm_cpu(number: u32) -> KvmCpu {
    let vmcs =
        LoadedVmcs { address: Addr(1), vmcs: Some(Addr(2)), cpu: Some(0), launched: Some(true), page: page(BOCHS, 0) };
    KvmCpu { cpu: number, vmxe: Some(false), loaded_vmcss: Some(vec![vmcs]), ..KvmCpu::default() }
}

fn of_kvm() -> Vmx {
    let kvm = Kvm { usage_count: Some(1), guests: Vec::new(), cpus: vec![kvm_cpu(0), kvm_cpu(1)] };
    Vmx { kvm: Some(kvm), ..Vmx::default() }
}

fn outcomes(vmx: &Vmx, state: VmxState) -> Vec<(String, Outcome)> {
    oracles(Some(vmx), state, Some(2)).into_iter().map(|oracle| (oracle.name, oracle.outcome)).collect()
}

/// Changes one thing, and says which oracles do not hold any more.
fn after(change: impl FnOnce(&mut Vmx), state: VmxState) -> Vec<(String, Outcome)> {
    let mut vmx = if state.is_of_module() { of_module() } else { of_kvm() };
    change(&mut vmx);
    outcomes(&vmx, state).into_iter().filter(|(_, outcome)| *outcome != Outcome::Held).collect()
}

fn broken(name: &str) -> Vec<(String, Outcome)> {
    vec![(name.to_owned(), Outcome::Broken)]
}

fn unknown(name: &str) -> Vec<(String, Outcome)> {
    vec![(name.to_owned(), Outcome::NotEvaluated)]
}

fn first(vmx: &mut Vmx) -> &mut VmxCpu {
    &mut vmx.record.as_mut().unwrap().cpus[0]
}

fn first_kvm(vmx: &mut Vmx) -> &mut KvmCpu {
    &mut vmx.kvm.as_mut().unwrap().cpus[0]
}

#[test]
fn a_dump_in_which_everything_was_cleared_holds() {
    let names = |vmx: &Vmx, state| outcomes(vmx, state).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let module = names(&of_module(), VmxState::VmcsLaunched);
    assert_eq!(module, ["vmx-state", "vmcs-list", "vmclear", "launch-state", "vmxoff"]);
    assert_eq!(names(&of_kvm(), VmxState::KvmRunning), ["vmcs-list", "vmx-state", "launch-state", "vmxoff"]);
    for state in [VmxState::VmcsLaunched, VmxState::KvmRunning, VmxState::KvmLoaded] {
        assert_eq!(after(|_| {}, state), [], "{state}");
    }
    assert_eq!(oracles(None, VmxState::None, Some(2)), []);
}

#[test]
fn each_thing_that_the_modules_crash_path_left_out_breaks_its_oracle() {
    let state = VmxState::VmcsLaunched;
    assert_eq!(after(|vmx| first(vmx).slots[1].cleared = 0, state), broken("vmclear"), "no VMCLEAR");
    assert_eq!(after(|vmx| first(vmx).slots[1].cleared = 2, state), broken("vmclear"), "a refused one");
    assert_eq!(after(|vmx| first(vmx).ran = false, state), broken("vmclear"));
    assert_eq!(after(|vmx| first(vmx).visited = 1, state), broken("vmclear"));
    assert_eq!(after(|vmx| first(vmx).current_after = Addr(0x1000), state), broken("vmclear"));
    assert_eq!(
        after(|vmx| first(vmx).slots[0].page = page(BOCHS, 1), state),
        broken("launch-state"),
        "a record that lies"
    );
    assert_eq!(after(|vmx| first(vmx).walk_end = 2, state), broken("vmcs-list"));
    assert_eq!(after(|vmx| first(vmx).walk_end = 0, state), broken("vmcs-list"));
    assert_eq!(after(|vmx| first(vmx).vmxoff = 2, state), broken("vmxoff"));
    assert_eq!(after(|vmx| first(vmx).vmxoff = 0, state), broken("vmxoff"));
    assert_eq!(after(|vmx| first(vmx).state = 0, state), broken("vmx-state"), "one CPU was never brought there");
}

#[test]
fn a_cut_list_must_be_seen_as_the_order_of_its_writes_promises() {
    let adding = |vmx: &mut Vmx| {
        for cpu in &mut vmx.record.as_mut().unwrap().cpus {
            (cpu.state, cpu.visited, cpu.slots) =
                (4, 1, vec![slot(SlotState::LOADED, 1), slot(SlotState::INSERTION_CUT, 0)]);
        }
    };
    assert_eq!(after(adding, VmxState::ListAddCut), []);
    let seen = |vmx: &mut Vmx| {
        adding(vmx);
        first(vmx).slots[1].cleared = 1;
    };
    assert_eq!(after(seen, VmxState::ListAddCut), broken("vmclear"));
    let deleting = |cleared| {
        move |vmx: &mut Vmx| {
            for cpu in &mut vmx.record.as_mut().unwrap().cpus {
                (cpu.state, cpu.slots) = (5, vec![slot(SlotState::LOADED, 1), slot(SlotState::REMOVAL_CUT, cleared)]);
            }
        }
    };
    assert_eq!(after(deleting(1), VmxState::ListDelCut), []);
    assert_eq!(after(deleting(0), VmxState::ListDelCut), broken("vmclear"));
}

#[test]
fn a_fault_on_vmxon_must_leave_everything_as_it_was() {
    let off = |vmx: &mut Vmx| {
        for cpu in &mut vmx.record.as_mut().unwrap().cpus {
            (cpu.state, cpu.ran) = (0, false);
        }
    };
    assert_eq!(after(off, VmxState::VmxonFault), []);
    let ran = |vmx: &mut Vmx| {
        off(vmx);
        first(vmx).ran = true;
    };
    assert_eq!(after(ran, VmxState::VmxonFault), broken("vmx-state"));
    assert_eq!(after(|_| {}, VmxState::VmxonFault), broken("vmx-state"));
    assert_eq!(after(|vmx| vmx.record = None, VmxState::VmxonFault), unknown("vmx-record"));
}

#[test]
fn each_thing_that_kvms_crash_path_left_out_breaks_its_oracle() {
    let state = VmxState::KvmRunning;
    let launched = |vmx: &mut Vmx| first_kvm(vmx).loaded_vmcss.as_mut().unwrap()[0].page = page(BOCHS, 1);
    assert_eq!(after(launched, state), broken("launch-state"));
    assert_eq!(after(|vmx| first_kvm(vmx).vmxe = Some(true), state), broken("vmxoff"));
    assert_eq!(after(|vmx| first_kvm(vmx).list_error = Some("a null pointer".into()), state), broken("vmcs-list"));
    let none =
        |vmx: &mut Vmx| vmx.kvm.as_mut().unwrap().cpus.iter_mut().for_each(|cpu| cpu.loaded_vmcss = Some(Vec::new()));
    assert_eq!(after(none, state), broken("vmx-state"), "no guest ran");
    assert_eq!(after(none, VmxState::KvmLoaded), []);
}

#[test]
fn what_the_dump_does_not_have_is_not_evaluated_and_never_held() {
    let state = VmxState::VmcsLoaded;
    let loaded = |vmx: &mut Vmx| vmx.record.as_mut().unwrap().cpus.iter_mut().for_each(|cpu| cpu.state = 2);
    assert_eq!(after(|vmx| vmx.record = None, state), unknown("vmx-record"));
    assert_eq!(after(|vmx| vmx.record.as_mut().unwrap().error = Some("cut".into()), state), unknown("vmx-record"));
    let unwatched = |vmx: &mut Vmx| {
        loaded(vmx);
        (first(vmx).vmxoff, first(vmx).vmxoff_observed) = (0, false);
    };
    assert_eq!(after(unwatched, state), unknown("vmxoff"));
    let no_page = |vmx: &mut Vmx| {
        loaded(vmx);
        first(vmx).slots[0].page = None;
    };
    assert_eq!(after(no_page, state), unknown("launch-state"));
    assert_eq!(after(|vmx| vmx.kvm = None, VmxState::KvmLoaded), unknown("kvm"));
    assert_eq!(after(|vmx| first_kvm(vmx).loaded_vmcss = None, VmxState::KvmLoaded), unknown("vmcs-list"));
    assert_eq!(after(|vmx| first_kvm(vmx).vmxe = None, VmxState::KvmLoaded), unknown("vmxoff"));
    assert_eq!(oracles(None, state, Some(2)).first().map(|oracle| oracle.outcome), Some(Outcome::NotEvaluated));
}

#[test]
fn a_format_that_nobody_published_is_not_asked_for_the_launch_state() {
    let silicon = |vmx: &mut Vmx| {
        for slot in vmx.record.as_mut().unwrap().cpus.iter_mut().flat_map(|cpu| &mut cpu.slots) {
            slot.page = page(SILICON, 1);
        }
    };
    let mut vmx = of_module();
    silicon(&mut vmx);
    let names: Vec<String> = outcomes(&vmx, VmxState::VmcsLaunched).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["vmx-state", "vmcs-list", "vmclear", "vmxoff"]);
}
