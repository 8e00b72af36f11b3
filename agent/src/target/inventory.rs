//! What the machine is made of, as the kernel under test finds it: names and values, nothing understood.
//!
//! Everything comes from files of the kernel, from the VMX capability registers, and from the BMC in band. What is not
//! there is left out, since a kernel without a driver says nothing about the hardware. What it means, and whether it is
//! what it was yesterday, the server says.

use crate::ipmi::{in_band, sel};
use crashyard_protocol::agent::Report;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the BMC may take to say what it is.
const BMC: Duration = Duration::from_secs(2);

/// Registers that say what VMX can do, by number: IA32_FEATURE_CONTROL, and IA32_VMX_BASIC to IA32_VMX_VMFUNC (Intel SDM,
/// volume 3, appendix A). A register that the CPU does not have cannot be read, and is left out.
const FEATURE_CONTROL: u64 = 0x3a;
const VMX_FIRST: u64 = 0x480;
const VMX_LAST: u64 = 0x491;

/// Network interfaces that are told; what can have more has them by the hundred, and each is like the other.
const INTERFACES: usize = 16;

/// Longest value; longer ones are cut.
const VALUE: usize = 2048;

type Facts = BTreeMap<String, String>;

/// The report `inventory`. A BMC that does not answer, or answers what the library panics at, must not keep the machine from
/// its job, nor the rest from being told.
pub async fn report() -> Report {
    let files = tokio::task::spawn_blocking(|| collect(Path::new("/")));
    let bmc = tokio::task::spawn_blocking(|| bmc(Path::new(in_band::DEVICE)));
    let mut facts = files.await.unwrap_or_default();
    facts.extend(bmc.await.unwrap_or_default());
    Report::Inventory { facts }
}

/// Everything that files say, below `root`.
fn collect(root: &Path) -> Facts {
    let mut facts = Facts::new();
    let mut add = |name: &str, value: Option<String>| {
        let value = value.map(|value| value.trim().chars().take(VALUE).collect::<String>());
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            facts.insert(name.into(), value);
        }
    };
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    add("kernel.cmdline", read("proc/cmdline"));
    let info = read("proc/cpuinfo").unwrap_or_default();
    let first = |key: &str| value(&info, key).map(str::to_owned);
    for (name, key) in [
        ("cpu.vendor", "vendor_id"),
        ("cpu.family", "cpu family"),
        ("cpu.model", "model"),
        ("cpu.stepping", "stepping"),
        ("cpu.name", "model name"),
        ("vmx.flags", "vmx flags"),
    ] {
        add(name, first(key));
    }
    // More than one is a fault of the firmware, and worth seeing.
    let microcode: BTreeSet<&str> = values(&info, "microcode").collect();
    add("cpu.microcode", Some(microcode.into_iter().collect::<Vec<_>>().join(", ")));
    add("cpu.count", Some(values(&info, "processor").count().to_string()).filter(|count| count != "0"));
    let flags: BTreeSet<&str> = value(&info, "flags").unwrap_or_default().split_whitespace().collect();
    for flag in ["vmx", "svm", "hypervisor"] {
        add(&format!("cpu.{flag}"), Some(if flags.contains(flag) { "yes" } else { "no" }.to_owned()));
    }
    if flags.contains("vmx") {
        for (register, value) in registers(&root.join("dev/cpu/0/msr")) {
            add(&format!("msr.0x{register:x}"), Some(format!("0x{value:016x}")));
        }
    }
    for (name, file) in [
        ("firmware.vendor", "bios_vendor"),
        ("firmware.version", "bios_version"),
        ("firmware.date", "bios_date"),
        ("product.vendor", "sys_vendor"),
        ("product.name", "product_name"),
        ("board.name", "board_name"),
    ] {
        add(name, read(&format!("sys/class/dmi/id/{file}")));
    }
    let efi = root.join("sys/firmware/efi").is_dir();
    add("firmware.kind", Some(if efi { "efi" } else { "bios" }.to_owned()));
    add("memory.mib", memory(root).map(|bytes| (bytes >> 20).to_string()));
    add("network.cards", Some(network_cards(root).join(", ")));
    for (name, value) in interfaces(root) {
        add(&name, Some(value));
    }
    facts
}

/// The values of a key of `/proc/cpuinfo`, of one CPU after the other.
fn values<'a>(info: &'a str, key: &str) -> impl Iterator<Item = &'a str> {
    info.lines().filter_map(move |line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then_some(value.trim())
    })
}

fn value<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    values(info, key).next()
}

