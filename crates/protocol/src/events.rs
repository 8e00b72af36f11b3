//! Reads a stream of server-sent events (WHATWG HTML, section 9.2) as far as our server writes them.

use crate::client::{Client, ClientError};
use crate::{RunId, api};
use reqwest::{Method, Response};

/// The longest line a server of ours writes is far below this; more is not an event stream.
const LINE_MAX: usize = 4 << 20;

/// The events of a run, from its beginning to its end, each once.
#[derive(Debug)]
pub struct RunEvents {
    client: Client,
    run: RunId,
    /// The last that was seen.
    seen: u64,
    stream: Option<EventStream>,
}

impl Client {
    /// The events of a run.
    #[must_use]
    pub fn run_events(&self, run: &RunId) -> RunEvents {
        RunEvents { client: self.clone(), run: run.clone(), seen: 0, stream: None }
    }
}

impl RunEvents {
    /// The next event; `None` when the run is done.
    ///
    /// After a transient error the next call opens the stream again, behind the last event that was seen. How long to wait before
    /// it is the caller's decision.
    ///
    /// # Errors
    /// Transient ones when the connection breaks.
    pub async fn next(&mut self) -> Result<Option<api::Event>, ClientError> {
        // Put back only when it brought something: what broke is not read again.
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.open().await?,
        };
        let event = stream.next().await?;
        if let Some(event) = &event {
            (self.seen, self.stream) = (event.seq, Some(stream));
        }
        Ok(event)
    }

    async fn open(&self) -> Result<EventStream, ClientError> {
        let path = format!("/api/v1/runs/{}/events?after={}", self.run, self.seen);
        let request = self.client.request(Method::GET, &path).header(reqwest::header::ACCEPT, "text/event-stream");
        Ok(EventStream { response: self.client.send(request).await?, parser: Parser::default() })
    }
}

/// One connection's worth of them.
#[derive(Debug)]
struct EventStream {
    response: Response,
    parser: Parser,
}

impl EventStream {
    /// The next event; `None` when the server said that no more will come.
    async fn next(&mut self) -> Result<Option<api::Event>, ClientError> {
        loop {
            while let Some(message) = self.parser.next() {
                match message.event.as_str() {
                    "complete" => return Ok(None),
                    // Comments and keep-alives carry no data.
                    _ if message.data.is_empty() => {}
                    // An event of a kind that this version does not know is somebody else's news.
                    _ => {
                        if let Ok(event) = serde_json::from_str(&message.data) {
                            return Ok(Some(event));
                        }
                    }
                }
            }
            let Some(bytes) = self.response.chunk().await? else {
                return Err(ClientError::Transport("the event stream was cut".into()));
            };
            if !self.parser.feed(&bytes) {
                return Err(ClientError::Transport("not an event stream: an endless line".into()));
            }
        }
    }
}

/// One message of the stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    event: String,
    data: String,
}

#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
    open: Message,
}

impl Parser {
    /// Takes bytes; false if a line has grown beyond all measure.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        self.buffer.extend_from_slice(bytes);
        self.buffer.len() < LINE_MAX || self.buffer.contains(&b'\n')
    }

    /// The next whole message, if its empty line has arrived.
    fn next(&mut self) -> Option<Message> {
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                return Some(std::mem::take(&mut self.open));
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.open.event),
                "data" if self.open.data.is_empty() => value.clone_into(&mut self.open.data),
                "data" => self.open.data = format!("{}\n{value}", self.open.data),
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_same_however_the_bytes_are_cut() {
        let stream = b": ping\n\nid: 7\nevent: stage\ndata: {\"a\":1}\n\nevent: complete\r\ndata:\r\n\r\n";
        let whole = messages(&[stream]);
        assert_eq!(whole.iter().map(|m| m.event.as_str()).collect::<Vec<_>>(), ["", "stage", "complete"]);
        assert_eq!(whole[1].data, "{\"a\":1}");
        for cut in 1..stream.len() {
            let (a, b) = stream.split_at(cut);
            assert_eq!(messages(&[a, b]), whole, "cut at {cut}");
        }
    }

    fn messages(parts: &[&[u8]]) -> Vec<Message> {
        let mut parser = Parser::default();
        let mut all = Vec::new();
        for part in parts {
            assert!(parser.feed(part));
            all.extend(std::iter::from_fn(|| parser.next()));
        }
        all
    }
}
