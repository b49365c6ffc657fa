//! Buffered standard output: lines are appended to a buffer in memory, and a thread writes it out.
//!
//! Lines of the access log wait up to [`FLUSH_INTERVAL`] for others, so that a request neither costs
//! a system call nor wakes the process that collects the logs. Any other line is written at once,
//! after those that are buffered.
//!
//! Logging never blocks: while standard output accepts nothing, lines beyond [`MAX_BUFFERED_BYTES`] are
//! dropped and counted, and the end of the process waits for at most [`FLUSH_TIMEOUT`].

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use crate::timestamp::Timestamp;

/// Target of the access log, which has one line per request.
pub const ACCESS_LOG_TARGET: &str = "access";

/// Longest time that a line of the access log is buffered.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);
/// Buffered bytes beyond which lines are dropped.
const MAX_BUFFERED_BYTES: usize = 8 << 20;
/// Longest time that a flush at the end of the process takes.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Writer of log lines. Cheap to clone.
#[derive(Clone)]
pub struct LogWriter(Arc<WriterShared>);

struct WriterShared {
    buffer: Mutex<Buffer>,
    /// Notified when the buffer is no longer empty.
    filled: Condvar,
    /// Notified when the buffer should be written at once.
    urgent: Condvar,
    /// Notified when a write is complete.
    written: Condvar,
    dropped: IntCounter,
}

#[derive(Default)]
struct Buffer {
    lines: Vec<u8>,
    timestamp: Timestamp,
    thread: ThreadState,
    urgency: Urgency,
}

/// Time at which buffered lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Urgency {
    /// Within [`FLUSH_INTERVAL`].
    #[default]
    Buffered,
    Immediate,
}

/// Activity of the writing thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ThreadState {
    #[default]
    Waiting,
    Writing,
}

/// Writes the buffered lines when it is dropped, within a bounded time.
#[derive(Debug)]
#[must_use]
pub struct FlushGuard(LogWriter);

/// Writer of one event.
#[derive(Debug)]
pub struct EventWriter<'w> {
    writer: &'w LogWriter,
    urgency: Urgency,
}

impl LogWriter {
    /// Starts a writer with its thread.
    ///
    /// # Panics
    /// Panics if the system cannot start a thread.
    pub fn start() -> (Self, FlushGuard) {
        let dropped = IntCounter::new(
            "log_lines_dropped_total",
            "Log lines dropped because standard output was too slow.",
        );
        let writer = Self(Arc::new(WriterShared {
            buffer: Mutex::default(),
            filled: Condvar::new(),
            urgent: Condvar::new(),
            written: Condvar::new(),
            dropped: dropped.expect("the name is a valid one"),
        }));
        let shared = Arc::clone(&writer.0);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.write_continuously())
            .expect("the system can start a thread");
        (writer.clone(), FlushGuard(writer))
    }

    /// Appends a line of the access log: `write` gets the buffer and the text of the current time.
    pub fn append(&self, write: impl FnOnce(&mut Vec<u8>, &[u8])) {
        self.put(Urgency::Buffered, write);
    }

    fn put(&self, urgency: Urgency, write: impl FnOnce(&mut Vec<u8>, &[u8])) {
        let mut buffer = self.0.buffer.lock();
        if buffer.lines.len() > MAX_BUFFERED_BYTES {
            self.0.dropped.inc();
            return;
        }
        let was_empty = buffer.lines.is_empty();
        let Buffer {
            lines, timestamp, ..
        } = &mut *buffer;
        write(lines, timestamp.now());
        if urgency == Urgency::Immediate {
            buffer.urgency = Urgency::Immediate;
        }
        drop(buffer);
        if was_empty {
            self.0.filled.notify_one();
        }
        if urgency == Urgency::Immediate {
            self.0.urgent.notify_one();
        }
    }

    /// Returns the counter of dropped lines, named `log_lines_dropped_total`.
    #[must_use]
    pub fn dropped(&self) -> &IntCounter {
        &self.0.dropped
    }

    /// Waits until all lines are written, at most [`FLUSH_TIMEOUT`].
    fn flush(&self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let mut buffer = self.0.buffer.lock();
        while !buffer.lines.is_empty() || buffer.thread == ThreadState::Writing {
            buffer.urgency = Urgency::Immediate;
            self.0.urgent.notify_one();
            if self.0.written.wait_until(&mut buffer, deadline).timed_out() {
                return;
            }
        }
    }
}

impl WriterShared {
    fn write_continuously(&self) {
        let mut lines = Vec::new();
        let mut buffer = self.buffer.lock();
        loop {
            while buffer.lines.is_empty() {
                self.filled.wait(&mut buffer);
            }
            if buffer.urgency == Urgency::Buffered {
                self.urgent.wait_for(&mut buffer, FLUSH_INTERVAL);
            }
            buffer.urgency = Urgency::Buffered;
            std::mem::swap(&mut buffer.lines, &mut lines);
            buffer.thread = ThreadState::Writing;
            drop(buffer);
            write_to_stdout(&lines);
            lines.clear();
            buffer = self.buffer.lock();
            buffer.thread = ThreadState::Waiting;
            self.written.notify_all();
        }
    }
}

fn write_to_stdout(lines: &[u8]) {
    // A standard output that is closed leaves no place to report the error.
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(lines).and_then(|()| stdout.flush());
}

impl Drop for FlushGuard {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// One call writes one event.
impl Write for EventWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.writer
            .put(self.urgency, |lines, _| lines.extend_from_slice(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for LogWriter {
    type Writer = EventWriter<'w>;

    fn make_writer(&'w self) -> EventWriter<'w> {
        EventWriter {
            writer: self,
            urgency: Urgency::Immediate,
        }
    }

    fn make_writer_for(&'w self, event: &Metadata<'_>) -> EventWriter<'w> {
        EventWriter {
            writer: self,
            urgency: if event.target() == ACCESS_LOG_TARGET {
                Urgency::Buffered
            } else {
                Urgency::Immediate
            },
        }
    }
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LogWriter").finish_non_exhaustive()
    }
}