/// The registers that can be read, each eight bytes at its number (msr(4)).
fn registers(file: &Path) -> Vec<(u64, u64)> {
    let Ok(file) = std::fs::File::open(file) else { return Vec::new() };
    let mut word = [0; 8];
    std::iter::once(FEATURE_CONTROL)
        .chain(VMX_FIRST..=VMX_LAST)
        .filter_map(|register| {
            file.read_exact_at(&mut word, register).ok()?;
            Some((register, u64::from_le_bytes(word)))
        })
        .collect()
}

/// The memory that the firmware gave to this kernel before anybody reserved any of it.
fn memory(root: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(root.join("sys/firmware/memmap")).ok()?;
    let ranges = entries.flatten().filter_map(|entry| {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).ok();
        let number = |name: &str| u64::from_str_radix(read(name)?.trim().strip_prefix("0x")?, 16).ok();
        (read("type")?.trim() == "System RAM").then_some(())?;
        number("end")?.checked_sub(number("start")?)?.checked_add(1)
    });
    Some(ranges.sum()).filter(|bytes| *bytes > 0)
}

/// Network cards as PCI shows them, with or without a driver: `vendor:device`, sorted.
fn network_cards(root: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join("sys/bus/pci/devices")) else { return Vec::new() };
    let mut cards: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let read = |name: &str| Some(std::fs::read_to_string(entry.path().join(name)).ok()?.trim().to_owned());
            let id = |name: &str| Some(read(name)?.strip_prefix("0x")?.to_owned());
            // Class 02 of the PCI code and ID assignment: network controllers.
            read("class")?.starts_with("0x02").then_some(())?;
            Some(format!("{}:{}", id("vendor")?, id("device")?))
        })
        .collect();
    cards.sort();
    cards
}

