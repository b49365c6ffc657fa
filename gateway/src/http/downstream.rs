//! Downstream side of an exchange: the client, independent of the HTTP version.
//!
//! Backpressure: while more than [`HIGH_WATERMARK`] bytes are buffered for one side of an exchange, the
//! other side is not read. Memory per exchange is bounded because one read is bounded too.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::http::message::{RequestError, ResponseHeaders};
use crate::runtime::idle_timer::IdleTimer;

/// Number of buffered bytes from which on the source of the data is not read.
pub(crate) const HIGH_WATERMARK: usize = 64 * 1024;

/// Readiness of one side of an exchange to take more data from the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backpressure {
    Ready,
    Blocked,
}

impl Backpressure {
    /// Returns the readiness while `buffered` bytes wait to be sent. The low watermark is zero: a side
    /// that was blocked becomes ready once its buffer is empty, so that a slow reader cannot stay just
    /// below the high watermark.
    pub(crate) fn update(self, buffered: usize) -> Self {
        match (self, buffered) {
            (_, 0) => Self::Ready,
            (_, HIGH_WATERMARK..) => Self::Blocked,
            _ => self,
        }
    }
}

/// Event on the downstream side of an exchange.
#[derive(Debug)]
pub(crate) enum DownstreamEvent {
    /// Part of the request body.
    Data(Bytes),
    /// The request is complete.
    End,
    /// The request body is malformed, and the rest of the connection cannot be parsed.
    Malformed(RequestError),
    /// The client disconnected.
    Disconnected,
    /// The complete response was sent.
    ResponseSent,
}

/// Client of an exchange. Data for it is buffered until [`Downstream::poll`] is called.
pub(crate) trait Downstream {
    /// Sends buffered data and reads the request. If the upstream side is [`Backpressure::Blocked`],
    /// the request is not read, and the only events are [`DownstreamEvent::ResponseSent`] and
    /// [`DownstreamEvent::Disconnected`].
    fn poll(&mut self, cx: &mut Context<'_>, upstream: Backpressure) -> Poll<DownstreamEvent>;

    /// Returns the number of response bytes that wait to be sent.
    fn buffered_bytes(&self) -> usize;

    /// Sends the headers of an interim response (RFC 9110, section 15.2).
    fn send_interim(&mut self, headers: &ResponseHeaders);

    /// Sends the headers of the final response. With [`StatusCode::SWITCHING_PROTOCOLS`], the bodies
    /// of request and response become the byte streams of the new protocol.
    fn send_headers(&mut self, headers: ResponseHeaders);

    /// Sends part of the response body.
    fn send_data(&mut self, data: Bytes);

    /// Ends the response.
    fn finish(&mut self);

    /// Aborts the response so that the client recognises it as incomplete.
    fn abort(&mut self);

    /// Closes the connection after the response: the rest of the request cannot be parsed.
    fn close_after_response(&mut self);

    /// Returns the status of the response, `None` before its headers are sent.
    fn status(&self) -> Option<StatusCode>;

    /// Returns the number of bytes of the response body so far.
    fn sent_body_bytes(&self) -> u64;
}

/// Waits until a finished response is sent, the client disconnects, or `limit` has passed.
pub(crate) async fn wait_until_sent(
    downstream: &mut impl Downstream,
    timer: &mut IdleTimer,
    limit: Duration,
) {
    let sent = async {
        loop {
            match poll_fn(|cx| downstream.poll(cx, Backpressure::Blocked)).await {
                DownstreamEvent::ResponseSent | DownstreamEvent::Disconnected => return,
                _ => {}
            }
        }
    };
    let _ = timer.timeout(limit, sent).await;
}
