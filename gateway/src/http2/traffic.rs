//! What passes on an HTTP/2 connection, where the library that speaks it does not tell: headers that
//! do not come to their end, frames that ask for nothing, and whether the client takes what it is sent.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::linger::Linger;
use crate::moment::Moment;

/// What a client says before its first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Bytes of a frame's head (RFC 9113, section 4.1).
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// Room for what is read to be forgotten.
const SCRATCH: usize = 4 * 1024;

/// Frames that ask for nothing, pings, settings, windows, that a client may send beyond what its
/// requests give reason for.
const MOST_CREDIT: u64 = 10_000;
/// Such frames for a header, and for some of a body.
const CREDIT_OF_A_HEADER: u64 = 8;
const CREDIT_OF_DATA: u64 = 2;
/// Bytes that a client is sent for it to have reason for another such frame.
const BYTES_A_CREDIT: u64 = 256;
/// Such frames that nobody is to be cut off for.
const CREDIT_A_SECOND: u64 = 100;

/// What is known of a connection. One task changes it and the same one looks.
#[derive(Debug)]
pub(super) struct Traffic {
    /// When a header began to come that has not ended, 0 where there is none.
    header_since: AtomicU64,
    credit: AtomicU64,
    /// When credit was last given for time.
    refilled: AtomicU64,
    is_overdrawn: AtomicBool,
    /// Bytes that the client was sent.
    taken: AtomicU64,
    is_blocked: AtomicBool,
    is_lingering: AtomicBool,
}

impl Traffic {
    /// Since when a header has been coming.
    pub(super) fn header_since(&self) -> Option<Moment> {
        let since = Moment(self.header_since.load(Ordering::Relaxed));
        (since != Moment::default()).then_some(since)
    }

    /// Whether the client has sent far more frames than it has any use for.
    pub(super) fn is_a_flood(&self) -> bool {
        self.is_overdrawn.load(Ordering::Relaxed) && self.refill(Moment::now()) == 0
    }

    /// Gives back what time has brought since the last time, and says how much that is.
    fn refill(&self, now: Moment) -> u64 {
        let before = Moment(self.refilled.load(Ordering::Relaxed));
        let credit = (now.since(before).as_secs() * CREDIT_A_SECOND).min(MOST_CREDIT);
        if credit > 0 {
            self.refilled.store(now.0, Ordering::Relaxed);
            self.credit.store(credit, Ordering::Relaxed);
            self.is_overdrawn.store(false, Ordering::Relaxed);
        }
        credit
    }

    /// Whether everything is said, and the client is left to read it.
    pub(super) fn is_lingering(&self) -> bool {
        self.is_lingering.load(Ordering::Relaxed)
    }

    /// Bytes that the client has taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether there is something that the client does not take at the moment.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    fn spend(&self) {
        match self.credit.load(Ordering::Relaxed).checked_sub(1) {
            Some(credit) => self.credit.store(credit, Ordering::Relaxed),
            None => self.is_overdrawn.store(true, Ordering::Relaxed),
        }
    }

    fn earn(&self, credit: u64) {
        let before = self.credit.load(Ordering::Relaxed);
        let after = (before + credit).min(MOST_CREDIT);
        self.credit.store(after, Ordering::Relaxed);
    }
}

/// A client's stream, watched.
pub(super) struct Watched {
    stream: Stream,
    frames: Frames,
    traffic: Arc<Traffic>,
    /// Bytes sent that no credit was given for yet.
    uncredited: u64,
    linger: Option<Linger>,
}

impl Watched {
    pub(super) fn new(stream: Stream) -> (Self, Arc<Traffic>) {
        let traffic = Arc::new(Traffic {
            header_since: AtomicU64::default(),
            credit: AtomicU64::new(MOST_CREDIT),
            refilled: AtomicU64::new(Moment::now().0),
            is_overdrawn: AtomicBool::default(),
            taken: AtomicU64::default(),
            is_blocked: AtomicBool::default(),
            is_lingering: AtomicBool::default(),
        });
        let watched = Self {
            stream,
            frames: Frames::new(),
            traffic: Arc::clone(&traffic),
            uncredited: 0,
            linger: None,
        };
        (watched, traffic)
    }

    fn note_read(&mut self, bytes: &[u8]) {
        let traffic = &self.traffic;
        let was_coming = self.frames.is_header_open;
        let mut has_ended = false;
        self.frames.read(bytes, |event| match event {
            Seen::Header => traffic.earn(CREDIT_OF_A_HEADER),
            Seen::HeaderEnd => has_ended = true,
            Seen::Data => traffic.earn(CREDIT_OF_DATA),
            Seen::Other => traffic.spend(),
        });
        let is_coming = self.frames.is_header_open;
        if is_coming && (!was_coming || has_ended) {
            let now = Moment::now().0.max(1);
            traffic.header_since.store(now, Ordering::Relaxed);
        } else if !is_coming && was_coming {
            traffic.header_since.store(0, Ordering::Relaxed);
        }
    }

