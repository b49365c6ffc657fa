//! Responses: headers, bodies within the flow-control windows of the client, and the end of exchanges.

use std::task::Waker;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::http::downstream::{Backpressure, DownstreamEvent};
use crate::http::h2::connection::{ClientError, Connection};
use crate::http::h2::frame::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, FRAME_HEADER_LENGTH, FrameHeader, HEADERS,
    MAX_FRAME_SIZE, Reason,
};
use crate::http::h2::streams::{Body, ExchangeProgress, RequestProgress, ResponseProgress, Stream};
use crate::http::lingering_close::LingeringDeadline;

/// Number of output bytes from which on response bodies wait.
const OUTPUT_WATERMARK: usize = 64 * 1024;

/// Headers of a response, of an interim one too.
#[derive(Debug, Clone, Copy)]
pub(in crate::http::h2) struct Response<'r> {
    pub(in crate::http::h2) status: StatusCode,
    pub(in crate::http::h2) content_length: Option<u64>,
    pub(in crate::http::h2) headers: &'r HeaderMap,
}

/// Part of a response that follows headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http::h2) enum AfterHeaders {
    /// Another interim response, or the final one.
    Response,
    Body,
    /// Nothing: the headers end the stream.
    End,
}

impl Connection {
    /// Sends headers of a response.
    pub(in crate::http::h2) fn send_headers(
        &mut self,
        id: u32,
        response: Response<'_>,
        after: AfterHeaders,
    ) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if stream.response != ResponseProgress::AwaitingHeaders {
            return;
        }
        let mut flags = END_HEADERS;
        match after {
            AfterHeaders::Response => {}
            AfterHeaders::Body => stream.response = ResponseProgress::Open,
            AfterHeaders::End => {
                stream.response = ResponseProgress::Sent;
                flags |= END_STREAM;
            }
        }
        let output = self.output.buffer();
        let start = output.len();
        let mut frame = FrameHeader {
            length: 0,
            kind: HEADERS,
            flags,
            stream: id,
        };
        frame::put_frame_header(output, frame);
        self.encoder.put_response(
            output,
            response.status,
            response.content_length,
            response.headers,
        );
        frame.length = output.len() - start - FRAME_HEADER_LENGTH;
        if frame.length > MAX_FRAME_SIZE {
            let block = output.split_off(start + FRAME_HEADER_LENGTH);
            output.truncate(start);
            put_long_block(output, frame, &block);
        } else {
            let length = frame::length_bytes(frame.length);
            output[start..start + length.len()].copy_from_slice(&length);
        }
    }

    /// Appends to the body of a response.
    pub(in crate::http::h2) fn send_data(&mut self, id: u32, data: Bytes) {
        if let Some(stream) = self.streams.get_mut(id)
            && stream.response == ResponseProgress::Open
            && !data.is_empty()
        {
            stream.queued_bytes += data.len();
            stream.queue.push_back(data);
        }
    }

    /// Ends a response.
    pub(in crate::http::h2) fn finish_response(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(id)
            && stream.response == ResponseProgress::Open
        {
            stream.response = ResponseProgress::Finished;
        }
    }

    /// Returns the number of response bytes of a stream that wait to be sent.
    pub(in crate::http::h2) fn queued_bytes(&self, id: u32) -> usize {
        self.streams.get(id).map_or(0, |stream| stream.queued_bytes)
    }

    /// Sends what is queued, and returns the next event of a stream for its exchange. `None` if there is none:
    /// `waker` is woken by the next one.
    pub(in crate::http::h2) fn next_event(
        &mut self,
        id: u32,
        upstream: Backpressure,
        waker: &Waker,
    ) -> Option<DownstreamEvent> {
        // The exchange needs no notification of what it sees now.
        let last_waker = self
            .streams
            .get_mut(id)
            .and_then(|stream| stream.waker.take());
        self.schedule(id);
        self.pump();
        let Some(stream) = self.streams.get_mut(id) else {
            return Some(DownstreamEvent::Disconnected);
        };
        if stream.is_reset() {
            return Some(DownstreamEvent::Disconnected);
        }
        if stream.is_response_sent() {
            return Some(DownstreamEvent::ResponseSent);
        }
        // Once the response is complete, the rest of the request is not needed.
        if upstream == Backpressure::Ready && stream.response != ResponseProgress::Finished {
            if let Some(data) = stream.body.take() {
                self.release(id, data.len());
                return Some(DownstreamEvent::Data(data));
            }
            if stream.request == RequestProgress::Complete {
                stream.request = RequestProgress::Delivered;
                return Some(DownstreamEvent::End);
            }
        }
        stream.waker = last_waker.filter(|last| last.will_wake(waker));
        stream.waker.get_or_insert_with(|| waker.clone());
        None
    }

    /// Aborts a response.
    pub(in crate::http::h2) fn abort_response(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(id)
            && !matches!(
                stream.response,
                ResponseProgress::Sent | ResponseProgress::Reset
            )
        {
            stream.reset();
            self.send_reset(id, Reason::InternalError);
        }
    }

    /// Ends the exchange of a stream. A short rest of a response that is complete is sent, and the rest of a request received
    /// and discarded. The response is aborted if there is more of it: the exchange has waited in vain for the client to read it.
    pub(in crate::http::h2) fn end_exchange(&mut self, id: u32) {
        let is_sent = self.streams.get(id).is_some_and(Stream::is_response_sent);
        if !is_sent {
            self.abort_response(id);
        }
        if let Some(stream) = self.streams.get_mut(id) {
            stream.waker = None;
            stream.body = Body::default();
            stream.exchange = if stream.request == RequestProgress::Open {
                ExchangeProgress::Discarding(LingeringDeadline::new())
            } else {
                ExchangeProgress::Ended
            };
        }
        self.schedule(id);
        self.pump();
        self.settle(id);
    }

    /// Lets a stream send, if it has output.
    fn schedule(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(id)
            && stream.has_output()
            && !stream.is_scheduled
        {
            stream.is_scheduled = true;
            self.scheduled.push_back(id);
        }
    }

    fn schedule_all(&mut self) {
        for stream in self.streams.iter_mut() {
            if stream.has_output() && !stream.is_scheduled {
                stream.is_scheduled = true;
                self.scheduled.push_back(stream.id);
            }
        }
    }

    /// Writes response bodies into the output, one frame of each stream in turn, as far as the windows permit and until enough
    /// output waits for the socket.
    pub(in crate::http::h2) fn pump(&mut self) {
        while self.output.len() < OUTPUT_WATERMARK {
            let Some(id) = self.next_scheduled() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(id) else {
                continue;
            };
            stream.is_scheduled = false;
            if !stream.has_output() {
                continue;
            }
            let connection_window = self.send_window.available();
            let window = connection_window.min(stream.send_window.available());
            if window == 0 && stream.queued_bytes > 0 {
                // The next change of its window schedules it again.
                continue;
            }
            let length = put_data(self.output.buffer(), stream, window.min(MAX_FRAME_SIZE));
            self.send_window.consume(length);
            if length == MAX_FRAME_SIZE || stream.queued_bytes == 0 {
                self.frame_limit.record_sent_data_frame();
            }
            if stream.has_output() {
                stream.is_scheduled = true;
                self.scheduled.push_back(id);
            }
            if stream.is_response_sent() || stream.queued_bytes == 0 {
                self.notify(id);
                self.settle(id);
            }
        }
    }

    /// Takes the next stream that may send. While the window of the connection is closed, that is one with nothing but its
    /// end to send (RFC 9113, section 6.9.1).
    fn next_scheduled(&mut self) -> Option<u32> {
        if self.send_window.available() > 0 {
            return self.scheduled.pop_front();
        }
        let position = self.scheduled.iter().position(|id| {
            let stream = self.streams.get(*id);
            stream.is_none_or(|stream| stream.queued_bytes == 0)
        });
        self.scheduled.remove(position?)
    }

    pub(super) fn receive_window_update(
        &mut self,
        frame: FrameHeader,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        let increment = payload.as_array().ok_or(Reason::FrameSizeError)?;
        let increment = frame::read_31_bit(*increment);
        if frame.stream == 0 {
            if increment == 0 {
                return Err(Reason::ProtocolError.into());
            }
            self.send_window.add(increment.into())?;
            self.pump();
            return Ok(());
        }
        if self.is_idle(frame.stream) {
            return Err(Reason::ProtocolError.into());
        }
        let Some(stream) = self.streams.get_mut(frame.stream) else {
            return Ok(());
        };
        if stream.is_reset() {
            return Ok(());
        }
        if increment == 0 {
            return Err(ClientError::Stream(frame.stream, Reason::ProtocolError));
        }
        let added = stream.send_window.add(increment.into());
        added.map_err(|reason| ClientError::Stream(frame.stream, reason))?;
        self.schedule(frame.stream);
        self.pump();
        Ok(())
    }

    /// Changes the initial send window, and that of every stream by the difference (RFC 9113, section 6.9.2).
    pub(super) fn set_initial_send_window(&mut self, size: u32) -> Result<(), Reason> {
        let difference = i64::from(size) - i64::from(self.initial_send_window);
        self.initial_send_window = size;
        for stream in self.streams.iter_mut() {
            stream.send_window.add(difference)?;
        }
        self.schedule_all();
        self.pump();
        Ok(())
    }
}

