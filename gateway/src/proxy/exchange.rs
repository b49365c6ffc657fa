//! Exchange of one upstream attempt: the request body is forwarded upstream and the response downstream,
//! both as they arrive, until the response is complete, a side fails, or a timeout expires.
//!
//! Invariant: memory is bounded by backpressure. A side is not read while the other side's send buffer is
//! above its high watermark. Another attempt may follow only while no part of a response has been
//! sent to the client.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use http::header::EXPECT;

use crate::features::retry::{self, AttemptFailure};
use crate::http::adaptive_read::ReadSize;
use crate::http::downstream::{Backpressure, Downstream, DownstreamEvent};
use crate::http::message::{RequestHeaders, ResponseHeaders};
use crate::proxy::attempts::Blame;
use crate::proxy::common_headers::{CommonHeaders, restrict_interim};
use crate::proxy::context::RequestContext;
use crate::proxy::error_response::ErrorResponse;
use crate::proxy::outcome::RequestOutcome;
use crate::proxy::upload::Upload;
use crate::runtime::clock::Instant;
use crate::runtime::idle_timer::IdleTimer;
use crate::upstream::{Connection, UpstreamError, UpstreamEvent};

/// Outcome of an exchange.
#[derive(Debug)]
pub(crate) enum ExchangeOutcome {
    Finished(RequestOutcome),
    /// The attempt failed, and another one may be made.
    Retry,
    /// The endpoint had probably closed the idle connection before it was used: the exchange is repeated with
    /// a new connection.
    StaleConnection,
}

impl From<RequestOutcome> for ExchangeOutcome {
    fn from(outcome: RequestOutcome) -> Self {
        Self::Finished(outcome)
    }
}

/// Progress that the exchange waits for. It determines the timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AwaitedProgress {
    /// Any progress of the endpoint, or of either side of an upgraded connection.
    Upstream,
    /// The client sends more of the request body.
    RequestBody,
    /// The client reads more of the response.
    ResponseRead,
}

/// Wait for one kind of progress.
#[derive(Debug, Clone, Copy)]
struct ProgressWait {
    awaited: AwaitedProgress,
    since: Instant,
    timeout: Duration,
}

/// Event of either side.
enum ExchangeEvent {
    Upstream(Result<UpstreamEvent, UpstreamError>),
    Downstream(DownstreamEvent),
}

/// Progress of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseProgress {
    AwaitingHeaders,
    Streaming,
    /// The endpoint has sent the whole response; the client may not have read all of it.
    Received,
    /// Both sides have switched to another protocol (RFC 9110, section 15.2.2).
    Upgraded,
}

/// State of `Expect: 100-continue` (RFC 9110, section 10.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContinueExpectation {
    /// The client waits for a 100 response before it sends the body.
    Pending,
    /// The client sends the body although there was no 100 response yet.
    Waived,
    /// There is none, or a 100 response has met it.
    None,
}

/// One request, its client, and a connection to an endpoint.
pub(crate) struct Exchange<'e, D> {
    request: &'e RequestHeaders,
    context: &'e mut RequestContext,
    downstream: &'e mut D,
    upstream: Connection,
    upload: &'e mut Upload,
    timer: &'e mut IdleTimer,
    response: ResponseProgress,
    expectation: ContinueExpectation,
    /// Blocked while the endpoint is not read because the client's send buffer is full.
    downstream_pressure: Backpressure,
    /// Blocked while the client is not read because the endpoint's send buffer is full.
    upstream_pressure: Backpressure,
    wait: Option<ProgressWait>,
}

