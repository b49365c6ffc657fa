//! Events that the client and the endpoint observe, and the invariants that their history satisfies.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::pipe::PIPE_CAPACITY;
use super::script::{BodyPlan, RequestPlan, Script, response_body};
use crate::http::downstream::HIGH_WATERMARK;

/// Maximum number of bytes between the two sides of an exchange: the high watermark, one read, the bytes that are read
/// ahead, and what both connections hold.
const MAX_BUFFERED: usize = HIGH_WATERMARK + 2 * 16 * 1024 + 2 * PIPE_CAPACITY;
/// Longest exchange, pauses of the script apart. On a path with `timeout` that is 4 s for the endpoint, on others up to
/// 6 s to connect and 7 s between two parts of the response; for the client 3 s until it sends on, and 5 s each until it
/// reads the response and an error response.
const MAX_EXCHANGE_DURATION: Duration = Duration::from_secs(30);
/// Time in which a close of a pooled connection counts as that of an idle one.
const STALE_CLOSE_DELAY: Duration = Duration::from_millis(250);

pub(super) type SharedHistory = Arc<Mutex<History>>;

pub(super) struct History {
    pub(super) violations: Vec<String>,
    /// Sum of the pauses of the script that have begun.
    pub(super) pauses: Duration,
    /// Connections that the endpoint has accepted.
    pub(super) connections: usize,
    /// Complete responses of the endpoint that clients have received.
    pub(super) delivered: usize,
    requests: HashMap<u32, Request>,
    /// Number of bytes that a client has received.
    received: HashMap<usize, usize>,
}

struct Request {
    plan: RequestPlan,
    /// Beginning of the exchange, while the gateway serves the request.
    served_since: Option<(Instant, Duration)>,
    arrivals: Vec<Arrival>,
    /// Statuses and body sizes of the complete responses of the endpoint.
    responses: Vec<(u16, usize)>,
    /// Bytes of the body that the endpoint has received, of the longest attempt.
    forwarded: usize,
}

/// Request that has reached the endpoint.
struct Arrival {
    at: Instant,
    connection: ConnectionUse,
    response: ResponseStart,
    /// Time at which the endpoint closed the connection.
    closed: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseStart {
    NothingSent,
    BytesSent,
}

/// Earlier use of a connection to the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionUse {
    First,
    /// The last exchange ended as it should.
    Clean,
    /// The connection must not be used again, for this reason.
    Unclean(&'static str),
}

/// Final response as a client received it.
#[derive(Debug)]
pub(super) struct ClientResponse {
    pub(super) status: StatusCode,
    /// Number of the request to which the endpoint responded, `None` for a response of the gateway.
    pub(super) number: Option<u32>,
    pub(super) body: Vec<u8>,
    pub(super) end: ResponseEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseEnd {
    Complete,
    Truncated,
}

impl History {
    pub(super) fn new(script: &Script) -> Self {
        let request = |(number, plan): (u32, &RequestPlan)| {
            let request = Request {
                plan: plan.clone(),
                served_since: None,
                arrivals: Vec::new(),
                responses: Vec::new(),
                forwarded: 0,
            };
            (number, request)
        };
        Self {
            violations: Vec::new(),
            pauses: Duration::ZERO,
            connections: 0,
            delivered: 0,
            requests: script.requests().map(request).collect(),
            received: HashMap::new(),
        }
    }

    pub(super) fn require(&mut self, holds: bool, violation: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(violation());
        }
    }

    fn request(&mut self, number: u32) -> &mut Request {
        self.requests.get_mut(&number).expect("it is known")
    }

    /// Records that the gateway begins to serve a request.
    pub(super) fn begin_exchange(&mut self, number: u32) {
        let pauses = self.pauses;
        self.request(number).served_since = Some((Instant::now(), pauses));
    }

    /// Every wait ends.
    pub(super) fn end_exchange(&mut self, number: u32) {
        let pauses = self.pauses;
        let served_since = self.request(number).served_since.take();
        let (since, pauses_before) = served_since.expect("the exchange has begun");
        let duration = since.elapsed();
        self.require(
            duration <= MAX_EXCHANGE_DURATION + pauses.saturating_sub(pauses_before),
            || format!("the exchange of request {number} took {duration:?}"),
        );
    }

