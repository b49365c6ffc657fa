//! Streams of a connection (RFC 9113, section 5.1): their state, and the data that waits in them.

use std::collections::VecDeque;
use std::task::Waker;

use bytes::{Buf, Bytes, BytesMut};

use crate::http::h2::flow_control::{ReceiveWindow, SendWindow};
use crate::http::lingering_close::LingeringDeadline;

/// Initial flow-control window of a stream, in bytes.
pub(super) const STREAM_WINDOW: u32 = 64 * 1024;
/// Number of bytes from which on data is a part of the buffer that was read. Less data is copied: it would keep that
/// buffer alive, which may be much larger.
const MIN_SHARED: usize = 4 * 1024;
/// Maximum size of the rest of a complete response that waits for capacity in the client's flow-control windows after the
/// exchange has ended. It is not part of the budget of response bytes, which is the exchange's.
pub(super) const MAX_UNSENT_REST: usize = 4 * 1024;
/// Number of streams that are remembered as reset by the gateway: more than a client can have open at once, each of which
/// may have sent frames before it receives the reset.
const MAX_REMEMBERED_RESETS: usize = 1024;

/// Progress of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestProgress {
    /// The client may send more.
    Open,
    /// The client has ended the stream.
    Complete,
    /// The exchange has received everything.
    Delivered,
}

/// Progress of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseProgress {
    AwaitingHeaders,
    Open,
    /// Complete, but partly in the queue.
    Finished,
    /// Written into the output of the connection, with the flag that ends the stream.
    Sent,
    /// The stream is closed without a complete response: one side has reset it, or the connection is closed.
    Reset,
}

/// Stream that a client has opened.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) request: RequestProgress,
    pub(super) response: ResponseProgress,
    /// Number of bytes of the body that are still to come, by `content-length`.
    pub(super) expected_bytes: Option<u64>,
    /// Part of the request body that the exchange has not received.
    pub(super) body: Body,
    pub(super) receive_window: ReceiveWindow,
    /// Part of the response body that is not sent.
    pub(super) queue: VecDeque<Bytes>,
    pub(super) queued_bytes: usize,
    pub(super) send_window: SendWindow,
    pub(super) is_scheduled: bool,
    /// Task that waits for an event of the stream.
    pub(super) waker: Option<Waker>,
    pub(super) exchange: ExchangeProgress,
}

/// Progress of the exchange of a stream.
#[derive(Debug)]
pub(super) enum ExchangeProgress {
    Running,
    /// Over. The rest of the response waits for the client, if there is one.
    Ended,
    /// Over, and the rest of the request is received and discarded.
    Discarding(LingeringDeadline),
}

impl Stream {
    pub(super) fn new(id: u32, initial_send_window: u32) -> Self {
        Self {
            id,
            request: RequestProgress::Open,
            response: ResponseProgress::AwaitingHeaders,
            expected_bytes: None,
            body: Body::default(),
            receive_window: ReceiveWindow::new(STREAM_WINDOW),
            queue: VecDeque::new(),
            queued_bytes: 0,
            send_window: SendWindow::new(initial_send_window),
            is_scheduled: false,
            waker: None,
            exchange: ExchangeProgress::Running,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.exchange, ExchangeProgress::Running)
    }

    pub(super) fn is_reset(&self) -> bool {
        self.response == ResponseProgress::Reset
    }

    /// Returns whether the stream is closed in both directions.
    pub(super) fn is_closed(&self) -> bool {
        self.is_reset()
            || self.response == ResponseProgress::Sent && self.request != RequestProgress::Open
    }

    /// Returns whether a complete response is sent, except for a short rest that needs no exchange.
    pub(super) fn is_response_sent(&self) -> bool {
        match self.response {
            ResponseProgress::Sent => true,
            ResponseProgress::Finished => self.queued_bytes <= MAX_UNSENT_REST,
            _ => false,
        }
    }

    /// Returns whether data, or the flag that ends the stream, waits to be sent.
    pub(super) fn has_output(&self) -> bool {
        match self.response {
            ResponseProgress::Finished => true,
            ResponseProgress::Open => self.queued_bytes > 0,
            _ => false,
        }
    }

