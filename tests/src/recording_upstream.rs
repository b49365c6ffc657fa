//! An upstream server that records every byte it receives, and a strict reading of these bytes. It shows
//! what the gateway sent beyond what a parser of requests would notice.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::address;
use crate::wait;

/// Response to every request. It ends the connection, so that all bytes of a connection belong to one request.
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
/// Headers of which a proxy makes its own: those of the connection, and those that frame the body.
const CONNECTION_HEADERS: [&str; 3] = ["connection", "content-length", "transfer-encoding"];

/// A request as RFC 9112 reads it, without any leniency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireRequest {
    pub method: String,
    pub target: String,
    /// Names in lower case, in the order in which they were received.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl WireRequest {
    /// Parses the request at the start of `bytes`. Returns it with the bytes after it, or `None` if it is
    /// incomplete.
    ///
    /// # Errors
    /// Returns an error if the bytes deviate from the grammar of RFC 9112 in any way, or frame the body twice.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, &[u8])>> {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Ok(None);
        };
        let rest = &bytes[end + 4..];
        let section = bytes[..end].split(|byte| *byte == b'\n');
        let mut lines = Vec::new();
        let last = section.clone().count() - 1;
        for (number, line) in section.enumerate() {
            let line = match line.strip_suffix(b"\r") {
                Some(line) => line,
                None if number == last => line,
                None => anyhow::bail!("a bare line feed"),
            };
            let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
            ensure!(line.iter().all(is_text), "a control character");
            lines.push(line);
        }
        let (request_line, header_lines) = lines.split_first().context("no request line")?;
        let request_line = str::from_utf8(request_line)?;
        let parts: Vec<_> = request_line.split(' ').collect();
        let [method, target, "HTTP/1.1"] = parts[..] else {
            anyhow::bail!("request line {request_line:?}");
        };
        ensure!(is_token(method), "method {method:?}");
        ensure!(
            target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic()),
            "target {target:?}"
        );
        let headers = header_lines
            .iter()
            .map(|line| parse_header(line))
            .collect::<Result<Vec<_>>>()?;
        let values = |name: &str| -> Vec<&[u8]> {
            let named = headers.iter().filter(|(header, _)| header == name);
            named.map(|(_, value)| value.as_slice()).collect()
        };
        ensure!(values("host").len() == 1, "one host");
        let body = match (
            &values("content-length")[..],
            &values("transfer-encoding")[..],
        ) {
            ([], []) => Some((Vec::new(), rest)),
            ([length], []) => {
                ensure!(length.iter().all(u8::is_ascii_digit), "content-length");
                let length: usize = str::from_utf8(length)?.parse()?;
                rest.split_at_checked(length)
                    .map(|(body, rest)| (body.to_vec(), rest))
            }
            ([], [b"chunked"]) => parse_chunks(rest)?,
            _ => anyhow::bail!("two framings"),
        };
        Ok(body.map(|(body, rest)| {
            let request = Self {
                method: method.to_owned(),
                target: target.to_owned(),
                headers,
                body,
            };
            (request, rest)
        }))
    }

    /// Returns the value of a header, empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> String {
        let mut headers = self.headers.iter();
        let found = headers.find(|(header, _)| header == name);
        found.map_or_else(String::new, |(_, value)| {
            String::from_utf8_lossy(value).into_owned()
        })
    }

    /// Returns the headers that a proxy forwards as they are, in alphabetical order.
    #[must_use]
    pub fn end_to_end_headers(&self) -> Vec<(String, Vec<u8>)> {
        let mut headers = self.headers.clone();
        headers.retain(|(name, _)| !CONNECTION_HEADERS.contains(&name.as_str()));
        headers.sort();
        headers
    }
}

fn is_token(text: &str) -> bool {
    let is_token_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token_byte)
}

fn parse_header(line: &[u8]) -> Result<(String, Vec<u8>)> {
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) = line.split_at(colon.context("a header without a colon")?);
    let name = str::from_utf8(name)?;
    ensure!(is_token(name), "header name {name:?}");
    let value = value[1..].trim_ascii();
    Ok((name.to_ascii_lowercase(), value.to_vec()))
}

/// Parses a chunked body without extensions and trailers. Returns it with the bytes after it, or `None` if it is
/// incomplete.
fn parse_chunks(mut bytes: &[u8]) -> Result<Option<(Vec<u8>, &[u8])>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else {
            return Ok(None);
        };
        let size = usize::from_str_radix(str::from_utf8(&bytes[..end])?, 16)?;
        let Some((data, rest)) = bytes[end + 2..].split_at_checked(size) else {
            return Ok(None);
        };
        let Some((line_end, rest)) = rest.split_at_checked(2) else {
            return Ok(None);
        };
        ensure!(line_end == b"\r\n", "the end of a chunk");
        if size == 0 {
            return Ok(Some((body, rest)));
        }
        body.extend(data);
        bytes = rest;
    }
}

/// A listening server that responds once to each connection, when its first request is complete, and records
/// everything that it receives until the connection is closed.
#[derive(Debug)]
pub struct RecordingUpstream {
    pub address: SocketAddr,
    connections: Arc<Mutex<Vec<Recording>>>,
    task: JoinHandle<()>,
}

/// Bytes of one connection so far.
#[derive(Debug, Clone, Default)]
struct Recording {
    bytes: Vec<u8>,
    is_closed: bool,
}

impl RecordingUpstream {
    /// Starts a server.
    ///
    /// # Errors
    /// Returns an error if the server cannot listen.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(address::unused_loopback()).await?;
        let address = listener.local_addr()?;
        let connections = Arc::<Mutex<Vec<Recording>>>::default();
        let recordings = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            // Dropped with this task, which aborts the connections.
            let mut tasks = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut recordings = recordings.lock().expect("no task panicked");
                    recordings.push(Recording::default());
                    recordings.len() - 1
                };
                tasks.spawn(record(stream, number, Arc::clone(&recordings)));
            }
        });
        Ok(Self {
            address,
            connections,
            task,
        })
    }

    /// Waits until all connections are closed, and returns what was received on each that has received anything.
    ///
    /// # Errors
    /// Returns an error if a connection is still open after [`wait::TIMEOUT`].
    ///
    /// # Panics
    /// Panics if a connection's task has panicked.
    pub async fn recordings(&self) -> Result<Vec<Vec<u8>>> {
        let recordings = || self.connections.lock().expect("no task panicked").clone();
        wait::until("the connections to be closed", async || {
            recordings().iter().all(|recording| recording.is_closed)
        })
        .await?;
        let recordings = recordings().into_iter().map(|recording| recording.bytes);
        Ok(recordings.filter(|bytes| !bytes.is_empty()).collect())
    }
}

impl Drop for RecordingUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn record(mut stream: TcpStream, number: usize, recordings: Arc<Mutex<Vec<Recording>>>) {
    let mut chunk = vec![0; 16 * 1024];
    let mut has_responded = false;
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        let is_complete = {
            let mut recordings = recordings.lock().expect("no task panicked");
            let bytes = &mut recordings[number].bytes;
            bytes.extend_from_slice(&chunk[..count]);
            // A malformed request is recorded too, for the test to judge.
            !matches!(WireRequest::parse(bytes), Ok(None))
        };
        if is_complete && !has_responded {
            has_responded = true;
            if stream.write_all(RESPONSE).await.is_err() {
                break;
            }
        }
    }
    recordings.lock().expect("no task panicked")[number].is_closed = true;
}
