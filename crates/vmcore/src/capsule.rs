//! The capsule: what is worth keeping of a dump when the dump itself is gone.
//!
//! A versioned JSON document, well under 1 MB for an ordinary machine. Equal stacks are stored once and referred to by number.
//! Addresses are strings of hexadecimal, because JSON readers commonly lose the low bits of 64-bit numbers.
//!
//! **Stability**: fields are only added. Anything else raises [`VERSION`]: 2 has the VMX record decoded, where 1 had its
//! header's bytes.

use crate::dmesg::DmesgLine;
use crate::format::{Format, PageCounts};
use crate::registers::RegisterSource;
use crate::unwind::StackEnd;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Version of the capsule document.
pub const VERSION: u32 = 2;

/// An address or register value; `"0xffffffff81000000"` in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Addr(pub u64);

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Addr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Addr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").ok_or_else(|| serde::de::Error::custom("an address starts with 0x"))?;
        u64::from_str_radix(digits, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// See the module head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capsule {
    /// [`VERSION`] of the writer.
    pub capsule_version: u32,
    /// `uname -r`.
    pub release: String,
    /// The banner the kernel prints first.
    pub banner: Option<String>,
    /// Build id, lower-case hexadecimal.
    pub build_id: Option<String>,
    /// How far KASLR moved the kernel from where it was linked: what to subtract from an address before a vmlinux is asked.
    #[serde(default)]
    pub kernel_offset: Option<Addr>,
    /// Seconds since 1970: as the crash path noted it, else what the kernel's clock showed last.
    pub crash_time: Option<i64>,
    /// Nanoseconds the kernel had been up, by the scheduler's clock.
    pub uptime_ns: Option<u64>,
    /// Taint of the kernel.
    pub taint: Option<Taint>,
    /// Text after `Kernel panic - not syncing: `.
    pub panic_message: Option<String>,
    /// What the last oops says, where there is one. Where an oops is to end the kernel, a crash kernel takes over before there
    /// is a panic, and this is all that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oops_message: Option<String>,
    /// The CPU that panicked.
    pub panic_cpu: Option<u32>,
    /// The thread that panicked.
    pub panic_task: Option<TaskRef>,
    /// Kernel command line.
    pub command_line: Option<String>,
    /// Container of the dump.
    pub format: Format,
    /// Pages present and filtered out.
    pub pages: PageCounts,
    /// Every present CPU.
    pub cpus: Vec<Cpu>,
    /// Every thread, idle threads excepted.
    pub tasks: Vec<Task>,
    /// Stacks that CPUs and tasks refer to by index.
    pub stacks: Vec<Stack>,
    /// Loaded modules, newest first.
    pub modules: Vec<ModuleInfo>,
    /// Memory use.
    pub memory: Option<MemoryUse>,
    /// State of KVM and VMX, when any of it is there.
    pub kvm: Option<Kvm>,
    /// Raw crash record of the farm's VMX module.
    pub vmx_record: Option<VmxRecord>,
    /// The kernel log.
    pub dmesg: Vec<DmesgLine>,
    /// What could not be read.
    pub warnings: Vec<String>,
}

/// Taint bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// The mask.
    pub bits: u64,
    /// Its letters, as an oops prints them, without the blanks.
    pub letters: String,
}

/// Names one thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRef {
    /// Thread id.
    pub pid: u32,
    /// Name.
    pub comm: String,
}

/// One CPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// Number.
    pub cpu: u32,
    /// In the online mask at the crash. Without kdump a panic takes the other CPUs out of it first.
    pub online: Option<bool>,
    /// Thread it ran.
    pub pid: Option<u32>,
    /// Name of that thread.
    pub comm: Option<String>,
    /// It ran its idle thread.
    pub idle: Option<bool>,
    /// It was in user mode.
    pub user: Option<bool>,
    /// The interrupt flag.
    pub interrupts_on: Option<bool>,
    /// Saved registers; absent when the CPU left none.
    pub registers: Option<Registers>,
    /// Where the registers come from.
    pub register_source: Option<RegisterSource>,
    /// Index of its kernel stack in [`Capsule::stacks`].
    pub stack: Option<u32>,
    /// Its run queue.
    pub run_queue: Option<RunQueue>,
}

/// General registers of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the registers")]
pub struct Registers {
    pub rip: Addr,
    pub rsp: Addr,
    pub rbp: Addr,
    pub rax: Addr,
    pub rbx: Addr,
    pub rcx: Addr,
    pub rdx: Addr,
    pub rsi: Addr,
    pub rdi: Addr,
    pub r8: Addr,
    pub r9: Addr,
    pub r10: Addr,
    pub r11: Addr,
    pub r12: Addr,
    pub r13: Addr,
    pub r14: Addr,
    pub r15: Addr,
    pub cs: Addr,
    pub ss: Addr,
    pub rflags: Addr,
    pub orig_rax: Addr,
}

