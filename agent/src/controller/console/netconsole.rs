//! Datagrams of the kernel's netconsole, as the lines they carry.
//!
//! Plain netconsole sends the text alone. Extended netconsole (`netconsole=+…`) puts `level,sequence,time,flags;` before
//! it, as `/dev/kmsg` does, and cuts long records into pieces with `ncfrag=offset/length` among the flags
//! (Documentation/networking/netconsole.rst). Records are given back as a serial console prints them, `[seconds] text`;
//! numbers that are missing in the sequence are said, because that is what a datagram's loss looks like.

use super::recorder::GAP;
use anyhow::Context as _;
use bytes::BytesMut;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UdpSocket;

/// Largest datagram; the kernel's own are below 1,000 bytes.
const DATAGRAM: usize = 65_536;

/// Longest record that is put together from pieces.
const RECORD: usize = 16_384;

/// Listens for the datagrams of one machine.
pub async fn open(listen: SocketAddr, from: IpAddr) -> anyhow::Result<Netconsole> {
    let socket = UdpSocket::bind(listen).await.with_context(|| format!("listen for datagrams at {listen}"))?;
    Ok(Netconsole { socket, from, lines: Lines::default(), datagram: vec![0; DATAGRAM], ready: BytesMut::new() })
}

/// The lines of one machine.
pub struct Netconsole {
    socket: UdpSocket,
    from: IpAddr,
    lines: Lines,
    datagram: Vec<u8>,
    /// Text that nobody has read yet; never more than one record and what is said before it.
    ready: BytesMut,
}

impl AsyncRead for Netconsole {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        while this.ready.is_empty() {
            let mut buffer = ReadBuf::new(&mut this.datagram);
            let sender = ready!(this.socket.poll_recv_from(cx, &mut buffer))?;
            if sender.ip() == this.from {
                this.ready.extend_from_slice(&this.lines.read(buffer.filled()));
            }
        }
        let size = this.ready.len().min(out.remaining());
        out.put_slice(&this.ready.split_to(size));
        Poll::Ready(Ok(()))
    }
}

/// Puts records together.
#[derive(Default)]
struct Lines {
    next: Option<u64>,
    /// The record that is being put together: its number, and what is there.
    part: Option<(u64, Vec<u8>)>,
}

struct Head {
    sequence: u64,
    micros: u64,
    /// Offset and length of the whole, of a piece.
    piece: Option<(usize, usize)>,
}

fn head(text: &[u8]) -> Option<(Head, &[u8])> {
    let end = text.iter().position(|byte| *byte == b';').filter(|end| *end < 200)?;
    let mut fields = std::str::from_utf8(&text[..end]).ok()?.split(',');
    let _level: u64 = fields.next()?.parse().ok()?;
    let sequence = fields.next()?.parse().ok()?;
    let micros = fields.next()?.parse().ok()?;
    let piece = fields.find_map(|field| field.strip_prefix("ncfrag=")).and_then(|piece| {
        let (offset, length) = piece.split_once('/')?;
        Some((offset.parse().ok()?, length.parse().ok()?))
    });
    Some((Head { sequence, micros, piece }, &text[end + 1..]))
}

impl Lines {
    fn read(&mut self, datagram: &[u8]) -> Vec<u8> {
        let Some((head, text)) = head(datagram) else { return datagram.to_vec() };
        let mut out = String::new();
        let known = self.part.as_ref().is_some_and(|(sequence, _)| *sequence == head.sequence);
        if !known {
            self.count(head.sequence, &mut out);
        }
        let whole = match head.piece {
            None => Some(text.to_vec()),
            Some((offset, length)) => self.piece(head.sequence, offset, length.min(RECORD), text),
        };
        let Some(whole) = whole else { return out.into_bytes() };
        // Behind the text come the record's properties, each on a line that begins with a space.
        let text = whole.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let _ = write!(out, "[{:5}.{:06}] ", head.micros / 1_000_000, head.micros % 1_000_000);
        let mut out = out.into_bytes();
        out.extend_from_slice(text);
        out.push(b'\n');
        out
    }

    /// Says what is missing before this number.
    fn count(&mut self, sequence: u64, out: &mut String) {
        if let Some(next) = self.next.filter(|next| *next < sequence) {
            let _ = writeln!(out, "{GAP}: {} records were lost on the way]", sequence - next);
        }
        self.next = Some(sequence.saturating_add(1));
        self.part = None;
    }

    /// Adds a piece; the record if it is whole. Pieces come in order or are lost.
    fn piece(&mut self, sequence: u64, offset: usize, length: usize, text: &[u8]) -> Option<Vec<u8>> {
        let (_, part) = self.part.get_or_insert_with(|| (sequence, Vec::new()));
        if part.len() < offset.min(RECORD) {
            part.resize(offset.min(RECORD), b'?');
        }
        if part.len() <= offset && offset.saturating_add(text.len()) <= RECORD {
            part.extend_from_slice(text);
        }
        if part.len() < length {
            return None;
        }
        self.part.take().map(|(_, whole)| whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(datagrams: &[&str]) -> String {
        let mut lines = Lines::default();
        datagrams.iter().map(|one| String::from_utf8(lines.read(one.as_bytes())).unwrap()).collect()
    }

    #[test]
    fn records_are_shown_as_a_serial_console_prints_them() {
        let text = read(&["6,444,501381541,-;netpoll: setup\n SUBSYSTEM=net\n", "plain text\n"]);
        assert_eq!(text, "[  501.381541] netpoll: setup\nplain text\n");
    }

    #[test]
    fn pieces_are_put_together_and_what_is_lost_is_said() {
        let text = read(&[
            "6,10,1000000,-,ncfrag=0/33;Kernel panic - not",
            "6,10,1000000,-,ncfrag=18/33; syncing: sysrq",
            "6,13,2000000,-;end",
        ]);
        assert!(text.starts_with("[    1.000000] Kernel panic - not syncing: sysrq\n"), "{text}");
        assert!(text.contains(&format!("{GAP}: 2 records were lost on the way]\n[    2.000000] end")), "{text}");
        let lost = read(&["6,10,0,-,ncfrag=10/15;later"]);
        assert_eq!(lost, "[    0.000000] ??????????later\n", "a lost piece leaves its place");
    }

    #[test]
    fn a_hostile_datagram_takes_no_memory() {
        let text =
            read(&["6,1,0,-,ncfrag=99999999999/99999999999;x", "6,2,0,-,ncfrag=18446744073709551615/1;x", ";;;"]);
        assert!(text.len() < 3 * RECORD, "{}", text.len());
    }

    #[tokio::test]
    async fn only_the_machines_own_datagrams_count() {
        use tokio::io::AsyncReadExt as _;
        let own = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let other = UdpSocket::bind("127.0.0.2:0").await.unwrap();
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen: SocketAddr = ([127, 0, 0, 1], port).into();
        let mut reader = open(listen, "127.0.0.1".parse().unwrap()).await.unwrap();
        other.send_to(b"forged\n", listen).await.unwrap();
        own.send_to(b"6,1,5,-;true\n", listen).await.unwrap();
        let mut line = [0; 20];
        reader.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"[    0.000005] true\n");
    }
}
