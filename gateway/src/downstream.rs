//! The client's side of an exchange, whatever version of HTTP it speaks.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method, StatusCode, Version};

use crate::framing::Framing;
use crate::head::Refused;
use crate::hop::Upgrade;
use crate::path::Target;
use crate::patience::Patience;
use crate::wire::FULL;

/// The head of a request. Fields that are for one connection only are not among its fields, nor is
/// what frames its body.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) version: Version,
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) fields: HeaderMap,
    pub(crate) framing: Framing,
    /// The protocol that the client would like to go on with.
    pub(crate) upgrade: Upgrade,
}

impl RequestHead {
    /// The host that is asked for, with its port if that was named.
    pub(crate) fn host(&self) -> Option<&str> {
        self.fields.get(HOST)?.to_str().ok()
    }
}

/// The head of an answer, likewise.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    /// Where it is not the usual one.
    pub(crate) reason: Option<Bytes>,
    pub(crate) fields: HeaderMap,
    pub(crate) framing: Framing,
}

/// Whether one side can take more of what the other one says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appetite {
    Hungry,
    Full,
}

impl Appetite {
    /// What it is when so many bytes wait. Who was full takes everything before there is more, so
    /// that nobody can take one byte a minute.
    pub(crate) fn after(self, waiting: usize) -> Self {
        match (self, waiting) {
            (_, 0) => Self::Hungry,
            (_, FULL..) => Self::Full,
            _ => self,
        }
    }
}

/// What comes from a client during an exchange.
#[derive(Debug)]
pub(crate) enum FromClient {
    /// Some of the request's body.
    Data(Bytes),
    /// The request is whole.
    End,
    /// The body is none: nothing after it can be understood.
    Malformed(Refused),
    /// Nobody listens any more.
    Gone,
    /// It has taken the answer to its end.
    Finished,
}

/// A client in an exchange. What is said to it waits until it is polled.
pub(crate) trait Downstream {
    /// Sends what waits, and reads on. With [`Appetite::Full`] it tells nothing but that the client has
    /// its answer, or is gone.
    fn poll(&mut self, cx: &mut Context<'_>, appetite: Appetite) -> Poll<FromClient>;

    /// Bytes of the answer that wait.
    fn waiting(&self) -> usize;

    /// Passes on an answer that is not the last one (RFC 9110, section 15.2).
    fn interim(&mut self, head: &ResponseHead);

    /// Begins the answer. With [`StatusCode::SWITCHING_PROTOCOLS`] both bodies become whatever the
    /// peers make of them.
    fn begin(&mut self, head: ResponseHead);

    fn send(&mut self, data: Bytes);

    /// The answer is whole.
    fn finish(&mut self);

    /// The answer will never be whole, and the client must not take it for that.
    fn cut(&mut self);

    /// Nothing that follows can be trusted.
    fn close_after(&mut self);

    /// The status of the answer that has begun.
    fn status(&self) -> Option<StatusCode>;

    /// Bytes of the answer's body so far.
    fn sent(&self) -> u64;
}

/// Until the client has taken an answer that is whole, or shows that it will not.
pub(crate) async fn until_taken(
    client: &mut impl Downstream,
    patience: &mut Patience,
    limit: Duration,
) {
    let taken = async {
        loop {
            match poll_fn(|cx| client.poll(cx, Appetite::Full)).await {
                FromClient::Finished | FromClient::Gone => return,
                _ => {}
            }
        }
    };
    let _ = patience.within(limit, taken).await;
}
