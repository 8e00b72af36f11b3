//! A BMC's event log (SEL; IPMI 2.0, section 31), entry by entry over whatever reaches the BMC.
//!
//! Each entry is a line: its number, its time by the BMC's clock, words for what has a name in tables 42-2 and 42-3, and all
//! of its bytes, since vendors have their own. The library has these commands, too, but takes no log with a record of a kind
//! that it does not know, so the commands are our own and the tables are its.
//!
//! No entry is taken that is not the one that was asked for: a late answer looks like any other. What the log says of its own
//! length is not believed either; it has as many entries as can be followed from one to the next, without a circle, in
//! bounded number and time. Nothing is ever reserved, cleared or added: the specification asks for a reservation where an
//! entry is read in parts, or deleted (section 31.4).

use super::command;
use anyhow::{bail, ensure};
use ipmi_rs::connection::{CompletionErrorCode, IpmiCommand, IpmiConnection, Message, NetFn, NotEnoughData};
use ipmi_rs::storage::sdr::{SensorType, decode_event};
use ipmi_rs::{Ipmi, IpmiError};
use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

/// Entries that are read at most; BMCs have room for some thousands.
pub const ENTRIES: usize = 8192;

/// How long reading may take. It is read before a machine is powered on, and before it is powered off.
const PATIENCE: Duration = Duration::from_secs(60);

/// The number of entries and the last of them, by two questions: in band, a BMC may take long for each. The last one is not
/// known by its number, so this is for transports that tell a late answer from another.
pub fn last<C: IpmiConnection>(ipmi: &mut Ipmi<C>) -> anyhow::Result<(u16, Option<String>)> {
    let log = info(ipmi)?;
    if log.entries == 0 {
        return Ok((0, None));
    }
    let last = ipmi.send_recv(GetSelEntry(LAST)).map_err(|error| anyhow::anyhow!("the last entry: {error:?}"))?;
    Ok((log.entries, Some(last.record.to_string())))
}

fn info<C: IpmiConnection>(ipmi: &mut Ipmi<C>) -> anyhow::Result<Info> {
    ipmi.send_recv(GetSelInfo).map_err(|error| anyhow::anyhow!("the log's size: {error:?}"))
}

/// Asks for the first entry, whatever its number.
const FIRST: u16 = 0;

/// Asks for the last entry, whatever its number; and is named as the entry behind that.
const LAST: u16 = 0xffff;

/// How far a log was read, from its beginning. Goes on in another session where one broke off.
pub struct Reading {
    began: Instant,
    /// The entry to be read next.
    next: u16,
    seen: HashSet<u16>,
    lines: Vec<String>,
}

impl Reading {
    /// Of a log, from now on.
    pub fn begin() -> Self {
        Self { began: Instant::now(), next: FIRST, seen: HashSet::new(), lines: Vec::new() }
    }

    /// What was read so far: entries, oldest first.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Reads to the end of the log.
    pub fn read<C: IpmiConnection>(&mut self, ipmi: &mut Ipmi<C>) -> anyhow::Result<()> {
        let log = info(ipmi)?;
        while log.entries > 0 && self.next != LAST {
            ensure!(self.lines.len() < ENTRIES, "it has more than {ENTRIES} entries: clear it (ipmitool sel clear)");
            ensure!(self.began.elapsed() < PATIENCE, "no more than {} entries came in time", self.lines.len());
            let Found { next, record } = match ipmi.send_recv(GetSelEntry(self.next)) {
                Ok(found) => found,
                Err(IpmiError::Failed {
                    completion_code: CompletionErrorCode::RequestedDatapointNotPresent, ..
                }) => {
                    let gone = self.next;
                    *self = Self { began: self.began, ..Self::begin() };
                    bail!("entry {gone:#06x} was deleted while the log was read");
                }
                Err(error) => bail!("entry {:#06x}: {error:?}", self.next),
            };
            let id = record.id();
            ensure!(self.next == FIRST || id == self.next, "entry {id:#06x} came for {:#06x}", self.next);
            ensure!(self.seen.insert(id) && !self.seen.contains(&next), "behind entry {id:#06x} it goes in a circle");
            self.lines.push(record.to_string());
            self.next = next;
        }
        if log.overflow {
            self.lines.push("later events are missing: the log was full (overflow flag)".into());
        }
        Ok(())
    }
}

/// Get SEL Info, section 31.2.
struct GetSelInfo;

/// What it says, as far as it is of use here.
struct Info {
    entries: u16,
    overflow: bool,
}

/// Get SEL Entry, section 31.5: all of one.
struct GetSelEntry(u16);

struct Found {
    next: u16,
    record: Record,
}

command!(GetSelInfo, _this, Storage, 0x40, vec![], Info, |data: &[u8]| Some(Info {
    entries: u16::from_le_bytes([*data.get(1)?, *data.get(2)?]),
    overflow: data.get(13)? & 0x80 != 0,
}));
command!(
    GetSelEntry,
    this,
    Storage,
    0x43,
    [[0, 0], this.0.to_le_bytes(), [0, 0xff]].concat(),
    Found,
    |data: &[u8]| {
        let (next, record) = data.split_first_chunk()?;
        Some(Found { next: u16::from_le_bytes(*next), record: Record(*record.first_chunk()?) })
    }
);

/// A SEL record, section 32.
struct Record([u8; 16]);

impl Record {
    fn id(&self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }

