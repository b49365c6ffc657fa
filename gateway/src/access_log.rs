//! One line for each request: JSON or readable text. Never a query, a header or a body.
//!
//! Requests only append to a buffer; a thread of its own writes it out, at the latest after
//! [`PAUSE`]. Where standard output takes nothing any more, lines beyond [`MOST_WAITING`] are
//! dropped and counted, since serving comes first.

use std::fmt;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BufMut;
use http::{Method, StatusCode, Version};
use parking_lot::{Condvar, Mutex};

use crate::request::RequestId;
use crate::telemetry::Format;
use crate::text;

const PAUSE: Duration = Duration::from_millis(50);
/// Bytes.
const MOST_WAITING: usize = 8 << 20;

/// What is told of a request.
#[derive(Debug)]
pub(crate) struct Entry<'r> {
    pub(crate) id: RequestId,
    pub(crate) client: Option<IpAddr>,
    pub(crate) version: Version,
    pub(crate) method: &'r Method,
    pub(crate) path: &'r str,
    pub(crate) pattern: &'r str,
    /// Nothing where the client went away unanswered.
    pub(crate) status: Option<StatusCode>,
    /// Of the answer's body.
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
    pub(crate) attempts: u32,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) upstream_took: Duration,
}

/// Where the lines go.
#[derive(Clone)]
pub(crate) struct AccessLog(Option<Arc<Shared>>);

struct Shared {
    format: Format,
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    dropped: u64,
    /// The current second, written out.
    second: u64,
    stamp: Vec<u8>,
}

impl AccessLog {
    /// A log that writes to standard output.
    pub(crate) fn start(format: Format) -> Self {
        let shared = Arc::new(Shared {
            format,
            waiting: Mutex::default(),
            more: Condvar::new(),
        });
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.write_for_ever())
            .expect("the system has threads at start");
        Self(Some(shared))
    }

    /// Nobody wants to know.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    pub(crate) fn record(&self, entry: &Entry<'_>) {
        let Some(shared) = &self.0 else { return };
        let mut waiting = shared.waiting.lock();
        if waiting.lines.len() > MOST_WAITING {
            waiting.dropped += 1;
            return;
        }
        let was_empty = waiting.lines.is_empty();
        waiting.tell_time();
        let Waiting { lines, stamp, .. } = &mut *waiting;
        match shared.format {
            Format::Json => json(lines, stamp, entry),
            Format::Text => text(lines, stamp, entry),
        }
        drop(waiting);
        if was_empty {
            shared.more.notify_one();
        }
    }

    /// Writes out what is waiting.
    pub(crate) fn flush(&self) {
        if let Some(shared) = &self.0 {
            let lines = std::mem::take(&mut shared.waiting.lock().lines);
            write_out(&lines);
        }
    }
}

impl Shared {
    fn write_for_ever(&self) {
        let mut lines = Vec::new();
        loop {
            let dropped = {
                let mut waiting = self.waiting.lock();
                if waiting.lines.is_empty() {
                    self.more.wait(&mut waiting);
                }
                drop(waiting);
                std::thread::sleep(PAUSE);
                let mut waiting = self.waiting.lock();
                std::mem::swap(&mut waiting.lines, &mut lines);
                std::mem::take(&mut waiting.dropped)
            };
            write_out(&lines);
            lines.clear();
            if dropped > 0 {
                tracing::error!(
                    dropped,
                    "access log lines were lost: standard output is too slow"
                );
            }
        }
    }
}

fn write_out(lines: &[u8]) {
    // Where standard output is gone, there is nobody to tell.
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(lines).and_then(|()| output.flush());
}

impl Waiting {
    /// Makes `stamp` the current time. The part down to the second is formatted once a second.
    fn tell_time(&mut self) {
        const FRACTION: usize = "000000Z".len();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if now.as_secs() != self.second || self.stamp.is_empty() {
            self.second = now.as_secs();
            let seconds = i64::try_from(self.second).unwrap_or(i64::MAX);
            let time = chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default();
            self.stamp = time
                .format("%Y-%m-%dT%H:%M:%S.000000Z")
                .to_string()
                .into_bytes();
        }
        self.stamp.truncate(self.stamp.len() - FRACTION);
        text::fraction(&mut self.stamp, now.subsec_micros());
        self.stamp.push(b'Z');
    }
}

fn json(line: &mut Vec<u8>, stamp: &[u8], entry: &Entry<'_>) {
    line.put_slice(br#"{"timestamp":""#);
    line.put_slice(stamp);
    line.put_slice(br#"","level":"INFO","target":"access","message":"request","request_id":""#);
    line.put_slice(entry.id.as_str().as_bytes());
    line.put_slice(br#"","client":"#);
    match entry.client {
        Some(client) => {
            line.put_u8(b'"');
            text::address(line, client);
            line.put_u8(b'"');
        }
        None => line.put_slice(b"null"),
    }
    line.put_slice(br#","protocol":""#);
    line.put_slice(protocol(entry.version));
    line.put_slice(br#"","method":""#);
    line.put_slice(entry.method.as_str().as_bytes());
    line.put_slice(br#"","path":"#);
    quoted(line, entry.path);
    line.put_slice(br#","pattern":"#);
    quoted(line, entry.pattern);
    line.put_slice(br#","status":"#);
    match entry.status {
        Some(status) => line.put_slice(status.as_str().as_bytes()),
        None => line.put_slice(b"null"),
    }
    line.put_slice(br#","bytes":"#);
    text::number(line, entry.bytes);
    line.put_slice(br#","seconds":"#);
    text::seconds(line, entry.took);
    if let Some(upstream) = entry.upstream {
        line.put_slice(br#","attempts":"#);
        text::number(line, entry.attempts);
        line.put_slice(br#","upstream":""#);
        text::socket(line, upstream);
        line.put_slice(br#"","upstream_seconds":"#);
        text::seconds(line, entry.upstream_took);
    }
    line.put_slice(b"}\n");
}

fn text(line: &mut Vec<u8>, stamp: &[u8], entry: &Entry<'_>) {
    line.put_slice(stamp);
    line.put_slice(b"  INFO access: ");
    line.put_slice(entry.method.as_str().as_bytes());
    line.put_u8(b' ');
    // Quoted as JSON, since a path may have control sequences for terminals in it.
    quoted(line, entry.path);
    line.put_u8(b' ');
    match entry.status {
        Some(status) => line.put_slice(status.as_str().as_bytes()),
        None => line.put_u8(b'-'),
    }
    line.put_u8(b' ');
    text::number(line, entry.bytes);
    line.put_slice(b" bytes ");
    text::seconds(line, entry.took);
    line.put_u8(b's');
    if let Some(client) = entry.client {
        line.put_slice(b" client=");
        text::address(line, client);
    }
    if let Some(upstream) = entry.upstream {
        line.put_slice(b" upstream=");
        text::socket(line, upstream);
        line.put_u8(b' ');
        text::seconds(line, entry.upstream_took);
        line.put_u8(b's');
    }
    line.put_u8(b' ');
    line.put_slice(protocol(entry.version));
    line.put_slice(b" request_id=");
    line.put_slice(entry.id.as_str().as_bytes());
    line.put_u8(b'\n');
}

fn quoted(line: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(line, text).expect("a Vec takes everything");
}

fn protocol(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_2 => b"HTTP/2.0",
        Version::HTTP_10 => b"HTTP/1.0",
        _ => b"HTTP/1.1",
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AccessLog").finish_non_exhaustive()
    }
}