    /// Records that a request has reached the endpoint, and returns the index of this arrival. A connection is reused
    /// only if it is clean. A request that is not idempotent arrives once.
    pub(super) fn arrive(&mut self, number: u32, connection: ConnectionUse) -> Option<usize> {
        let now = Instant::now();
        if let ConnectionUse::Unclean(reason) = connection {
            let violation = || format!("request {number} came on a connection after {reason}");
            self.require(false, violation);
        }
        let Some(request) = self.requests.get_mut(&number) else {
            self.violations
                .push(format!("request {number} was not sent"));
            return None;
        };
        let arrivals = &mut request.arrivals;
        let stale = arrivals.iter().filter(|arrival| arrival.is_stale()).count();
        arrivals.push(Arrival {
            at: now,
            connection,
            response: ResponseStart::NothingSent,
            closed: None,
        });
        let (arrivals, plan) = (arrivals.len(), request.plan.clone());
        self.require(plan.defect.is_none(), || {
            format!("request {number} was forwarded although its headers are malformed")
        });
        self.require(
            if plan.is_idempotent() {
                arrivals <= plan.max_attempts() + stale.min(1)
            } else {
                arrivals == 1
            },
            || format!("request {number} ({plan:?}) was sent {arrivals} times, {stale} were stale"),
        );
        Some(arrivals - 1)
    }

    /// Records that so many bytes of the body of a request have reached the endpoint.
    pub(super) fn receive_body(&mut self, number: u32, bytes: usize) {
        let request = self.request(number);
        request.forwarded = request.forwarded.max(bytes);
    }

    /// A request that reaches the endpoint as a whole is the one that the client sent.
    pub(super) fn end_body(&mut self, number: u32, bytes: usize) {
        let plan = self.request(number).plan.clone();
        self.require(
            bytes == plan.body_size() && !matches!(plan.body, BodyPlan::MalformedChunks(_)),
            || format!("the body of request {number} ({plan:?}) was forwarded as {bytes} bytes"),
        );
    }

    /// Buffers are bounded: of so many bytes of a body that the client has sent, most have reached the endpoint.
    pub(super) fn send_body(&mut self, number: u32, sent: usize) {
        let request = self.request(number);
        let (forwarded, is_served) = (request.forwarded, request.served_since.is_some());
        self.require(!is_served || sent <= forwarded + MAX_BUFFERED, || {
            format!("{sent} bytes of request {number} were read and {forwarded} forwarded")
        });
    }

    /// Buffers are bounded: of so many bytes of a response that the endpoint has sent, most have reached the client,
    /// which had received `received_before` bytes when the request arrived.
    pub(super) fn send_response(
        &mut self,
        number: u32,
        arrival: usize,
        sent: usize,
        received_before: usize,
    ) {
        self.request(number).arrivals[arrival].response = ResponseStart::BytesSent;
        let received = self.received_of(number) - received_before;
        self.require(sent <= received + MAX_BUFFERED, || {
            format!("{sent} bytes of the response to request {number} were read and {received} forwarded")
        });
    }

    /// Returns the number of bytes that the client of a request has received on its connection.
    pub(super) fn received_of(&self, number: u32) -> usize {
        let client = Script::client(number);
        self.received.get(&client).copied().unwrap_or_default()
    }

    pub(super) fn receive(&mut self, client: usize, bytes: usize) {
        *self.received.entry(client).or_default() += bytes;
    }

    /// Records that the endpoint has sent a complete response.
    pub(super) fn complete_response(&mut self, number: u32, status: u16, body: usize) {
        self.request(number).responses.push((status, body));
    }

    /// Records that the endpoint closes the connection of an arrival.
    pub(super) fn close(&mut self, number: u32, arrival: usize) {
        self.request(number).arrivals[arrival].closed = Some(Instant::now());
    }

    /// Records that the endpoint resets the connection of an arrival. That may discard what it has sent.
    pub(super) fn reset(&mut self, number: u32, arrival: usize) {
        self.request(number).arrivals[arrival].response = ResponseStart::NothingSent;
        self.close(number, arrival);
    }

    /// A client gets the response to its request, as the endpoint sent it, or one of the gateway.
    pub(super) fn receive_response(&mut self, number: u32, response: &ClientResponse) {
        let request = self.request(number);
        let (status, size) = (response.status.as_u16(), response.body.len());
        let is_right = match (response.number, response.end) {
            (None, _) => matches!(status, 400 | 408 | 413 | 502 | 503 | 504),
            (Some(origin), ResponseEnd::Complete) => {
                origin == number && request.responses.contains(&(status, size))
            }
            (Some(origin), ResponseEnd::Truncated) => origin == number,
        };
        if response.number.is_some() && response.end == ResponseEnd::Complete {
            self.delivered += 1;
        }
        self.require(is_right, || {
            let (origin, end) = (response.number, response.end);
            format!("request {number} got {status} of {origin:?} with {size} bytes, {end:?}")
        });
        self.require(
            response.number.is_none() || response.body == response_body(number, size),
            || format!("the response to request {number} has another body"),
        );
    }
}

impl Arrival {
    fn is_stale(&self) -> bool {
        self.connection != ConnectionUse::First
            && self.response == ResponseStart::NothingSent
            && self
                .closed
                .is_some_and(|closed| closed - self.at <= STALE_CLOSE_DELAY)
    }
}
