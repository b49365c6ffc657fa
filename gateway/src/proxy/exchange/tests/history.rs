//! Events that the client and the endpoint observe, and the invariants that their history satisfies.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::arrival::{Arrival, ConnectionUse};
use super::interim::InterimResponses;
use super::pipe::{PIPE_CAPACITY, UNFLUSHED_CAPACITY};
use super::script::{
    BodyPlan, ClientPlan, ClientReading, ConnectPlan, RETRY_PATH, RequestPlan, Script,
    response_body,
};
use crate::http::downstream::HIGH_WATERMARK;

/// Maximum number of bytes between the two sides of an exchange: the high watermark, one read, the bytes that are read
/// ahead, and what both connections hold.
const MAX_BUFFERED: usize =
    HIGH_WATERMARK + 2 * 16 * 1024 + 2 * (PIPE_CAPACITY + UNFLUSHED_CAPACITY);
/// Longest exchange, pauses of the script apart. On a path with `timeout` that is 4 s for the endpoint, on others up to
/// 6 s to connect and 7 s between two parts of the response; for the client 3 s until it sends on, and 5 s each until it
/// reads the response and an error response.
const MAX_EXCHANGE_DURATION: Duration = Duration::from_secs(30);
/// Longest time in which nothing happens on a path with `timeout`, if the client sends and reads at once, and on others.
/// 4 and 7 s for the endpoint, and the delay before another attempt.
const MAX_RETRY_PATH_WAIT: Duration = Duration::from_millis(4_200);
const MAX_PLAIN_PATH_WAIT: Duration = Duration::from_millis(7_200);
/// Time that a body may take whatever its size, and the time for each of its bytes besides.
const MAX_SLOW_UPLOAD: Duration = Duration::from_secs(5);
const MAX_TIME_PER_BYTE: Duration = Duration::from_millis(2);
/// Size of the largest body that may be sent again.
const MAX_REPLAYED: usize = 64 * 1024;
/// Size of the largest body that the configuration accepts.
const MAX_BODY: usize = 200_000;
/// Maximum number of bytes that reach the endpoint after the gateway has sent them: those in the connection, and those
/// that the endpoint has read ahead.
const MAX_IN_CONNECTION: usize = 2 * PIPE_CAPACITY + UNFLUSHED_CAPACITY;
/// Repetitions of requests for which the retry budget lasts.
const RETRY_BUDGET: usize = 10;

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
    connects: Connects,
    /// Requests that have reached the endpoint once more.
    repetitions: usize,
    /// Last time at which either side of a client's exchange has sent or received something.
    progress: HashMap<usize, Instant>,
    /// Number of bytes that a client has received.
    received: HashMap<usize, usize>,
}

/// Whether each attempt to connect succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connects {
    Succeed,
    SomeFail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientBehavior {
    /// Reads at once, and stops only at the end.
    Prompt,
    Other,
}

