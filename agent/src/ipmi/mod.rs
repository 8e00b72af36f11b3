//! What IPMI needs beside its library, whatever way a BMC is reached: over LAN by the controller, in band by the target agent.

pub mod chassis;
pub mod in_band;
pub mod sel;

/// A command: its name, the request, the type of the answer, and what makes one of the answer's data.
macro_rules! command {
    ($name:ident, $self:ident, $netfn:ident, $number:expr, $data:expr, $output:ty, $parse:expr) => {
        impl From<$name> for Message {
            fn from($self: $name) -> Self {
                Message::new_request(NetFn::$netfn, $number, $data)
            }
        }
        impl IpmiCommand for $name {
            type Output = $output;
            type Error = NotEnoughData;
            fn parse_success_response(data: &[u8]) -> Result<$output, NotEnoughData> {
                $parse(data).ok_or(NotEnoughData)
            }
        }
    };
}
pub(crate) use command;
