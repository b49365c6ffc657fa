//! The journey of a request, top to bottom.
//!
//! identify client ▸ read path ▸ match ▸ quota ▸ breaker and replica ▸ forward ▸ answer ▸ record

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use http::{Method, Version};

use crate::access_log::Entry;
use crate::answer::{Answer, Marks};
use crate::downstream::{Appetite, Downstream, RequestHead, until_taken};
use crate::exchange::{Ended, Exchange, Tried, Upload};
use crate::features::circuit_breaker::Permission;
use crate::features::rate_limit::Verdict;
use crate::features::timeout::Deadline;
use crate::features::{monitoring, retry, timeout};
use crate::forward;
use crate::framing::Framing;
use crate::gateway::Gateway;
use crate::handshake::Peer;
use crate::head::Refused;
use crate::hop::Upgrade;
use crate::moment::Moment;
use crate::patience::Patience;
use crate::request::{Attempt, Request, RequestId};
use crate::upstream::{NotConnected, Wanted};

/// Paths of a replica that are for operators.
const INTERNAL: [&str; 4] = ["/ready", "/ready/", "/metrics", "/metrics/"];
/// Another replica is tried so often where a connection could not be made, whatever `retry` says.
const CONNECTION_ATTEMPTS: u32 = 3;

/// Serves a request whose head has been read, from there to its line in the access log.
pub(crate) async fn serve(
    gateway: &Gateway,
    peer: &Peer,
    mut head: RequestHead,
    client: &mut impl Downstream,
    patience: &mut Patience,
) {
    let mut request = Request::new(gateway, peer, &head.fields);
    let ended = match admit(gateway, peer, &mut head, &mut request) {
        Ok(delay) => match pause(delay, client).await {
            Some(()) => forward(gateway, &head, &mut request, client, patience).await,
            None => Ended::Gone,
        },
        Err(answer) => Ended::Say(answer),
    };
    match ended {
        Ended::Answered | Ended::Gone => {}
        Ended::Cut => client.cut(),
        Ended::Say(answer) => {
            answer.say(&head.method, client, Marks::Of(&request));
            until_taken(client, patience, request.live.config.limits.idle_timeout).await;
        }
    }
    record(gateway, &head, &request, client);
}

/// Answers a request whose head has no single reading.
pub(crate) fn refuse(
    gateway: &Gateway,
    peer: &Peer,
    refused: Refused,
    method: &Method,
    version: Version,
    client: &mut impl Downstream,
) {
    let (id, started, answer) = (RequestId::new(), Moment::now(), Answer::malformed(refused));
    answer.say(method, client, Marks::Unread(id));
    let live = gateway.glance();
    let route = live.routes.get(live.routes.default_number());
    route.metrics.answered(method, Some(answer.status));
    gateway.access_log.record(&Entry {
        id,
        client: Some(peer.address.to_canonical()),
        version,
        method,
        path: "-",
        pattern: &route.pattern,
        status: Some(answer.status),
        bytes: client.sent(),
        took: Moment::now().since(started),
        attempts: 0,
        upstream: None,
        upstream_took: Duration::ZERO,
    });
}

/// Decides whether a request is forwarded, and after what delay.
fn admit(
    gateway: &Gateway,
    peer: &Peer,
    head: &mut RequestHead,
    request: &mut Request,
) -> Result<Duration, Answer> {
    head.target.normalise().map_err(Answer::bad_request)?;
    request.matched(request.live.routes.find(head.target.path()));
    if !peer.may_ask_for(head.host()) {
        return Err(Answer::MISDIRECTED);
    }
    let delay = take_quota(gateway, head, request)?;
    if INTERNAL.contains(&head.target.path()) {
        return Err(Answer::NOT_FOUND);
    }
    if matches!(head.framing, Framing::Length(length) if length > request.live.config.limits.max_body)
    {
        return Err(Answer::body_too_large());
    }
    request.route().retry_budget.earn();
    Ok(delay)
}

