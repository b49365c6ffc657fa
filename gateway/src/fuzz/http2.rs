//! Connections of HTTP/2.

use std::cell::RefCell;
use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use pingora::protocols::Stream;
use prometheus::IntGauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{Config, Environment, Limits};
use crate::fuzz::http1::BodyFraming;
use crate::http::downstream::{
    Backpressure, Downstream, DownstreamEvent, HIGH_WATERMARK, wait_until_sent,
};
use crate::http::h2;
use crate::http::handler::RequestHandler;
use crate::http::message::{Framing, RequestError, RequestHeaders, ResponseHeaders};
use crate::runtime::idle_timer::IdleTimer;

/// Capacity of the pipe in each direction, in bytes.
const PIPE_CAPACITY: usize = 16 * 1024;
/// Longest time that the client tries to send one part.
const SEND_TIMEOUT: Duration = Duration::from_mins(2);
/// Time in which the client reads what the server had sent before it ended the connection.
const REST_TIMEOUT: Duration = Duration::from_millis(1);
/// Size of a large response body.
const LARGE_BODY: usize = 200_000;

/// The default limits.
static LIMITS: LazyLock<Limits> = LazyLock::new(|| {
    let environment = Environment::for_tests();
    let config = Config::parse("gateway.yml".as_ref(), "premier: {}\n", &environment);
    config.expect("the configuration is valid").limits
});

/// Step of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientStep {
    Send(Vec<u8>),
    Wait(Duration),
    /// The gateway begins to shut down.
    Shutdown,
    /// The client closes the connection for writing.
    Close,
}

/// Treatment of what the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientReading {
    AtOnce,
    /// Nothing is read until all steps are done.
    Afterwards,
    Never,
}

/// Request that reached the handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedRequest {
    pub method: String,
    pub target: Vec<u8>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub framing: BodyFraming,
    /// Number of bytes of a body that was received to its end.
    pub body_length: Option<u64>,
}

/// Connection that has ended, or was given up.
#[derive(Debug)]
pub struct Http2Connection {
    /// Everything that the server sent and the client read.
    pub received: Vec<u8>,
    pub requests: Vec<ServedRequest>,
    /// Time from the client's last step to the end of the connection, `None` if it did not end in time.
    pub ended_after: Option<Duration>,
    /// Responses that the gateway's shutdown would still wait for.
    pub unsent_responses: i64,
}

/// Serves one connection. `limit` is the time that the server has to end it after the client's last step.
///
/// The response depends on the first segment of the path: `/echo` returns the body, `/early` responds before it is
/// received, `/large` has a large body, `/interim` an interim response, `/abort` is aborted, and `/never` waits for
/// the client to leave.
pub async fn serve_http2(
    steps: &[ClientStep],
    reading: ClientReading,
    limit: Duration,
) -> Http2Connection {
    let (client, server) = tokio::io::duplex(PIPE_CAPACITY);
    let server: Stream = Box::new(server);
    let (begin_shutdown, shutdown) = watch::channel(false);
    let handler = Handler::new();
    let (reader, writer) = tokio::io::split(client);
    let (steps_done, are_steps_done) = watch::channel(None);
    let mut received = Vec::new();
    let ended_at = {
        let mut reader = pin!(read(reader, reading, are_steps_done.clone(), &mut received));
        let ended_at = tokio::select! {
            biased;
            () = h2::server::serve(&handler, server, &shutdown) => Some(Instant::now()),
            () = take_steps(steps, writer, begin_shutdown, &steps_done) => None,
            () = &mut reader => None,
            () = expire(are_steps_done, limit) => None,
        };
        if ended_at.is_some() {
            // The rest of what the server has sent.
            steps_done
                .send_if_modified(|done| done.is_none() && done.replace(Instant::now()).is_none());
            let _ = timeout(REST_TIMEOUT, reader).await;
        }
        ended_at
    };
    let last_step = steps_done.borrow().unwrap_or_else(Instant::now);
    Http2Connection {
        received,
        requests: handler.requests.into_inner(),
        ended_after: ended_at.map(|ended| ended.saturating_duration_since(last_step)),
        unsent_responses: handler.unsent_responses.get(),
    }
}

/// Ends some time after the client's last step.
async fn expire(mut are_steps_done: watch::Receiver<Option<Instant>>, limit: Duration) {
    drop(are_steps_done.wait_for(Option::is_some).await);
    sleep(limit).await;
}

async fn take_steps(
    steps: &[ClientStep],
    writer: WriteHalf<DuplexStream>,
    begin_shutdown: watch::Sender<bool>,
    done: &watch::Sender<Option<Instant>>,
) {
    let mut writer = Some(writer);
    for step in steps {
        match step {
            ClientStep::Send(bytes) => {
                if let Some(writer) = &mut writer {
                    let _ = timeout(SEND_TIMEOUT, writer.write_all(bytes)).await;
                }
            }
            ClientStep::Wait(duration) => sleep(*duration).await,
            ClientStep::Shutdown => {
                begin_shutdown.send_replace(true);
            }
            ClientStep::Close => {
                if let Some(mut writer) = writer.take() {
                    let _ = writer.shutdown().await;
                }
            }
        }
    }
    done.send_replace(Some(Instant::now()));
    // The connection stays open, and so does the sender, whose end is a shutdown.
    pending::<()>().await;
    drop((writer, begin_shutdown));
}

