//! State of a connection (RFC 9113), without I/O: what the client sends becomes requests and events of streams, and what
//! the exchanges send becomes output. [`requests`] receives requests, [`responses`] sends responses; this file has what
//! concerns the connection as a whole.
//!
//! Limits on the work and memory that a client can cause (RFC 9113, section 10.5): the number of streams, windows, header
//! blocks, frames ([`FrameLimit`]), resets ([`ResetLimit`]), and the output that waits for the client.

mod requests;
pub(super) mod responses;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::task::Waker;

use bytes::{Buf, BytesMut};

use crate::http::h2::flood_limit::{Flood, FrameLimit, ResetLimit};
use crate::http::h2::flow_control::{ReceiveWindow, SendWindow};
use crate::http::h2::frame::{
    self, ACK, CONTINUATION, DATA, FRAME_HEADER_LENGTH, FrameHeader, GOAWAY, HEADERS, MAX_31_BIT,
    MAX_FRAME_SIZE, PING, PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, Reason, SETTINGS,
    WINDOW_UPDATE,
};
use crate::http::h2::header_block::HeaderBlock;
use crate::http::h2::hpack::{Decoder, Encoder, FIELD_OVERHEAD};
use crate::http::h2::output::Output;
use crate::http::h2::request_headers::RequestBody;
use crate::http::h2::settings::{self, Setting};
use crate::http::h2::streams::{ExchangeProgress, STREAM_WINDOW, Streams};
use crate::http::syntax::MAX_HEADERS;
use crate::runtime::clock::Instant;

/// Maximum number of concurrent streams of a connection.
const MAX_CONCURRENT_STREAMS: u32 = 128;
/// Maximum number of streams, with those that are closed and whose exchange is not over yet.
const MAX_STREAMS: usize = 2 * MAX_CONCURRENT_STREAMS as usize;
/// Flow-control window of a connection, in bytes: a stream that is not read does not block the others.
const CONNECTION_WINDOW: u32 = MAX_CONCURRENT_STREAMS * STREAM_WINDOW;
/// Initial flow-control window of everything, unless settings change it (RFC 9113, section 6.9.2).
const DEFAULT_WINDOW: u32 = 65_535;
/// Number of output bytes from which on no more frames are received: each may cause a frame in return.
const MAX_OUTPUT: usize = 128 * 1024;
/// Maximum number of requests that are received before their exchanges begin.
const MAX_WAITING_REQUESTS: usize = 16;
/// Payload of the PING frame whose acknowledgement shows that the client has received GOAWAY.
const DRAIN_PING: [u8; 8] = *b"draining";

/// Request that a client has sent. Its body may follow.
#[derive(Debug)]
pub(super) struct ReceivedRequest {
    pub(super) stream: u32,
    pub(super) headers: HeaderBlock,
    pub(super) body: RequestBody,
}

/// Header block of which CONTINUATION frames are still to come.
#[derive(Debug)]
struct OpenBlock {
    target: BlockTarget,
    fragment: Vec<u8>,
}

/// Use of a header block.
#[derive(Debug, Clone, Copy)]
struct BlockTarget {
    stream: u32,
    ends_stream: bool,
    /// True if the stream depends on itself, which is an error of the stream (RFC 7540, section 5.3.1).
    depends_on_itself: bool,
}

/// Error of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientError {
    /// The stream is reset (RFC 9113, section 5.4.2).
    Stream(u32, Reason),
    /// The connection is closed (RFC 9113, section 5.4.1).
    Connection(Reason),
}

impl From<Reason> for ClientError {
    fn from(reason: Reason) -> Self {
        Self::Connection(reason)
    }
}

impl From<Flood> for ClientError {
    fn from(Flood: Flood) -> Self {
        Self::Connection(Reason::EnhanceYourCalm)
    }
}

/// Progress of the start of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StartProgress {
    AwaitingPreface,
    AwaitingSettings,
    Complete,
}

