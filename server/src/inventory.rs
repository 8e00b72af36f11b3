//! What a machine's inventory means: labels that selectors can ask for, and what is not as it was.
//!
//! Pure functions of what the target agent found ([`Facts`]). A fact that is missing says nothing, since it depends on the
//! kernel what is found; so only values that differ are told as a change.

use crate::selector::Labels;
use std::collections::BTreeMap;

/// Names and values, as the target agent reports them.
pub type Facts = BTreeMap<String, String>;

/// Facts of a machine at most; more are a mistake.
pub const FACTS_MAX: usize = 256;

/// Emulators give a machine as many CPUs and as much memory as the scenario asks for.
const EMULATORS: [&str; 2] = ["qemu", "bochs"];
const OF_THE_SCENARIO: [&str; 2] = ["cpu.count", "memory.mib"];

/// IA32_FEATURE_CONTROL: locked, and VMXON allowed outside SMX (Intel SDM, volume 3, table 24-1 ff).
const LOCKED: u64 = 1 << 0;
const VMXON: u64 = 1 << 2;

/// What VMX can do: the label, the capability register, the bit of it that says so (SDM volume 3, appendix A), and what
/// Linux calls it in `/proc/cpuinfo` where the register could not be read.
const VMX: [(&str, u64, u32, &str); 10] = [
    ("vmx.ept", 0x48b, 32 + 1, "ept"),
    ("vmx.vpid", 0x48b, 32 + 5, "vpid"),
    ("vmx.unrestricted", 0x48b, 32 + 7, "unrestricted_guest"),
    ("vmx.apicv", 0x48b, 32 + 9, "vapic_reg"),
    ("vmx.vmfunc", 0x48b, 32 + 13, "vmfunc"),
    ("vmx.shadow_vmcs", 0x48b, 32 + 14, "shadow_vmcs"),
    ("vmx.pml", 0x48b, 32 + 17, "pml"),
    ("vmx.preemption_timer", 0x481, 32 + 6, "preemption_timer"),
    ("vmx.posted_interrupts", 0x481, 32 + 7, "posted_intr"),
    ("vmx.ept_ad", 0x48c, 21, "ept_ad"),
];

/// Microarchitectures of Intel's family 6, by model number.
const INTEL: [(&str, &[u32]); 19] = [
    ("nehalem", &[0x1a, 0x1e, 0x1f, 0x2e]),
    ("westmere", &[0x25, 0x2c, 0x2f]),
    ("sandybridge", &[0x2a, 0x2d]),
    ("ivybridge", &[0x3a, 0x3e]),
    ("haswell", &[0x3c, 0x3f, 0x45, 0x46]),
    ("broadwell", &[0x3d, 0x47, 0x4f, 0x56]),
    ("skylake", &[0x4e, 0x55, 0x5e]),
    ("kabylake", &[0x8e, 0x9e]),
    ("cometlake", &[0xa5, 0xa6]),
    ("icelake", &[0x6a, 0x6c, 0x7d, 0x7e]),
    ("tigerlake", &[0x8c, 0x8d]),
    ("rocketlake", &[0xa7]),
    ("alderlake", &[0x97, 0x9a]),
    ("raptorlake", &[0xb7, 0xba, 0xbf]),
    ("sapphirerapids", &[0x8f]),
    ("emeraldrapids", &[0xcf]),
    ("graniterapids", &[0xad, 0xae]),
    ("sierraforest", &[0xaf]),
    ("meteorlake", &[0xaa, 0xac]),
];

fn of_the_scenario(driver: &str, name: &str) -> bool {
    EMULATORS.contains(&driver) && OF_THE_SCENARIO.contains(&name)
}

