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

use http::{Method, StatusCode, Version};
use parking_lot::{Condvar, Mutex};

use crate::request::RequestId;
use crate::telemetry::Format;

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
    pub(crate) bytes: usize,
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
    stamp: String,
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
        .expect("a Vec takes everything");
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
        const FRACTION: usize = ".000000Z".len();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if now.as_secs() != self.second || self.stamp.is_empty() {
            self.second = now.as_secs();
            let seconds = i64::try_from(self.second).unwrap_or(i64::MAX);
            let time = chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default();
            self.stamp = time.format("%Y-%m-%dT%H:%M:%S.000000Z").to_string();
        }
        let length = self.stamp.len();
        self.stamp.truncate(length - FRACTION);
        fmt::Write::write_fmt(
            &mut self.stamp,
            format_args!(".{:06}Z", now.subsec_micros()),
        )
        .expect("a String takes everything");
    }
}

fn json(line: &mut Vec<u8>, stamp: &str, entry: &Entry<'_>) -> std::io::Result<()> {
    write!(
        line,
        r#"{{"timestamp":"{stamp}","level":"INFO","target":"access","message":"request","request_id":"{}","client":"#,
        entry.id
    )?;
    match entry.client {
        Some(client) => write!(line, "\"{client}\"")?,
        None => write!(line, "null")?,
    }
    write!(
        line,
        r#","protocol":"{:?}","method":"{}","path":"#,
        entry.version, entry.method
    )?;
    serde_json::to_writer(&mut *line, entry.path)?;
    write!(line, r#","pattern":"#)?;
    serde_json::to_writer(&mut *line, entry.pattern)?;
    match entry.status {
        Some(status) => write!(line, r#","status":{}"#, status.as_u16())?,
        None => write!(line, r#","status":null"#)?,
    }
    write!(
        line,
        r#","bytes":{},"seconds":{}"#,
        entry.bytes,
        Seconds(entry.took)
    )?;
    if let Some(upstream) = entry.upstream {
        write!(
            line,
            r#","attempts":{},"upstream":"{upstream}","upstream_seconds":{}"#,
            entry.attempts,
            Seconds(entry.upstream_took)
        )?;
    }
    line.write_all(b"}\n")
}

fn text(line: &mut Vec<u8>, stamp: &str, entry: &Entry<'_>) -> std::io::Result<()> {
    write!(line, "{stamp}  INFO access: {} ", entry.method)?;
    // Quoted as JSON, since a path may have control sequences for terminals in it.
    serde_json::to_writer(&mut *line, entry.path)?;
    match entry.status {
        Some(status) => write!(line, " {}", status.as_u16())?,
        None => write!(line, " -")?,
    }
    write!(line, " {} bytes {}s", entry.bytes, Seconds(entry.took))?;
    if let Some(client) = entry.client {
        write!(line, " client={client}")?;
    }
    if let Some(upstream) = entry.upstream {
        write!(
            line,
            " upstream={upstream} {}s",
            Seconds(entry.upstream_took)
        )?;
    }
    writeln!(line, " {:?} request_id={}", entry.version, entry.id)
}

/// A duration in seconds, to the microsecond.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}.{:06}",
            self.0.as_secs(),
            self.0.subsec_micros()
        )
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AccessLog").finish_non_exhaustive()
    }
}
