//! Scenarios and plans: what is done to a machine, and what must come of it.
//!
//! Intent is an input. Which panic is the intended one is written here before anything runs and is never guessed
//! from a console afterwards. Unknown fields are refused, so that a typing mistake cannot silently weaken a test.

mod check;
mod words;

use crate::text_enum;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::StageName;

text_enum! {
    /// The state of the CPUs' virtualisation when the crash comes.
    VmxState {
        /// Nothing loaded.
        None = "none",
        /// kvm_intel loaded, no guest ever run.
        KvmLoaded = "kvm-loaded",
        /// A guest has run on every online CPU, and ended.
        KvmUsed = "kvm-used",
        /// A guest runs on every online CPU.
        KvmRunning = "kvm-running",
        /// The VMX module is in VMX root operation on every CPU.
        Vmxon = "vmxon",
        /// The VMX module has VMCSes loaded.
        VmcsLoaded = "vmcs-loaded",
        /// The VMX module has launched a guest that spins.
        VmcsLaunched = "vmcs-launched",
        /// The VMX module has stopped in the middle of adding a VMCS to its list.
        ListAddCut = "list-add-cut",
        /// The VMX module has stopped in the middle of removing a VMCS from its list.
        ListDelCut = "list-del-cut",
        /// The VMX module has survived a VMXON that faulted, on every CPU; VMX is off.
        VmxonFault = "vmxon-fault",
    }
}

impl VmxState {
    /// Whether the VMX module brings this state about; its crash record must then be in the dump.
    #[must_use]
    pub const fn is_of_module(self) -> bool {
        matches!(
            self,
            Self::Vmxon
                | Self::VmcsLoaded
                | Self::VmcsLaunched
                | Self::ListAddCut
                | Self::ListDelCut
                | Self::VmxonFault
        )
    }

    /// Whether KVM brings this state about.
    #[must_use]
    pub const fn is_of_kvm(self) -> bool {
        matches!(self, Self::KvmLoaded | Self::KvmUsed | Self::KvmRunning)
    }

    /// The number that this state takes: what it is when a scenario does not say, and what it may be at most.
    #[must_use]
    pub const fn number(self) -> Option<(u32, u32)> {
        match self {
            // VMCSes on each CPU.
            Self::VmcsLoaded => Some((3, 64)),
            // Pointer writes done when the change of the list is stopped.
            Self::ListAddCut => Some((2, 4)),
            Self::ListDelCut => Some((1, 2)),
            _ => None,
        }
    }
}

text_enum! {
    /// What brings the kernel down.
    Trigger {
        /// `echo c > /proc/sysrq-trigger`.
        SysrqC = "sysrq-c",
        /// A diagnostic NMI from outside (BMC or emulator) with `kernel.unknown_nmi_panic`.
        Nmi = "nmi",
        /// The same NMI, which the machine asks its own BMC for through `/dev/ipmi0`: for machines whose BMC the controller
        /// does not reach.
        BmcNmi = "bmc-nmi",
        /// `panic()` called by the VMX module.
        ModulePanic = "module-panic",
        /// An oops raised by the VMX module, with `panic_on_oops`.
        ModuleOops = "module-oops",
        /// `panic()` in an interrupt.
        ModuleIrqPanic = "module-irq-panic",
        /// `nmi_panic()` in an NMI.
        ModuleNmiPanic = "module-nmi-panic",
        /// A CPU that spins with interrupts off, with `hardlockup_panic`; another CPU has to notice.
        ModuleHardlockup = "module-hardlockup",
        /// `panic()` by the kernel's own test module LKDTM.
        LkdtmPanic = "lkdtm-panic",
        /// `BUG()` by LKDTM, with `panic_on_oops`.
        LkdtmBug = "lkdtm-bug",
        /// A null pointer written through by LKDTM, with `panic_on_oops`.
        LkdtmException = "lkdtm-exception",
        /// A CPU that LKDTM locks up, with `hardlockup_panic`; another CPU has to notice.
        LkdtmHardlockup = "lkdtm-hardlockup",
    }
}

impl Trigger {
    /// The VMX module's command for it.
    #[must_use]
    pub const fn module_command(self) -> Option<&'static str> {
        match self {
            Self::SysrqC
            | Self::Nmi
            | Self::BmcNmi
            | Self::LkdtmPanic
            | Self::LkdtmBug
            | Self::LkdtmException
            | Self::LkdtmHardlockup => None,
            Self::ModulePanic => Some("panic"),
            Self::ModuleOops => Some("oops"),
            Self::ModuleIrqPanic => Some("irq-panic"),
            Self::ModuleNmiPanic => Some("nmi-panic"),
            Self::ModuleHardlockup => Some("hardlockup"),
        }
    }

    /// LKDTM's crash type for it.
    #[must_use]
    pub const fn lkdtm_type(self) -> Option<&'static str> {
        match self {
            Self::LkdtmPanic => Some("PANIC"),
            Self::LkdtmBug => Some("BUG"),
            Self::LkdtmException => Some("EXCEPTION"),
            Self::LkdtmHardlockup => Some("HARDLOCKUP"),
            _ => None,
        }
    }

    /// Whether it is an NMI that comes to the board and not to a CPU: nobody chooses which CPU gets it.
    #[must_use]
    pub const fn is_nmi_from_outside(self) -> bool {
        matches!(self, Self::Nmi | Self::BmcNmi)
    }

    /// Whether a CPU is locked up, and another one has to notice.
    #[must_use]
    pub const fn is_lockup(self) -> bool {
        matches!(self, Self::ModuleHardlockup | Self::LkdtmHardlockup)
    }

    /// Whether the kernel goes from an oops straight to the capture kernel, without a panic's message. The header of
    /// the oops is what announces the crash then.
    #[must_use]
    pub const fn is_oops(self) -> bool {
        matches!(self, Self::ModuleOops | Self::LkdtmBug | Self::LkdtmException)
    }
}