/// Labels that follow from what was found.
#[must_use]
pub fn labels(driver: &str, facts: &Facts) -> Labels {
    let mut labels = Labels::new();
    let fact = |name: &str| facts.get(name).map(String::as_str);
    let mut add = |label: &str, value: Option<&str>| {
        if let Some(value) = value {
            labels.insert(label.to_owned(), value.to_owned());
        }
    };
    let vendor = fact("cpu.vendor").map(|vendor| match vendor {
        "GenuineIntel" => "intel",
        "AuthenticAMD" => "amd",
        other => other,
    });
    add("vendor", vendor);
    for (label, name) in [
        ("family", "cpu.family"),
        ("model", "cpu.model"),
        ("stepping", "cpu.stepping"),
        ("microcode", "cpu.microcode"),
        ("firmware", "firmware.kind"),
        ("firmware_version", "firmware.version"),
        ("product", "product.name"),
        ("cpus", "cpu.count"),
        ("memory_mib", "memory.mib"),
    ] {
        add(label, fact(name).filter(|_| !of_the_scenario(driver, name)));
    }
    if let (Some("intel"), Some("6"), Some(model)) = (vendor, fact("cpu.family"), fact("cpu.model")) {
        let model: Option<u32> = model.parse().ok();
        let known = INTEL.iter().find(|(_, models)| model.is_some_and(|model| models.contains(&model)));
        add("microarchitecture", known.map(|(name, _)| *name));
    }
    add("nested", fact("cpu.hypervisor").map(|yes| if yes == "yes" { "true" } else { "false" }));
    add("bmc", fact("bmc.firmware").map(|_| "true"));
    vmx(facts, &mut add);
    labels
}

fn vmx(facts: &Facts, add: &mut impl FnMut(&str, Option<&str>)) {
    let Some(has) = facts.get("cpu.vmx") else { return };
    let register = |number: u64| {
        let text = facts.get(&format!("msr.0x{number:x}"))?;
        u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
    };
    let truth = |yes: bool| Some(if yes { "true" } else { "false" });
    // A firmware that has locked it off leaves the CPU's flag, and VMXON faults.
    let off = register(0x3a).is_some_and(|control| control & LOCKED != 0 && control & VMXON == 0);
    let usable = has == "yes" && !off;
    add("vmx", truth(usable));
    if !usable {
        return;
    }
    let flags: Option<Vec<&str>> = facts.get("vmx.flags").map(|flags| flags.split_whitespace().collect());
    for (label, number, bit, flag) in VMX {
        let found = match (register(number), &flags) {
            (Some(value), _) => truth(value >> bit & 1 == 1),
            (None, Some(flags)) => truth(flags.contains(&flag)),
            (None, None) => None,
        };
        add(label, found);
    }
}

/// Whether a fact is the kernel's, or depends on what that knows.
fn of_the_kernel(name: &str) -> bool {
    let of_a_card = |what| name.starts_with("network.") && name.ends_with(what);
    name == "vmx.flags" || name.starts_with("kernel.") || of_a_card(".name") || of_a_card(".driver")
}

/// What a BMC notes at every crash is no other machine.
const OF_THE_DAY: [&str; 2] = ["bmc.events", "bmc.last_event"];

/// What is not as it was, in words: `cpu.microcode is 0x2, was 0x1`.
#[must_use]
pub fn drift(driver: &str, before: &Facts, now: &Facts) -> Vec<String> {
    now.iter()
        .filter(|(name, _)| !of_the_scenario(driver, name))
        .filter(|(name, _)| !of_the_kernel(name) && !OF_THE_DAY.contains(&name.as_str()))
        .filter_map(|(name, value)| {
            let old = before.get(name).filter(|old| *old != value)?;
            Some(format!("{name} is {value}, was {old}"))
        })
        .collect()
}

/// Where the configuration says something else than what was found.
#[must_use]
pub fn contradictions(configured: &Labels, seen: &Labels) -> Vec<String> {
    configured
        .iter()
        .filter_map(|(label, value)| {
            let found = seen.get(label).filter(|found| *found != value)?;
            Some(format!("{label} is configured as {value}, and {found} was found"))
        })
        .collect()
}

