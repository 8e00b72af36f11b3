//! A machine's own BMC, as the kernel on it has it: `/dev/ipmi0`, of the modules `ipmi_si` and `ipmi_devintf`
//! (`Documentation/driver-api/ipmi.rst`).
//!
//! This way has no sessions, no passwords and no privileges. The driver numbers what is asked, and gives each open file its own
//! answers.

use super::chassis::{ChassisControl, Control};
use anyhow::{Context as _, anyhow};
use ipmi_rs::app::{DeviceId, GetDeviceId};
use ipmi_rs::connection::{IpmiCommand, IpmiConnection};
use ipmi_rs::{File, Ipmi, IpmiError};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// The first way to a BMC that the kernel has found.
pub const DEVICE: &str = "/dev/ipmi0";

/// Opens the device; an answer may take as long as `patience`.
pub fn open(device: &Path, patience: Duration) -> anyhow::Result<Ipmi<File>> {
    let link = File::new(device, patience).with_context(|| format!("open {}", device.display()))?;
    Ok(Ipmi::new(link))
}

/// What the BMC says that it is.
pub fn identity<C: IpmiConnection>(ipmi: &mut Ipmi<C>) -> anyhow::Result<DeviceId>
where
    C::Error: fmt::Debug,
{
    ask(ipmi, GetDeviceId)
}

/// Asks the BMC for an NMI, once. Comes back only where that does not bring the kernel down at once; after an error that is
/// no refusal, the NMI may come yet.
pub fn send_nmi<C: IpmiConnection>(ipmi: &mut Ipmi<C>) -> anyhow::Result<()>
where
    C::Error: fmt::Debug,
{
    ask(ipmi, ChassisControl(Control::Diagnostic))
}

fn ask<C: IpmiConnection, Q: IpmiCommand>(ipmi: &mut Ipmi<C>, command: Q) -> anyhow::Result<Q::Output>
where
    C::Error: fmt::Debug,
    Q::Error: fmt::Debug,
{
    ipmi.send_recv(command).map_err(|error| match error {
        // Table 5-2.
        IpmiError::Failed { completion_code, .. } => anyhow!("the BMC refuses: {completion_code:?}"),
        IpmiError::Connection(error) => anyhow!("the BMC does not answer: {error:?}"),
        other => anyhow!("the BMC answers something else: {other:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipmi_rs::connection::{Message, Request, Response};

    /// A BMC that answers with this completion code, and keeps what it was asked.
    struct Bmc(u8, Vec<Vec<u8>>);

    impl IpmiConnection for Bmc {
        type SendError = String;
        type RecvError = String;
        type Error = String;

        fn send(&mut self, _: &mut Request) -> Result<(), String> {
            Err("asked and answered in one".into())
        }

        fn recv(&mut self) -> Result<Response, String> {
            Err("asked and answered in one".into())
        }

        fn send_recv(&mut self, request: &mut Request) -> Result<Response, String> {
            let asked = [&[request.netfn_raw(), request.cmd()], request.data()].concat();
            self.1.push(asked);
            let answer = Message::new_raw(request.netfn_raw() | 1, request.cmd(), vec![self.0]);
            Response::new(answer, 0).ok_or_else(|| "no answer".into())
        }
    }

    #[test]
    fn an_nmi_is_asked_for_as_the_specification_has_it_and_once() {
        let mut ipmi = Ipmi::new(Bmc(0, Vec::new()));
        send_nmi(&mut ipmi).unwrap();
        assert_eq!(ipmi.release().1, [[0x00, 0x02, 0x04]], "network function chassis, Chassis Control, diagnostic");
    }

    #[test]
    fn a_refusal_has_a_name_and_is_not_asked_twice() {
        for (code, name) in [(0xc1, "InvalidCommand"), (0xcc, "InvalidDataField"), (0xd4, "InsufficientPrivilege")] {
            let mut ipmi = Ipmi::new(Bmc(code, Vec::new()));
            let said = send_nmi(&mut ipmi).unwrap_err().to_string();
            assert!(said.starts_with("the BMC refuses: ") && said.contains(name), "{said}");
            assert_eq!(ipmi.release().1.len(), 1);
        }
    }

    #[test]
    fn what_is_no_bmc_is_named() {
        let nothing = open(Path::new("/nonexistent/ipmi0"), Duration::ZERO).err().unwrap();
        assert!(format!("{nothing:#}").starts_with("open /nonexistent/ipmi0: "), "{nothing:#}");
    }
}