impl<'e, D: Downstream> Exchange<'e, D> {
    /// Creates an exchange. The request headers must have been written to `upstream` already.
    pub(crate) fn new(
        request: &'e RequestHeaders,
        context: &'e mut RequestContext,
        downstream: &'e mut D,
        upstream: Connection,
        upload: &'e mut Upload,
        timer: &'e mut IdleTimer,
    ) -> Self {
        let expectation = if !request.headers.contains_key(EXPECT) {
            ContinueExpectation::None
        } else if upload.received_bytes == 0 {
            ContinueExpectation::Pending
        } else {
            ContinueExpectation::Waived
        };
        Self {
            request,
            context,
            downstream,
            upstream,
            upload,
            timer,
            response: ResponseProgress::AwaitingHeaders,
            expectation,
            downstream_pressure: Backpressure::Ready,
            upstream_pressure: Backpressure::Ready,
            wait: None,
        }
    }

    /// Runs the exchange to its end, and puts the connection into the endpoint's pool if it is
    /// reusable.
    pub(crate) async fn run(mut self) -> ExchangeOutcome {
        self.upstream.send_data(&self.upload.replay_buffer);
        // An endpoint may respond before the client is polled for a body that does not exist.
        self.upload.is_complete |= self.request.framing.is_empty();
        if self.upload.is_complete {
            self.upstream.finish_request();
        }
        let outcome = poll_fn(|cx| self.poll(cx)).await;
        if matches!(
            outcome,
            ExchangeOutcome::Finished(RequestOutcome::Completed)
        ) && let Some(endpoint) = self.context.attempts.responding_endpoint()
        {
            endpoint.keep(self.upstream, Instant::now());
        }
        outcome
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeOutcome> {
        loop {
            let Poll::Ready(event) = self.poll_event(cx) else {
                return self.poll_timeout(cx);
            };
            self.end_wait_for(&event);
            if let ExchangeEvent::Downstream(DownstreamEvent::Disconnected) = event {
                // Sends the request bytes received before the disconnect, without waiting for the socket.
                let _ = self.upstream.poll_send(cx);
            }
            let next = match event {
                ExchangeEvent::Upstream(Ok(event)) => self.on_upstream_event(event),
                ExchangeEvent::Upstream(Err(error)) => {
                    ControlFlow::Break(self.on_upstream_error(error))
                }
                ExchangeEvent::Downstream(event) => self
                    .on_downstream_event(event)
                    .map_break(ExchangeOutcome::Finished),
            };
            if let ControlFlow::Break(outcome) = next {
                return Poll::Ready(outcome);
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeEvent> {
        loop {
            let pressure = self.measure_pressure();
            (self.downstream_pressure, self.upstream_pressure) = pressure;
            if let Poll::Ready(event) = self.upstream.poll_response(cx, self.downstream_pressure) {
                return Poll::Ready(ExchangeEvent::Upstream(event));
            }
            if let Poll::Ready(event) = self.downstream.poll(cx, self.upstream_pressure) {
                return Poll::Ready(ExchangeEvent::Downstream(event));
            }
            // Last, so that all of the request body that has arrived is sent together.
            let sent = self.upstream.poll_send(cx);
            // A send buffer may have been emptied, or there may be a response that was sent before the connection was closed.
            if self.measure_pressure() == pressure && !matches!(sent, Poll::Ready(Err(_))) {
                return Poll::Pending;
            }
        }
    }

    /// Returns the backpressure of the client and of the endpoint, by the bytes in their send buffers. If the
    /// budget of response bytes is exhausted, the client's is blocked by any bytes.
    fn measure_pressure(&mut self) -> (Backpressure, Backpressure) {
        let buffered = self.downstream.buffered_bytes();
        self.context.response_buffer.update(buffered);
        let is_exhausted = self
            .context
            .response_buffer
            .is_exhausted(self.context.limits());
        self.upstream.set_read_size(if is_exhausted {
            ReadSize::Small
        } else {
            ReadSize::Adaptive
        });
        let downstream = if is_exhausted && buffered > 0 {
            Backpressure::Blocked
        } else {
            self.downstream_pressure.update(buffered)
        };
        let upstream = self
            .upstream_pressure
            .update(self.upstream.buffered_bytes());
        (downstream, upstream)
    }

    /// Returns ready once the awaited progress is overdue.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeOutcome> {
        let awaited = self.awaited_progress();
        let wait = match self.wait {
            Some(wait) if wait.awaited == awaited => wait,
            _ => self.begin_wait(awaited),
        };
        let deadline = wait.since.to_tokio() + wait.timeout;
        ready!(self.timer.poll_until(cx, deadline));
        Poll::Ready(self.on_timeout(awaited))
    }

    fn awaited_progress(&self) -> AwaitedProgress {
        match self.response {
            ResponseProgress::Upgraded => AwaitedProgress::Upstream,
            ResponseProgress::Received => AwaitedProgress::ResponseRead,
            _ if self.downstream_pressure == Backpressure::Blocked => AwaitedProgress::ResponseRead,
            // Also while the response arrives: the endpoint may need the body for the rest of it.
            ResponseProgress::AwaitingHeaders | ResponseProgress::Streaming
                if self.is_body_awaited() =>
            {
                AwaitedProgress::RequestBody
            }
            ResponseProgress::AwaitingHeaders | ResponseProgress::Streaming => {
                AwaitedProgress::Upstream
            }
        }
    }

    fn is_body_awaited(&self) -> bool {
        !self.upload.is_complete
            && self.upstream_pressure == Backpressure::Ready
            && self.expectation != ContinueExpectation::Pending
    }

    fn begin_wait(&mut self, awaited: AwaitedProgress) -> ProgressWait {
        self.end_wait();
        let since = Instant::now();
        let timeout = self.timeout(awaited, since);
        *self.wait.insert(ProgressWait {
            awaited,
            since,
            timeout,
        })
    }

    fn timeout(&self, awaited: AwaitedProgress, now: Instant) -> Duration {
        let limits = self.context.limits();
        match awaited {
            AwaitedProgress::RequestBody => limits.body_timeout,
            AwaitedProgress::ResponseRead => limits.idle_timeout,
            // The client has closed its side of a tunnel.
            AwaitedProgress::Upstream
                if self.response == ResponseProgress::Upgraded && self.upload.is_complete =>
            {
                limits.idle_timeout.min(limits.stream_idle_timeout)
            }
            AwaitedProgress::Upstream if self.response == ResponseProgress::Upgraded => {
                limits.stream_idle_timeout
            }
            // A timeout that the file names is the only one.
            AwaitedProgress::Upstream => {
                let remaining = self.context.deadline.remaining(now);
                let timeout = remaining.unwrap_or(limits.stream_idle_timeout);
                match self.attempt_timeout() {
                    Some(attempt_timeout) => timeout.min(attempt_timeout),
                    None => timeout,
                }
            }
        }
    }

    fn attempt_timeout(&self) -> Option<Duration> {
        match self.response {
            ResponseProgress::AwaitingHeaders => {
                self.context.attempt_timeout(self.request, self.upload)
            }
            ResponseProgress::Streaming
            | ResponseProgress::Received
            | ResponseProgress::Upgraded => None,
        }
    }

    /// Ends the current wait, unless it is for the client to read the response and the client has sent
    /// something: received request bytes do not count as read progress on the response.
    fn end_wait_for(&mut self, event: &ExchangeEvent) {
        let is_response_read_awaited = self
            .wait
            .is_some_and(|wait| wait.awaited == AwaitedProgress::ResponseRead);
        if !(matches!(event, ExchangeEvent::Downstream(_)) && is_response_read_awaited) {
            self.end_wait();
        }
    }

    /// Ends the current wait. Time spent waiting for the client extends the upstream deadline.
    fn end_wait(&mut self) {
        let Some(wait) = self.wait.take() else { return };
        if wait.awaited == AwaitedProgress::Upstream {
            return;
        }
        let duration = Instant::now().since(wait.since);
        self.context.deadline = self.context.deadline.extended_by(duration);
        if wait.awaited == AwaitedProgress::RequestBody {
            self.upload.wait_time += duration;
        }
    }

    fn on_upstream_event(&mut self, event: UpstreamEvent) -> ControlFlow<ExchangeOutcome> {
        match event {
            UpstreamEvent::Interim(mut headers) => {
                if headers.status == StatusCode::CONTINUE {
                    self.expectation = ContinueExpectation::None;
                }
                restrict_interim(&mut headers.headers, self.context);
                self.downstream.send_interim(&headers);
            }
            UpstreamEvent::Headers(headers) => return self.on_response_headers(headers),
            UpstreamEvent::Data(data) => self.downstream.send_data(data),
            UpstreamEvent::End => {
                self.response = ResponseProgress::Received;
                self.context.attempts.record_complete_response();
                self.downstream.finish();
            }
        }
        ControlFlow::Continue(())
    }

    /// Ends the attempt, and forwards the response headers unless another attempt follows.
    fn on_response_headers(
        &mut self,
        mut response: ResponseHeaders,
    ) -> ControlFlow<ExchangeOutcome> {
        let now = Instant::now();
        // An endpoint that has rejected the expectation may take a body that was on its way for another request.
        if self.expectation != ContinueExpectation::None {
            self.upstream.close_after_response();
        }
        if let Some(attempt) = self.context.attempts.end_current(now) {
            let attempt = attempt.begin_response(&response, now);
            // An endpoint that sheds load would only get more of it.
            let is_temporary = retry::is_temporary(response.status) && !response.is_load_shedding();
            if is_temporary && self.may_retry() {
                return ControlFlow::Break(ExchangeOutcome::Retry);
            }
            self.context.attempts.set_responding(attempt);
        }
        self.response = match response.status {
            StatusCode::SWITCHING_PROTOCOLS => {
                // The client's side of the tunnel is open, although the request had no body.
                self.upload.is_complete = false;
                ResponseProgress::Upgraded
            }
            _ => ResponseProgress::Streaming,
        };
        if response.is_open_ended() {
            self.context.open_ended_since = Some(now);
        }
        CommonHeaders::Request(self.context).insert_into(&mut response.headers);
        self.downstream.send_headers(response);
        ControlFlow::Continue(())
    }

    fn on_downstream_event(&mut self, event: DownstreamEvent) -> ControlFlow<RequestOutcome> {
        match event {
            DownstreamEvent::Data(data) => self.on_request_data(&data),
            DownstreamEvent::End => {
                self.upload.is_complete = true;
                self.upstream.finish_request();
                ControlFlow::Continue(())
            }
            DownstreamEvent::Malformed(error) => {
                ControlFlow::Break(self.reject(ErrorResponse::malformed_request(error)))
            }
            DownstreamEvent::Disconnected => ControlFlow::Break(RequestOutcome::ClientDisconnected),
            DownstreamEvent::ResponseSent => ControlFlow::Break(RequestOutcome::Completed),
        }
    }

    fn on_request_data(&mut self, data: &[u8]) -> ControlFlow<RequestOutcome> {
        self.upstream.send_data(data);
        if self.response == ResponseProgress::Upgraded {
            return ControlFlow::Continue(());
        }
        if self.expectation == ContinueExpectation::Pending {
            self.expectation = ContinueExpectation::Waived;
        }
        self.upload.receive(data, &self.request.method);
        if self.upload.received_bytes > self.context.limits().max_body_bytes {
            ControlFlow::Break(self.reject(ErrorResponse::BODY_TOO_LARGE))
        } else if self.upload.is_too_slow(self.context.limits().body_timeout) {
            ControlFlow::Break(self.reject(ErrorResponse::BODY_TOO_SLOW))
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Ends the request because of its body, which is no failure of the endpoint.
    fn reject(&mut self, response: ErrorResponse) -> RequestOutcome {
        self.context.attempts.end_current(Instant::now());
        match self.response {
            ResponseProgress::AwaitingHeaders => RequestOutcome::Failed(response),
            ResponseProgress::Streaming
            | ResponseProgress::Received
            | ResponseProgress::Upgraded => RequestOutcome::Aborted,
        }
    }

    fn on_upstream_error(&mut self, error: UpstreamError) -> ExchangeOutcome {
        let now = Instant::now();
        let is_stale = error == UpstreamError::Connection && self.upstream.may_have_been_stale(now);
        if is_stale && self.can_repeat() {
            self.record_stale_connection();
            return ExchangeOutcome::StaleConnection;
        }
        self.context.log_endpoint_failure(error);
        let Some(mut attempt) = self.context.attempts.end_current(now) else {
            return self.truncate(Blame::Endpoint, now);
        };
        attempt.in_flight.endpoint().metrics.broken.inc();
        attempt.record_failure(now);
        // The next response would be too large as well.
        if error != UpstreamError::HeaderLimit && self.may_retry() {
            return ExchangeOutcome::Retry;
        }
        RequestOutcome::Failed(ErrorResponse::BAD_GATEWAY).into()
    }

    fn on_timeout(&mut self, awaited: AwaitedProgress) -> ExchangeOutcome {
        match awaited {
            AwaitedProgress::ResponseRead => RequestOutcome::ClientDisconnected.into(),
            AwaitedProgress::RequestBody => self.reject(ErrorResponse::BODY_TOO_SLOW).into(),
            // Either side of an upgraded connection may be idle: it is no failure of the endpoint.
            AwaitedProgress::Upstream if self.response == ResponseProgress::Upgraded => {
                RequestOutcome::Aborted.into()
            }
            AwaitedProgress::Upstream => self.on_upstream_timeout(),
        }
    }

    fn on_upstream_timeout(&mut self) -> ExchangeOutcome {
        self.context.log_endpoint_failure("timed out");
        let now = Instant::now();
        // The endpoint may wait for a body that the client holds back, or sends only after a 100 response: a
        // client could open the circuit breaker with such requests.
        let is_body_missing =
            self.response != ResponseProgress::AwaitingHeaders && !self.upload.is_complete;
        let blame = if self.expectation == ContinueExpectation::Pending || is_body_missing {
            Blame::Client
        } else {
            Blame::Endpoint
        };
        let Some(mut attempt) = self.context.attempts.end_current(now) else {
            return self.truncate(blame, now);
        };
        attempt.in_flight.endpoint().metrics.timeouts.inc();
        if blame == Blame::Endpoint {
            attempt.record_failure(now);
        }
        if self.may_retry() {
            return ExchangeOutcome::Retry;
        }
        RequestOutcome::Failed(ErrorResponse::deadline_exceeded(self.context)).into()
    }

    /// Ends a request whose response has begun, because the endpoint does not complete it.
    fn truncate(&mut self, blame: Blame, now: Instant) -> ExchangeOutcome {
        // Either side of an upgraded connection may close it at any time.
        if self.response == ResponseProgress::Upgraded {
            return RequestOutcome::Aborted.into();
        }
        self.context.attempts.record_truncated_response(blame, now);
        RequestOutcome::Truncated.into()
    }

    /// Records that the request is sent once more because of a stale connection. That uses the retry budget, since
    /// the endpoint may have received the request, but needs none: such closes say nothing about the endpoint.
    fn record_stale_connection(&self) {
        let _ = self.context.route().retry_budget.try_withdraw();
        if let Some(attempt) = &self.context.attempts.current {
            attempt.in_flight.endpoint().metrics.stale.inc();
        }
    }

    /// Returns true if the request can be sent again as a whole and cannot be applied twice.
    fn can_repeat(&self) -> bool {
        retry::is_safe(AttemptFailure::MaybeProcessed, &self.request.method)
            && self.upload.can_replay()
    }

    fn may_retry(&self) -> bool {
        self.context
            .may_retry(AttemptFailure::MaybeProcessed, self.request, self.upload)
    }
}

#[cfg(test)]
mod tests;