/// A CPU's run queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunQueue {
    /// Runnable threads, the running one included.
    pub nr_running: u32,
    /// Scheduler clock in nanoseconds.
    pub clock_ns: u64,
    /// Threads that wait for this CPU.
    pub waiting: Vec<TaskRef>,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Thread id.
    pub pid: u32,
    /// Process id.
    pub tgid: u32,
    /// Process id of the parent.
    pub ppid: Option<u32>,
    /// Name.
    pub comm: String,
    /// Address of its `task_struct`.
    pub address: Addr,
    /// State letter as `ps` prints it: R S D T t X Z P I.
    pub state: char,
    /// A kernel thread.
    #[serde(default, skip_serializing_if = "is_false")]
    pub kernel_thread: bool,
    /// CPU it runs on or ran on last.
    pub cpu: Option<u32>,
    /// It was running at the crash.
    #[serde(default, skip_serializing_if = "is_false")]
    pub running: bool,
    /// Nanoseconds since it last got a CPU; absent for running threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off_cpu_ns: Option<u64>,
    /// Uninterruptible for longer than two minutes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hung: bool,
    /// What it waits for, where the kernel records it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_on: Option<BlockedOn>,
    /// Index of its stack in [`Capsule::stacks`]; absent when it could not be read.
    pub stack: Option<u32>,
}

/// A lock a thread waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedOn {
    /// Address of the lock.
    pub mutex: Addr,
    /// What it is.
    #[serde(default)]
    pub kind: LockKind,
    /// Thread that holds it; of a lock that several hold, one that does or did.
    pub owner: Option<TaskRef>,
}

/// Sorts of locks that a thread can sleep on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockKind {
    /// `struct mutex`.
    #[default]
    Mutex,
    /// `struct rw_semaphore`.
    ReadWrite,
    /// `struct semaphore`.
    Semaphore,
}

impl fmt::Display for LockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mutex => "mutex",
            Self::ReadWrite => "rw_semaphore",
            Self::Semaphore => "semaphore",
        })
    }
}

/// A stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Kernel frames, innermost first.
    pub frames: Vec<Frame>,
    /// Why it ends.
    pub end: StackEnd,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Address of the instruction, or of the one after the call.
    pub pc: Addr,
    /// `name+0xoffset`; Rust names are demangled.
    pub symbol: Option<String>,
    /// Module the code belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Saved by an interrupt, exception, NMI or the crash itself.
    #[serde(default, skip_serializing_if = "is_false")]
    pub interrupted: bool,
    /// Found without unwind information.
    #[serde(default, skip_serializing_if = "is_false")]
    pub guess: bool,
    /// Lines of the source, the innermost inlined function first; only where somebody had debuginfo (feature `dwarf`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<SourceLine>,
}

/// A place in the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLine {
    /// The function, inlined or not.
    pub function: Option<String>,
    /// File, below the top of the source where that is known.
    pub file: String,
    /// Line.
    pub line: Option<u32>,
}

/// A module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// Name.
    pub name: String,
    /// Start of its first memory range, the text.
    pub base: Addr,
    /// Bytes of all its ranges.
    pub size: u64,
    /// Letters of the taints it brought.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub taints: String,
}

/// Memory use in KiB, from the kernel's global counters; per-CPU remainders are not added, so values are a little behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryUse {
    /// All memory the kernel manages.
    pub total_kib: Option<u64>,
    /// Free pages.
    pub free_kib: Option<u64>,
    /// Anonymous memory of processes.
    pub anonymous_kib: Option<u64>,
    /// Page cache.
    pub file_kib: Option<u64>,
    /// Shared memory and tmpfs.
    pub shmem_kib: Option<u64>,
    /// Slab that can be reclaimed.
    pub slab_reclaimable_kib: Option<u64>,
    /// Slab that cannot.
    pub slab_unreclaimable_kib: Option<u64>,
    /// Kernel stacks.
    pub kernel_stack_kib: Option<u64>,
    /// Page tables.
    pub page_tables_kib: Option<u64>,
    /// Dirty file pages.
    pub dirty_kib: Option<u64>,
}

/// State of KVM and VMX.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kvm {
    /// `kvm_usage_count`: how many users keep virtualization on.
    pub usage_count: Option<u64>,
    /// Virtual machines.
    pub guests: Vec<Guest>,
    /// Per-CPU state.
    pub cpus: Vec<KvmCpu>,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Address of its `struct kvm`.
    pub address: Addr,
    /// Its virtual CPUs.
    pub vcpus: Vec<Vcpu>,
}

/// A virtual CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Its number.
    pub id: u32,
    /// Address of its `struct kvm_vcpu`.
    pub address: Addr,
    /// CPU it sits on; absent when it sits on none.
    pub cpu: Option<u32>,
    /// Its loaded VMCS, on Intel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_vmcs: Option<Addr>,
}