struct Request {
    plan: RequestPlan,
    client: ClientBehavior,
    /// Beginning of the exchange, while the gateway serves the request.
    served_since: Option<(Instant, Duration)>,
    arrivals: Vec<Arrival>,
    /// Statuses and body sizes of the complete responses of the endpoint.
    responses: Vec<(u16, usize)>,
    interim: InterimResponses,
    /// Time at which the client has sent the first bytes of the body.
    body_since: Option<Instant>,
    /// Bytes of the body that the endpoint has received, of the longest attempt.
    forwarded: usize,
    /// The same number at the end of the exchange.
    forwarded_at_end: Option<usize>,
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
                client: ClientBehavior::of(&script.clients[Script::client(number)]),
                served_since: None,
                arrivals: Vec::new(),
                responses: Vec::new(),
                interim: InterimResponses::default(),
                body_since: None,
                forwarded: 0,
                forwarded_at_end: None,
            };
            (number, request)
        };
        Self {
            violations: Vec::new(),
            pauses: Duration::ZERO,
            connections: 0,
            delivered: 0,
            requests: script.requests().map(request).collect(),
            connects: Connects::of(&script.connects),
            repetitions: 0,
            progress: HashMap::new(),
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
        self.make_progress(number);
    }

    fn make_progress(&mut self, number: u32) {
        let client = Script::client(number);
        self.progress.insert(client, Instant::now());
    }

    /// Every wait ends, and a request that is to be sent again has been.
    pub(super) fn end_exchange(&mut self, number: u32) {
        let pauses = self.pauses;
        let served_since = self.request(number).served_since.take();
        let (since, pauses_before) = served_since.expect("the exchange has begun");
        let duration = since.elapsed();
        self.require(
            duration <= MAX_EXCHANGE_DURATION + pauses.saturating_sub(pauses_before),
            || format!("the exchange of request {number} took {duration:?}"),
        );
        self.end_waits(number, duration);
        let (connects, repetitions) = (self.connects, self.repetitions);
        let request = self.request(number);
        request.forwarded_at_end = Some(request.forwarded);
        let is_unrepeated = connects == Connects::Succeed
            && duration < Duration::from_secs(3)
            && request.is_to_be_repeated(repetitions);
        let plan = request.plan.clone();
        self.require(!is_unrepeated, || {
            format!("request {number} ({plan:?}) was not sent again")
        });
    }

    /// No wait is longer than its timeout, and a path with a timeout leaves the endpoint no more than that.
    fn end_waits(&mut self, number: u32, duration: Duration) {
        let waited = self.progress[&Script::client(number)].elapsed();
        let request = self.request(number);
        if request.client == ClientBehavior::Other {
            return;
        }
        let max_wait = match request.plan.path {
            RETRY_PATH => MAX_RETRY_PATH_WAIT,
            _ => MAX_PLAIN_PATH_WAIT,
        };
        let is_late = request.plan.path == RETRY_PATH
            && request.plan.body == BodyPlan::None
            && duration > MAX_RETRY_PATH_WAIT;
        self.require(waited <= max_wait && !is_late, || {
            format!("request {number} took {duration:?}, the last {waited:?} without progress")
        });
    }

    /// Records that a request has reached the endpoint, and returns the index of this arrival. A connection is reused
    /// only if it is clean. A request that is not idempotent arrives once.
    pub(super) fn arrive(&mut self, number: u32, connection: ConnectionUse) -> Option<usize> {
        self.make_progress(number);
        if let ConnectionUse::Unclean(reason) = connection {
            let violation = || format!("request {number} came on a connection after {reason}");
            self.require(false, violation);
        }
        let Some(request) = self.requests.get_mut(&number) else {
            self.violations
                .push(format!("request {number} was not sent"));
            return None;
        };
        let stale = request.stale(Arrival::may_be_stale);
        let must_be_new = request.stale(Arrival::is_stale) > 0;
        let is_repetition = !request.arrivals.is_empty();
        let may_be_repeated = request.forwarded <= MAX_REPLAYED
            && request.arrivals.iter().all(Arrival::may_be_retried);
        request.arrivals.push(Arrival::new(connection));
        let (arrivals, plan) = (request.arrivals.len(), request.plan.clone());
        self.repetitions += usize::from(is_repetition);
        self.require(connection == ConnectionUse::First || !must_be_new, || {
            format!("request {number} met a stale connection and came on another pooled one")
        });
        self.require(!is_repetition || may_be_repeated, || {
            format!("request {number} was sent again after a response or too much of its body")
        });
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
        self.make_progress(number);
        let request = self.request(number);
        request.forwarded = request.forwarded.max(bytes);
        let at_end = request.forwarded_at_end.unwrap_or(bytes);
        self.require(bytes <= at_end + MAX_IN_CONNECTION, || {
            format!("{bytes} bytes of request {number} were forwarded, {at_end} before the end of its exchange")
        });
    }

    /// A request that reaches the endpoint as a whole is the one that the client sent.
    pub(super) fn end_body(&mut self, number: u32, bytes: usize) {
        let plan = self.request(number).plan.clone();
        self.require(
            bytes == plan.body_size()
                && bytes <= MAX_BODY
                && !matches!(plan.body, BodyPlan::MalformedChunks(_)),
            || format!("the body of request {number} ({plan:?}) was forwarded as {bytes} bytes"),
        );
    }

    /// Buffers are bounded: of so many bytes of a body that the client has sent, most have reached the endpoint.
    /// One that arrives too slowly is rejected.
    pub(super) fn send_body(&mut self, number: u32, sent: usize) {
        self.make_progress(number);
        let request = self.request(number);
        let sending = request
            .body_since
            .get_or_insert_with(Instant::now)
            .elapsed();
        // The gateway waits for the body once it has a connection.
        let awaited = request.arrivals.last().map(Arrival::age);
        let time = sending.min(awaited.unwrap_or_default());
        let max_time = MAX_SLOW_UPLOAD + MAX_TIME_PER_BYTE * u32::try_from(sent).unwrap();
        let is_too_slow = request.client == ClientBehavior::Prompt
            && request.served_since.is_some()
            && time > max_time;
        self.require(!is_too_slow, || {
            format!("{sent} bytes of request {number} were accepted in {time:?}")
        });
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
        self.make_progress(number);
        self.request(number).arrivals[arrival].send_response();
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
        self.progress.insert(client, Instant::now());
        *self.received.entry(client).or_default() += bytes;
    }

    /// Records that the endpoint has sent a complete response.
    pub(super) fn complete_response(
        &mut self,
        number: u32,
        arrival: usize,
        status: u16,
        body: usize,
    ) {
        let request = self.request(number);
        request.arrivals[arrival].complete_response(status);
        request.responses.push((status, body));
    }

    /// Records that the endpoint closes the connection of an arrival.
    pub(super) fn close(&mut self, number: u32, arrival: usize) {
        self.request(number).arrivals[arrival].close();
    }

    /// Records that the endpoint resets the connection of an arrival. That may discard what it has sent.
    pub(super) fn reset(&mut self, number: u32, arrival: usize) {
        self.request(number).arrivals[arrival].reset();
    }

    /// Records the interim responses that the endpoint begins to send.
    pub(super) fn send_interim(&mut self, number: u32, statuses: &[u16]) {
        self.request(number).interim.send(statuses);
    }

    /// A client gets an interim response that the endpoint has sent, once.
    pub(super) fn receive_interim(&mut self, number: u32, status: u16) {
        let request = self.request(number);
        request.interim.receive(status);
        let is_right = request.interim.are_forwarded_once();
        self.require(is_right, || {
            format!("request {number} got more interim responses {status} than were sent")
        });
    }

    /// A client gets the response to its request, as the endpoint sent it, or one of the gateway.
    pub(super) fn receive_response(&mut self, number: u32, response: &ClientResponse) {
        let is_justified = self.is_justified(number, response.status.as_u16());
        let request = self.request(number);
        let (status, size) = (response.status.as_u16(), response.body.len());
        let is_right = match (response.number, response.end) {
            (None, _) => is_justified,
            (Some(origin), ResponseEnd::Complete) => {
                origin == number
                    && request.responses.contains(&(status, size))
                    && request.interim.are_complete()
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

    /// Returns whether a response of the gateway has a reason.
    fn is_justified(&self, number: u32, status: u16) -> bool {
        let request = &self.requests[&number];
        let is_broken = request.arrivals.last().is_some_and(Arrival::is_broken);
        match status {
            400 | 408 | 413 => true,
            502 => is_broken || self.connects == Connects::SomeFail,
            503 => self.connects == Connects::SomeFail,
            504 => {
                !is_broken
                    || self.connects == Connects::SomeFail
                    || request.client == ClientBehavior::Other
                    || request.plan.path == RETRY_PATH
            }
            _ => false,
        }
    }
}

impl Request {
    fn stale(&self, condition: fn(&Arrival) -> bool) -> usize {
        let arrivals = self.arrivals.iter();
        arrivals.filter(|arrival| condition(arrival)).count()
    }

    /// Returns whether the failure of the last arrival must have been followed by another one.
    fn is_to_be_repeated(&self, repetitions: usize) -> bool {
        let Some(last) = self.arrivals.last() else {
            return false;
        };
        let is_repeatable = self.client == ClientBehavior::Prompt
            && self.plan.is_idempotent()
            && !matches!(self.plan.body, BodyPlan::MalformedChunks(_))
            && self.plan.body_size() < MAX_REPLAYED;
        let is_first_stale = last.is_stale() && self.stale(Arrival::may_be_stale) == 1;
        let is_attempt_left = repetitions < RETRY_BUDGET
            && self.arrivals.len() < self.plan.max_attempts()
            && last.is_to_be_retried();
        is_repeatable && (is_first_stale || is_attempt_left)
    }
}

impl ClientBehavior {
    fn of(plan: &ClientPlan) -> Self {
        match (plan.reading, plan.stop) {
            (ClientReading::AtOnce, None) => Self::Prompt,
            _ => Self::Other,
        }
    }
}

impl Connects {
    fn of(plans: &[ConnectPlan]) -> Self {
        if plans.iter().all(|plan| *plan == ConnectPlan::Accepted) {
            Self::Succeed
        } else {
            Self::SomeFail
        }
    }
}
