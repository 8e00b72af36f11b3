//! A server that says what a test wants it to, and breaks off where a test wants it to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

/// What is said to one request.
pub struct Reply {
    pub status: &'static str,
    /// Header lines, each with its end.
    pub headers: String,
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection ends.
    pub cut: usize,
}

impl Reply {
    pub fn new(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: String::new(), body: body.into(), cut: usize::MAX }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new("200 OK", body)
    }
}

/// Answers one request after another for as long as the test runs; returns the address. `answer` gets the path, and the byte
/// from which on it is asked for where a range was.
pub fn serve(answer: impl Fn(&str, Option<usize>) -> Reply + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let from = headers.iter().find_map(|line| {
                let line = line.to_lowercase();
                line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok()
            });
            let Reply { status, headers, body, cut } =
                answer(request.split_whitespace().nth(1).unwrap_or_default(), from);
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n");
            // A client that has gone needs no answer.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..length.min(cut)]));
        }
    });
    address
}
