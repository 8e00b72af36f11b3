//! The telnet protocol, as far as a terminal server needs it: its commands are taken out of the bytes, its offers are
//! refused but for transparent ones, and RFC 2217 sets the port's speed.
//!
//! Hostile input is harmless: a command may be cut anywhere, and what stands in a subnegotiation is skipped, never kept.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

// RFC 854.
const IAC: u8 = 255;
const DO: u8 = 253;
const WILL: u8 = 251;
const SB: u8 = 250;
const SE: u8 = 240;

// RFC 856, RFC 858, RFC 2217.
const BINARY: u8 = 0;
const SUPPRESS_GO_AHEAD: u8 = 3;
const COM_PORT: u8 = 44;
const SET_BAUDRATE: u8 = 1;
const SET_CONTROL: u8 = 5;

/// A break, of whatever length the terminal server has for it (RFC 854).
pub const BREAK: &[u8] = &[IAC, 243];
/// A break begins (RFC 2217).
pub const BREAK_ON: &[u8] = &[IAC, SB, COM_PORT, SET_CONTROL, 5, IAC, SE];
/// It ends.
pub const BREAK_OFF: &[u8] = &[IAC, SB, COM_PORT, SET_CONTROL, 6, IAC, SE];

/// Says what this side wants. All that may be asked later is taken as refused: nothing else is needed to read a console.
pub async fn greet(writer: &mut (impl AsyncWrite + Unpin), baud: Option<u32>) -> std::io::Result<()> {
    let mut hello = vec![IAC, DO, BINARY, IAC, WILL, BINARY, IAC, DO, SUPPRESS_GO_AHEAD];
    if let Some(baud) = baud {
        hello.extend([IAC, WILL, COM_PORT, IAC, SB, COM_PORT, SET_BAUDRATE]);
        hello.extend(escaped(&baud.to_be_bytes()));
        hello.extend([IAC, SE]);
    }
    writer.write_all(&hello).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Data,
    /// After IAC.
    Command,
    /// After IAC and one of WILL, WONT, DO, DONT.
    Option,
    /// Inside a subnegotiation.
    Inside,
    /// After IAC inside a subnegotiation.
    InsideCommand,
}

/// The bytes of a console, without what telnet adds.
pub struct Telnet<R> {
    reader: R,
    state: State,
}

impl<R> Telnet<R> {
    /// Of a connection.
    pub fn new(reader: R) -> Self {
        Self { reader, state: State::Data }
    }
}

/// Takes telnet's commands out of `bytes`, in place; how many bytes are left.
fn strip(state: &mut State, bytes: &mut [u8]) -> usize {
    let mut kept = 0;
    for at in 0..bytes.len() {
        let byte = bytes[at];
        *state = match (*state, byte) {
            (State::Data, IAC) => State::Command,
            (State::Data, _) => {
                bytes[kept] = byte;
                kept += 1;
                State::Data
            }
            (State::Command, IAC) => {
                bytes[kept] = IAC;
                kept += 1;
                State::Data
            }
            (State::Command, SB) => State::Inside,
            (State::Command, 251..=254) => State::Option,
            (State::Command | State::Option, _) | (State::InsideCommand, SE) => State::Data,
            (State::Inside, IAC) => State::InsideCommand,
            (State::Inside | State::InsideCommand, _) => State::Inside,
        };
    }
    kept
}

impl<R: AsyncRead + Unpin> AsyncRead for Telnet<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        loop {
            let before = out.filled().len();
            ready!(Pin::new(&mut self.reader).poll_read(cx, out))?;
            let read = out.filled().len() - before;
            let state = &mut self.state;
            let kept = strip(state, &mut out.filled_mut()[before..]);
            out.set_filled(before + kept);
            // Nothing left is not the end, unless nothing came.
            if kept > 0 || read == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// What is typed, with telnet's own byte doubled.
pub fn escaped(bytes: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(bytes.len());
    for byte in bytes {
        escaped.push(*byte);
        if *byte == IAC {
            escaped.push(IAC);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stripped(pieces: &[&[u8]]) -> Vec<u8> {
        let mut state = State::Data;
        let mut all = Vec::new();
        for piece in pieces {
            let mut bytes = piece.to_vec();
            let kept = strip(&mut state, &mut bytes);
            all.extend_from_slice(&bytes[..kept]);
        }
        all
    }

    #[test]
    fn commands_are_taken_out_wherever_they_are_cut() {
        let bytes =
            [b'a', IAC, WILL, 1, b'b', IAC, IAC, IAC, SB, COM_PORT, 101, IAC, IAC, IAC, SE, b'c', IAC, 241, b'd'];
        for cut in 0..bytes.len() {
            let (left, right) = bytes.split_at(cut);
            assert_eq!(stripped(&[left, right]), [b'a', b'b', IAC, b'c', b'd'], "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_subnegotiation_keeps_nothing() {
        let mut state = State::Data;
        assert_eq!(strip(&mut state, &mut [IAC, SB, 44]), 0);
        for _ in 0..100 {
            assert_eq!(strip(&mut state, &mut [7; 1000]), 0);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same(bytes: Vec<u8>, cuts: Vec<prop::sample::Index>) {
            let whole = stripped(&[&bytes]);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(stripped(&pieces), whole);
        }
    }

    #[tokio::test]
    async fn what_is_typed_arrives_with_telnets_own_byte_doubled() {
        assert_eq!(escaped(&[1, IAC, 2, IAC, IAC]), [1, IAC, IAC, 2, IAC, IAC, IAC, IAC]);
        let mut hello = Vec::new();
        greet(&mut hello, Some(0x00ff_0001)).await.unwrap();
        assert!(hello.ends_with(&[IAC, SB, COM_PORT, SET_BAUDRATE, 0, IAC, IAC, 0, 1, IAC, SE]), "{hello:?}");
    }
}
