//! Guard between the `h2` crate and the socket. It observes four things that `h2` does not report:
//! incomplete header blocks, floods of overhead frames, the client's progress in reading, and streams that
//! are reset because of a malformed request.
//!
//! Overhead frames carry no request data: PING, SETTINGS, `WINDOW_UPDATE`, CONTINUATION, empty DATA and
//! the like. A flood of them costs CPU time and no bandwidth (CVE-2019-9512, CVE-2019-9515,
//! CVE-2019-9518, CVE-2024-27316). A token bucket limits them: each takes a token; requests, request
//! data, bytes that are sent to the client, and time add tokens.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::h2::rejected_streams::ResetScanner;
use crate::http::lingering_close::LingeringClose;
use crate::runtime::clock::Instant;

/// Length of the client connection preface in bytes (RFC 9113, section 3.4).
const PREFACE_LENGTH: usize = 24;
/// Length of a frame header in bytes (RFC 9113, section 4.1).
const FRAME_HEADER_LENGTH: usize = 9;
// Frame types (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// Flag of HEADERS and CONTINUATION frames.
const END_HEADERS: u8 = 4;
/// Size of the buffer for input that is discarded.
const DISCARD_BUFFER_SIZE: usize = 4 * 1024;

/// Capacity of the token bucket, which is full at first: the largest burst of overhead frames.
const MAX_TOKENS: u64 = 10_000;
const TOKENS_PER_HEADERS_FRAME: u64 = 8;
const TOKENS_PER_DATA_FRAME: u64 = 2;
/// Number of bytes that add a token when they are sent to the client: it acknowledges them with
/// `WINDOW_UPDATE` frames.
const SENT_BYTES_PER_TOKEN: u64 = 256;
const TOKENS_PER_SECOND: u64 = 100;

/// State of the guard. [`GuardedStream`] updates it and the connection's server reads it, both in one
/// task, so that relaxed ordering is enough.
#[derive(Debug)]
pub(super) struct FrameGuard {
    /// Start of the header block that is incomplete, in nanoseconds of the clock; 0 if there is none.
    header_block_since: AtomicU64,
    tokens: AtomicU64,
    /// Last time when tokens were added for elapsed time.
    refilled_at: AtomicU64,
    /// True after an overhead frame for which no token was left.
    is_exhausted: AtomicBool,
    /// Number of bytes that the socket has taken.
    sent_bytes: AtomicU64,
    is_write_blocked: AtomicBool,
    is_lingering: AtomicBool,
    /// Streams that `h2` has reset as malformed since the last call of `take_malformed_streams`.
    malformed_streams: Mutex<Vec<u32>>,
    has_malformed_streams: AtomicBool,
}

impl FrameGuard {
    fn new() -> Self {
        Self {
            header_block_since: AtomicU64::default(),
            tokens: AtomicU64::new(MAX_TOKENS),
            refilled_at: AtomicU64::new(Instant::now().0),
            is_exhausted: AtomicBool::default(),
            sent_bytes: AtomicU64::default(),
            is_write_blocked: AtomicBool::default(),
            is_lingering: AtomicBool::default(),
            malformed_streams: Mutex::default(),
            has_malformed_streams: AtomicBool::default(),
        }
    }

    /// Returns when the incomplete header block began, `None` if there is none.
    pub(super) fn header_block_since(&self) -> Option<Instant> {
        let since = Instant(self.header_block_since.load(Ordering::Relaxed));
        (since != Instant::default()).then_some(since)
    }

    /// Returns whether the client floods the connection with overhead frames. Refills an exhausted bucket
    /// first.
    pub(super) fn is_flooded(&self) -> bool {
        self.is_exhausted.load(Ordering::Relaxed) && self.refill(Instant::now()) == 0
    }

    /// Refills the empty bucket for the time since the last refill. Returns the number of tokens.
    fn refill(&self, now: Instant) -> u64 {
        let before = Instant(self.refilled_at.load(Ordering::Relaxed));
        let tokens = (now.since(before).as_secs() * TOKENS_PER_SECOND).min(MAX_TOKENS);
        if tokens > 0 {
            self.refilled_at.store(now.0, Ordering::Relaxed);
            self.tokens.store(tokens, Ordering::Relaxed);
            self.is_exhausted.store(false, Ordering::Relaxed);
        }
        tokens
    }

    /// Returns whether the stream is closed for writing and waits for the client to close it.
    pub(super) fn is_lingering(&self) -> bool {
        self.is_lingering.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that the socket has taken.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Returns whether the socket takes no more bytes at present.
    pub(super) fn is_write_blocked(&self) -> bool {
        self.is_write_blocked.load(Ordering::Relaxed)
    }

    pub(super) fn has_malformed_streams(&self) -> bool {
        self.has_malformed_streams.load(Ordering::Relaxed)
    }

    /// Returns the streams that have been reset as malformed since the last call.
    pub(super) fn take_malformed_streams(&self) -> Vec<u32> {
        self.has_malformed_streams.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.malformed_streams.lock())
    }