async fn read(
    mut reader: ReadHalf<DuplexStream>,
    reading: ClientReading,
    mut are_steps_done: watch::Receiver<Option<Instant>>,
    received: &mut Vec<u8>,
) {
    match reading {
        ClientReading::AtOnce => {}
        ClientReading::Afterwards => {
            drop(are_steps_done.wait_for(Option::is_some).await);
        }
        ClientReading::Never => return pending().await,
    }
    let _ = reader.read_to_end(received).await;
    // The server may have closed the connection for writing only.
    pending::<()>().await;
}

/// Handler whose responses the client chooses.
struct Handler {
    limits: Limits,
    unsent_responses: IntGauge,
    requests: RefCell<Vec<ServedRequest>>,
}

impl Handler {
    fn new() -> Self {
        Self {
            limits: *LIMITS,
            unsent_responses: IntGauge::new("unsent", "responses").expect("the name is valid"),
            requests: RefCell::default(),
        }
    }

    /// Receives the body, of which it returns the beginning. Returns `None` if the client leaves.
    async fn receive(
        &self,
        number: usize,
        downstream: &mut impl Downstream,
        timer: &mut IdleTimer,
    ) -> Option<Vec<u8>> {
        let (mut beginning, mut length) = (Vec::new(), 0);
        loop {
            let event = poll_fn(|cx| downstream.poll(cx, Backpressure::Ready));
            match timer.timeout(self.limits.body_timeout, event).await {
                Some(DownstreamEvent::Data(data)) => {
                    length += data.len() as u64;
                    let room = HIGH_WATERMARK - beginning.len();
                    beginning.extend_from_slice(&data[..data.len().min(room)]);
                }
                Some(DownstreamEvent::End) => {
                    self.requests.borrow_mut()[number].body_length = Some(length);
                    return Some(beginning);
                }
                None => return Some(beginning),
                Some(_) => return None,
            }
        }
    }
}

fn response(status: StatusCode, framing: Framing) -> ResponseHeaders {
    ResponseHeaders {
        status,
        reason: None,
        headers: HeaderMap::new(),
        framing,
    }
}

impl RequestHandler for Handler {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn default_host(&self, _: SocketAddr) -> Option<HeaderValue> {
        None
    }

    fn unsent_responses(&self) -> &IntGauge {
        &self.unsent_responses
    }

    async fn serve(
        &self,
        request: RequestHeaders,
        downstream: &mut impl Downstream,
        timer: &mut IdleTimer,
    ) {
        let number = self.requests.borrow().len();
        let headers = request.headers.iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        self.requests.borrow_mut().push(ServedRequest {
            method: request.method.to_string(),
            target: request.target.as_bytes().to_vec(),
            headers: headers.collect(),
            framing: request.framing.into(),
            body_length: None,
        });
        let path = request.target.as_bytes().split(|byte| *byte == b'/').nth(1);
        let body = match path.unwrap_or_default() {
            b"early" => Vec::new(),
            b"large" => vec![b'a'; LARGE_BODY],
            b"interim" => {
                downstream.send_interim(&response(StatusCode::EARLY_HINTS, Framing::Empty));
                Vec::new()
            }
            b"abort" => {
                downstream.send_headers(response(StatusCode::OK, Framing::Chunked));
                downstream.send_data(Bytes::from_static(b"partial"));
                downstream.abort();
                return;
            }
            b"never" => {
                let gone = async {
                    loop {
                        let event = poll_fn(|cx| downstream.poll(cx, Backpressure::Blocked)).await;
                        if matches!(event, DownstreamEvent::Disconnected) {
                            return;
                        }
                    }
                };
                if timer
                    .timeout(self.limits.idle_timeout, gone)
                    .await
                    .is_none()
                {
                    downstream.abort();
                }
                return;
            }
            _ => match self.receive(number, downstream, timer).await {
                Some(body) => body,
                None => return,
            },
        };
        let framing = Framing::Length(body.len() as u64);
        downstream.send_headers(response(StatusCode::OK, framing));
        downstream.send_data(body.into());
        downstream.finish();
        wait_until_sent(downstream, timer, self.limits.idle_timeout).await;
    }

    fn reject(
        &self,
        error: RequestError,
        _: &Method,
        _: Version,
        downstream: &mut impl Downstream,
    ) {
        downstream.send_headers(response(error.status(), Framing::Empty));
        downstream.finish();
    }

    fn record_malformed(&self, _: Version) {}
}
