//! Connections, from the listener to the routes.
//!
//! What `axum::serve` does, with two things that it does not let one choose: how much a connection may keep in memory between
//! requests (thousands of labs each have one open, and most wait), and how long a client may take to say what it wants.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Bytes that are read from a connection at once, and so what it keeps. Bodies come in pieces of this size; a request's head
/// must fit.
const READ_BYTES: usize = 16 * 1024;
/// How long a client may take to send a request's head.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Before the next connection is taken after there was no room for one.
const NO_ROOM: Duration = Duration::from_millis(500);

/// Serves until it is told to stop, and then until every request that had begun is answered.
pub async fn serve(listener: TcpListener, routes: &Router, stop: &CancellationToken) {
    let mut http = http1::Builder::new();
    http.max_buf_size(READ_BYTES).timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    let open = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                tracing::error!(%error, "cannot take a connection: is the limit of open files too low?");
                tokio::time::sleep(NO_ROOM).await;
                continue;
            }
        };
        at_once(&stream);
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes.clone()));
        let connection = open.watch(connection);
        tokio::spawn(async move {
            // Whoever hangs up in the middle of something knows it.
            let _ = connection.await;
        });
    }
    drop(listener);
    open.shutdown().await;
}

/// Answers are small and waited for: never held back for more bytes.
fn at_once(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
