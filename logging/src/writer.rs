//! Buffered standard output: lines are appended to a buffer in memory, and a thread writes it out.
//!
//! Lines of the access log wait up to [`FLUSH_INTERVAL`] for others, so that a request neither costs
//! a system call nor wakes the process that collects the logs. Any other line is written at once,
//! after those that are buffered.
//!
//! Logging never blocks: while standard output accepts nothing, lines beyond [`MAX_BUFFERED_BYTES`] are
//! dropped and counted, and the end of the process waits for at most [`FLUSH_TIMEOUT`]. Lines that
//! standard output rejects, because it is closed or its disk is full, are counted too. If the thread
//! panics, it is restarted.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use prometheus::IntCounter;
use supervision::Supervisor;
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
/// Longest wait for the buffer while a panic is logged. The panic may have occurred in a thread that holds
/// the buffer.
const PANIC_LOCK_TIMEOUT: Duration = Duration::from_millis(100);
/// Name of the thread, and of its restarts in the metrics.
const THREAD: &str = "log_writer";

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
    /// Starts a writer with its thread, which `supervisor` restarts if it panics.
    ///
    /// # Panics
    /// Panics if the system cannot start a thread.
    pub fn start(supervisor: &Supervisor) -> (Self, FlushGuard) {
        Self::start_with_output(supervisor, write_to_stdout)
    }

    fn start_with_output(
        supervisor: &Supervisor,
        output: impl Fn(&[u8]) -> io::Result<()> + Send + 'static,
    ) -> (Self, FlushGuard) {
        let dropped = IntCounter::new(
            "log_lines_dropped_total",
            "Log lines dropped because standard output was too slow or rejected them.",
        );
        let writer = Self(Arc::new(WriterShared {
            buffer: Mutex::default(),
            filled: Condvar::new(),
            urgent: Condvar::new(),
            written: Condvar::new(),
            dropped: dropped.expect("the name is a valid one"),
        }));
        let (shared, supervisor) = (Arc::clone(&writer.0), supervisor.clone());
        thread::Builder::new()
            .name(THREAD.to_owned())
            .spawn(move || supervisor.run_blocking(THREAD, || shared.write_continuously(&output)))
            .expect("the system can start a thread");
        (writer.clone(), FlushGuard(writer))
    }

    /// Appends a line of the access log: `write` gets the buffer and the text of the current time.
    pub fn append(&self, write: impl FnOnce(&mut Vec<u8>, &[u8])) {
        self.put(Urgency::Buffered, write);
    }

    fn put(&self, urgency: Urgency, write: impl FnOnce(&mut Vec<u8>, &[u8])) {
        let Some(mut buffer) = self.0.lock_to_append() else {
            self.0.dropped.inc();
            return;
        };
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
    /// Returns the buffer, or `None` if the line has to be dropped.
    fn lock_to_append(&self) -> Option<MutexGuard<'_, Buffer>> {
        let buffer = if thread::panicking() {
            self.buffer.try_lock_for(PANIC_LOCK_TIMEOUT)?
        } else {
            self.buffer.lock()
        };
        (buffer.lines.len() <= MAX_BUFFERED_BYTES).then_some(buffer)
    }

    /// Writes buffered lines to `output` without end.
    fn write_continuously(&self, output: impl Fn(&[u8]) -> io::Result<()>) -> ! {
        let mut lines = Vec::new();
        loop {
            let batch = self.take_lines(lines);
            lines = match output(&batch.lines) {
                Ok(()) => batch.finish(),
                // A standard output that fails leaves no place to report the error.
                Err(_) => Vec::new(),
            };
        }
    }

    /// Waits for lines and takes all. The next ones are appended to `empty`.
    fn take_lines(&self, empty: Vec<u8>) -> Batch<'_> {
        let mut buffer = self.buffer.lock();
        while buffer.lines.is_empty() {
            self.filled.wait(&mut buffer);
        }
        if buffer.urgency == Urgency::Buffered {
            self.urgent.wait_for(&mut buffer, FLUSH_INTERVAL);
        }
        buffer.urgency = Urgency::Buffered;
        buffer.thread = ThreadState::Writing;
        let lines = std::mem::replace(&mut buffer.lines, empty);
        Batch {
            shared: self,
            lines,
        }
    }
}

/// Lines that are being written. Dropping it ends the write; lines that are left in it were not written and
/// are counted as dropped.
struct Batch<'s> {
    shared: &'s WriterShared,
    lines: Vec<u8>,
}

impl Batch<'_> {
    /// Ends the write of all lines and returns the empty buffer.
    fn finish(mut self) -> Vec<u8> {
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        lines
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.shared.dropped.inc_by(count_lines(&self.lines));
        self.shared.buffer.lock().thread = ThreadState::Waiting;
        self.shared.written.notify_all();
    }
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.split_inclusive(|byte| *byte == b'\n').count() as u64
}

fn write_to_stdout(lines: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(lines)?;
    stdout.flush()
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn append(writer: &LogWriter, line: &[u8]) {
        writer.append(|lines, _| lines.extend_from_slice(line));
    }

    #[test]
    fn the_thread_is_restarted_after_a_panic_and_lost_lines_are_counted() {
        let supervisor = Supervisor::new();
        let (written, lines) = mpsc::channel();
        let (writer, flush_guard) = LogWriter::start_with_output(&supervisor, move |batch| {
            assert_ne!(batch, b"one\ntwo\n", "a batch whose output panics");
            let _ = written.send(batch.to_vec());
            Ok(())
        });
        writer.append(|lines, _| lines.extend_from_slice(b"one\ntwo\n"));
        // Returns although those lines are never written.
        writer.flush();
        append(&writer, b"three\n");
        let received = lines.recv().expect("the thread has been restarted");
        assert_eq!(received, b"three\n");
        assert_eq!(writer.dropped().get(), 2);
        assert_eq!(supervisor.restarts(THREAD), 1);
        drop(flush_guard);
    }

    #[test]
    fn lines_that_the_output_rejects_are_counted() {
        let rejected = AtomicU32::new(0);
        let (writer, flush_guard) = LogWriter::start_with_output(&Supervisor::new(), move |_| {
            match rejected.fetch_add(1, Ordering::Relaxed) {
                0 => Err(io::ErrorKind::StorageFull.into()),
                _ => Ok(()),
            }
        });
        append(&writer, b"one\n");
        writer.flush();
        append(&writer, b"two\n");
        drop(flush_guard);
        assert_eq!(writer.dropped().get(), 1);
    }

    #[test]
    fn a_panic_while_a_line_is_appended_can_be_logged() {
        let supervisor = Supervisor::new();
        let (writer, _flush_guard) = LogWriter::start_with_output(&supervisor, |_| Ok(()));
        let guard = AppendsWhileUnwinding(writer.clone());
        let appended = supervisor.catch_blocking("tested", || {
            writer.append(|_, _| {
                let _guard = guard;
                panic!("within the buffer's lock");
            });
        });
        assert!(appended.is_err());
        assert_eq!(writer.dropped().get(), 1);
        append(&writer, b"the lock is free again\n");
    }

    /// Appends a line in the thread that panics and holds the buffer, as the panic hook does.
    struct AppendsWhileUnwinding(LogWriter);

    impl Drop for AppendsWhileUnwinding {
        fn drop(&mut self) {
            append(&self.0, b"panic\n");
        }
    }
}
