//! A connection to a replica, which speaks HTTP/1.1 (RFC 9112).

use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes};
use http::header::{CONTENT_LENGTH, SERVER, UPGRADE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora::protocols::Stream;
use thiserror::Error;

use crate::downstream::{Appetite, ResponseHead};
use crate::framing::{self, Decoder, Framing, Piece};
use crate::head;
use crate::hop::{Fate, Hop, Persistence, Upgrade, WEBSOCKET};
use crate::wire::Wire;

/// Bytes of an answer's head, with those of the answers before it.
const MAX_HEAD: usize = 64 * 1024;
/// Answers before the last one: more is a game.
const MAX_INTERIM: u32 = 8;
const POWERED_BY: HeaderName = HeaderName::from_static("x-powered-by");
/// Room for the fields of most answers, and ours.
const USUAL_FIELDS: usize = 16;

/// What comes from a replica during an exchange.
#[derive(Debug)]
pub(crate) enum FromReplica {
    /// Not the last answer.
    Interim(ResponseHead),
    Head(ResponseHead),
    Data(Bytes),
    /// The answer is whole.
    End,
}

/// A replica that has not answered as HTTP has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Broken {
    #[error("the connection broke")]
    Connection,
    #[error("the head of the answer is malformed or too large")]
    Head,
    #[error("the body of the answer is malformed or not whole")]
    Body,
}

impl From<framing::Malformed> for Broken {
    fn from(_: framing::Malformed) -> Self {
        Self::Body
    }
}

/// A connection and the exchange that is under way on it.
pub(crate) struct Connection {
    wire: Wire,
    /// Of the request's body.
    framing: Framing,
    /// What the answer depends on.
    method: Method,
    upgrade: Upgrade,
    past: Past,
    interim: u32,
    /// Bytes of heads that came before the last one.
    heads: usize,
    request: Phase,
    response: Answer,
    persistence: Persistence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Done,
    /// The replica takes no more.
    Deaf,
}

/// What a connection was used for before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    Nothing,
    /// Another exchange: the replica may close it at any moment.
    Rested,
}

/// How far the answer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Head { searched: usize },
    Body(Decoder),
    Done,
}