/// Progress of a graceful shutdown (RFC 9113, section 6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DrainProgress {
    Serving,
    /// A PING frame was sent, and a GOAWAY frame that still permits all streams.
    Announced,
    /// The client has acknowledged it, and no further streams are accepted; or the client has sent GOAWAY itself.
    Final,
}

/// State of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Bytes that were received and not parsed yet.
    pub(super) input: BytesMut,
    pub(super) output: Output,
    start: StartProgress,
    drain: DrainProgress,
    decoder: Decoder,
    encoder: Encoder,
    max_header_list_size: usize,
    open_block: Option<OpenBlock>,
    /// Start of the header block that is incomplete; before the first frame, start of the connection.
    header_block_since: Option<Instant>,
    streams: Streams,
    /// Highest id of a stream that the client has opened.
    last_stream: u32,
    /// Highest id of a stream that may have been processed. It does not grow once a GOAWAY frame has named it (RFC 9113,
    /// section 6.8).
    last_processed_stream: u32,
    /// Initial send window of streams.
    initial_send_window: u32,
    send_window: SendWindow,
    receive_window: ReceiveWindow,
    /// Streams that have output and whose windows are open, in the order in which they send.
    scheduled: VecDeque<u32>,
    requests: VecDeque<ReceivedRequest>,
    /// Streams whose exchange is to be polled, and its waker.
    notified: Vec<(u32, Waker)>,
    /// Number of requests that were reset as malformed and not reported yet.
    malformed_requests: usize,
    frame_limit: FrameLimit,
    reset_limit: ResetLimit,
}