/// What a CPU holds of KVM and VMX.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmCpu {
    /// Number.
    pub cpu: u32,
    /// CR4.VMXE in the kernel's shadow of CR4: VMX may be on.
    pub vmxe: Option<bool>,
    /// Users of virtualization on this CPU (7.x).
    pub users: Option<u64>,
    /// The vCPU that runs here.
    pub running_vcpu: Option<Addr>,
    /// Entries of `loaded_vmcss_on_cpu`; absent when the module that has it is not loaded.
    pub loaded_vmcss: Option<Vec<LoadedVmcs>>,
    /// What is wrong with that list, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list_error: Option<String>,
}

/// A VMCS on a CPU's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedVmcs {
    /// Address of the `struct loaded_vmcs`.
    pub address: Addr,
    /// Address of the VMCS region.
    pub vmcs: Option<Addr>,
    /// CPU it believes to be on.
    pub cpu: Option<i32>,
    /// KVM's own note of its launch state. The crash path leaves it as it is, so it proves nothing.
    pub launched: Option<bool>,
    /// What the CPU left in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<VmcsPage>,
}

/// What a dump shows of VMX.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vmx {
    /// The crash record of the farm's module, where it is loaded.
    pub record: Option<VmxRecord>,
    /// KVM, where it is loaded.
    pub kvm: Option<Kvm>,
    /// What could not be read.
    pub warnings: Vec<String>,
}

/// What the crash callback of the farm's VMX module did (`docs/VMX.md`, layout version 1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmxRecord {
    /// Module it was found in.
    pub module: String,
    /// Address of its header.
    pub address: Addr,
    /// One for each possible CPU.
    #[serde(default)]
    pub cpus: Vec<VmxCpu>,
    /// Why there are fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The record of one CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmxCpu {
    /// Number.
    pub cpu: u32,
    /// 0 off, 1 vmxon, 2 vmcs-loaded, 3 vmcs-launched, 4 list-add-cut, 5 list-del-cut.
    pub state: u32,
    /// The callback ran here.
    pub ran: bool,
    /// How its walk over the list ended: 0 not walked, 1 back at the head, 2 null pointer, 3 too long.
    pub walk_end: u32,
    /// Entries it saw.
    pub visited: u32,
    /// VMCLEARs that succeeded.
    pub vmclears: u32,
    /// VMCLEARs that the CPU refused.
    pub vmclears_failed: u32,
    /// VMCLEARs that faulted.
    pub vmclear_faults: u32,
    /// Current VMCS after the walk; all ones: none.
    pub current_after: Addr,
    /// VMXOFF: 0 not seen, 1 CR4.VMXE was clear afterwards, 2 still set.
    pub vmxoff: u32,
    /// Somebody looked, so that a `vmxoff` of 0 means that it never came to that.
    pub vmxoff_observed: bool,
    /// VMCSes of this CPU.
    pub slots: Vec<VmxSlot>,
}

/// One VMCS of the farm's module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmxSlot {
    /// Address of its region.
    pub vmcs: Addr,
    /// Where it was when the crash came.
    pub state: SlotState,
    /// In the crash: 0 untouched, 1 VMCLEARed, 2 and 3 refused, 4 fault.
    pub cleared: u32,
    /// What the CPU left in it, of loaded ones.
    pub page: Option<VmcsPage>,
}

/// Where a VMCS of the farm's module is; other numbers mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotState(pub u32);

impl SlotState {
    /// There is none.
    pub const FREE: Self = Self(0);
    /// On the list, and current once: the CPU may hold it in its cache.
    pub const LOADED: Self = Self(2);
    /// As loaded, and a guest was entered.
    pub const LAUNCHED: Self = Self(3);
    /// Its insertion was cut: the walk must not see it.
    pub const INSERTION_CUT: Self = Self(4);
    /// Its removal was cut: the walk must still see it.
    pub const REMOVAL_CUT: Self = Self(5);

    /// Whether the CPU may hold it in its cache.
    #[must_use]
    pub fn is_loaded(self) -> bool {
        matches!(self, Self::LOADED | Self::LAUNCHED)
    }
}

/// The start of a VMCS region, as the CPU left it in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmcsPage {
    /// Revision id (Intel SDM volume 3, 24.2): names the format of what follows, which Intel does not publish.
    pub revision: u32,
    /// The first word of that.
    pub word2: u32,
}

impl VmcsPage {
    /// Revision of Bochs 2.7, whose source says that the word is the launch state.
    const BOCHS: u32 = 0x2b;

    /// Whether the VMCS is in the launch state *launched*, that is, was not VMCLEARed since; `None` where the format is
    /// not known.
    #[must_use]
    pub fn launched(self) -> Option<bool> {
        (self.revision & 0x7fff_ffff == Self::BOCHS).then_some(self.word2 != 0)
    }
}

impl Capsule {
    /// The stack of a CPU or task.
    pub fn stack(&self, index: Option<u32>) -> Option<&Stack> {
        self.stacks.get(index? as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_json_with_all_its_bits() {
        let text = serde_json::to_string(&Addr(0xffff_ffff_8100_0001)).unwrap();
        assert_eq!(text, "\"0xffffffff81000001\"");
        assert_eq!(serde_json::from_str::<Addr>(&text).unwrap(), Addr(0xffff_ffff_8100_0001));
    }
}
