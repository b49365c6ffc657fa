//! The journey of a request, top to bottom.
//!
//! identify client ▸ read path ▸ match ▸ quota ▸ breaker and replica ▸ forward ▸ answer ▸ record

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::{Error, ErrorSource, ErrorType, Result};

use crate::access_log::Entry;
use crate::answer::{self, Answer};
use crate::client::Client;
use crate::features::circuit_breaker::Permission;
use crate::features::rate_limit::Verdict;
use crate::features::timeout::Deadline;
use crate::features::{monitoring, retry, timeout};
use crate::gateway::Gateway;
use crate::handshake::Presented;
use crate::moment::Moment;
use crate::request::{Attempt, Request};
use crate::{fields, forward, head, path};

/// What Pingora calls at each step of a request.
#[derive(Debug)]
pub(crate) struct Proxy(pub(crate) Arc<Gateway>);

/// Paths of a replica that are for operators.
const INTERNAL: [&str; 4] = ["/ready", "/ready/", "/metrics", "/metrics/"];
/// A body that is slower than so many bytes a second, after some grace, ties up a connection.
const LEAST_RATE: u64 = 500;
const GRACE: Duration = Duration::from_secs(10);
/// Another replica is tried so often where a connection could not be made, whatever `retry` says.
const CONNECTION_ATTEMPTS: u32 = 3;

