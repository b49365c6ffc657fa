//! What the journey knows about one request.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use prometheus::IntGauge;

use crate::client::Client;
use crate::features::circuit_breaker::Pass;
use crate::features::rate_limit::Standing;
use crate::features::timeout::Deadline;
use crate::gateway::{Gateway, Live};
use crate::handshake::Peer;
use crate::moment::Moment;
use crate::route::Route;
use crate::upstream::{InFlight, Replica};

/// A request from its head to the end of its answer.
#[derive(Debug)]
pub(crate) struct Request {
    /// The configuration of the moment it came in: a reload changes nothing under way.
    pub(crate) live: Arc<Live>,
    pub(crate) started: Moment,
    pub(crate) id: RequestId,
    pub(crate) client: Client,
    route: usize,
    pub(crate) standing: Option<Standing>,
    pub(crate) deadline: Deadline,
    pub(crate) attempts: u32,
    pub(crate) upstream: Upstream,
    _in_flight: Counted,
}

/// What replicas had to do with it.
#[derive(Debug, Default)]
pub(crate) struct Upstream {
    /// The current try.
    pub(crate) attempt: Option<Attempt>,
    /// The replica whose answer is on its way.
    answering: Option<InFlight>,
    /// The last replica that was tried.
    pub(crate) replica: Option<SocketAddr>,
    /// From the choice of a replica to the head of its answer, all tries together.
    pub(crate) took: Duration,
}

/// A try to have a replica answer.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) started: Moment,
    pub(crate) in_flight: InFlight,
    pub(crate) pass: Option<Pass>,
}

impl Request {
    pub(crate) fn new(gateway: &Gateway, peer: &Peer, fields: &HeaderMap) -> Self {
        let live = gateway.live();
        let client = Client::of(peer.address, fields, &live.config.trusted_proxies);
        Self {
            route: live.routes.default_number(),
            live,
            started: Moment::now(),
            id: RequestId::new(),
            client,
            standing: None,
            deadline: Deadline::NONE,
            attempts: 0,
            upstream: Upstream::default(),
            _in_flight: Counted::one_more(&gateway.metrics.in_flight),
        }
    }

    /// The route that it falls under.
    pub(crate) fn route(&self) -> &Route {
        self.live.routes.get(self.route)
    }

    pub(crate) fn matched(&mut self, route: usize) {
        self.route = route;
    }

    /// The current try is over: its replica has answered or failed.
    pub(crate) fn end_attempt(&mut self, now: Moment) -> Option<Attempt> {
        let attempt = self.upstream.attempt.take()?;
        self.upstream.took += now.since(attempt.started);
        Some(attempt)
    }

    /// Says that its replica failed it.
    pub(crate) fn warn_of_replica(&self, reason: impl fmt::Display) {
        let replica = self.upstream.replica.map(tracing::field::display);
        tracing::warn!(request_id = %self.id, replica, %reason, "replica failed");
    }

    /// A try has brought the answer: its replica is busy until that is sent.
    pub(crate) fn answered_by(&mut self, attempt: Attempt) {
        self.upstream.answering = Some(attempt.in_flight);
    }

    /// The replica whose answer is on its way.
    pub(crate) fn answering(&self) -> Option<&Replica> {
        self.upstream.answering.as_ref().map(InFlight::replica)
    }
}

impl Attempt {
    /// The replica answered.
    pub(crate) fn answered(&mut self, status: StatusCode, now: Moment) {
        let metrics = &self.in_flight.replica().metrics;
        metrics.answered(status);
        metrics
            .duration
            .observe(now.since(self.started).as_secs_f64());
        match self.pass.take() {
            Some(pass) if status.is_server_error() => pass.failed(now),
            Some(pass) => pass.succeeded(),
            None => {}
        }
    }

    /// The replica did not.
    pub(crate) fn failed(&mut self, now: Moment) {
        if let Some(pass) = self.pass.take() {
            pass.failed(now);
        }
    }
}

/// What a request is called in all logs, here and behind: 32 hexadecimal digits, also the trace
/// that it begins (W3C Trace Context, section 3.2.2.3). Written out once, read many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId([u8; 32]);

impl RequestId {
    /// Unlike any other: a count, scrambled with keys of this process, costs no system call.
    pub(crate) fn new() -> Self {
        static KEYS: LazyLock<[u64; 2]> =
            LazyLock::new(|| [(); 2].map(|()| RandomState::new().hash_one(())));
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // A trace of zeros would be none.
        let [high, low] = KEYS.map(|key| scramble(count ^ key).max(1));
        let mut digits = [0; 32];
        for (pair, byte) in digits
            .chunks_exact_mut(2)
            .zip(high.to_be_bytes().into_iter().chain(low.to_be_bytes()))
        {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
        Self(digits)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits are text")
    }

    /// The value of `X-Request-Id`.
    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.0).expect("digits are a header value")
    }

    /// The value of `traceparent` where the request begins a trace: this is also the gateway's span.
    pub(crate) fn trace(&self) -> [u8; 55] {
        let mut trace = [0; 55];
        trace[..3].copy_from_slice(b"00-");
        trace[3..35].copy_from_slice(&self.0);
        trace[35] = b'-';
        trace[36..52].copy_from_slice(&self.0[16..]);
        trace[52..].copy_from_slice(b"-00");
        trace
    }
}

/// One number for each number, and no pattern to see: the finalizer of `SplitMix64` (Steele, Lea and
/// Flood, "Fast Splittable Pseudorandom Number Generators", figure 15).
fn scramble(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value)]
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Counted in a gauge until dropped, whatever becomes of it.
#[derive(Debug)]
pub(crate) struct Counted(IntGauge);

impl Counted {
    pub(crate) fn one_more(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
