//! Connections to the server over a serial line, for kernels that have no driver for any network card of the machine.
//!
//! The guest's end takes connections as the server would and puts them on the line; the other end makes each of them to
//! the server itself. Frames are SLIP's (RFC 1055): whatever a dying kernel left of one is over with the next. A frame is
//! the number of a connection and bytes of it; without bytes it ends the connection, and number 0 ends all of them.

use anyhow::Context as _;
use std::collections::HashMap;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const END: u8 = 0xc0;
const ESCAPE: u8 = 0xdb;
const ESCAPED_END: u8 = 0xdc;
const ESCAPED_ESCAPE: u8 = 0xdd;

/// Most bytes of a connection in one frame. Small: a frame that is under way keeps all other connections waiting.
const PIECE: usize = 1024;
/// Longest frame that is taken; more is the rubbish of a line that was never meant for this.
const LONGEST: usize = 1 + 2 * PIECE;
/// Pieces that may wait for a connection or for the line.
const WAITING: usize = 16;

/// Which end of the line this is.
pub enum End {
    /// In the guest: takes connections.
    Guest(TcpListener),
    /// Outside: makes them, to this address.
    Outside(String),
}

/// The guest's end of the line at `device`: whoever connects to `listen` is connected to the server.
pub async fn of_guest(device: &str, listen: &str) -> anyhow::Result<()> {
    let line = serial2_tokio::SerialPort::open(device, 115_200).with_context(|| format!("open {device}"))?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    Ok(join(line, End::Guest(listener)).await?)
}

/// Joins connections over a line until the line ends.
pub async fn join(line: impl AsyncRead + AsyncWrite + Send + 'static, end: End) -> io::Result<()> {
    let (mut from_line, mut to_line) = tokio::io::split(line);
    let (frames_in, mut frames) = mpsc::channel::<Vec<u8>>(WAITING);
    tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if to_line.write_all(&frame).await.is_err() || to_line.flush().await.is_err() {
                return;
            }
        }
    });
    if matches!(end, End::Guest(_)) {
        // Connections of the kernel before this one are over.
        let _ = frames_in.send(encode(0, &[])).await;
    }
    let mut open: HashMap<u8, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let (mut decoder, mut bytes, mut newest) = (Decoder::default(), vec![0; PIECE], 0u8);
    loop {
        let read = tokio::select! {
            read = from_line.read(&mut bytes) => read?,
            connection = accept(&end) => {
                newest = (1..=255).map(|step| newest.wrapping_add(step)).find(|id| *id != 0 && !open.contains_key(id)).unwrap_or(1);
                open.insert(newest, carry(newest, connection?, frames_in.clone()));
                continue;
            }
        };
        if read == 0 {
            return Ok(());
        }
        for (id, piece) in decoder.feed(&bytes[..read]) {
            if id == 0 {
                open.clear();
            } else if piece.is_empty() {
                open.remove(&id);
            } else if let Some(connection) = open.get(&id) {
                // A connection that ended meanwhile takes no more; its end is on its way.
                let _ = connection.send(piece).await;
            } else if let End::Outside(server) = &end {
                match TcpStream::connect(server).await {
                    Ok(stream) => {
                        let connection = carry(id, stream, frames_in.clone());
                        let _ = connection.send(piece).await;
                        open.insert(id, connection);
                    }
                    // The guest sees a closed connection and tries again, as it would with any network.
                    Err(error) => {
                        eprintln!("the server at {server} cannot be reached: {error}");
                        let _ = frames_in.send(encode(id, &[])).await;
                    }
                }
            }
        }
    }
}

async fn accept(end: &End) -> io::Result<TcpStream> {
    match end {
        End::Guest(listener) => Ok(listener.accept().await?.0),
        End::Outside(_) => std::future::pending().await,
    }
}