/// The answer has been sent: Pingora's `Ok(true)` of a request filter.
const ANSWERED: bool = true;
const PROCEED: bool = false;

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request::new(&self.0)
    }

    fn init_downstream_modules(&self, _: &mut HttpModules) {
        // Answers pass as they are: compressing secrets beside what an attacker chose tells them.
    }

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> Result<bool> {
        match self.admit(session, request) {
            Ok(Duration::ZERO) => Ok(PROCEED),
            // What is rare waits in a box of its own: Pingora copies this future for each request.
            Ok(delay) => {
                Box::pin(tokio::time::sleep(delay)).await;
                Ok(PROCEED)
            }
            Err(answer) => {
                Box::pin(answer.send(session.as_downstream_mut(), request)).await?;
                Ok(ANSWERED)
            }
        }
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        request: &mut Request,
    ) -> Result<Box<HttpPeer>> {
        request.attempts += 1;
        let mut now = Moment::now();
        if request.attempts > 1 {
            request.route().metrics.retries.inc();
            Box::pin(tokio::time::sleep(request.wait(now))).await;
            now = Moment::now();
        } else {
            request.deadline = Deadline::of(request.route().timeout.as_ref(), now);
        }
        self.pick_replica(request, now)
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream: &mut RequestHeader,
        request: &mut Request,
    ) -> Result<()> {
        let client = request
            .client
            .expect("no request is forwarded before its client is known");
        fields::of_request(upstream, |fields| {
            forward::introduce(fields, request, &client);
        });
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        request: &mut Request,
    ) -> Result<()> {
        if session.was_upgraded() {
            return Ok(());
        }
        let Some(chunk) = body else { return Ok(()) };
        request.body += chunk.len() as u64;
        let took = Moment::now().since(request.started);
        let answer = if request.body > request.live.config.limits.max_body {
            Answer::body_too_large()
        } else if took > GRACE && request.body / took.as_secs().max(1) < LEAST_RATE {
            Answer::body_too_slow()
        } else {
            return Ok(());
        };
        Err(request.refuse(answer))
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        header: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        if header.status.is_informational() && header.status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        let now = Moment::now();
        if let Some(attempt) = request.end_attempt(now) {
            attempt.answered(header.status, now);
            if retry::is_temporary(header.status)
                && may_retry(retry::Failure::Unanswered, session, request)
            {
                return Err(try_again());
            }
            request.answered_by(attempt);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        header: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        answer::mark(header, request);
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        _body: &mut Option<Bytes>,
        end_of_stream: bool,
        request: &mut Request,
    ) -> Result<Option<Duration>> {
        if !end_of_stream
            && request.deadline != Deadline::NONE
            && !session.was_upgraded()
            && request.deadline.is_over(Moment::now())
        {
            return Error::e_explain(ErrorType::ReadTimedout, "the exchange took too long");
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        request: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let now = Moment::now();
        if let Some(attempt) = request.end_attempt(now) {
            attempt.failed(now);
            attempt.in_flight.replica().failed_to_connect();
        }
        error.set_retry(may_retry(retry::Failure::NoConnection, session, request));
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        request: &mut Request,
        _client_reused: bool,
    ) -> Box<Error> {
        let now = Moment::now();
        let Some(attempt) = request.end_attempt(now) else {
            // The replica has answered; the answer decided whether to try again.
            return error;
        };
        if *error.esource() != ErrorSource::Upstream {
            error.set_retry(false);
            return error;
        }
        let metrics = &attempt.in_flight.replica().metrics;
        if is_timeout(&error) {
            metrics.timeouts.inc();
        } else {
            metrics.broken.inc();
        }
        attempt.failed(now);
        error.set_retry(may_retry(retry::Failure::Unanswered, session, request));
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        request: &mut Request,
    ) -> FailToProxy {
        let answer = request.answer.take().or_else(|| answer_to(error, request));
        let Some(answer) = answer else {
            return FailToProxy {
                error_code: 0,
                can_reuse_downstream: false,
            };
        };
        let sent = answer.send(session.as_downstream_mut(), request).await;
        FailToProxy {
            error_code: answer.status.as_u16(),
            can_reuse_downstream: sent.is_ok() && session.is_body_done(),
        }
    }

    fn suppress_error_log(&self, _: &Session, _: &Request, _: &Error) -> bool {
        // The access log has it, without what the client sent.
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        let took = Moment::now().since(request.started);
        let header = session.req_header();
        let status = session.response_written().map(|answer| answer.status);
        let route = request.route();
        route.metrics.answered(&header.method, status);
        route.metrics.duration.observe(took.as_secs_f64());
        if monitoring::is_slow(route.monitoring, took) {
            route.metrics.slow.inc();
            let (path, method) = (header.uri.path(), header.method.as_str());
            let seconds = took.as_secs_f64();
            tracing::warn!(request_id = %request.id, method, path, pattern = route.pattern, seconds, "slow request");
        }
        if let Some(error) = error.filter(|error| *error.esource() == ErrorSource::Upstream) {
            let (replica, reason) = (request.upstream.replica, error.etype().as_str());
            tracing::warn!(request_id = %request.id, ?replica, reason, "replica failed");
        }
        self.0.access_log.record(&Entry {
            id: request.id,
            client: request.client.map(|client| client.address),
            version: header.version,
            method: &header.method,
            path: header.uri.path(),
            pattern: &route.pattern,
            status,
            bytes: session.body_bytes_sent(),
            took,
            attempts: request.attempts,
            upstream: request.upstream.replica,
            upstream_took: request.upstream.took,
        });
    }
}

impl Proxy {
    /// Decides whether a request is forwarded, and after what delay.
    fn admit(&self, session: &mut Session, request: &mut Request) -> Result<Duration, Answer> {
        let limits = request.live.config.limits;
        session.set_read_timeout(Some(limits.header_timeout));
        session.set_total_drain_timeout(Some(limits.header_timeout));
        session.set_write_timeout(Some(limits.idle_timeout));
        session.set_min_send_rate(usize::try_from(LEAST_RATE).ok());
        check_http2(session, limits.max_header).map_err(Answer::malformed)?;
        request.client = Some(client(session, request).ok_or(Answer::INTERNAL)?);
        let is_at_home = is_at_home(session);
        normalise_path(session)?;
        let path = session.req_header().uri.path();
        request.matched(request.live.routes.find(path));
        if !is_at_home {
            return Err(Answer::MISDIRECTED);
        }
        let delay = self.take_quota(session, request)?;
        if INTERNAL.contains(&session.req_header().uri.path()) {
            return Err(Answer::NOT_FOUND);
        }
        let length = session.get_header(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > limits.max_body) {
            return Err(Answer::body_too_large());
        }
        request.route().retry_budget.earn();
        Ok(delay)
    }

    fn take_quota(&self, session: &Session, request: &mut Request) -> Result<Duration, Answer> {
        let route = request.route();
        let Some(quota) = &route.quota else {
            return Ok(Duration::ZERO);
        };
        let client = request.client.expect("it was just identified");
        let header = session.req_header();
        let verdict = quota.take(
            &self.0.quotas,
            client.key(),
            header.uri.path(),
            &header.headers,
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

    fn pick_replica(&self, request: &mut Request, now: Moment) -> Result<Box<HttpPeer>> {
        if request.deadline.is_over(now) {
            let answer = time_is_up(request);
            return Err(request.refuse(answer));
        }
        let breakers = request.route().breakers.as_ref();
        let chosen = self.0.upstreams.choose(
            request.live.config.strategy,
            request.upstream.replica,
            |replica| breakers.map_or(Permission::Go, |all| all.peek(replica.address, now)),
        );
        let in_flight = match chosen {
            Ok(in_flight) => in_flight,
            Err(none) => {
                let seconds = none.retry_after.as_secs_f64().ceil();
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "it is small and positive"
                )]
                return Err(request.refuse(Answer::unavailable(seconds as u64)));
            }
        };
        let replica = in_flight.replica();
        let breaker = breakers.map(|all| all.of(replica.address));
        // Another request may have become the probe in between.
        if let Some(Permission::Wait(left)) = breaker.as_ref().map(|breaker| breaker.enter(now)) {
            return Err(request.refuse(Answer::unavailable(left.as_secs() + 1)));
        }
        let (connect, silence) = request.deadline.patience(now);
        let peer = replica.peer(connect, silence);
        request.upstream.replica = Some(replica.address);
        request.upstream.attempt = Some(Attempt {
            started: now,
            in_flight,
            breaker,
        });
        Ok(peer)
    }
}

impl Request {
    /// Notes what the gateway has to say itself, and gives the error that makes Pingora ask.
    #[expect(clippy::unnecessary_box_returns, reason = "Pingora's errors are boxed")]
    fn refuse(&mut self, answer: Answer) -> Box<Error> {
        let status = answer.status.as_u16();
        self.answer = Some(answer);
        Error::new(ErrorType::HTTPStatus(status))
    }

    /// How long to wait before the current try.
    fn wait(&self, now: Moment) -> Duration {
        let wait = retry::wait_before(self.route().retry.as_ref(), self.attempts);
        match self.deadline.left(now) {
            Some(left) => wait.min(left),
            None => wait,
        }
    }
}

/// HTTP/2 adds no reading to a request (RFC 9113, section 8.3.1): `:authority` is the host, and a
/// `Host` beside it says the same. What else there is to refuse, the library has refused. HTTP/1
/// was judged before it came here.
fn check_http2(session: &Session, max_header: usize) -> Result<(), head::Refused> {
    let header = session.req_header();
    if header.version != Version::HTTP_2 {
        return Ok(());
    }
    if header.method == http::Method::TRACE || header.method == http::Method::CONNECT {
        return Err(head::Refused::Method);
    }
    let authority = header.uri.authority().map(http::uri::Authority::as_str);
    let mut hosts = header.headers.get_all(http::header::HOST).iter();
    let host = hosts.next().map(http::HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(head::Refused::Host);
    }
    let Some(named) = authority.map(str::as_bytes).or(host) else {
        return Err(head::Refused::Host);
    };
    let agree = host.is_none_or(|host| host.eq_ignore_ascii_case(named));
    if !agree || !head::is_authority(named) {
        return Err(head::Refused::Host);
    }
    if header.raw_path().len() > head::MAX_TARGET {
        return Err(head::Refused::TargetTooLong);
    }
    let size: usize = header
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 2)
        .sum();
    if header.headers.len() > head::MAX_FIELDS || size > max_header {
        return Err(head::Refused::TooLarge);
    }
    let lengths = header.headers.get_all(CONTENT_LENGTH).iter().count();
    if lengths > 1 || header.headers.contains_key(http::header::TRANSFER_ENCODING) {
        return Err(head::Refused::Framing);
    }
    Ok(())
}