impl Connection {
    /// Creates the state of a new connection, whose output begins with the settings of the gateway. `max_header_bytes`
    /// limits the headers of a request.
    pub(super) fn new(max_header_bytes: usize) -> Self {
        // Headers that exceed the limit only slightly reach the gateway, which sends the usual error
        // response.
        let max_header_list_size = 2 * max_header_bytes + (MAX_HEADERS + 1) * FIELD_OVERHEAD;
        let mut output = Output::default();
        let buffer = output.buffer();
        frame::put_settings(
            buffer,
            &[
                (settings::MAX_CONCURRENT_STREAMS, MAX_CONCURRENT_STREAMS),
                (settings::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
                (
                    settings::MAX_HEADER_LIST_SIZE,
                    u32::try_from(max_header_list_size).unwrap_or(u32::MAX),
                ),
            ],
        );
        frame::put_window_update(buffer, 0, CONNECTION_WINDOW - DEFAULT_WINDOW);
        Self {
            input: BytesMut::new(),
            output,
            start: StartProgress::AwaitingPreface,
            drain: DrainProgress::Serving,
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            max_header_list_size,
            open_block: None,
            header_block_since: Some(Instant::now()),
            streams: Streams::default(),
            last_stream: 0,
            last_processed_stream: 0,
            initial_send_window: DEFAULT_WINDOW,
            send_window: SendWindow::new(DEFAULT_WINDOW),
            receive_window: ReceiveWindow::new(CONNECTION_WINDOW),
            scheduled: VecDeque::new(),
            requests: VecDeque::new(),
            notified: Vec::new(),
            malformed_requests: 0,
            frame_limit: FrameLimit::new(),
            reset_limit: ResetLimit::new(),
        }
    }

    /// Parses the input as far as it consists of complete frames. It stops early if requests wait, or too much output.
    ///
    /// # Errors
    /// Returns an error if the connection has to be closed because of an error of the client.
    pub(super) fn receive(&mut self) -> Result<(), Reason> {
        if self.input.is_empty() {
            return Ok(());
        }
        let mut input = std::mem::take(&mut self.input);
        let result = self.receive_frames(&mut input);
        self.input = input;
        result
    }

    fn receive_frames(&mut self, input: &mut BytesMut) -> Result<(), Reason> {
        if self.start == StartProgress::AwaitingPreface && !self.receive_preface(input)? {
            return Ok(());
        }
        while self.requests.len() < MAX_WAITING_REQUESTS && self.can_receive() {
            let Some(frame) = FrameHeader::parse(input) else {
                break;
            };
            if frame.length > MAX_FRAME_SIZE {
                return Err(Reason::FrameSizeError);
            }
            if frame.kind == HEADERS && self.header_block_since.is_none() {
                self.header_block_since = time_of_incomplete(input, frame);
            }
            if input.len() < FRAME_HEADER_LENGTH + frame.length {
                break;
            }
            input.advance(FRAME_HEADER_LENGTH);
            let rest = input.len() - frame.length;
            let result = self.receive_frame(frame, input);
            input.advance(input.len() - rest);
            match result {
                Ok(()) => {}
                Err(ClientError::Stream(stream, reason)) => {
                    self.reset_by_error(stream, reason)?;
                }
                Err(ClientError::Connection(reason)) => return Err(reason),
            }
        }
        Ok(())
    }

    /// Returns whether the preface is complete.
    fn receive_preface(&mut self, input: &mut BytesMut) -> Result<bool, Reason> {
        let length = input.len().min(PREFACE.len());
        if input[..length] != PREFACE[..length] {
            return Err(Reason::ProtocolError);
        }
        if length < PREFACE.len() {
            return Ok(false);
        }
        input.advance(length);
        self.start = StartProgress::AwaitingSettings;
        Ok(true)
    }

    /// Receives a frame, whose payload is at the start of `input`. A payload that is a request body is taken.
    fn receive_frame(
        &mut self,
        frame: FrameHeader,
        input: &mut BytesMut,
    ) -> Result<(), ClientError> {
        if self.start == StartProgress::AwaitingSettings {
            if frame.kind != SETTINGS || frame.has(ACK) {
                return Err(Reason::ProtocolError.into());
            }
            self.start = StartProgress::Complete;
            self.header_block_since = None;
        }
        // Header blocks are contiguous (RFC 9113, section 4.3).
        if self.open_block.is_some() != (frame.kind == CONTINUATION) {
            return Err(Reason::ProtocolError.into());
        }
        match frame.kind {
            DATA => return self.receive_data(frame, input),
            HEADERS => self.frame_limit.record_headers(),
            _ => self.frame_limit.record_overhead()?,
        }
        let payload = &input[..frame.length];
        match frame.kind {
            HEADERS => self.receive_headers(frame, payload),
            CONTINUATION => self.receive_continuation(frame, payload),
            PRIORITY => self.receive_priority(frame, payload),
            RST_STREAM => self.receive_reset(frame, payload),
            SETTINGS => self.receive_settings(frame, payload),
            PUSH_PROMISE => Err(Reason::ProtocolError.into()),
            PING => self.receive_ping(frame, payload),
            GOAWAY => self.receive_goaway(frame, payload),
            WINDOW_UPDATE => self.receive_window_update(frame, payload),
            // Frames of unknown types are ignored (RFC 9113, section 4.1).
            _ => Ok(()),
        }
    }

    fn receive_settings(&mut self, frame: FrameHeader, payload: &[u8]) -> Result<(), ClientError> {
        if frame.stream != 0 {
            return Err(Reason::ProtocolError.into());
        }
        if frame.has(ACK) {
            return if payload.is_empty() {
                Ok(())
            } else {
                Err(Reason::FrameSizeError.into())
            };
        }
        for setting in settings::read(payload)? {
            match setting? {
                Setting::HeaderTableSize(size) => self.encoder.set_max_table_size(size),
                Setting::InitialWindowSize(size) => self.set_initial_send_window(size)?,
                Setting::Other => {}
            }
        }
        frame::put_settings_ack(self.output.buffer());
        Ok(())
    }

    fn receive_ping(&mut self, frame: FrameHeader, payload: &[u8]) -> Result<(), ClientError> {
        let payload = *payload.as_array().ok_or(Reason::FrameSizeError)?;
        if frame.stream != 0 {
            return Err(Reason::ProtocolError.into());
        }
        if !frame.has(ACK) {
            frame::put_ping_ack(self.output.buffer(), payload);
        } else if payload == DRAIN_PING && self.drain == DrainProgress::Announced {
            self.drain = DrainProgress::Final;
            let last_stream = self.last_processed_stream;
            frame::put_goaway(self.output.buffer(), last_stream, Reason::NoError);
        }
        Ok(())
    }

    fn receive_goaway(&mut self, frame: FrameHeader, payload: &[u8]) -> Result<(), ClientError> {
        if frame.stream != 0 {
            return Err(Reason::ProtocolError.into());
        }
        if payload.len() < 8 {
            return Err(Reason::FrameSizeError.into());
        }
        self.drain = DrainProgress::Final;
        Ok(())
    }

    /// Priorities are ignored (RFC 9113, section 5.3.2), but for errors in them.
    fn receive_priority(&mut self, frame: FrameHeader, payload: &[u8]) -> Result<(), ClientError> {
        if frame.stream == 0 {
            return Err(Reason::ProtocolError.into());
        }
        let reason = match payload {
            [dependency @ .., _] if dependency.len() == 4 => {
                let dependency = dependency.first_chunk().copied().map(frame::read_31_bit);
                if dependency != Some(frame.stream) {
                    return Ok(());
                }
                Reason::ProtocolError
            }
            _ => Reason::FrameSizeError,
        };
        Err(if self.is_idle(frame.stream) {
            // An idle stream cannot be reset.
            ClientError::Connection(reason)
        } else {
            ClientError::Stream(frame.stream, reason)
        })
    }

    /// Returns whether the client has not opened a stream, and no stream after it.
    fn is_idle(&self, stream: u32) -> bool {
        stream.is_multiple_of(2) || stream > self.last_stream
    }

    /// Begins a graceful shutdown: GOAWAY permits all streams until the client has received it.
    pub(super) fn begin_drain(&mut self) {
        if self.drain == DrainProgress::Serving {
            self.drain = DrainProgress::Announced;
            let output = self.output.buffer();
            // In this order: python-h2 takes any other frame than GOAWAY after it for an error. The client receives both together,
            // and a stream that it opens between them is refused, so that it may send the request again.
            frame::put_ping(output, DRAIN_PING);
            frame::put_goaway(output, MAX_31_BIT, Reason::NoError);
        }
    }

    /// Returns whether the connection is drained: no stream is open, and none can be opened any more.
    pub(super) fn is_drained(&self) -> bool {
        self.drain == DrainProgress::Final && self.streams.len() == 0
    }

    /// Ends all streams. With a reason, the client is told.
    pub(super) fn close(&mut self, reason: Option<Reason>) {
        if let Some(reason) = reason {
            frame::put_goaway(self.output.buffer(), self.last_processed_stream, reason);
        }
        self.requests.clear();
        for stream in self.streams.iter_mut() {
            stream.reset();
            self.notified
                .extend(stream.waker.take().map(|waker| (stream.id, waker)));
        }
    }

    /// Returns the next request.
    pub(super) fn next_request(&mut self) -> Option<ReceivedRequest> {
        self.requests.pop_front()
    }

    /// Returns a stream whose exchange is to be polled, with its waker.
    pub(super) fn next_notified(&mut self) -> Option<(u32, Waker)> {
        self.notified.pop()
    }

    pub(super) fn has_events(&self) -> bool {
        !self.requests.is_empty() || !self.notified.is_empty() || self.malformed_requests > 0
    }

    /// Returns the number of requests that were reset as malformed since the last call.
    pub(super) fn take_malformed_requests(&mut self) -> usize {
        std::mem::take(&mut self.malformed_requests)
    }

    /// Returns when the incomplete header block began, `None` if there is none.
    pub(super) fn header_block_since(&self) -> Option<Instant> {
        self.header_block_since
    }

    /// Returns whether streams are open, or output waits.
    pub(super) fn has_unsent_responses(&self) -> bool {
        self.streams.len() > 0 || !self.output.is_flushed()
    }

    /// Returns whether more input can be taken: as long as not too much output waits.
    pub(super) fn can_receive(&self) -> bool {
        self.output.len() < MAX_OUTPUT
    }

    /// Records output that the socket has taken.
    pub(super) fn record_sent(&mut self, length: usize) {
        self.output.record_sent(length);
        self.frame_limit.record_sent(length);
    }

    /// Returns whether the unread body of a request is being discarded.
    pub(super) fn is_discarding(&self) -> bool {
        let mut streams = self.streams.iter();
        streams.any(|stream| matches!(stream.exchange, ExchangeProgress::Discarding(_)))
    }

    /// Notifies the exchange of a stream of an event.
    fn notify(&mut self, stream: u32) {
        if let Some(stream) = self.streams.get_mut(stream)
            && let Some(waker) = stream.waker.take()
        {
            self.notified.push((stream.id, waker));
        }
    }

    /// Removes a stream that is closed and whose exchange is over. Resets one on which nothing but an unread request body
    /// could follow.
    fn settle(&mut self, id: u32) {
        let Some(stream) = self.streams.get(id).filter(|stream| !stream.is_running()) else {
            return;
        };
        let is_window_exhausted = stream.receive_window.is_exhausted();
        if stream.is_closed() {
            self.streams.remove(id);
        } else if !stream.has_output() && is_window_exhausted {
            // The rest of the request is not needed (RFC 9113, section 8.1).
            self.streams.remove(id);
            self.send_reset(id, Reason::NoError);
        }
    }

    fn send_reset(&mut self, stream: u32, reason: Reason) {
        frame::put_reset(self.output.buffer(), stream, reason);
        self.streams.remember_reset(stream);
    }

    /// Resets a stream because of an error of the client.
    ///
    /// # Errors
    /// Returns an error if the client has made too many.
    fn reset_by_error(&mut self, id: u32, reason: Reason) -> Result<(), Reason> {
        if !self.streams.was_reset_lately(id) {
            self.send_reset(id, reason);
        }
        self.end_stream(id);
        self.reset_limit
            .record_reset()
            .map_err(|Flood| Reason::EnhanceYourCalm)
    }

    /// Ends a stream that one side has reset.
    fn end_stream(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.reset();
        }
        self.notify(id);
        self.settle(id);
    }