    fn record_malformed_stream(&self, id: u32) {
        self.malformed_streams.lock().push(id);
        self.has_malformed_streams.store(true, Ordering::Relaxed);
    }

    fn take_token(&self) {
        match self.tokens.load(Ordering::Relaxed).checked_sub(1) {
            Some(tokens) => self.tokens.store(tokens, Ordering::Relaxed),
            None => self.is_exhausted.store(true, Ordering::Relaxed),
        }
    }

    fn add_tokens(&self, added: u64) {
        let before = self.tokens.load(Ordering::Relaxed);
        let after = (before + added).min(MAX_TOKENS);
        self.tokens.store(after, Ordering::Relaxed);
    }
}

/// Client stream that reports its frames to a [`FrameGuard`].
pub(super) struct GuardedStream {
    stream: Stream,
    scanner: FrameScanner,
    reset_scanner: ResetScanner,
    guard: Arc<FrameGuard>,
    /// Number of bytes that were sent since the last token was added for sent bytes.
    bytes_since_token: u64,
    lingering_close: Option<LingeringClose>,
}

impl GuardedStream {
    pub(super) fn new(stream: Stream) -> (Self, Arc<FrameGuard>) {
        let guard = Arc::new(FrameGuard::new());
        let stream = Self {
            stream,
            scanner: FrameScanner::new(),
            reset_scanner: ResetScanner::default(),
            guard: Arc::clone(&guard),
            bytes_since_token: 0,
            lingering_close: None,
        };
        (stream, guard)
    }

    fn record_read(&mut self, bytes: &[u8]) {
        let guard = &self.guard;
        let was_open = self.scanner.is_header_block_open;
        let mut has_ended = false;
        self.scanner.scan(bytes, |event| match event {
            FrameEvent::Headers => guard.add_tokens(TOKENS_PER_HEADERS_FRAME),
            FrameEvent::HeaderBlockEnd => has_ended = true,
            FrameEvent::Data => guard.add_tokens(TOKENS_PER_DATA_FRAME),
            FrameEvent::Overhead => guard.take_token(),
        });
        let is_open = self.scanner.is_header_block_open;
        if is_open && (!was_open || has_ended) {
            let now = Instant::now().0.max(1);
            guard.header_block_since.store(now, Ordering::Relaxed);
        } else if !is_open && was_open {
            guard.header_block_since.store(0, Ordering::Relaxed);
        }
    }

    /// Records the result of writing the bytes of `slices`, one after another.
    fn record_write<'s>(
        &mut self,
        slices: impl IntoIterator<Item = &'s [u8]>,
        written: &Poll<io::Result<usize>>,
    ) {
        let guard = &self.guard;
        guard
            .is_write_blocked
            .store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(count)) = written {
            let mut rest = *count;
            for slice in slices {
                let sent = &slice[..slice.len().min(rest)];
                rest -= sent.len();
                self.reset_scanner
                    .scan(sent, |id| guard.record_malformed_stream(id));
            }
            let count = *count as u64;
            let before = guard.sent_bytes.load(Ordering::Relaxed);
            guard.sent_bytes.store(before + count, Ordering::Relaxed);
            self.bytes_since_token += count;
            guard.add_tokens(self.bytes_since_token / SENT_BYTES_PER_TOKEN);
            self.bytes_since_token %= SENT_BYTES_PER_TOKEN;
        }
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.record_read(&buffer.filled()[before..]);
        }
        read
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.record_write([bytes], &written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.record_write(bytes.iter().map(|slice| &**slice), &written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.guard
            .is_write_blocked
            .store(flushed.is_pending(), Ordering::Relaxed);
        flushed
    }

    /// Closes the stream with a lingering close: a client may send as much as its windows allow until
    /// it has read the GOAWAY frame.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let stream = &mut this.stream;
        let lingering_close = match &mut this.lingering_close {
            Some(lingering_close) => lingering_close,
            none => {
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                this.guard.is_lingering.store(true, Ordering::Relaxed);
                none.insert(LingeringClose::new())
            }
        };
        let mut discarded = [0; DISCARD_BUFFER_SIZE];
        let read = |cx: &mut Context<'_>| {
            let mut buffer = ReadBuf::new(&mut discarded);
            let read = Pin::new(&mut *stream).poll_read(cx, &mut buffer);
            read.map_ok(|()| buffer.filled().len())
        };
        lingering_close.poll(cx, read).map(Ok)
    }
}

