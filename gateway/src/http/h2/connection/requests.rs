//! Requests: header blocks, request bodies, and resets by the client.

use bytes::{Buf, BytesMut};

use crate::http::h2::connection::{
    BlockTarget, ClientError, Connection, DrainProgress, MAX_CONCURRENT_STREAMS, MAX_STREAMS,
    OpenBlock, ReceivedRequest,
};
use crate::http::h2::frame::{
    self, END_HEADERS, END_STREAM, FrameHeader, PRIORITISED, Reason, without_padding,
};
use crate::http::h2::header_block::{ContentLength, HeaderBlock, Verdict};
use crate::http::h2::request_headers::RequestBody;
use crate::http::h2::streams::{ExchangeProgress, RequestProgress, ResponseProgress, Stream};

impl Connection {
    pub(super) fn receive_headers(
        &mut self,
        frame: FrameHeader,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        if frame.stream.is_multiple_of(2) {
            return Err(Reason::ProtocolError.into());
        }
        let mut fragment = without_padding(frame, payload)?;
        let mut depends_on_itself = false;
        if frame.has(PRIORITISED) {
            let ([a, b, c, d, _weight], rest) =
                fragment.split_first_chunk().ok_or(Reason::FrameSizeError)?;
            depends_on_itself = frame::read_31_bit([*a, *b, *c, *d]) == frame.stream;
            fragment = rest;
        }
        let target = BlockTarget {
            stream: frame.stream,
            ends_stream: frame.has(END_STREAM),
            depends_on_itself,
        };
        if frame.has(END_HEADERS) {
            return self.receive_block(target, fragment);
        }
        self.open_block = Some(OpenBlock {
            target,
            fragment: fragment.to_vec(),
        });
        Ok(())
    }

    pub(super) fn receive_continuation(
        &mut self,
        frame: FrameHeader,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        let open_block = self.open_block.take();
        let mut block = open_block.ok_or(Reason::ProtocolError)?;
        if frame.stream != block.target.stream {
            return Err(Reason::ProtocolError.into());
        }
        block.fragment.extend_from_slice(payload);
        // Compression makes a header list smaller.
        if block.fragment.len() > self.max_header_list_size {
            return Err(Reason::EnhanceYourCalm.into());
        }
        if frame.has(END_HEADERS) {
            return self.receive_block(block.target, &block.fragment);
        }
        self.open_block = Some(block);
        Ok(())
    }

    /// Receives a complete header block. It is decoded in any case: the tables of HPACK depend on all blocks.
    fn receive_block(&mut self, target: BlockTarget, block: &[u8]) -> Result<(), ClientError> {
        self.header_block_since = None;
        let id = target.stream;
        let mut headers = HeaderBlock::new(self.max_header_list_size);
        self.decoder
            .decode(block, |field| headers.push(field))
            .map_err(|_| Reason::CompressionError)?;
        if headers.is_attack() {
            return Err(Reason::EnhanceYourCalm.into());
        }
        if id > self.last_stream {
            self.last_stream = id;
            if self.drain != DrainProgress::Final {
                self.last_processed_stream = id;
            }
            self.reset_limit.record_stream();
            return self.receive_request(target, headers);
        }
        let Some(stream) = self.streams.get_mut(id) else {
            return self.receive_for_closed_stream(id);
        };
        if stream.is_reset() {
            return Ok(());
        }
        if stream.request != RequestProgress::Open {
            return Err(ClientError::Stream(id, Reason::StreamClosed));
        }
        if !target.ends_stream || target.depends_on_itself || !headers.may_be_trailers() {
            return Err(ClientError::Stream(id, Reason::ProtocolError));
        }
        self.end_request(id)
    }

    /// Receives a frame for a stream that is closed. If the gateway has reset it, the client may not have known.
    fn receive_for_closed_stream(&self, id: u32) -> Result<(), ClientError> {
        if self.streams.was_reset_lately(id) {
            Ok(())
        } else {
            Err(Reason::StreamClosed.into())
        }
    }

    fn receive_request(
        &mut self,
        target: BlockTarget,
        headers: HeaderBlock,
    ) -> Result<(), ClientError> {
        let id = target.stream;
        if headers.request_verdict() == Verdict::Malformed || target.depends_on_itself {
            self.malformed_requests += 1;
            return Err(ClientError::Stream(id, Reason::ProtocolError));
        }
        let is_full = self.streams.len() >= MAX_STREAMS
            || self.open_streams() >= MAX_CONCURRENT_STREAMS as usize;
        // The GOAWAY frame of a complete graceful shutdown named an earlier stream as the last one.
        if is_full || self.drain == DrainProgress::Final {
            self.send_reset(id, Reason::RefusedStream);
            return Ok(());
        }
        let mut stream = Stream::new(id, self.initial_send_window);
        let body = if target.ends_stream {
            stream.request = RequestProgress::Complete;
            RequestBody::None
        } else {
            if let ContentLength::Bytes(length) = headers.content_length {
                stream.expected_bytes = Some(length);
            }
            RequestBody::Follows
        };
        self.streams.push(stream);
        self.requests.push_back(ReceivedRequest {
            stream: id,
            headers,
            body,
        });
        Ok(())
    }

