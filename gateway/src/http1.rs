//! Clients that speak HTTP/1.1: one request after another on a connection (RFC 9112).

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::header::EXPECT;
use http::{Method, StatusCode, Version};
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use crate::config::Limits;
use crate::downstream::{Appetite, Downstream, FromClient, RequestHead, ResponseHead};
use crate::framing::{self, Decoder, Framing, Piece};
use crate::head::{Bounds, NoHead, Refused, Scan};
use crate::hop::Persistence;
use crate::linger::Linger;
use crate::patience::Patience;
use crate::wire::Wire;

/// For a client to take the last of what it is sent.
const FAREWELL: Duration = Duration::from_secs(1);
/// For a client that is about to send a request when the end begins: its answer tells it. Shorter
/// than what [`crate::serve`] waits for silent clients.
const LAST_CALL: Duration = Duration::from_millis(800);
/// What is left of a request's body is read, so that its connection can go on, if it is this small.
const SMALL_BODY: u64 = 64 * 1024;
/// Bytes that are read before anybody has a use for them, to see the end of a connection.
const AHEAD: usize = 16 * 1024;

/// A client's connection, and the exchange that is under way on it.
pub(crate) struct Http1 {
    wire: Wire,
    shutdown: ShutdownWatch,
    version: Version,
    persistence: Persistence,
    /// Of the request's body.
    decoder: Decoder,
    /// Whether the end of the request has been told.
    request: Phase,
    /// Whether the client sends its body only when told to go on.
    waits: bool,
    response: Phase,
    framing: Framing,
    status: Option<StatusCode>,
    sent: u64,
}

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Done,
}

/// What is answered on a connection.
pub(crate) trait Answers {
    /// What holds for the next request: a reload may change it.
    fn limits(&self) -> Limits;

    /// Answers a request whose head has been read.
    async fn serve(&self, head: RequestHead, client: &mut Http1, patience: &mut Patience);

    /// Answers one that has no single reading.
    fn refuse(&self, refused: Refused, client: &mut Http1);
}

/// Serves a connection to its end.
pub(crate) async fn serve(answers: &impl Answers, stream: Stream, shutdown: &ShutdownWatch) {
    let mut client = Http1::new(stream, shutdown);
    let mut patience = Patience::new();
    let mut ending = pin!(last_call(shutdown.clone()));
    let mut idle = answers.limits().header_timeout;
    loop {
        let limits = answers.limits();
        let bounds = Bounds {
            idle,
            whole: limits.header_timeout,
            size: limits.max_header,
        };
        let head = tokio::select! {
            biased;
            head = client.read_head(bounds, &mut patience) => head,
            () = &mut ending => Err(NoHead::Closed),
        };
        match head {
            Ok(head) => answers.serve(head, &mut client, &mut patience).await,
            Err(NoHead::Closed) => return client.close().await,
            Err(NoHead::Refused(refused)) => {
                client.begin_response();
                answers.refuse(refused, &mut client);
                return client.linger().await;
            }
        }
        match client.settle(limits, &mut patience).await {
            Next::Request => idle = limits.idle_timeout,
            Next::Close => return client.close().await,
            Next::Linger => return client.linger().await,
            Next::Drop => return,
        }
    }
}

/// The method of a request that could not be read.
pub(crate) fn unread() -> Method {
    Method::from_bytes(b"-").expect("a dash is a token")
}

/// Until the end has begun and nobody may be in the middle of sending any more.
async fn last_call(mut ending: ShutdownWatch) {
    // An error means that whoever would tell us of the end has ended.
    let _ = ending.wait_for(|is_ending| *is_ending).await;
    tokio::time::sleep(LAST_CALL).await;
}

/// What a connection does after an exchange.
enum Next {
    Request,
    Close,
    /// Closes, but not before the client could read the answer.
    Linger,
    /// There is nobody to close for, or an answer that must not look whole.
    Drop,
}

impl Http1 {
    fn new(stream: Stream, shutdown: &ShutdownWatch) -> Self {
        Self {
            wire: Wire::new(stream),
            shutdown: shutdown.clone(),
            version: Version::HTTP_11,
            persistence: Persistence::Close,
            decoder: Decoder::Done,
            request: Phase::Done,
            waits: false,
            response: Phase::Open,
            framing: Framing::Empty,
            status: None,
            sent: 0,
        }
    }

