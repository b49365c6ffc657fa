//! Standard output: lines wait in a buffer, and a thread of its own writes them out, at the latest
//! after [`PAUSE`].
//!
//! Serving comes first: where standard output takes nothing any more, lines beyond [`MOST_WAITING`]
//! are dropped and counted, and nobody waits for it, not even the end of the process for longer than
//! [`LAST_WORDS`].

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use tracing_subscriber::fmt::MakeWriter;

use crate::text;

const PAUSE: Duration = Duration::from_millis(50);
/// Bytes.
const MOST_WAITING: usize = 8 << 20;
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where lines go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Output(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    more: Condvar,
    /// Told when something cannot wait for more.
    hurry: Condvar,
    /// Told when everything is written.
    done: Condvar,
    dropped: IntCounter,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    clock: Clock,
    stage: Stage,
    urgency: Urgency,
}

/// Whether what waits can wait for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Urgency {
    #[default]
    Soon,
    Now,
}

/// What becomes of the lines at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// They are collected.
    #[default]
    Collecting,
    /// Some are being written.
    Writing,
}

impl Output {
    pub(crate) fn start() -> Self {
        let dropped = IntCounter::new(
            "log_lines_dropped_total",
            "Log lines lost because standard output was too slow.",
        );
        let output = Self(Arc::new(Shared {
            waiting: Mutex::default(),
            more: Condvar::new(),
            hurry: Condvar::new(),
            done: Condvar::new(),
            dropped: dropped.expect("the name is a constant"),
        }));
        let writer = Arc::clone(&output.0);
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || writer.write_for_ever())
            .expect("the system has threads at start");
        output
    }

    /// Adds a line, which `write` writes, the current time at hand. It waits for others.
    pub(crate) fn add(&self, write: impl FnOnce(&mut Vec<u8>, &[u8])) {
        self.put(Urgency::Soon, write);
    }

    fn put(&self, urgency: Urgency, write: impl FnOnce(&mut Vec<u8>, &[u8])) {
        let mut waiting = self.0.waiting.lock();
        if waiting.lines.len() > MOST_WAITING {
            self.0.dropped.inc();
            return;
        }
        let was_empty = waiting.lines.is_empty();
        let Waiting { lines, clock, .. } = &mut *waiting;
        write(lines, clock.now());
        if urgency == Urgency::Now {
            waiting.urgency = Urgency::Now;
        }
        drop(waiting);
        if was_empty {
            self.0.more.notify_one();
        }
        if urgency == Urgency::Now {
            self.0.hurry.notify_one();
        }
    }

    /// Lines that were lost.
    pub(crate) fn dropped(&self) -> &IntCounter {
        &self.0.dropped
    }

    /// Has everything written out, if standard output takes it.
    pub(crate) fn flush(&self) {
        let end = Instant::now() + LAST_WORDS;
        let mut waiting = self.0.waiting.lock();
        while !waiting.lines.is_empty() || waiting.stage == Stage::Writing {
            waiting.urgency = Urgency::Now;
            self.0.hurry.notify_one();
            if self.0.done.wait_until(&mut waiting, end).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    fn write_for_ever(&self) {
        let mut lines = Vec::new();
        let mut waiting = self.waiting.lock();
        loop {
            while waiting.lines.is_empty() {
                self.more.wait(&mut waiting);
            }
            if waiting.urgency == Urgency::Soon {
                self.hurry.wait_for(&mut waiting, PAUSE);
            }
            waiting.urgency = Urgency::Soon;
            std::mem::swap(&mut waiting.lines, &mut lines);
            waiting.stage = Stage::Writing;
            drop(waiting);
            write_out(&lines);
            lines.clear();
            waiting = self.waiting.lock();
            waiting.stage = Stage::Collecting;
            self.done.notify_all();
        }
    }
}

fn write_out(lines: &[u8]) {
    // Where standard output is gone, there is nobody to tell.
    let mut output = io::stdout().lock();
    let _ = output.write_all(lines).and_then(|()| output.flush());
}

/// The time as lines have it.
#[derive(Default)]
struct Clock {
    /// The second that is written out.
    second: u64,
    text: Vec<u8>,
}

impl Clock {
    /// The part down to the second is formatted once a second.
    fn now(&mut self) -> &[u8] {
        const FRACTION: usize = "000000Z".len();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if now.as_secs() != self.second || self.text.is_empty() {
            self.second = now.as_secs();
            let seconds = i64::try_from(self.second).unwrap_or(i64::MAX);
            let time = chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default();
            let text = time.format("%Y-%m-%dT%H:%M:%S.000000Z");
            self.text = text.to_string().into_bytes();
        }
        self.text.truncate(self.text.len() - FRACTION);
        text::fraction(&mut self.text, now.subsec_micros());
        self.text.push(b'Z');
        &self.text
    }
}

/// An event comes in one go.
impl Write for &Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(Urgency::Now, |lines, _| lines.extend_from_slice(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'o> MakeWriter<'o> for Output {
    type Writer = &'o Self;

    fn make_writer(&'o self) -> &'o Self {
        self
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Output").finish_non_exhaustive()
    }
}
