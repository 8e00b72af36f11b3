//! The process between the controller and Bochs.
//!
//! Bochs itself cannot be asked anything, dies when its console goes away, and is gone when its machine is. The keeper
//! gives it what QEMU has by itself: a control socket that any later controller may connect to, a console that is
//! recorded from the first byte whether anybody watches or not, and a machine that has ended but is still there to
//! say how. It lives until it is told to end.
//!
//! The control socket speaks lines. The keeper says `running` or `ended HOW`, at once and at each change; it is told
//! `off`, upon which it ends Bochs, says so, and ends itself.

use super::launch::names;
use super::log;
use super::namespace::{self, Doors, Ended, Killer};
use crate::line;
use anyhow::Context as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

/// How long the last bytes of a console may take once Bochs is gone.
const CONSOLE_END: Duration = Duration::from_secs(2);

/// How a machine ended; `None` while it runs.
type State = Option<String>;

/// Keeps one Bochs in the current directory until it is told to end. `server` is where the guest's server really is.
pub async fn run(program: &str, server: &str) -> anyhow::Result<()> {
    std::fs::write(names::PID, std::process::id().to_string())?;
    let control = std::os::unix::net::UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    // From here on there is one descriptor of it, so that closing that one closes it.
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    control.set_nonblocking(true)?;
    let control = UnixListener::from_std(control)?;
    namespace::allow()?;
    let (doors, inside) = namespace::make(program)?;
    let Doors { console, line, server: door } = doors;
    let console = record(TcpListener::from_std(console)?)?;
    tokio::spawn(relay(TcpListener::from_std(door)?, server.to_owned()));
    tokio::spawn(carry(TcpListener::from_std(line)?, server.to_owned()));
    let (state_in, state) = watch::channel(None);
    let (killer, ended) = inside.go();
    tokio::spawn(async move {
        let how = describe(ended.await, console).await;
        state_in.send_replace(Some(how));
        // Kept open: what was said last stays readable.
        state_in.closed().await;
    });
    let (over_in, mut over) = mpsc::channel(1);
    let last = loop {
        let connection = tokio::select! {
            connection = control.accept() => connection.context("the control socket")?.0,
            Some(last) = over.recv() => break last,
        };
        let (state, killer, over_in) = (state.clone(), killer.clone(), over_in.clone());
        tokio::spawn(async move {
            // A controller that goes away in mid-sentence is what the keeper is for.
            if let Ok(Some(connection)) = serve(connection, state, &killer).await {
                let _ = over_in.send(connection).await;
            }
        });
    };
    // In this order, and not left to the end of the process, where the kernel has its own: whoever sees the last
    // connection end finds no keeper any more.
    drop(control);
    drop(last);
    std::process::exit(0)
}

/// How the machine ended, in one line. The console is complete when this is known.
async fn describe(
    exit: Result<anyhow::Result<Ended>, impl std::error::Error>,
    console: tokio::task::JoinHandle<()>,
) -> String {
    let ended = match exit {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => return format!("Bochs did not run: {error:#}"),
        Err(error) => return format!("Bochs was lost sight of: {error}"),
    };
    // Unless nobody ever connected: then there is no end to wait for.
    let _ = tokio::time::timeout(CONSOLE_END, console).await;
    let log = std::fs::read(names::EMULATOR).unwrap_or_default();
    let how = log::ending(&String::from_utf8_lossy(&log)).unwrap_or_else(|| {
        let output = std::fs::read(names::OUTPUT).unwrap_or_default();
        let said = crate::guest::tail(String::from_utf8_lossy(&output).trim(), 300).replace('\n', " | ");
        format!("Bochs ended with {}: {said}", ended.status)
    });
    format!("{how} ({:.1} s of CPU)", ended.cpu_seconds)
}

/// Serves one connection; returns it if the keeper was told to end, and has nothing left to say.
async fn serve(
    connection: UnixStream,
    mut state: watch::Receiver<State>,
    killer: &Killer,
) -> anyhow::Result<Option<OwnedWriteHalf>> {
    let (read, mut write) = connection.into_split();
    let mut commands = BufReader::new(read).lines();
    let mut told_to_end = false;
    loop {
        let now = state.borrow_and_update().clone();
        let line = now.as_ref().map_or_else(|| "running\n".to_owned(), |how| format!("ended {how}\n"));
        write.write_all(line.as_bytes()).await?;
        if told_to_end && now.is_some() {
            return Ok(Some(write));
        }
        tokio::select! {
            changed = state.changed() => changed.context("the machine's end got lost")?,
            command = commands.next_line(), if !told_to_end => match command?.as_deref() {
                Some("off") => {
                    told_to_end = true;
                    killer.kill()?;
                }
                Some(other) => write.write_all(format!("unknown command {other}\n").as_bytes()).await?,
                None => return Ok(None),
            },
        }
    }
}

/// Records the console into its file, and types into it what comes to its socket. The task ends with the console.
fn record(listener: TcpListener) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let mut log = OpenOptions::new().create(true).append(true).open(names::SERIAL)?;
    let _ = std::fs::remove_file(names::SERIAL_INPUT);
    let input = UnixListener::bind(names::SERIAL_INPUT).context("make the console's input socket")?;
    let (typed_in, mut typed) = mpsc::channel::<Vec<u8>>(16);
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = input.accept().await {
            let typed_in = typed_in.clone();
            tokio::spawn(async move {
                let mut bytes = [0; 256];
                while let Ok(read @ 1..) = connection.read(&mut bytes).await {
                    if typed_in.send(bytes[..read].to_vec()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(tokio::spawn(async move {
        let Ok((connection, _)) = listener.accept().await else { return };
        drop(listener);
        let (mut read, mut write) = connection.into_split();
        tokio::spawn(async move {
            while let Some(bytes) = typed.recv().await {
                if write.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = read.read(&mut bytes).await {
            // Written at once and by one call: a byte that is in the file survives everything but the host.
            if let Err(error) = log.write_all(&bytes[..read]) {
                eprintln!("the console cannot be recorded: {error}");
                return;
            }
        }
    }))
}

/// The server for a guest that has nothing but a serial line to reach it by.
async fn carry(listener: TcpListener, server: String) {
    if let Ok((line, _)) = listener.accept().await {
        // Its end is Bochs's end.
        let _ = line::join(line, line::End::Outside(server)).await;
    }
}

/// Joins every connection of the guest with one to the server.
async fn relay(door: TcpListener, server: String) {
    while let Ok((mut inside, _)) = door.accept().await {
        let server = server.clone();
        tokio::spawn(async move {
            match TcpStream::connect(&server).await {
                Ok(mut outside) => {
                    let _ = (inside.set_nodelay(true), outside.set_nodelay(true));
                    // Either side may end the connection in any way it likes.
                    let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                }
                // The guest sees a closed connection and tries again, as it would with any network.
                Err(error) => eprintln!("the server at {server} cannot be reached: {error}"),
            }
        });
    }
}