    /// Receives a DATA frame, and takes its payload from `input`.
    pub(super) fn receive_data(
        &mut self,
        frame: FrameHeader,
        input: &mut BytesMut,
    ) -> Result<(), ClientError> {
        let id = frame.stream;
        if self.is_idle(id) {
            return Err(Reason::ProtocolError.into());
        }
        let data_length = without_padding(frame, &input[..frame.length])?.len();
        let padding_length = usize::from(frame.has(frame::PADDED));
        // A stream that is not read uses its own window up, so that the connection's never limits anything and is
        // given back at once, whatever becomes of the data.
        self.receive_window.receive(frame.length)?;
        if let Some(increment) = self.receive_window.release(frame.length, None) {
            frame::put_window_update(self.output.buffer(), 0, increment);
        }
        let Some(stream) = self.streams.get_mut(id) else {
            self.frame_limit.record_discarded_data(data_length)?;
            return if self.streams.was_reset_lately(id) {
                Ok(())
            } else {
                Err(ClientError::Stream(id, Reason::StreamClosed))
            };
        };
        if stream.is_running() && !stream.is_reset() {
            self.frame_limit.record_data(data_length)?;
        } else {
            self.frame_limit.record_discarded_data(data_length)?;
        }
        if stream.is_reset() {
            return Ok(());
        }
        if stream.request != RequestProgress::Open {
            return Err(ClientError::Stream(id, Reason::StreamClosed));
        }
        if !matches!(stream.exchange, ExchangeProgress::Ended) {
            let received = stream.receive_window.receive(frame.length);
            received.map_err(|reason| ClientError::Stream(id, reason))?;
        }
        if let Some(expected) = &mut stream.expected_bytes {
            // More than announced (RFC 9113, section 8.1.1).
            *expected = expected
                .checked_sub(data_length as u64)
                .ok_or(ClientError::Stream(id, Reason::ProtocolError))?;
        }
        match &mut stream.exchange {
            ExchangeProgress::Running => {
                input.advance(padding_length);
                stream.body.receive(input, data_length);
                let ends_stream = frame.has(END_STREAM);
                let unread_length = frame.length - data_length;
                if unread_length > 0 && !ends_stream {
                    self.release(id, unread_length);
                }
                if data_length > 0 && !ends_stream {
                    self.notify(id);
                }
            }
            // There is no further window for data that nothing reads.
            ExchangeProgress::Discarding(deadline) if data_length > 0 => deadline.record_read(),
            ExchangeProgress::Discarding(_) | ExchangeProgress::Ended => {}
        }
        if frame.has(END_STREAM) {
            self.end_request(id)
        } else {
            self.settle(id);
            Ok(())
        }
    }

    /// Records that the client has ended a stream.
    fn end_request(&mut self, id: u32) -> Result<(), ClientError> {
        if let Some(stream) = self.streams.get_mut(id) {
            if stream.expected_bytes.is_some_and(|expected| expected > 0) {
                return Err(ClientError::Stream(id, Reason::ProtocolError));
            }
            stream.request = RequestProgress::Complete;
        }
        self.notify(id);
        self.settle(id);
        Ok(())
    }

    /// Permits the client to send as much of a request body as was taken from its window.
    pub(super) fn release(&mut self, id: u32, length: usize) {
        if let Some(stream) = self.streams.get_mut(id)
            && stream.request == RequestProgress::Open
            && let Some(increment) = stream.receive_window.release(length, stream.expected_bytes)
        {
            frame::put_window_update(self.output.buffer(), id, increment);
        }
    }

    pub(super) fn receive_reset(
        &mut self,
        frame: FrameHeader,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        if self.is_idle(frame.stream) {
            return Err(Reason::ProtocolError.into());
        }
        if payload.len() != 4 {
            return Err(Reason::FrameSizeError.into());
        }
        let Some(stream) = self.streams.get(frame.stream) else {
            return Ok(());
        };
        if stream.is_reset() {
            return Ok(());
        }
        if stream.response != ResponseProgress::Sent {
            self.reset_limit.record_reset()?;
        }
        self.end_stream(frame.stream);
        Ok(())
    }
}
