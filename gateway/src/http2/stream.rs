//! A stream of an HTTP/2 connection: one exchange.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};

use crate::downstream::{Appetite, Downstream, FromClient, ResponseHead};
use crate::framing::Framing;

/// Bytes at the end of an answer that need no room in the client's windows to be let go of: they wait
/// in the library, and a client that never takes them is idle.
const SMALL_REST: usize = 4 * 1024;

/// A client's stream: one exchange.
pub(super) struct Http2 {
    /// Of the request, until it has come to its end.
    pub(super) body: Option<RecvStream>,
    respond: SendResponse<Bytes>,
    /// Of the answer, once it has begun.
    stream: Option<SendStream<Bytes>>,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    response: Phase,
    status: Option<StatusCode>,
    sent: u64,
}

/// How far the answer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// It is whole, and waits.
    Done,
    Sent,
    /// Nobody listens any more.
    Reset,
}

/// The stream is no more.
struct Reset;

impl From<h2::Error> for Reset {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

impl Http2 {
    pub(super) fn new(respond: SendResponse<Bytes>) -> Self {
        Self {
            body: None,
            respond,
            stream: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            response: Phase::Open,
            status: None,
            sent: 0,
        }
    }

    /// Sends as much as the client has room for.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reset>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(()));
        };
        while matches!(self.response, Phase::Open | Phase::Done) {
            let is_rest = self.response == Phase::Done && self.waiting_bytes <= SMALL_REST;
            let data = match self.waiting.front_mut() {
                Some(data) => data,
                // Something has to carry the end.
                None if is_rest => {
                    stream.send_data(Bytes::new(), true)?;
                    self.response = Phase::Sent;
                    break;
                }
                None => break,
            };
            let mut room = data.len();
            if !is_rest {
                stream.reserve_capacity(data.len());
                room = stream.capacity();
                if room == 0 {
                    match ready!(stream.poll_capacity(cx)) {
                        Some(room_now) => room = room_now?,
                        None => return Poll::Ready(Err(Reset)),
                    }
                }
            }
            let part = data.split_to(room.min(data.len()));
            self.waiting_bytes -= part.len();
            if data.is_empty() {
                self.waiting.pop_front();
            }
            let is_last = self.waiting.is_empty() && self.response == Phase::Done;
            stream.send_data(part, is_last)?;
            if is_last {
                self.response = Phase::Sent;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<FromClient> {
        let Some(body) = &mut self.body else {
            return self.poll_reset(cx);
        };
        loop {
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    // An error means that the stream is no more, as the next poll will tell.
                    let _ = body.flow_control().release_capacity(data.len());
                    return Poll::Ready(FromClient::Data(data));
                }
                Some(Err(_)) => {
                    self.response = Phase::Reset;
                    return Poll::Ready(FromClient::Gone);
                }
                None => {
                    self.body = None;
                    return Poll::Ready(FromClient::End);
                }
            }
        }
    }

    /// Notices that the client has gone, whatever else it is waited for.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<FromClient> {
        let _ = ready!(match &mut self.stream {
            Some(stream) => stream.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        });
        self.response = Phase::Reset;
        Poll::Ready(FromClient::Gone)
    }

    /// Whether the client gave the exchange up before it had its answer.
    pub(super) fn was_reset(&self) -> bool {
        self.response == Phase::Reset
    }
}

impl Downstream for Http2 {
    fn poll(&mut self, cx: &mut Context<'_>, appetite: Appetite) -> Poll<FromClient> {
        let is_sent = self.poll_send(cx);
        if let Poll::Ready(Err(Reset)) = is_sent {
            self.response = Phase::Reset;
        }
        match self.response {
            Phase::Reset => Poll::Ready(FromClient::Gone),
            Phase::Sent => Poll::Ready(FromClient::Finished),
            Phase::Done => Poll::Pending,
            Phase::Open if appetite == Appetite::Full => self.poll_reset(cx),
            Phase::Open => self.poll_request(cx),
        }
    }

    fn waiting(&self) -> usize {
        self.waiting_bytes
    }

    fn interim(&mut self, head: &ResponseHead) {
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        response.headers_mut().clone_from(&head.fields);
        // A client that is gone is found out when it is polled.
        let _ = self.respond.send_informational(response);
    }

    fn begin(&mut self, head: ResponseHead) {
        self.status = Some(head.status);
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.fields;
        if let Framing::Length(length) = head.framing {
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        let is_empty = head.framing.is_empty();
        match self.respond.send_response(response, is_empty) {
            Ok(stream) => self.stream = Some(stream),
            Err(_) => self.response = Phase::Reset,
        }
        if is_empty && self.response == Phase::Open {
            self.response = Phase::Sent;
        }
    }

    fn send(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.sent += data.len() as u64;
            self.waiting_bytes += data.len();
            self.waiting.push_back(data);
        }
    }

    fn finish(&mut self) {
        if self.response == Phase::Open {
            self.response = Phase::Done;
        }
    }

    fn cut(&mut self) {
        match &mut self.stream {
            Some(stream) => stream.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn close_after(&mut self) {
        // A stream that is malformed says nothing of the others (RFC 9113, section 8.1.1).
    }

    fn status(&self) -> Option<StatusCode> {
        self.status
    }

    fn sent(&self) -> u64 {
        self.sent
    }
}