/// Event in the frames of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FrameEvent {
    /// A HEADERS frame begins a header block.
    Headers,
    /// The header block is complete.
    HeaderBlockEnd,
    /// A DATA frame that is not empty.
    Data,
    /// Any other frame.
    Overhead,
}

/// Incremental parser of frame headers, independent of how reads split them.
#[derive(Debug)]
struct FrameScanner {
    frame_header: [u8; FRAME_HEADER_LENGTH],
    /// Number of bytes of `frame_header` that are known.
    frame_header_bytes: usize,
    /// Number of bytes to the end of the current frame, at first of the preface.
    remaining: usize,
    is_header_block_open: bool,
    /// True if the current frame is the last one of its header block.
    ends_header_block: bool,
}

impl FrameScanner {
    fn new() -> Self {
        Self {
            frame_header: [0; FRAME_HEADER_LENGTH],
            frame_header_bytes: 0,
            remaining: PREFACE_LENGTH,
            is_header_block_open: false,
            ends_header_block: false,
        }
    }

    fn scan(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(FrameEvent)) {
        while !bytes.is_empty() {
            if self.remaining == 0 {
                let known = self.frame_header_bytes;
                let length = bytes.len().min(FRAME_HEADER_LENGTH - known);
                self.frame_header[known..known + length].copy_from_slice(&bytes[..length]);
                self.frame_header_bytes += length;
                bytes = &bytes[length..];
                if self.frame_header_bytes < FRAME_HEADER_LENGTH {
                    return;
                }
                self.frame_header_bytes = 0;
                self.begin_frame(&mut on_event);
            }
            let length = bytes.len().min(self.remaining);
            self.remaining -= length;
            bytes = &bytes[length..];
            if self.remaining == 0 && self.ends_header_block {
                (self.is_header_block_open, self.ends_header_block) = (false, false);
                on_event(FrameEvent::HeaderBlockEnd);
            }
        }
    }

    fn begin_frame(&mut self, on_event: &mut impl FnMut(FrameEvent)) {
        let [high, middle, low, frame_type, flags, ..] = self.frame_header;
        self.remaining = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        match frame_type {
            HEADERS | CONTINUATION => {
                self.is_header_block_open = true;
                self.ends_header_block = flags & END_HEADERS != 0;
                on_event(if frame_type == HEADERS {
                    FrameEvent::Headers
                } else {
                    FrameEvent::Overhead
                });
            }
            DATA if self.remaining > 0 => on_event(FrameEvent::Data),
            _ => on_event(FrameEvent::Overhead),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: u8 = 4;
    const END_STREAM: u8 = 1;

    fn frame(frame_type: u8, flags: u8, length: u8) -> Vec<u8> {
        let header = [0, 0, length, frame_type, flags, 0, 0, 0, 1];
        [&header[..], &vec![0xff; usize::from(length)]].concat()
    }

    /// Scans `bytes`, which arrive in reads of `read_size` bytes. Returns the events, and whether a
    /// header block is open at the end.
    fn scan(bytes: &[u8], read_size: usize) -> (Vec<FrameEvent>, bool) {
        let (mut scanner, mut events) = (FrameScanner::new(), Vec::new());
        for read in bytes.chunks(read_size) {
            scanner.scan(read, |event| events.push(event));
        }
        (events, scanner.is_header_block_open)
    }

    proptest! {
        #[test]
        fn frames_are_recognised_wherever_reads_split_them(read_size in 1_usize..80) {
            let frames = [
                vec![b'P'; PREFACE_LENGTH],
                frame(SETTINGS, 0, 0),
                frame(HEADERS, END_HEADERS, 30),
                frame(DATA, 0, 5),
                frame(DATA, END_STREAM, 0),
                frame(HEADERS, 0, 30),
                frame(CONTINUATION, 0, 10),
            ]
            .concat();
            let expected = vec![
                FrameEvent::Overhead,
                FrameEvent::Headers,
                FrameEvent::HeaderBlockEnd,
                FrameEvent::Data,
                FrameEvent::Overhead,
                FrameEvent::Headers,
                FrameEvent::Overhead,
            ];
            prop_assert_eq!(scan(&frames, read_size), (expected.clone(), true));
            // The last frame has no payload: its frame header ends the header block.
            let all_frames = [frames, frame(CONTINUATION, END_HEADERS, 0)].concat();
            let end = [FrameEvent::Overhead, FrameEvent::HeaderBlockEnd];
            let expected = [&expected[..], &end].concat();
            prop_assert_eq!(scan(&all_frames, read_size), (expected, false));
        }
    }
}
