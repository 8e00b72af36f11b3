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
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};

/// How long a terminal server may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

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
    /// What is typed.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    child: Option<(Child, ChildStderr)>,
}

impl Open {
    fn new(reader: impl AsyncRead + Send + Unpin + 'static, writer: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { reader: Box::new(reader), writer: Box::new(writer), child: None }
    }

    /// Why a channel ended that has nothing more to read.
    pub async fn last_words(&mut self) -> String {
        let Some((child, stderr)) = &mut self.child else { return String::new() };
        let mut said = Vec::new();
        let mut limited = stderr.take(4096);
        // It has closed its output, so it is about to end; whoever is not is told to.
        let ended = tokio::time::timeout(Duration::from_secs(2), async {
            let _ = limited.read_to_end(&mut said).await;
            child.wait().await
        });
        let status = match ended.await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it closed its output and went on".into(),
        };
        let said = String::from_utf8_lossy(&said);
        format!("{status} {}", said.trim()).trim().to_owned()
    }
}

impl Channel {
    /// Opens it.
    pub async fn open(&self) -> anyhow::Result<Open> {
        match self {
            Self::Tcp(address) => {
                let (reader, writer) = connect(address).await?.into_split();
                Ok(Open::new(reader, writer))
            }
            Self::Telnet { address, baud } => {
                let (reader, mut writer) = connect(address).await?.into_split();
                telnet::greet(&mut writer, *baud).await.context("greet the terminal server")?;
                Ok(Open::new(Telnet::new(reader), telnet::Escaped::new(writer)))
            }
            Self::Command(words) => spawn(Command::new(&words[0]).args(&words[1..])),
            Self::Device { path, baud } => {
                let port = serial2_tokio::SerialPort::open(path, *baud)
                    .with_context(|| format!("open {} at {baud}", path.display()))?;
                let (reader, writer) = tokio::io::split(port);
                Ok(Open::new(reader, writer))
            }
            Self::Netconsole { listen, from } => {
                Ok(Open::new(netconsole::open(*listen, *from).await?, tokio::io::sink()))
            }
            Self::SerialOverLan(bmc) => {
                // A session that was cut stays open on the BMC, which has only one.
                let _ = bmc.sol("deactivate").output().await;
                spawn(&mut bmc.sol("activate"))
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

fn spawn(command: &mut Command) -> anyhow::Result<Open> {
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
    Ok(Open { reader: Box::new(reader), writer: Box::new(writer), child: Some((child, stderr)) })
}
