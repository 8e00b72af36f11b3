//! Kernel modules that a scenario needs.
//!
//! An initramfs without `modprobe` lists a module with what it needs, in order, in `/lib/modules/NAME.order`, one path a
//! line. Where there is no such list, `modprobe` finds out by itself.

use super::steps::{StepResult, execute};
use std::path::Path;

/// KVM for Intel CPUs.
pub const KVM_INTEL: &str = "kvm_intel";

/// The farm's VMX module.
pub const CRASHYARD_VMX: &str = "crashyard_vmx";

/// The kernel's own module for crashing it.
pub const LKDTM: &str = "lkdtm";

/// The kernel's way to a BMC: the driver of its interface to the machine, and the file in front of it.
pub const IPMI: [&str; 2] = ["ipmi_si", "ipmi_devintf"];

/// Loads a module and what it needs; fine if it is loaded. Stops at the first failure, which is the last step then.
pub async fn load(name: &str) -> Vec<StepResult> {
    let step = format!("load-{}", name.replace('_', "-"));
    if is_loaded(name) {
        return vec![StepResult::done(&step, format!("{name} is loaded"))];
    }
    let list = std::fs::read_to_string(format!("/lib/modules/{name}.order")).unwrap_or_default();
    if list.is_empty() {
        return vec![execute(&step, "modprobe", &[name.to_owned()]).await];
    }
    let mut steps = Vec::new();
    for path in list.lines() {
        let file = Path::new(path).file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
        if is_loaded(&file) {
            continue;
        }
        steps.push(execute(&step, "insmod", &[path.to_owned()]).await);
        if steps.last().is_some_and(|step| !step.ok) {
            break;
        }
    }
    steps
}

fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).join("initstate").exists()
}