    fn note_written(&mut self, written: &Poll<io::Result<usize>>) {
        let traffic = &self.traffic;
        traffic
            .is_blocked
            .store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(count)) = written {
            let count = *count as u64;
            let taken = traffic.taken.load(Ordering::Relaxed);
            traffic.taken.store(taken + count, Ordering::Relaxed);
            self.uncredited += count;
            traffic.earn(self.uncredited / BYTES_A_CREDIT);
            self.uncredited %= BYTES_A_CREDIT;
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.note_read(&buffer.filled()[before..]);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_written(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.note_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.traffic
            .is_blocked
            .store(flushed.is_pending(), Ordering::Relaxed);
        flushed
    }

    /// Lets the client read what it was sent: it goes on sending at least what it has room for.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let stream = &mut this.stream;
        let linger = match &mut this.linger {
            Some(linger) => linger,
            none => {
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                this.traffic.is_lingering.store(true, Ordering::Relaxed);
                none.insert(Linger::new())
            }
        };
        let mut space = [0; SCRATCH];
        let read = |cx: &mut Context<'_>| {
            let mut buffer = ReadBuf::new(&mut space);
            let read = Pin::new(&mut *stream).poll_read(cx, &mut buffer);
            read.map_ok(|()| buffer.filled().len())
        };
        linger.poll(cx, read).map(Ok)
    }
}

/// What was seen of a client's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// A header begins.
    Header,
    /// It is whole.
    HeaderEnd,
    /// Some of a body.
    Data,
    /// What belongs to no request.
    Other,
}

/// Goes through frames by their heads, wherever the reads cut them.
#[derive(Debug)]
struct Frames {
    head: [u8; HEAD],
    /// Bytes of the head that are known.
    known: usize,
    /// Bytes that are left of the current frame.
    left: usize,
    is_header_open: bool,
    /// Whether the current frame is the last one of its header.
    ends_header: bool,
}

impl Frames {
    fn new() -> Self {
        Self {
            head: [0; HEAD],
            known: 0,
            left: PREFACE,
            is_header_open: false,
            ends_header: false,
        }
    }

    fn read(&mut self, mut bytes: &[u8], mut see: impl FnMut(Seen)) {
        while !bytes.is_empty() {
            if self.left == 0 {
                let part = bytes.len().min(HEAD - self.known);
                self.head[self.known..self.known + part].copy_from_slice(&bytes[..part]);
                self.known += part;
                bytes = &bytes[part..];
                if self.known < HEAD {
                    return;
                }
                self.known = 0;
                self.begin(&mut see);
            }
            let part = bytes.len().min(self.left);
            self.left -= part;
            bytes = &bytes[part..];
            if self.left == 0 && self.ends_header {
                (self.is_header_open, self.ends_header) = (false, false);
                see(Seen::HeaderEnd);
            }
        }
    }

    fn begin(&mut self, see: &mut impl FnMut(Seen)) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        match kind {
            HEADERS | CONTINUATION => {
                self.is_header_open = true;
                self.ends_header = flags & END_HEADERS != 0;
                see(if kind == HEADERS {
                    Seen::Header
                } else {
                    Seen::Other
                });
            }
            DATA if self.left > 0 => see(Seen::Data),
            _ => see(Seen::Other),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let head = [0, 0, length, kind, flags, 0, 0, 0, 1];
        [&head[..], &vec![0xff; usize::from(length)]].concat()
    }

    fn seen(bytes: &[u8], step: usize) -> (Vec<Seen>, bool) {
        let (mut frames, mut seen) = (Frames::new(), Vec::new());
        for read in bytes.chunks(step) {
            frames.read(read, |event| seen.push(event));
        }
        (seen, frames.is_header_open)
    }

    proptest! {
        #[test]
        fn frames_are_seen_wherever_reads_cut_them(step in 1_usize..80) {
            let connection = [
                vec![b'P'; PREFACE],
                frame(4, 0, 0),
                frame(HEADERS, END_HEADERS, 30),
                frame(DATA, 0, 5),
                frame(DATA, 1, 0),
                frame(HEADERS, 0, 30),
                frame(CONTINUATION, 0, 10),
            ]
            .concat();
            let expected = vec![
                Seen::Other,
                Seen::Header,
                Seen::HeaderEnd,
                Seen::Data,
                Seen::Other,
                Seen::Header,
                Seen::Other,
            ];
            prop_assert_eq!(seen(&connection, step), (expected.clone(), true));
            let whole = [connection, frame(CONTINUATION, END_HEADERS, 0)].concat();
            let end = [Seen::Other, Seen::HeaderEnd];
            let expected = [&expected[..], &end].concat();
            // The last frame has no payload: its head ends it.
            prop_assert_eq!(seen(&whole, step), (expected, false));
        }
    }
}