fn take_quota(
    gateway: &Gateway,
    head: &RequestHead,
    request: &mut Request,
) -> Result<Duration, Answer> {
    let route = request.route();
    let Some(quota) = &route.quota else {
        return Ok(Duration::ZERO);
    };
    let verdict = quota.take(
        &gateway.quotas,
        request.client.key(),
        head.target.path(),
        &head.fields,
        request.started,
    );
    let (standing, result) = match verdict {
        Verdict::Passed(standing) => {
            route.metrics.quota_passed.inc();
            (standing, Ok(Duration::ZERO))
        }
        Verdict::Delayed(standing, delay) => {
            route.metrics.quota_delayed.inc();
            (standing, Ok(delay))
        }
        Verdict::Refused(standing, seconds) => {
            route.metrics.quota_refused.inc();
            let answer = Answer::refusal(quota.refusal()).after(seconds);
            (standing, Err(answer))
        }
    };
    request.standing = Some(standing);
    result
}

/// Has a replica answer, and where that may help another one.
async fn forward(
    gateway: &Gateway,
    head: &RequestHead,
    request: &mut Request,
    client: &mut impl Downstream,
    patience: &mut Patience,
) -> Ended {
    let mut now = Moment::now();
    request.deadline = Deadline::of(request.route().timeout.as_ref(), now);
    let mut upload = Upload::default();
    loop {
        request.attempts += 1;
        if request.attempts > 1 {
            request.route().metrics.retries.inc();
            if pause(request.wait(now), client).await.is_none() {
                return Ended::Gone;
            }
            now = Moment::now();
        }
        if let Err(answer) = pick_replica(gateway, request, now) {
            return Ended::Say(answer);
        }
        match attempt(gateway, head, request, client, &mut upload, patience).await {
            Some(ended) => return ended,
            None => now = Moment::now(),
        }
    }
}

fn pick_replica(gateway: &Gateway, request: &mut Request, now: Moment) -> Result<(), Answer> {
    if request.deadline.is_over(now) {
        return Err(request.time_is_up());
    }
    let breakers = request.route().breakers.as_ref();
    let in_flight = gateway
        .upstreams
        .choose(
            request.live.config.strategy,
            request.upstream.replica,
            |replica| breakers.map_or(Permission::Go, |all| all.peek(replica.address, now)),
        )
        .map_err(|none| Answer::unavailable(whole_seconds(none.retry_after)))?;
    let replica = in_flight.replica();
    // Another request may have become the probe in between.
    let pass = breakers
        .map(|all| all.enter(replica.address, now))
        .transpose()
        .map_err(|left| Answer::unavailable(whole_seconds(left)))?;
    request.upstream.replica = Some(replica.address);
    request.upstream.attempt = Some(Attempt {
        started: now,
        in_flight,
        pass,
    });
    Ok(())
}

/// Rounded up.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// One try, with the replica that was picked. `None` where another may go better.
async fn attempt(
    gateway: &Gateway,
    head: &RequestHead,
    request: &mut Request,
    client: &mut impl Downstream,
    upload: &mut Upload,
    patience: &mut Patience,
) -> Option<Ended> {
    let mut wanted = Wanted::Any;
    loop {
        let attempt = request.upstream.attempt.as_ref();
        let attempt =
            attempt.expect("a replica was picked, and a stale connection does not end that");
        let (replica, limit) = (
            attempt.in_flight.replica(),
            request.deadline.patience(attempt.started),
        );
        let connected = gateway.upstreams.connect(replica, wanted, limit);
        let mut replica = match unless_gone(client, connected).await {
            Some(Ok(connection)) => connection,
            Some(Err(error)) => return not_connected(error, head, request, upload),
            None => return Some(Ended::Gone),
        };
        let output = replica.begin(&head.method, head.framing, head.upgrade);
        forward::write(output, head, request);
        let exchange = Exchange::new(head, request, client, replica, upload, patience);
        match exchange.run().await {
            Tried::Stale => wanted = Wanted::New,
            Tried::TryAgain => return None,
            Tried::Ended(ended) => return Some(ended),
        }
    }
}