/// What selectors can ask for: the configuration's labels, and what follows from the inventory where that says nothing.
#[must_use]
pub fn together(configured: &Labels, seen: &Labels) -> Labels {
    let mut labels = seen.clone();
    labels.extend(configured.iter().map(|(label, value)| (label.clone(), value.clone())));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(all: &[(&str, &str)]) -> Facts {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn icelake() -> Facts {
        facts(&[
            ("cpu.vendor", "GenuineIntel"),
            ("cpu.family", "6"),
            ("cpu.model", "106"),
            ("cpu.microcode", "0xd0003a5"),
            ("cpu.count", "64"),
            ("cpu.vmx", "yes"),
            ("cpu.hypervisor", "no"),
            ("memory.mib", "262144"),
            ("firmware.kind", "efi"),
            ("msr.0x3a", "0x0000000000000005"),
            ("msr.0x48b", "0x0053cfff00000000"),
            ("vmx.flags", "ept"),
        ])
    }

    #[test]
    fn labels_follow_from_what_was_found() {
        let found = labels("metal", &icelake());
        for (label, value) in [
            ("vendor", "intel"),
            ("microarchitecture", "icelake"),
            ("model", "106"),
            ("memory_mib", "262144"),
            ("cpus", "64"),
            ("firmware", "efi"),
            ("nested", "false"),
            ("vmx", "true"),
            ("vmx.ept", "true"),
            ("vmx.unrestricted", "true"),
            ("vmx.pml", "true"),
        ] {
            assert_eq!(found.get(label).map(String::as_str), Some(value), "{label} of {found:?}");
        }
        assert_eq!(found.get("vmx.preemption_timer").map(String::as_str), Some("false"), "Linux does not name it");
        let emulated = labels("qemu", &icelake());
        assert!(!emulated.contains_key("cpus") && !emulated.contains_key("memory_mib"), "the scenario's: {emulated:?}");
    }

    #[test]
    fn vmx_that_the_firmware_has_locked_off_is_not_there() {
        let mut locked = icelake();
        locked.insert("msr.0x3a".into(), "0x0000000000000001".into());
        let found = labels("metal", &locked);
        assert_eq!(found.get("vmx").map(String::as_str), Some("false"));
        assert!(!found.contains_key("vmx.ept"), "{found:?}");
        let without = labels("metal", &facts(&[("cpu.vmx", "no"), ("cpu.vendor", "AuthenticAMD")]));
        assert_eq!(without.get("vmx").map(String::as_str), Some("false"));
        assert_eq!(without.get("vendor").map(String::as_str), Some("amd"));
    }

    #[test]
    fn what_differs_is_told_and_what_is_missing_says_nothing() {
        let mut now = icelake();
        now.insert("cpu.microcode".into(), "0xd0003b9".into());
        now.insert("memory.mib".into(), "229376".into());
        now.remove("firmware.kind");
        now.insert("bmc.firmware".into(), "2.10".into());
        assert_eq!(
            drift("metal", &icelake(), &now),
            ["cpu.microcode is 0xd0003b9, was 0xd0003a5", "memory.mib is 229376, was 262144"]
        );
        assert_eq!(drift("qemu", &icelake(), &now).len(), 1, "an emulator's memory is the scenario's");
        let card = |name: &str, mbit: &str| facts(&[("network.a.name", name), ("network.a.mbit", mbit)]);
        assert_eq!(
            drift("metal", &card("eth0", "10000"), &card("eth1", "1000")),
            ["network.a.mbit is 1000, was 10000"],
            "names are the kernel's, a link that is slow is not"
        );
        let noted = |last: &str| facts(&[("bmc.events", &last[..1]), ("bmc.last_event", last)]);
        assert_eq!(drift("metal", &noted("1 | Hard Reset"), &noted("2 | Hard Reset")), [""; 0], "a log grows");
    }

    #[test]
    fn the_configuration_wins_and_where_it_is_wrong_that_is_said() {
        let configured = Labels::from([("vendor".into(), "amd".into()), ("lab".into(), "brno".into())]);
        let seen = labels("metal", &icelake());
        let all = together(&configured, &seen);
        assert_eq!((all["vendor"].as_str(), all["model"].as_str(), all["lab"].as_str()), ("amd", "106", "brno"));
        assert_eq!(contradictions(&configured, &seen), ["vendor is configured as amd, and intel was found"]);
    }

    #[test]
    fn hostile_facts_are_no_trouble() {
        let strange = facts(&[("cpu.vmx", "yes"), ("msr.0x48b", "0xzz"), ("msr.0x3a", ""), ("cpu.model", "-1")]);
        assert_eq!(labels("metal", &strange).get("vmx").map(String::as_str), Some("true"));
    }
}