    /// Reads a request until the end of its head.
    async fn read_head(
        &mut self,
        bounds: Bounds,
        patience: &mut Patience,
    ) -> Result<RequestHead, NoHead> {
        if self.wire.input.is_empty() {
            match patience.within(bounds.idle, self.fill()).await {
                Some(Ok(1..)) => {}
                _ => return Err(NoHead::Closed),
            }
        }
        // Nearly every head comes at once, and needs no deadline.
        let mut scan = Scan::default();
        if let Some((head, persistence)) = scan.head(&mut self.wire.input, bounds.size)? {
            return Ok(self.begin_request(head, persistence));
        }
        let rest = async {
            loop {
                match self.fill().await {
                    Ok(1..) => {}
                    _ => return Err(NoHead::Closed),
                }
                if let Some(head) = scan.head(&mut self.wire.input, bounds.size)? {
                    return Ok(head);
                }
            }
        };
        match patience.within(bounds.whole, rest).await {
            Some(head) => head.map(|(head, persistence)| self.begin_request(head, persistence)),
            None => Err(Refused::TooSlow.into()),
        }
    }

    fn begin_request(&mut self, head: RequestHead, persistence: Persistence) -> RequestHead {
        self.version = head.version;
        self.persistence = persistence;
        self.decoder = Decoder::from(head.framing);
        self.waits = !self.decoder.is_done() && head.fields.contains_key(EXPECT);
        self.request = Phase::Open;
        self.begin_response();
        head
    }

    fn begin_response(&mut self) {
        self.response = Phase::Open;
        self.status = None;
        self.sent = 0;
    }

