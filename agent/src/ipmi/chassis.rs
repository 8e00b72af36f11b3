//! Chassis commands (IPMI 2.0, section 28): what a BMC does to its machine.

use super::command;
use ipmi_rs::connection::{IpmiCommand, Message, NetFn, NotEnoughData};

/// What Chassis Control asks for (table 28-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Power off at once.
    Off = 0,
    /// Power on.
    On = 1,
    /// Hard reset.
    Reset = 3,
    /// Pulse a diagnostic interrupt: an NMI.
    Diagnostic = 4,
}

impl Control {
    /// What `ipmitool chassis power` calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Reset => "reset",
            Self::Diagnostic => "diag",
        }
    }
}

/// Get Chassis Status, section 28.2; the answer is whether power is on.
pub struct ChassisStatus;

/// Chassis Control, section 28.3.
pub struct ChassisControl(pub Control);

/// Chassis Identify, section 28.5: for so many seconds.
pub struct ChassisIdentify(pub u8);

/// Set System Boot Options, section 28.12: boot flags, valid, once, PXE.
pub struct NetworkBoot;

command!(ChassisStatus, _this, Chassis, 0x01, vec![], bool, |data: &[u8]| (data.len() >= 3).then(|| data[0] & 1 != 0));
command!(ChassisControl, this, Chassis, 0x02, vec![this.0 as u8], (), |_: &[u8]| Some(()));
command!(ChassisIdentify, this, Chassis, 0x04, vec![this.0], (), |_: &[u8]| Some(()));
command!(NetworkBoot, _this, Chassis, 0x08, vec![5, 0x80, 0x04, 0, 0, 0], (), |_: &[u8]| Some(()));