fn client(session: &Session, request: &Request) -> Option<Client> {
    let peer = session.client_addr()?.as_inet()?.ip();
    let headers = &session.req_header().headers;
    Some(Client::of(
        peer,
        headers,
        &request.live.config.trusted_proxies,
    ))
}

/// Makes the request's path the one that is matched and counted, so that it is forwarded too.
fn normalise_path(session: &mut Session) -> Result<(), Answer> {
    let header = session.req_header();
    let target = header.raw_path();
    let origin = origin_form(target);
    let end = origin.iter().position(|byte| *byte == b'?');
    let (path, query) = origin.split_at(end.unwrap_or(origin.len()));
    let normal = path::normalise(path).map_err(Answer::bad_request)?;
    if normal.as_bytes() == path && origin.len() == target.len() {
        fields::forget_spelling(session.req_header_mut());
        return Ok(());
    }
    let forwarded = [normal.as_bytes(), query].concat();
    let authority = header.uri.authority().map(ToString::to_string);
    let header = session.req_header_mut();
    // In HTTP/2 the host is a part of the target that is about to be replaced.
    if let Some(authority) = authority {
        let _ = header.insert_header(http::header::HOST, authority);
    }
    header
        .set_raw_path(&forwarded)
        .map_err(|_| Answer::malformed(head::Refused::Target))?;
    fields::forget_spelling(header);
    Ok(())
}

