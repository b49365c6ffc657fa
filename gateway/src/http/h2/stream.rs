//! Client's side of one exchange: a stream of an HTTP/2 connection.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;

use crate::http::downstream::{Backpressure, Downstream, DownstreamEvent};
use crate::http::h2::connection::Connection;
use crate::http::h2::connection::responses::{AfterHeaders, Response};
use crate::http::message::{Framing, ResponseHeaders};

/// Client's side of one exchange.
pub(super) struct Http2Stream<'c> {
    /// State of the connection. One task has it, and locks it only because it may move between threads.
    connection: &'c Mutex<Connection>,
    id: u32,
    status: Option<StatusCode>,
    sent_body_bytes: u64,
}

impl<'c> Http2Stream<'c> {
    pub(super) fn new(connection: &'c Mutex<Connection>, id: u32) -> Self {
        Self {
            connection,
            id,
            status: None,
            sent_body_bytes: 0,
        }
    }

    /// Ends the exchange.
    pub(super) fn end(self) {
        self.connection.lock().end_exchange(self.id);
    }
}

impl Downstream for Http2Stream<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, upstream: Backpressure) -> Poll<DownstreamEvent> {
        let mut connection = self.connection.lock();
        match connection.next_event(self.id, upstream, cx.waker()) {
            Some(event) => Poll::Ready(event),
            None => Poll::Pending,
        }
    }

    fn buffered_bytes(&self) -> usize {
        self.connection.lock().queued_bytes(self.id)
    }

    fn send_interim(&mut self, headers: &ResponseHeaders) {
        let response = Response {
            status: headers.status,
            content_length: None,
            headers: &headers.headers,
        };
        let mut connection = self.connection.lock();
        connection.send_headers(self.id, response, AfterHeaders::Response);
    }

    fn send_headers(&mut self, headers: ResponseHeaders) {
        self.status = Some(headers.status);
        let response = Response {
            status: headers.status,
            content_length: match headers.framing {
                Framing::Length(length) => Some(length),
                Framing::Empty | Framing::Chunked | Framing::UntilClose => None,
            },
            headers: &headers.headers,
        };
        let after = if headers.framing.is_empty() {
            AfterHeaders::End
        } else {
            AfterHeaders::Body
        };
        self.connection
            .lock()
            .send_headers(self.id, response, after);
    }

    fn send_data(&mut self, data: Bytes) {
        self.sent_body_bytes += data.len() as u64;
        self.connection.lock().send_data(self.id, data);
    }

    fn finish(&mut self) {
        self.connection.lock().finish_response(self.id);
    }

    fn abort(&mut self) {
        self.connection.lock().abort_response(self.id);
    }

    fn close_after_response(&mut self) {
        // A malformed request concerns its stream only (RFC 9113, section 8.1.1).
    }

    fn status(&self) -> Option<StatusCode> {
        self.status
    }

    fn sent_body_bytes(&self) -> u64 {
        self.sent_body_bytes
    }
}