    /// Returns the earliest time until which an unread request body is discarded.
    pub(super) fn discard_deadline(&self) -> Option<Instant> {
        let deadlines = self
            .streams
            .iter()
            .filter_map(|stream| match stream.exchange {
                ExchangeProgress::Discarding(deadline) => Some(deadline.instant()),
                ExchangeProgress::Running | ExchangeProgress::Ended => None,
            });
        deadlines.min()
    }

    /// Ends the streams on which an unread request body was discarded for too long.
    pub(super) fn expire_discarded(&mut self, now: Instant) {
        let expired: Vec<u32> = self
            .streams
            .iter_mut()
            .filter_map(|stream| match stream.exchange {
                ExchangeProgress::Discarding(deadline) if deadline.instant() <= now => {
                    stream.exchange = ExchangeProgress::Ended;
                    Some(stream.id)
                }
                _ => None,
            })
            .collect();
        for id in expired {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.receive_window.exhaust();
            }
            self.settle(id);
        }
    }

    /// Number of streams that count for the limit of concurrent streams.
    fn open_streams(&self) -> usize {
        self.streams
            .iter()
            .filter(|stream| !stream.is_closed())
            .count()
    }
}

/// Returns the current time if a HEADERS frame is incomplete, or does not complete its header block.
fn time_of_incomplete(input: &[u8], frame: FrameHeader) -> Option<Instant> {
    let is_complete = input.len() >= FRAME_HEADER_LENGTH + frame.length;
    (!is_complete || !frame.has(frame::END_HEADERS)).then(Instant::now)
}