    /// The BMC's clock, whose zone nobody knows (section 37).
    fn time(&self) -> String {
        match u32::from_le_bytes([self.0[3], self.0[4], self.0[5], self.0[6]]) {
            u32::MAX => "no time".into(),
            // Before the clock was set.
            seconds @ 0..=0x2000_0000 => format!("{seconds} s after the BMC began"),
            seconds => {
                let began = jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0);
                began.saturating_add(jiff::SignedDuration::from_secs(seconds.into())).to_string()
            }
        }
    }
}

/// The event that a system event record tells.
struct Event<'a>(&'a [u8; 16]);

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [.., sensor, number, kind, what, _, _] = *self.0;
        let sensor = SensorType::from(sensor);
        write!(f, "{sensor} {number:#04x} | ")?;
        let known = fmt::from_fn(|f| decode_event(f, kind & 0x7f, sensor, what & 0xf)).to_string();
        if known.is_empty() {
            write!(f, "event {:#04x} of type {:#04x}", what & 0xf, kind & 0x7f)?;
        } else {
            f.write_str(&known)?;
        }
        f.write_str(if kind & 0x80 == 0 { " | asserted" } else { " | deasserted" })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} | ", self.id())?;
        match self.0[2] {
            0x02 => write!(f, "{} | {}", self.time(), Event(&self.0))?,
            kind @ 0xc0..=0xdf => {
                let maker = u32::from_le_bytes([self.0[7], self.0[8], self.0[9], 0]);
                write!(f, "{} | record {kind:#04x} of manufacturer {maker}", self.time())?;
            }
            kind => write!(f, "record {kind:#04x}")?,
        }
        f.write_str(" |")?;
        self.0.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipmi_rs::connection::{Request, Response};
    use proptest::prelude::*;

    /// A BMC that answers as it is told: to Get SEL Info that there are 3 entries, to Get SEL Entry what this makes of the number.
    struct Bmc<F>(F, Option<Response>);

    impl<F: FnMut(u16) -> Vec<u8>> IpmiConnection for Bmc<F> {
        type SendError = String;
        type RecvError = String;
        type Error = String;

        fn send(&mut self, request: &mut Request) -> Result<(), String> {
            let mut data = vec![0];
            match request.cmd() {
                0x40 => data.extend([0x51, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                _ => data.extend((self.0)(u16::from_le_bytes([request.data()[2], request.data()[3]]))),
            }
            self.1 = Response::new(Message::new_raw(0x0b, request.cmd(), data), 0);
            Ok(())
        }
        fn recv(&mut self) -> Result<Response, String> {
            self.1.take().ok_or_else(|| "nothing was asked".into())
        }
        fn send_recv(&mut self, request: &mut Request) -> Result<Response, String> {
            self.send(request)?;
            self.recv()
        }
    }

    fn read(entry: impl FnMut(u16) -> Vec<u8>) -> (Reading, anyhow::Result<()>) {
        let mut reading = Reading::begin();
        let read = reading.read(&mut Ipmi::new(Bmc(entry, None)));
        (reading, read)
    }

    fn found(next: u16, id: u16) -> Vec<u8> {
        [&next.to_le_bytes()[..], &id.to_le_bytes(), &[0xe0; 14]].concat()
    }

    #[test]
    fn a_log_without_an_end_is_not_read_for_ever() {
        let (endless, error) = read(|asked| found(asked + 2, asked.max(1)));
        assert!(error.unwrap_err().to_string().contains("more than 8192 entries"));
        assert_eq!(endless.lines().len(), ENTRIES);
        for circle in [1, 2] {
            let (reading, error) = read(|asked| found(if asked < 3 { asked.max(1) + 1 } else { circle }, asked.max(1)));
            assert!(error.unwrap_err().to_string().contains("in a circle"), "{circle}");
            assert!(reading.lines().len() < 4, "{circle}");
        }
        assert!(read(|_| found(5, 5)).1.unwrap_err().to_string().contains("in a circle"));
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let mut asked_before = 0;
        let (reading, error) = read(|asked| {
            let late = std::mem::replace(&mut asked_before, asked.max(1));
            found(late.max(1) + 1, late.max(1))
        });
        assert_eq!(error.unwrap_err().to_string(), "entry 0x0001 came for 0x0002");
        assert_eq!(reading.lines().len(), 1);
    }

    #[test]
    fn a_time_is_told_as_the_bmcs_clock_has_it() {
        let told = |seconds: u32| {
            let [a, b, c, d] = seconds.to_le_bytes();
            Record([1, 0, 2, a, b, c, d, 0x20, 0, 4, 7, 1, 0x6f, 0xab, 0, 0]).to_string()
        };
        let event = "Processor 0x01 | Machine Check Exception (Uncorrectable) | asserted";
        let begins =
            |line: String, time: &str| assert!(line.starts_with(&format!("1 | {time} | {event} | 01 00")), "{line}");
        begins(told(1_700_000_000), "2023-11-14T22:13:20");
        begins(told(42), "42 s after the BMC began");
        begins(told(u32::MAX), "no time");
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(answer: Vec<u8>, id: u16, bytes: [u8; 14]) {
            let _ = read(|_| answer.clone());
            let record = Record([&id.to_le_bytes()[..], &bytes].concat().try_into().unwrap());
            prop_assert!(record.to_string().is_ascii(), "{record}");
        }
    }
}
