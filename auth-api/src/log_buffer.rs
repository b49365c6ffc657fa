//! Standard output in larger pieces. A request's line waits up to [`PAUSE`] for others, so that a
//! request neither makes a system call for it nor wakes whoever collects the lines. Everything
//! else (audit, warnings, what the program does) is written at once, behind what waits.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use crate::visit;

const PAUSE: Duration = Duration::from_millis(50);
/// Bytes. Where standard output is too slow for more, requests wait for it.
const MOST_WAITING: usize = 1 << 20;

/// What waits to be written. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogBuffer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Vec<u8>>,
    more: Condvar,
    /// Held while lines are taken and written, so that they come out in their order.
    output: Mutex<()>,
}

/// Writes out what still waits when it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Flush(LogBuffer);

/// Where one line goes.
#[derive(Debug)]
pub(crate) struct Line<'b> {
    buffer: &'b LogBuffer,
    urgency: Urgency,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Urgency {
    Now,
    Soon,
}

impl LogBuffer {
    /// A buffer with a thread that writes it out, and what has to be dropped at the end.
    pub(crate) fn start() -> (Self, Flush) {
        let buffer = Self::default();
        let writer = buffer.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.write_for_ever())
            .expect("the system has threads at start");
        (buffer.clone(), Flush(buffer))
    }

    fn write_for_ever(&self) {
        loop {
            let mut waiting = self.0.waiting.lock();
            if waiting.is_empty() {
                self.0.more.wait(&mut waiting);
            }
            drop(waiting);
            thread::sleep(PAUSE);
            // Where standard output is gone, there is nobody to tell.
            let _ = self.write_out(&[]);
        }
    }

    /// Writes what waits, and `line` behind it.
    fn write_out(&self, line: &[u8]) -> io::Result<()> {
        let output = self.0.output.lock();
        let mut lines = std::mem::take(&mut *self.0.waiting.lock());
        lines.extend_from_slice(line);
        let mut stdout = io::stdout().lock();
        let done = stdout.write_all(&lines).and_then(|()| stdout.flush());
        drop(output);
        done
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let _ = self.0.write_out(&[]);
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Shared { waiting, more, .. } = &*self.buffer.0;
        if self.urgency == Urgency::Soon {
            let mut waiting = waiting.lock();
            if waiting.len() < MOST_WAITING {
                if waiting.is_empty() {
                    more.notify_one();
                }
                waiting.extend_from_slice(line);
                return Ok(line.len());
            }
        }
        self.buffer.write_out(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'b> MakeWriter<'b> for LogBuffer {
    type Writer = Line<'b>;

    fn make_writer(&'b self) -> Line<'b> {
        let urgency = Urgency::Now;
        Line {
            buffer: self,
            urgency,
        }
    }

    fn make_writer_for(&'b self, event: &Metadata<'_>) -> Line<'b> {
        let urgency = if event.target() == visit::TARGET {
            Urgency::Soon
        } else {
            Urgency::Now
        };
        Line {
            buffer: self,
            urgency,
        }
    }
}