/// Carries one connection; what is sent to the result goes to it. It ends when that is dropped.
fn carry(id: u8, stream: TcpStream, frames: mpsc::Sender<Vec<u8>>) -> mpsc::Sender<Vec<u8>> {
    let _ = stream.set_nodelay(true);
    let (mut from, mut to) = stream.into_split();
    let (pieces_in, mut pieces) = mpsc::channel::<Vec<u8>>(WAITING);
    tokio::spawn(async move {
        let mut bytes = vec![0; PIECE];
        loop {
            // An error is an end like any other.
            let read = from.read(&mut bytes).await.unwrap_or(0);
            if frames.send(encode(id, &bytes[..read])).await.is_err() || read == 0 {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(piece) = pieces.recv().await {
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
    pieces_in
}

fn encode(id: u8, bytes: &[u8]) -> Vec<u8> {
    // One more at the beginning ends whatever is on the line.
    let mut frame = vec![END];
    for byte in std::iter::once(&id).chain(bytes) {
        match *byte {
            END => frame.extend([ESCAPE, ESCAPED_END]),
            ESCAPE => frame.extend([ESCAPE, ESCAPED_ESCAPE]),
            byte => frame.push(byte),
        }
    }
    frame.push(END);
    frame
}

#[derive(Default)]
struct Decoder {
    frame: Vec<u8>,
    escape: bool,
}

impl Decoder {
    /// The frames that are complete with these bytes.
    fn feed(&mut self, bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut frames = Vec::new();
        for byte in bytes {
            let byte = match (std::mem::take(&mut self.escape), *byte) {
                (_, END) => {
                    let mut frame = std::mem::take(&mut self.frame).into_iter();
                    if let Some(id) = frame.next() {
                        frames.push((id, frame.collect()));
                    }
                    continue;
                }
                (false, ESCAPE) => {
                    self.escape = true;
                    continue;
                }
                (true, ESCAPED_END) => END,
                (true, ESCAPED_ESCAPE) => ESCAPE,
                (_, byte) => byte,
            };
            if self.frame.len() < LONGEST {
                self.frame.push(byte);
            }
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            frames in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
            cut in 1usize..20,
        ) {
            let line: Vec<u8> = frames.iter().flat_map(|(id, bytes)| encode(*id, bytes)).collect();
            let mut decoder = Decoder::default();
            let decoded: Vec<_> = line.chunks(cut).flat_map(|piece| decoder.feed(piece)).collect();
            prop_assert_eq!(decoded, frames);
        }
    }

    #[test]
    fn what_a_dying_kernel_left_is_over_with_the_next_frame() {
        let mut decoder = Decoder::default();
        let whole = encode(7, b"hello");
        let left = decoder.feed(&whole[..4]);
        assert!(left.is_empty());
        assert_eq!(decoder.feed(&encode(0, b"")).last(), Some(&(0, Vec::new())));
        let rubbish = vec![b'x'; 1 << 20];
        decoder.feed(&rubbish);
        assert!(decoder.frame.len() <= LONGEST);
    }

    /// A line with a server behind it that answers every byte with the same byte, until the client is through.
    async fn line() -> std::net::SocketAddr {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = guest.local_addr().unwrap();
        let (inside, outside) = tokio::io::duplex(64);
        tokio::spawn(join(inside, End::Guest(guest)));
        tokio::spawn(join(outside, End::Outside(address)));
        door
    }

    #[tokio::test]
    async fn connections_over_a_line_do_not_mix_and_end_at_both_ends() {
        let door = line().await;
        let clients = (0..20u8).map(|client| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(door).await.unwrap();
                let sent: Vec<u8> = (0..5000u32).map(|at| (at as u8).wrapping_mul(client) ^ END).collect();
                let (mut from, mut to) = stream.split();
                let mut got = Vec::new();
                let sending = async {
                    to.write_all(&sent).await.unwrap();
                    to.shutdown().await.unwrap();
                };
                let (_, read) = tokio::join!(sending, from.read_to_end(&mut got));
                read.unwrap();
                assert!(got == sent, "client {client}");
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_a_closed_connection() {
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = guest.local_addr().unwrap();
        let (inside, outside) = tokio::io::duplex(64);
        tokio::spawn(join(inside, End::Guest(guest)));
        // A port that was free a moment ago.
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        tokio::spawn(join(outside, End::Outside(nobody)));
        let mut stream = TcpStream::connect(door).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);
    }
}