/// A target without scheme and host, which agreed with `Host`.
fn origin_form(target: &[u8]) -> &[u8] {
    if target.starts_with(b"/") {
        return target;
    }
    let Some(scheme) = memchr::memmem::find(target, b"://") else {
        return target;
    };
    let rest = &target[scheme + 3..];
    match rest.iter().position(|byte| matches!(byte, b'/' | b'?')) {
        Some(start) if rest[start] == b'/' => &rest[start..],
        _ => b"/",
    }
}

/// Whether the host that is asked for is one that the client could mean on this connection: the
/// one it named in the TLS handshake, or another of the certificate's (RFC 9110, section 7.4).
fn is_at_home(session: &Session) -> bool {
    let presented = session
        .digest()
        .and_then(|digest| digest.ssl_digest.as_ref())
        .and_then(|tls| tls.extension.get::<Presented>());
    let Some(presented) = presented else {
        return true;
    };
    let header = session.req_header();
    let host = header
        .uri
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| header.headers.get(http::header::HOST)?.to_str().ok());
    host.is_some_and(|host| presented.fits(host))
}

/// Whether a failed try is followed by another.
fn may_retry(failure: retry::Failure, session: &Session, request: &Request) -> bool {
    let most = request
        .route()
        .retry
        .as_ref()
        .map(|retry| retry.max_attempts.get());
    let has_tries_left = match failure {
        retry::Failure::NoConnection => request.attempts < most.unwrap_or(CONNECTION_ATTEMPTS),
        retry::Failure::Unanswered => request.attempts < most.unwrap_or(1),
    };
    let method = &session.req_header().method;
    has_tries_left
        && retry::is_safe(failure, method)
        && session.response_written().is_none()
        && !session.as_ref().retry_buffer_truncated()
        && !session.as_ref().is_upgrade_req()
        && !request.deadline.is_over(Moment::now())
        && (failure == retry::Failure::NoConnection || request.route().retry_budget.spend())
}

#[expect(clippy::unnecessary_box_returns, reason = "Pingora's errors are boxed")]
fn try_again() -> Box<Error> {
    let mut error =
        Error::explain(ErrorType::Custom("retry"), "the answer was temporary").into_up();
    error.set_retry(true);
    error
}

fn is_timeout(error: &Error) -> bool {
    matches!(
        error.etype(),
        ErrorType::ReadTimedout | ErrorType::WriteTimedout | ErrorType::ConnectTimedout
    )
}

/// How the gateway answers where no replica did; `None` where nobody listens any more.
fn answer_to(error: &Error, request: &Request) -> Option<Answer> {
    match (error.esource(), error.etype()) {
        (ErrorSource::Upstream, _) if is_timeout(error) => Some(time_is_up(request)),
        (ErrorSource::Upstream, _) => Some(Answer::BAD_GATEWAY),
        (ErrorSource::Downstream, ErrorType::ReadTimedout) => Some(Answer::body_too_slow()),
        (
            ErrorSource::Downstream,
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed,
        ) => None,
        (ErrorSource::Downstream, _) => Some(Answer::malformed(head::Refused::Framing)),
        (_, ErrorType::InvalidHTTPHeader) => Some(Answer::malformed(head::Refused::Field)),
        _ => Some(Answer::INTERNAL),
    }
}

fn time_is_up(request: &Request) -> Answer {
    match timeout::refusal(request.route().timeout.as_ref()) {
        Some(refusal) => Answer::refusal(refusal),
        None => Answer::GATEWAY_TIMEOUT,
    }
}