    /// Drops what waits in the stream.
    pub(super) fn reset(&mut self) {
        self.response = ResponseProgress::Reset;
        self.body = Body::default();
        self.queue = VecDeque::new();
        self.queued_bytes = 0;
    }

    /// Takes up to `length` bytes of one part of the queue.
    pub(super) fn take_output(&mut self, length: usize) -> Bytes {
        let Some(first) = self.queue.front_mut() else {
            return Bytes::new();
        };
        let part = if length < first.len() {
            first.split_to(length)
        } else {
            self.queue.pop_front().unwrap_or_default()
        };
        self.queued_bytes -= part.len();
        part
    }
}

/// Part of a request body that waits for its exchange. Its memory is bounded by the flow-control window, however small
/// the frames are.
#[derive(Debug, Default)]
pub(super) struct Body(VecDeque<BytesMut>);

impl Body {
    /// Takes `length` bytes of `input` and appends them.
    pub(super) fn receive(&mut self, input: &mut BytesMut, length: usize) {
        if length >= MIN_SHARED {
            return self.0.push_back(input.split_to(length));
        }
        match self.0.back_mut() {
            Some(last) if last.len() < MIN_SHARED => last.extend_from_slice(&input[..length]),
            _ if length == 0 => {}
            _ => self.0.push_back(BytesMut::from(&input[..length])),
        }
        input.advance(length);
    }

    pub(super) fn take(&mut self) -> Option<Bytes> {
        self.0.pop_front().map(BytesMut::freeze)
    }
}

/// All streams that are not closed, and those whose exchange is not over.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// In the order of their ids, in which clients open them.
    streams: Vec<Stream>,
    reset_ids: VecDeque<u32>,
}

impl Streams {
    /// Adds a stream, whose id is larger than all others.
    pub(super) fn push(&mut self, stream: Stream) {
        self.streams.push(stream);
    }

    fn position(&self, id: u32) -> Option<usize> {
        self.streams
            .binary_search_by_key(&id, |stream| stream.id)
            .ok()
    }

    pub(super) fn get(&self, id: u32) -> Option<&Stream> {
        self.streams.get(self.position(id)?)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        let position = self.position(id)?;
        self.streams.get_mut(position)
    }

    pub(super) fn remove(&mut self, id: u32) {
        if let Some(position) = self.position(id) {
            self.streams.remove(position);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.streams.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.streams.iter_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Remembers a stream that the gateway has reset: frames of it may be on their way.
    pub(super) fn remember_reset(&mut self, id: u32) {
        if self.reset_ids.len() == MAX_REMEMBERED_RESETS {
            self.reset_ids.pop_front();
        }
        self.reset_ids.push_back(id);
    }

    pub(super) fn was_reset_lately(&self, id: u32) -> bool {
        self.reset_ids.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_body_consists_of_what_was_received_in_few_parts(
            lengths in prop::collection::vec(prop_oneof![0_usize..3, 4000_usize..5000], 0..60),
        ) {
            let bytes: Vec<u8> = (0_u8..=255).cycle().take(lengths.iter().sum()).collect();
            let (mut body, mut input) = (Body::default(), BytesMut::from(&bytes[..]));
            for length in lengths {
                body.receive(&mut input, length);
            }
            prop_assert!(body.0.len() <= 1 + 2 * bytes.len() / MIN_SHARED);
            let parts: Vec<Bytes> = std::iter::from_fn(|| body.take()).collect();
            prop_assert_eq!(parts.concat(), bytes);
            prop_assert!(parts.iter().all(|part| !part.is_empty()));
        }
    }

    #[test]
    fn the_last_resets_are_remembered() {
        let mut streams = Streams::default();
        for id in 0..1100 {
            streams.remember_reset(id);
        }
        assert!(!streams.was_reset_lately(75) && streams.was_reset_lately(76));
        assert!(streams.was_reset_lately(1099) && !streams.was_reset_lately(1100));
    }
}