/// Network interfaces of hardware that has a driver, by where they sit: what the kernel calls them, the driver, and the
/// speed of the link where there is one, in Mbit/s. Functions that a card pretends to have are not told.
fn interfaces(root: &Path) -> Vec<(String, String)> {
    let Ok(entries) = std::fs::read_dir(root.join("sys/class/net")) else { return Vec::new() };
    let mut places: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let device = entry.path().join("device");
            (!device.join("physfn").exists()).then_some(())?;
            Some((file_name(&std::fs::read_link(&device).ok()?)?, entry.path()))
        })
        .collect();
    places.sort();
    places.truncate(INTERFACES);
    let mut facts = Vec::new();
    for (place, path) in places {
        let mut add = |what: &str, value: Option<String>| {
            facts.extend(value.map(|value| (format!("network.{place}.{what}"), value)));
        };
        add("name", file_name(&path));
        add("driver", std::fs::read_link(path.join("device/driver")).ok().and_then(|driver| file_name(&driver)));
        // The kernel says -1, or nothing, where nobody knows.
        let speed = std::fs::read_to_string(path.join("speed")).ok().and_then(|speed| speed.trim().parse::<i64>().ok());
        add("mbit", speed.filter(|speed| *speed > 0).map(|speed| speed.to_string()));
    }
    facts
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// What the BMC says of itself over the machine's own interface to it, and the last that it has noted: where power has no
/// IPMI, nobody else asks what it wrote when the machine crashed before.
fn bmc(device: &Path) -> Facts {
    let Ok(mut ipmi) = in_band::open(device, BMC) else { return Facts::new() };
    let Ok(id) = in_band::identity(&mut ipmi) else { return Facts::new() };
    let mut facts = Facts::from([
        ("bmc.manufacturer".into(), id.manufacturer_id.to_string()),
        ("bmc.product".into(), id.product_id.to_string()),
        ("bmc.firmware".into(), format!("{}.{:02}", id.major_fw_revision, id.minor_fw_revision)),
        ("bmc.ipmi".into(), format!("{}.{}", id.major_version, id.minor_version)),
    ]);
    if let Ok((count, last)) = sel::last(&mut ipmi) {
        facts.insert("bmc.events".into(), count.to_string());
        facts.extend(last.map(|last| ("bmc.last_event".into(), last)));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    /// A network card with a driver and an interface, as the kernel lays them out.
    fn card(root: &Path, place: &str, name: &str, driver: &str, speed: &str) {
        let device = root.join("sys/devices").join(place);
        let interface = device.join("net").join(name);
        for directory in [&interface, &root.join("sys/class/net"), &root.join("sys/drivers").join(driver)] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(interface.join("speed"), speed).unwrap();
        symlink(root.join("sys/drivers").join(driver), device.join("driver")).unwrap();
        symlink(&device, interface.join("device")).unwrap();
        symlink(&interface, root.join("sys/class/net").join(name)).unwrap();
    }

    #[test]
    fn a_machine_is_told_from_its_kernels_files() {
        let dir = tempfile::tempdir().unwrap();
        let cpu = |number: u32, microcode: &str| {
            format!(
                "processor\t: {number}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\nmodel name\t: A CPU\n\
                 stepping\t: 6\nmicrocode\t: {microcode}\nflags\t\t: fpu vmx\nvmx flags\t: ept unrestricted_guest\n\n"
            )
        };
        write(
            dir.path(),
            &[
                ("proc/cpuinfo", &(cpu(0, "0xd0003a5") + &cpu(1, "0xd0003b9"))),
                ("sys/class/dmi/id/bios_version", "2.10.2\n"),
                ("sys/firmware/memmap/0/start", "0x0\n"),
                ("sys/firmware/memmap/0/end", "0x3fffffff\n"),
                ("sys/firmware/memmap/0/type", "System RAM\n"),
                ("sys/firmware/memmap/1/start", "0xfeffc000\n"),
                ("sys/firmware/memmap/1/end", "0xfeffffff\n"),
                ("sys/firmware/memmap/1/type", "Reserved\n"),
                ("sys/bus/pci/devices/a/class", "0x020000\n"),
                ("sys/bus/pci/devices/a/vendor", "0x8086\n"),
                ("sys/bus/pci/devices/a/device", "0x1521\n"),
                ("sys/bus/pci/devices/b/class", "0x030000\n"),
                ("sys/bus/pci/devices/b/vendor", "0x1234\n"),
                ("sys/bus/pci/devices/b/device", "0x1111\n"),
            ],
        );
        card(dir.path(), "0000:02:00.0", "eth0", "igb", "1000\n");
        card(dir.path(), "0000:02:00.1", "eth1", "igb", "-1\n");
        card(dir.path(), "0000:03:10.0", "eth2", "igbvf", "1000\n");
        write(
            dir.path(),
            &[("sys/devices/0000:03:10.0/physfn/vendor", "0x8086\n"), ("sys/class/net/lo/mtu", "65536\n")],
        );
        std::fs::create_dir_all(dir.path().join("dev/cpu/0")).unwrap();
        let mut registers = vec![0; 0x488];
        registers[0x3a..0x42].copy_from_slice(&5u64.to_le_bytes());
        registers[0x480..0x488].copy_from_slice(&0x00da_0400_0000_0004_u64.to_le_bytes());
        std::fs::write(dir.path().join("dev/cpu/0/msr"), registers).unwrap();
        let facts = collect(dir.path());
        for (name, wanted) in [
            ("cpu.vendor", "GenuineIntel"),
            ("cpu.model", "106"),
            ("cpu.count", "2"),
            ("cpu.microcode", "0xd0003a5, 0xd0003b9"),
            ("cpu.vmx", "yes"),
            ("cpu.hypervisor", "no"),
            ("vmx.flags", "ept unrestricted_guest"),
            ("msr.0x3a", "0x0000000000000005"),
            ("msr.0x480", "0x00da040000000004"),
            ("firmware.version", "2.10.2"),
            ("firmware.kind", "bios"),
            ("memory.mib", "1024"),
            ("network.cards", "8086:1521"),
            ("network.0000:02:00.0.name", "eth0"),
            ("network.0000:02:00.0.driver", "igb"),
            ("network.0000:02:00.0.mbit", "1000"),
            ("network.0000:02:00.1.name", "eth1"),
        ] {
            assert_eq!(facts.get(name).map(String::as_str), Some(wanted), "{name} of {facts:?}");
        }
        for (name, why) in [
            ("msr.0x491", "what the CPU does not have is left out"),
            ("network.0000:02:00.1.mbit", "a link that is down has no speed"),
            ("network.0000:03:10.0.name", "a virtual function is no card"),
        ] {
            assert!(!facts.contains_key(name), "{why}: {facts:?}");
        }
        assert_eq!(facts.keys().filter(|name| name.ends_with(".name") && name.starts_with("network.")).count(), 2);
    }

    #[test]
    fn a_kernel_that_says_nothing_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let facts = collect(dir.path());
        assert!(!facts.contains_key("cpu.vendor") && !facts.contains_key("memory.mib"), "{facts:?}");
        assert_eq!(bmc(&dir.path().join("ipmi0")), Facts::new());
    }

    #[test]
    fn this_machine_has_a_cpu() {
        let facts = collect(Path::new("/"));
        assert!(facts.contains_key("cpu.vendor") && facts.contains_key("cpu.count"), "{facts:?}");
    }
}