/// Writes a DATA frame with up to `max_length` bytes of a stream. It is empty if nothing but the end of the stream is to be
/// sent. Returns its length.
fn put_data(output: &mut Vec<u8>, stream: &mut Stream, max_length: usize) -> usize {
    let length = max_length.min(stream.queued_bytes);
    let is_last = stream.response == ResponseProgress::Finished && length == stream.queued_bytes;
    if is_last {
        stream.response = ResponseProgress::Sent;
    }
    output.reserve(FRAME_HEADER_LENGTH + length);
    frame::put_frame_header(
        output,
        FrameHeader {
            length,
            kind: DATA,
            flags: if is_last { END_STREAM } else { 0 },
            stream: stream.id,
        },
    );
    let mut remaining = length;
    while remaining > 0 {
        let part = stream.take_output(remaining);
        output.extend_from_slice(&part);
        remaining -= part.len();
    }
    stream.send_window.consume(length);
    length
}

/// Writes a header block that is too long for one frame. `first` is the header of the whole block.
fn put_long_block(output: &mut Vec<u8>, first: FrameHeader, block: &[u8]) {
    let count = block.chunks(MAX_FRAME_SIZE).len();
    for (number, fragment) in block.chunks(MAX_FRAME_SIZE).enumerate() {
        let is_last = number + 1 == count;
        let end_headers = if is_last { END_HEADERS } else { 0 };
        let (kind, other_flags) = match number {
            0 => (HEADERS, first.flags & !END_HEADERS),
            _ => (CONTINUATION, 0),
        };
        let frame = FrameHeader {
            length: fragment.len(),
            kind,
            flags: other_flags | end_headers,
            stream: first.stream,
        };
        frame::put_frame_header(output, frame);
        output.extend_from_slice(fragment);
    }
}