impl Connection {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            wire: Wire::new(stream),
            framing: Framing::Empty,
            method: Method::GET,
            upgrade: Upgrade::Nothing,
            past: Past::Nothing,
            interim: 0,
            heads: 0,
            request: Phase::Open,
            response: Answer::Done,
            persistence: Persistence::Keep,
        }
    }

    /// Begins an exchange, and says where to write the head of the request.
    pub(crate) fn begin(
        &mut self,
        method: &Method,
        framing: Framing,
        upgrade: Upgrade,
    ) -> &mut Vec<u8> {
        self.method = method.clone();
        self.framing = framing;
        self.upgrade = upgrade;
        (self.interim, self.heads) = (0, 0);
        self.request = Phase::Open;
        self.response = Answer::Head { searched: 0 };
        self.persistence = Persistence::Keep;
        self.wire.output()
    }

    /// Some of the request's body.
    pub(crate) fn send(&mut self, data: &[u8]) {
        if self.request == Phase::Open {
            framing::put_data(self.wire.output(), self.framing, data);
        }
    }

    /// The request is whole.
    pub(crate) fn finish(&mut self) {
        if self.request == Phase::Open {
            framing::put_end(self.wire.output(), self.framing);
            self.request = Phase::Done;
        }
    }

    /// Bytes of the request that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.wire.waiting()
    }

    /// Whether another exchange can follow.
    pub(crate) fn is_reusable(&self) -> bool {
        self.persistence == Persistence::Keep
            && self.request == Phase::Done
            && self.response == Answer::Done
            && self.wire.is_flushed()
            && self.wire.input.is_empty()
    }

    /// It waits for the next exchange.
    pub(super) fn rest(&mut self) {
        self.past = Past::Rested;
    }

    /// Whether it may have been closed before the current exchange began: nothing has come of that.
    pub(crate) fn may_have_been_stale(&self) -> bool {
        self.past == Past::Rested
            && self.response == (Answer::Head { searched: 0 })
            && self.heads == 0
            && self.wire.input.is_empty()
    }

    /// Whether nothing has come since it was last used, not even its end.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut read = std::pin::pin!(tokio::task::unconstrained(std::future::poll_fn(|cx| {
            self.wire.poll_fill(cx)
        })));
        read.as_mut().poll(&mut cx).is_pending()
    }

    /// Sends what waits, and reads on.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        appetite: Appetite,
    ) -> Poll<Result<FromReplica, Broken>> {
        if !self.wire.is_flushed()
            && let Poll::Ready(Err(_)) = self.wire.poll_send(cx)
        {
            // It may have answered before it closed.
            self.wire.discard();
            self.request = Phase::Deaf;
        }
        if appetite == Appetite::Full {
            return Poll::Pending;
        }
        loop {
            if let Some(event) = self.next()? {
                return Poll::Ready(Ok(event));
            }
            if self.response == Answer::Done {
                return Poll::Pending;
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(1..) => {}
                Ok(_) => return Poll::Ready(self.closed()),
                Err(_) => return Poll::Ready(Err(Broken::Connection)),
            }
        }
    }

    /// What is at hand.
    fn next(&mut self) -> Result<Option<FromReplica>, Broken> {
        match &mut self.response {
            Answer::Done => Ok(None),
            Answer::Head { searched } => {
                let input = &self.wire.input;
                let from = searched.saturating_sub(3);
                if let Some(found) = memchr::memmem::find(&input[from..], b"\r\n\r\n") {
                    return self.head(from + found + 4).map(Some);
                }
                // Whoever ends lines by line feeds alone would have ended the head by two of them.
                let has_ended = memchr::memmem::find(&input[from..], b"\n\n").is_some();
                if has_ended || input.len() + self.heads > MAX_HEAD {
                    return Err(Broken::Head);
                }
                *searched = input.len();
                Ok(None)
            }
            Answer::Body(decoder) => match decoder.next(&mut self.wire.input)? {
                Some(Piece::Data(data)) => Ok(Some(FromReplica::Data(data))),
                Some(Piece::End) => {
                    self.response = Answer::Done;
                    Ok(Some(FromReplica::End))
                }
                None => Ok(None),
            },
        }
    }

    fn closed(&mut self) -> Result<FromReplica, Broken> {
        self.persistence = Persistence::Close;
        let Answer::Body(decoder) = &mut self.response else {
            return Err(Broken::Connection);
        };
        decoder.close()?;
        self.response = Answer::Done;
        Ok(FromReplica::End)
    }

    /// Reads a head that is so many bytes long.
    fn head(&mut self, length: usize) -> Result<FromReplica, Broken> {
        let bytes = self.wire.input.split_to(length).freeze();
        let mut space = [const { std::mem::MaybeUninit::uninit() }; head::MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let status = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut parsed,
            &bytes,
            &mut space,
        );
        if !matches!(status, Ok(httparse::Status::Complete(end)) if end == length) {
            return Err(Broken::Head);
        }
        let status = parsed
            .code
            .and_then(|code| StatusCode::from_u16(code).ok())
            .ok_or(Broken::Head)?;
        let is_usual = parsed.reason == status.canonical_reason();
        let reason = parsed
            .reason
            .filter(|reason| !is_usual && !reason.is_empty());
        let reason = reason.map(|reason| bytes.slice_ref(reason.as_bytes()));
        let (mut fields, mut hop) = (HeaderMap::with_capacity(USUAL_FIELDS), Hop::default());
        let (mut length, mut is_chunked) = (None, false);
        for field in &*parsed.headers {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Broken::Head)?;
            match field.name.len() {
                14 if name == CONTENT_LENGTH => {
                    let value = head::length(field.value).ok_or(Broken::Head)?;
                    if length.replace(value).is_some() {
                        return Err(Broken::Head);
                    }
                }
                17 if name == http::header::TRANSFER_ENCODING => {
                    if is_chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Broken::Head);
                    }
                    is_chunked = true;
                }
                _ => {}
            }
            if tells_of_the_inside(&name) {
                continue;
            }
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value))
                .map_err(|_| Broken::Head)?;
            if hop.look(&name, &value) == Fate::Passes {
                fields.append(name, value);
            }
        }
        hop.strike(&mut fields);
        let is_http_1_0 = parsed.version == Some(0);
        let framing = match (is_chunked, length) {
            (true, Some(_)) => return Err(Broken::Head),
            (true, None) if is_http_1_0 => return Err(Broken::Head),
            (true, None) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        };
        let mut head = ResponseHead {
            status,
            reason,
            fields,
            framing,
        };
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(head, &hop);
        }
        if status.is_informational() {
            self.interim += 1;
            self.heads += bytes.len();
            self.response = Answer::Head { searched: 0 };
            return if self.interim <= MAX_INTERIM {
                Ok(FromReplica::Interim(head))
            } else {
                Err(Broken::Head)
            };
        }
        // RFC 9112, section 6.3.
        if self.method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
            if let Some(length) = length {
                head.fields.insert(CONTENT_LENGTH, length.into());
            }
            head.framing = Framing::Empty;
        } else if status == StatusCode::NO_CONTENT {
            head.framing = Framing::Empty;
        }
        self.persistence = match head.framing {
            Framing::UntilClose => Persistence::Close,
            _ => hop.persistence(is_http_1_0),
        };
        self.response = Answer::Body(Decoder::from(head.framing));
        Ok(FromReplica::Head(head))
    }

    /// From here on both sides say what they like (RFC 9110, section 15.2.2).
    fn switch(&mut self, mut head: ResponseHead, hop: &Hop) -> Result<FromReplica, Broken> {
        if self.upgrade == Upgrade::Nothing || hop.upgrade() != self.upgrade {
            return Err(Broken::Head);
        }
        let protocol = HeaderValue::from_static(WEBSOCKET);
        head.fields.insert(UPGRADE, protocol);
        head.framing = Framing::UntilClose;
        self.framing = Framing::UntilClose;
        self.persistence = Persistence::Close;
        self.request = Phase::Open;
        self.response = Answer::Body(Decoder::UntilClose);
        Ok(FromReplica::Head(head))
    }
}

/// Whether a field says what a replica is made of, or where it is.
fn tells_of_the_inside(name: &HeaderName) -> bool {
    match name.as_str().len() {
        3 => *name == VIA,
        6 => *name == SERVER,
        12 => *name == POWERED_BY,
        _ => false,
    }
}

/// Writes the first line of a request.
pub(crate) fn put_request_line(output: &mut Vec<u8>, method: &Method, target: &[u8]) {
    output.put_slice(method.as_str().as_bytes());
    output.put_u8(b' ');
    output.put_slice(target);
    output.put_slice(b" HTTP/1.1\r\n");
}