text_enum! {
    /// How makedumpfile compresses pages.
    Compression {
        /// Not at all.
        None = "none",
        /// zlib (`-c`).
        Zlib = "zlib",
        /// LZO (`-l`).
        Lzo = "lzo",
        /// Snappy (`-p`).
        Snappy = "snappy",
        /// Zstandard (`-z`).
        Zstd = "zstd",
    }
}

text_enum! {
    /// How the vmcore leaves the machine.
    Transport {
        /// Streamed to the server.
        Network = "network",
        /// Written to a disk that the controller reads after power-off.
        Disk = "disk",
    }
}

/// One thing to do to a machine, and what must come of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Unique name: lower-case letters, digits and dashes.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// State to bring about before the crash.
    #[serde(default = "Scenario::default_vmx")]
    pub vmx: VmxState,
    /// Number of the state: VMCSes of `vmcs-loaded`, pointer writes done of `list-add-cut` and `list-del-cut`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmx_number: Option<u32>,
    /// What crashes the kernel.
    pub trigger: Trigger,
    /// The CPU that crashes; any, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// How the kernel under test boots.
    #[serde(default)]
    pub boot: Boot,
    /// How the capture kernel boots and what it dumps.
    #[serde(default)]
    pub capture: Capture,
    /// What must be seen.
    pub expect: Expect,
    /// How long each stage may take.
    #[serde(default)]
    pub deadlines: Deadlines,
}

impl Scenario {
    fn default_vmx() -> VmxState {
        VmxState::None
    }

    /// The number of its VMX state, where that has one.
    #[must_use]
    pub fn vmx_number(&self) -> Option<u32> {
        self.vmx.number().map(|(default, _)| self.vmx_number.unwrap_or(default))
    }
}

/// How the kernel under test boots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Boot {
    /// Added to the kernel command line.
    pub cmdline: String,
    /// Value of `crashkernel=`; empty reserves nothing.
    pub crashkernel: String,
    /// CPUs an emulated machine gets.
    pub cpus: u32,
    /// Memory an emulated machine gets, in MiB.
    pub memory_mib: u32,
}

impl Default for Boot {
    fn default() -> Self {
        Self { cmdline: String::new(), crashkernel: "192M".into(), cpus: 2, memory_mib: 768 }
    }
}

/// How the capture kernel boots and what it dumps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Capture {
    /// Added to the capture kernel's command line.
    pub cmdline: String,
    /// makedumpfile's dump level (`-d`, a mask of 1 zero, 2 cache, 4 private cache, 8 user, 16 free pages).
    pub dump_level: u8,
    /// makedumpfile's page compression.
    pub compression: Compression,
    /// How the dump leaves the machine.
    pub transport: Transport,
    /// Fault injection: the capture agent kills itself once after sending this many bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub die_after_bytes: Option<u64>,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            cmdline: String::new(),
            dump_level: 31,
            compression: Compression::Zlib,
            transport: Transport::Network,
            die_after_bytes: None,
        }
    }
}

/// What must be seen for the contract to hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Text that the intended panic's message contains (the part after `Kernel panic - not syncing: `), or of the
    /// oops's header where the trigger is an oops.
    pub panic: String,
}

/// How long each stage may take, in seconds, from the moment it becomes the active one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// From the claim to a running kernel with its agent.
    pub provisioned: u32,
    /// From there to a loaded crash kernel.
    pub armed: u32,
    /// From there to the marker on the console.
    pub triggered: u32,
    /// From there to the panic.
    pub panicked: u32,
    /// From there to the capture agent's call.
    pub captured: u32,
    /// From there to the last byte of the dump.
    pub dumped: u32,
    /// For reading the dump.
    pub verified: u32,
    /// From the judgement to a healthy machine.
    pub returned: u32,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            provisioned: 300,
            armed: 120,
            triggered: 30,
            panicked: 30,
            captured: 180,
            dumped: 900,
            verified: 120,
            returned: 300,
        }
    }
}

impl Deadlines {
    /// The time one stage may take.
    #[must_use]
    pub fn of(&self, stage: StageName) -> Duration {
        Duration::from_secs(u64::from(match stage {
            StageName::Provisioned => self.provisioned,
            StageName::Armed => self.armed,
            StageName::Triggered => self.triggered,
            StageName::Panicked => self.panicked,
            StageName::Captured => self.captured,
            StageName::Dumped => self.dumped,
            StageName::Verified => self.verified,
            StageName::Returned => self.returned,
        }))
    }
}