    async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.wire.poll_fill(cx)).await
    }

    /// Brings the connection to where the next request can begin, if it can.
    async fn settle(&mut self, limits: Limits, patience: &mut Patience) -> Next {
        if self.response == Phase::Open || !self.wire.is_flushed() {
            let rest = poll_fn(|cx| self.wire.poll_send(cx));
            let _ = tokio::time::timeout(FAREWELL, rest).await;
            return Next::Drop;
        }
        match (self.persistence, self.decoder.is_done()) {
            (Persistence::Keep, true) => return Next::Request,
            // Nothing is unread, as far as is known.
            (Persistence::Close, true) if self.wire.input.is_empty() => return Next::Close,
            (Persistence::Close, _) => return Next::Linger,
            (Persistence::Keep, false) => {}
        }
        let rest = async {
            loop {
                match self.decoder.next(&mut self.wire.input) {
                    Ok(Some(Piece::Data(_))) => {}
                    Ok(Some(Piece::End)) => return Next::Request,
                    Err(_) => return Next::Linger,
                    Ok(None) => match self.fill().await {
                        Ok(1..) => {}
                        _ => return Next::Drop,
                    },
                }
            }
        };
        let settled = patience.within(limits.header_timeout, rest).await;
        settled.unwrap_or(Next::Linger)
    }

    /// Whether what is left of the request's body is worth reading for the next request's sake.
    fn has_little_left(&self) -> bool {
        match self.decoder {
            Decoder::Done => true,
            Decoder::Length { left } => !self.waits && left <= SMALL_BODY,
            Decoder::Chunk(_) | Decoder::UntilClose => false,
        }
    }

    async fn close(&mut self) {
        let closing = poll_fn(|cx| self.wire.poll_close(cx));
        // A client that does not take the farewell has had its time.
        let _ = tokio::time::timeout(FAREWELL, closing).await;
    }

    /// Closes once the client has had the chance to read the answer.
    async fn linger(&mut self) {
        self.close().await;
        let mut linger = Linger::new();
        let lingering = poll_fn(|cx| {
            linger.poll(cx, |cx| {
                self.wire.input.clear();
                self.wire.poll_fill(cx)
            })
        });
        lingering.await;
    }

    /// What the client says next, once what was to be sent is sent.
    fn poll_request(&mut self, cx: &mut Context<'_>, appetite: Appetite) -> Poll<FromClient> {
        if self.request == Phase::Done || appetite == Appetite::Full {
            return self.poll_gone(cx);
        }
        loop {
            match self.decoder.next(&mut self.wire.input) {
                Ok(Some(Piece::Data(data))) => return Poll::Ready(FromClient::Data(data)),
                Ok(Some(Piece::End)) => {
                    self.request = Phase::Done;
                    return Poll::Ready(FromClient::End);
                }
                Err(_) => return Poll::Ready(FromClient::Malformed(Refused::Framing)),
                Ok(None) => {}
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(1..) => {}
                Ok(0) if self.decoder.close().is_ok() => {}
                _ => return Poll::Ready(FromClient::Gone),
            }
        }
    }

    /// Notices that the client has gone, whatever else it is waited for.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<FromClient> {
        while self.wire.input.len() < AHEAD {
            match ready!(self.wire.poll_fill(cx)) {
                Ok(1..) => {}
                _ => return Poll::Ready(FromClient::Gone),
            }
        }
        Poll::Pending
    }

    fn put_head(&mut self, head: &ResponseHead) {
        let output = self.wire.output();
        output.put_slice(b"HTTP/1.1 ");
        output.put_slice(head.status.as_str().as_bytes());
        output.put_u8(b' ');
        let usual = head.status.canonical_reason().unwrap_or_default();
        output.put_slice(head.reason.as_deref().unwrap_or(usual.as_bytes()));
        output.put_slice(b"\r\n");
        for (name, value) in &head.fields {
            put_field(output, name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

/// Writes a field.
pub(crate) fn put_field(output: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    output.put_slice(name);
    output.put_slice(b": ");
    output.put_slice(value);
    output.put_slice(b"\r\n");
}

impl Downstream for Http1 {
    fn poll(&mut self, cx: &mut Context<'_>, appetite: Appetite) -> Poll<FromClient> {
        if !self.wire.is_flushed() {
            match self.wire.poll_send(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(FromClient::Gone),
                Poll::Pending if self.response == Phase::Done => return Poll::Pending,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if self.response == Phase::Done {
            return Poll::Ready(FromClient::Finished);
        }
        self.poll_request(cx, appetite)
    }

    fn waiting(&self) -> usize {
        self.wire.waiting()
    }

    fn interim(&mut self, head: &ResponseHead) {
        self.waits &= head.status != StatusCode::CONTINUE;
        if self.version == Version::HTTP_11 {
            self.put_head(head);
            self.wire.output().put_slice(b"\r\n");
        }
    }

    fn begin(&mut self, head: ResponseHead) {
        self.status = Some(head.status);
        self.framing = match head.framing {
            // Only a client of HTTP/1.1 knows chunks.
            Framing::Chunked | Framing::UntilClose if self.version == Version::HTTP_11 => {
                Framing::Chunked
            }
            Framing::Chunked => Framing::UntilClose,
            other => other,
        };
        self.put_head(&head);
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            (self.framing, self.persistence) = (Framing::UntilClose, Persistence::Close);
            (self.decoder, self.request) = (Decoder::UntilClose, Phase::Open);
            let upgrade = b"connection: upgrade\r\n\r\n";
            return self.wire.output().put_slice(upgrade);
        }
        let ends = self.framing == Framing::UntilClose || *self.shutdown.borrow();
        if ends || !self.has_little_left() {
            self.persistence = Persistence::Close;
        }
        let output = self.wire.output();
        framing::put_field(output, self.framing);
        match (self.persistence, self.version) {
            (Persistence::Close, _) => output.put_slice(b"connection: close\r\n"),
            (Persistence::Keep, Version::HTTP_10) => {
                output.put_slice(b"connection: keep-alive\r\n");
            }
            (Persistence::Keep, _) => {}
        }
        output.put_slice(b"\r\n");
    }

    fn send(&mut self, data: Bytes) {
        self.sent += data.len() as u64;
        framing::put_data(self.wire.output(), self.framing, &data);
    }

    fn finish(&mut self) {
        framing::put_end(self.wire.output(), self.framing);
        self.response = Phase::Done;
    }

    fn cut(&mut self) {
        self.response = Phase::Open;
    }

    fn close_after(&mut self) {
        self.persistence = Persistence::Close;
    }

    fn status(&self) -> Option<StatusCode> {
        self.status
    }

    fn sent(&self) -> u64 {
        self.sent
    }
}
