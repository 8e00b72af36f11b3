//! Ways to a console's bytes, each as something to read from and something to write to.

use super::netconsole;
use super::telnet::{self, Telnet};
use crate::controller::metal::ipmi::Bmc;
use anyhow::Context as _;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

/// How long a terminal server may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a BMC may take to end a session that an earlier controller left open.
const DEACTIVATE: Duration = Duration::from_secs(30);

/// How long a break lasts; every UART knows it by then.
const BREAK: Duration = Duration::from_millis(300);

/// What is kept of what a program says of its own trouble.
const LAST_WORDS: usize = 4096;

/// Begins `ipmitool`'s own commands after a new line. Its default `~` is typed in shells; this, ASCII's record separator,
/// is not.
const SOL_ESCAPE: &str = "\u{1e}";
/// A new line, and its command for a break.
const SOL_BREAK: &[u8] = b"\r\x1eB";

/// A silent TCP connection is asked after this time whether its other end still lives.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A way, as configured.
pub enum Channel {
    /// Bytes as they are.
    Tcp(String),
    /// A terminal server.
    Telnet {
        /// Its address.
        address: String,
        /// The speed it is to set.
        baud: Option<u32>,
    },
    /// A program's standard input and output.
    Command(Vec<String>),
    /// A serial port.
    Device {
        /// Its path.
        path: PathBuf,
        /// Its speed.
        baud: u32,
    },
    /// The kernel's netconsole.
    Netconsole {
        /// Where datagrams arrive.
        listen: SocketAddr,
        /// Whose they are.
        from: IpAddr,
    },
    /// A BMC's serial over LAN.
    SerialOverLan(Bmc),
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::Telnet { address, .. } => write!(f, "telnet {address}"),
            Self::Command(words) => write!(f, "command {}", words.first().map_or("", String::as_str)),
            Self::Device { path, baud } => write!(f, "device {} at {baud}", path.display()),
            Self::Netconsole { listen, from } => write!(f, "netconsole of {from} at {listen}"),
            Self::SerialOverLan(bmc) => write!(f, "serial over LAN of {bmc:?}"),
        }
    }
}

/// A channel that is open.
pub struct Open {
    /// What the machine prints.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Whether telnet's own byte is doubled in what is typed.
    telnet: bool,
    interrupt: Interrupt,
    /// A program, and what it says of its own trouble.
    child: Option<(Child, JoinSet<Vec<u8>>)>,
}

/// How this channel sends a break, which Linux takes for the SysRq key.
enum Interrupt {
    /// It does not.
    Unknown(&'static str),
    /// By bytes behind which it lasts a while, and bytes that end it; neither is escaped.
    Bytes(&'static [u8], &'static [u8]),
    /// By the port.
    Port(serial2_tokio::SerialPort),
}

impl Open {
    fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        interrupt: Interrupt,
    ) -> Self {
        Self { reader: Box::new(reader), writer: Box::new(writer), telnet: false, interrupt, child: None }
    }

    /// Types.
    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.telnet { self.send(&telnet::escaped(bytes)).await } else { self.send(bytes).await }
    }

    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// Sends a break.
    pub async fn send_break(&mut self) -> std::io::Result<()> {
        match &self.interrupt {
            Interrupt::Unknown(why) => return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, *why)),
            Interrupt::Bytes(begin, end) => {
                let (begin, end) = (*begin, *end);
                self.send(begin).await?;
                tokio::time::sleep(BREAK).await;
                self.send(end).await?;
            }
            Interrupt::Port(port) => {
                port.set_break(true)?;
                tokio::time::sleep(BREAK).await;
                port.set_break(false)?;
            }
        }
        Ok(())
    }

    /// Why a channel ended that has nothing more to read.
    pub async fn last_words(&mut self) -> String {
        let Some((child, stderr)) = &mut self.child else { return String::new() };
        // It has closed its output, so it is about to end; whoever is not is told to.
        let ended = tokio::time::timeout(Duration::from_secs(2), async {
            let said = stderr.join_next().await;
            (said.and_then(Result::ok).unwrap_or_default(), child.wait().await)
        });
        match ended.await {
            Ok((said, status)) => {
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                format!("{status} {}", String::from_utf8_lossy(&said).trim()).trim().to_owned()
            }
            Err(_) => "it closed its output and went on".into(),
        }
    }
}

impl Channel {
    /// Opens it.
    pub async fn open(&self) -> anyhow::Result<Open> {
        match self {
            Self::Tcp(address) => {
                let (reader, writer) = connect(address).await?.into_split();
                Ok(Open::new(reader, writer, Interrupt::Unknown("a plain TCP connection has no break")))
            }
            Self::Telnet { address, baud } => {
                let (reader, mut writer) = connect(address).await?.into_split();
                telnet::greet(&mut writer, *baud).await.context("greet the terminal server")?;
                let interrupt = match baud {
                    Some(_) => Interrupt::Bytes(telnet::BREAK_ON, telnet::BREAK_OFF),
                    None => Interrupt::Bytes(telnet::BREAK, b""),
                };
                Ok(Open { telnet: true, ..Open::new(Telnet::new(reader), writer, interrupt) })
            }
            Self::Command(words) => {
                spawn(Command::new(&words[0]).args(&words[1..]), Interrupt::Unknown("a program's input has no break"))
            }
            Self::Device { path, baud } => {
                let port = serial2_tokio::SerialPort::open(path, *baud)
                    .with_context(|| format!("open {} at {baud}", path.display()))?;
                let interrupt = Interrupt::Port(port.try_clone()?);
                let (reader, writer) = tokio::io::split(port);
                Ok(Open::new(reader, writer, interrupt))
            }
            Self::Netconsole { listen, from } => {
                let reader = netconsole::open(*listen, *from).await?;
                Ok(Open::new(reader, tokio::io::sink(), Interrupt::Unknown("nobody hears what netconsole is told")))
            }
            Self::SerialOverLan(bmc) => {
                // A session that was cut stays open on the BMC, which has only one.
                let _ = tokio::time::timeout(DEACTIVATE, bmc.sol("deactivate").output()).await;
                spawn(bmc.sol("activate").args(["-e", SOL_ESCAPE]), Interrupt::Bytes(SOL_BREAK, b""))
            }
        }
    }
}

async fn connect(address: &str) -> anyhow::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
    let stream = stream.with_context(|| format!("{address} does not answer"))?;
    let stream = stream.with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

fn spawn(command: &mut Command, interrupt: Interrupt) -> anyhow::Result<Open> {
    let mut child = command
        // Kept open: a program like ipmitool ends when nobody can type.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {:?}", command.as_std().get_program()))?;
    let reader = child.stdout.take().context("its output is piped")?;
    let writer = child.stdin.take().context("its input is piped")?;
    let stderr = child.stderr.take().context("its errors are piped")?;
    let mut said = JoinSet::new();
    // All the time: a program that says much of its own trouble would stop at a full pipe, and the console with it.
    said.spawn(end_of(stderr));
    Ok(Open { child: Some((child, said)), ..Open::new(reader, writer, interrupt) })
}

/// Reads to the end and keeps the last of it.
async fn end_of(mut reader: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    while let Ok(1..) = reader.read_buf(&mut kept).await {
        kept.drain(..kept.len().saturating_sub(LAST_WORDS));
    }
    kept
}
