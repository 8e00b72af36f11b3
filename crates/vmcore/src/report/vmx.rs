//! The crash record of the farm's VMX module: what its crash callback did on each CPU, as it noted itself.
//!
//! Layout version 1, `docs/VMX.md`; all numbers little-endian. A record that does not carry its magic, its version and
//! sizes that make sense is not read: it says why instead. This module decodes and never judges.

use crate::capsule::{Addr, SlotState, VmcsPage, VmxCpu, VmxRecord, VmxSlot};
use crate::kernel::Kernel;

const NAME: &str = "crashyard_vmx_record";
const HEADER: usize = 48;
const RECORD: usize = 3328;
const SLOTS_AT: usize = 256;
const SLOT: usize = 48;
const SLOTS: usize = 64;
/// More CPUs than any machine that the module runs on.
const MAX_CPUS: u32 = 4096;

/// Bytes whose layout is fixed.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        self.0.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }
}

/// The module's record; `None` where the module is not loaded.
pub(super) fn record(kernel: &Kernel) -> Option<VmxRecord> {
    // Only a module of the farm has it: reading the symbol tables of all others would cost more than the rest of the report.
    let module = kernel.modules().iter().find(|m| m.name.starts_with("crashyard"))?;
    let symbol = module.lookup(kernel, NAME)?;
    let mut record =
        VmxRecord { module: module.name.clone(), address: Addr(symbol.address), cpus: Vec::new(), error: None };
    if let Err(why) = cpus(kernel, &mut record) {
        kernel.warn(format!("{NAME}: {why}"));
        record.error = Some(why);
    }
    Some(record)
}

fn cpus(kernel: &Kernel, record: &mut VmxRecord) -> Result<(), String> {
    let mut header = [0; HEADER];
    read(kernel, record.address.0, &mut header)?;
    let fields = Fields(&header);
    check(&fields, *b"CYVMXREC", RECORD as u32, 16)?;
    let count = fields.u32(20);
    if count == 0 || count > MAX_CPUS {
        return Err(format!("it is for {count} CPUs"));
    }
    let table = fields.u64(24);
    for index in 0..count {
        let mut entry = [0; 16];
        read(kernel, table.wrapping_add(u64::from(index) * 16), &mut entry)?;
        let mut page = vec![0; RECORD];
        read(kernel, Fields(&entry).u64(0), &mut page)?;
        let mut cpu = cpu(&Fields(&page)).map_err(|why| format!("CPU {index}: {why}"))?;
        for slot in cpu.slots.iter_mut().filter(|slot| slot.state.is_loaded()) {
            slot.page = vmcs_page(kernel, slot.vmcs.0);
        }
        record.cpus.push(cpu);
    }
    Ok(())
}

/// Decodes the page of one CPU.
fn cpu(fields: &Fields) -> Result<VmxCpu, String> {
    check(fields, *b"CYVMXCPU", RECORD as u32, 12)?;
    if (fields.u32(24), fields.u32(28), fields.u32(32)) != (SLOTS as u32, SLOT as u32, SLOTS_AT as u32) {
        return Err("its slots are not where version 1 has them".into());
    }
    let slots = (0..SLOTS).map(|slot| slot_at(fields, SLOTS_AT + slot * SLOT));
    Ok(VmxCpu {
        cpu: fields.u32(16),
        state: fields.u32(20),
        ran: fields.u64(64) != 0,
        walk_end: fields.u32(76),
        visited: fields.u32(80),
        vmclears: fields.u32(84),
        vmclears_failed: fields.u32(88),
        vmclear_faults: fields.u32(92),
        current_after: Addr(fields.u64(112)),
        vmxoff: fields.u32(136),
        vmxoff_observed: fields.u32(140) == 1,
        slots: slots.filter(|slot| slot.state != SlotState::FREE).collect(),
    })
}

fn slot_at(fields: &Fields, at: usize) -> VmxSlot {
    VmxSlot {
        vmcs: Addr(fields.u64(at + 8)),
        state: SlotState(fields.u32(at + 24)),
        cleared: fields.u32(at + 28),
        page: None,
    }
}

/// What the CPU itself keeps at the start of a VMCS region; `None` where the page is not in the dump.
pub(super) fn vmcs_page(kernel: &Kernel, address: u64) -> Option<VmcsPage> {
    let memory = kernel.memory();
    Some(VmcsPage { revision: memory.u32(address).ok()?, word2: memory.u32(address.wrapping_add(8)).ok()? })
}

fn check(fields: &Fields, magic: [u8; 8], size: u32, size_at: usize) -> Result<(), String> {
    if fields.0.get(..8) != Some(&magic) {
        return Err("its magic number is not there".into());
    }
    match (fields.u32(8), fields.u32(size_at)) {
        (1, found) if found == size => Ok(()),
        (version, found) => Err(format!("version {version} with {found} bytes a CPU, only version 1 is known")),
    }
}

fn read(kernel: &Kernel, address: u64, bytes: &mut [u8]) -> Result<(), String> {
    kernel.memory().read(address, bytes).map_err(|fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page as the module writes it: state `vmcs-launched`, one slot launched and VMCLEARed.
    fn page() -> Vec<u8> {
        let mut page = vec![0; RECORD];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"CYVMXCPU");
        for (at, value) in
            [(8, 1), (12, 3328), (16, 7), (20, 3), (24, 64), (28, 48), (32, 256), (76, 1), (80, 1), (84, 1)]
        {
            put(at, &u32::to_le_bytes(value));
        }
        put(64, &u64::to_le_bytes(5));
        put(112, &u64::MAX.to_le_bytes());
        put(136, &u32::to_le_bytes(1));
        put(140, &u32::to_le_bytes(1));
        // The third slot.
        put(256 + 2 * 48 + 8, &u64::to_le_bytes(0xffff_8880_0000_1000));
        put(256 + 2 * 48 + 24, &u32::to_le_bytes(3));
        put(256 + 2 * 48 + 28, &u32::to_le_bytes(1));
        page
    }

    #[test]
    fn a_record_is_read_as_its_layout_says() {
        let slot = VmxSlot { vmcs: Addr(0xffff_8880_0000_1000), state: SlotState::LAUNCHED, cleared: 1, page: None };
        let wanted = VmxCpu {
            cpu: 7,
            state: 3,
            ran: true,
            walk_end: 1,
            visited: 1,
            vmclears: 1,
            vmclears_failed: 0,
            vmclear_faults: 0,
            current_after: Addr(u64::MAX),
            vmxoff: 1,
            vmxoff_observed: true,
            slots: vec![slot],
        };
        assert_eq!(cpu(&Fields(&page())), Ok(wanted));
    }

    #[test]
    fn what_is_no_record_of_a_known_version_is_not_read() {
        for (at, byte, why) in [(0, b'X', "magic"), (8, 2, "version 2"), (13, 0, "version 1 with"), (32, 1, "slots")] {
            let mut page = page();
            page[at] = byte;
            let error = cpu(&Fields(&page)).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(cpu(&Fields(&[])).is_err());
    }
}