fn not_connected(
    error: NotConnected,
    head: &RequestHead,
    request: &mut Request,
    upload: &Upload,
) -> Option<Ended> {
    let now = Moment::now();
    let attempt = request.end_attempt(now);
    if error == NotConnected::NoSocket {
        tracing::error!(request_id = %request.id, "no socket for a replica: too many files are open");
        return Some(Ended::Say(Answer::unavailable(1)));
    }
    request.warn_of_replica(error);
    if let Some(mut attempt) = attempt {
        attempt.failed(now);
        attempt.in_flight.replica().failed_to_connect();
    }
    if request.may_try_again(retry::Failure::NoConnection, head, upload) {
        return None;
    }
    Some(Ended::Say(match error {
        NotConnected::TimedOut => request.time_is_up(),
        NotConnected::Failed | NotConnected::NoSocket => Answer::BAD_GATEWAY,
    }))
}

/// Holds a request back, unless its client goes away: `None`.
async fn pause(delay: Duration, client: &mut impl Downstream) -> Option<()> {
    if delay.is_zero() {
        return Some(());
    }
    // What is rare waits in a box of its own.
    unless_gone(client, Box::pin(tokio::time::sleep(delay))).await
}

/// What `work` comes to, `None` where the client goes away meanwhile.
async fn unless_gone<T>(client: &mut impl Downstream, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        client.poll(cx, Appetite::Full).map(|_gone| None)
    })
    .await
}

/// Counts it, and writes its line.
fn record(gateway: &Gateway, head: &RequestHead, request: &Request, client: &impl Downstream) {
    let took = Moment::now().since(request.started);
    let (status, path) = (client.status(), head.target.path());
    let route = request.route();
    route.metrics.answered(&head.method, status);
    route.metrics.duration.observe(took.as_secs_f64());
    if monitoring::is_slow(route.monitoring, took) {
        route.metrics.slow.inc();
        let (method, seconds) = (head.method.as_str(), took.as_secs_f64());
        tracing::warn!(request_id = %request.id, method, path, pattern = route.pattern, seconds, "slow request");
    }
    gateway.access_log.record(&Entry {
        id: request.id,
        client: Some(request.client.address),
        version: head.version,
        method: &head.method,
        path,
        pattern: &route.pattern,
        status,
        bytes: client.sent(),
        took,
        attempts: request.attempts,
        upstream: request.upstream.replica,
        upstream_took: request.upstream.took,
    });
}

impl Request {
    /// How long to wait before the current try.
    fn wait(&self, now: Moment) -> Duration {
        let wait = retry::wait_before(self.route().retry.as_ref(), self.attempts);
        match self.deadline.left(now) {
            Some(left) => wait.min(left),
            None => wait,
        }
    }

    /// Whether a failed try is followed by another. The client has been told nothing yet.
    pub(crate) fn may_try_again(
        &self,
        failure: retry::Failure,
        head: &RequestHead,
        upload: &Upload,
    ) -> bool {
        let most = self
            .route()
            .retry
            .as_ref()
            .map(|retry| retry.max_attempts.get());
        let has_tries_left = match failure {
            retry::Failure::NoConnection => self.attempts < most.unwrap_or(CONNECTION_ATTEMPTS),
            retry::Failure::Unanswered => self.attempts < most.unwrap_or(1),
        };
        has_tries_left
            && retry::is_safe(failure, &head.method)
            && upload.can_begin_again()
            && !self.deadline.is_over(Moment::now())
            && (failure == retry::Failure::NoConnection
                || head.upgrade == Upgrade::Nothing && self.route().retry_budget.spend())
    }

    /// What is said to a client whose request took too long.
    pub(crate) fn time_is_up(&self) -> Answer {
        match timeout::refusal(self.route().timeout.as_ref()) {
            Some(refusal) => Answer::refusal(refusal),
            None => Answer::GATEWAY_TIMEOUT,
        }
    }
}
