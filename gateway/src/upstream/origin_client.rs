//! HTTP/1.1 client for requests of the gateway itself to one server, whose name may have several addresses.
//!
//! Connections are kept. A GET that fails at one address is sent to another one, or if there is none, to the same one: it is
//! idempotent, and servers behind one address are several. One without a response for a while is sent to another address too,
//! if there is one, and waited for all the same (request hedging; Dean and Barroso, "The Tail at Scale", 2013): a server that
//! waits for a store that is away responds later, and says so. An address that failed is avoided for a while, unless all have
//! failed.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::{HttpUrl, Scheme, Server, UpstreamTlsSettings};
use crate::http::downstream::Backpressure;
use crate::http::h1::encode::{put_header, put_request_line};
use crate::http::message::{Framing, Upgrade};
use crate::runtime::clock::Instant;
use crate::upstream::connect_error::ConnectError;
use crate::upstream::connection::{Connection, IDLE_TIMEOUT, UpstreamError, UpstreamEvent};
use crate::upstream::connector::{Connector, SharedConnector};
use crate::upstream::tls::TlsClient;

/// Time in which an address has to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Time without a response after which a request is sent to another address too.
const HEDGE_DELAY: Duration = Duration::from_secs(1);
/// Times that a request is sent.
const MAX_ATTEMPTS: usize = 3;
/// Time for which an address that failed is avoided.
const AVOIDANCE: Duration = Duration::from_secs(2);
/// Age from which the addresses of the name are looked up again.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(2);
/// Concurrent calls, each of which may send [`MAX_ATTEMPTS`] requests. Others wait within their timeout.
const MAX_CONCURRENT: usize = 256;
const USER_AGENT: &[u8] = b"gateway-identity";

/// Client of one server.
pub(crate) struct OriginClient {
    url: HttpUrl,
    max_body: usize,
    connector: SharedConnector,
    /// `None` if the server is not `https`.
    tls: Option<Arc<TlsClient>>,
    addresses: Mutex<Addresses>,
    idle: Mutex<Vec<IdleConnection>>,
    concurrency: Semaphore,
}

#[derive(Debug, Default)]
struct Addresses {
    known: Vec<Address>,
    /// Index of the address for the next request, modulo their number.
    next: usize,
    looked_up: Option<Instant>,
}

#[derive(Debug)]
struct Address {
    address: SocketAddr,
    avoided_until: Instant,
}

struct IdleConnection {
    address: SocketAddr,
    connection: Connection,
    since: Instant,
}

/// Complete response.
#[derive(Debug)]
pub(crate) struct OriginResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// Reason why there is no response.
#[derive(Debug, Error)]
pub(crate) enum OriginError {
    #[error("the name cannot be resolved: {0}")]
    Lookup(#[from] io::Error),
    #[error("no connection to {address}: {error}")]
    Connect {
        address: SocketAddr,
        error: ConnectError,
    },
    #[error("{address}: {error}")]
    Exchange {
        address: SocketAddr,
        error: UpstreamError,
    },
    #[error("{0}: the response is larger than {1} bytes")]
    BodyTooLarge(SocketAddr, usize),
    #[error("{0} returned {1}")]
    Status(SocketAddr, StatusCode),
    #[error("no response within {0:?}")]
    TimedOut(Duration),
}

impl OriginClient {
    /// Creates a client that requests `url` and rejects bodies of more than `max_body` bytes. An `https` server is
    /// verified by the authorities that the system trusts.
    ///
    /// # Errors
    /// Returns an error if these are needed and cannot be read.
    pub(crate) fn new(url: HttpUrl, max_body: usize, connector: &SharedConnector) -> Result<Self> {
        let tls = match url.server.scheme {
            Scheme::Http => None,
            Scheme::Https => Some(Arc::new(TlsClient::new(&UpstreamTlsSettings::default())?)),
        };
        Ok(Self {
            url,
            max_body,
            connector: Arc::clone(connector),
            tls,
            addresses: Mutex::default(),
            idle: Mutex::default(),
            concurrency: Semaphore::new(MAX_CONCURRENT),
        })
    }

    /// Returns the response to a GET request with `headers`. A response that says that the server cannot
    /// respond now (5xx) is an error.
    ///
    /// # Errors
    /// Returns the error of the last attempt that failed if no address responds within `limit`.
    pub(crate) async fn get(
        &self,
        headers: &[(&str, &[u8])],
        limit: Duration,
    ) -> Result<OriginResponse, OriginError> {
        let mut last_error = OriginError::TimedOut(limit);
        let result = timeout(limit, self.first_response(headers, &mut last_error)).await;
        result.ok().flatten().ok_or(last_error)
    }

    /// Returns the response of the first attempt that has one, or `None` if all of them fail, with the error of the last one
    /// in `last_error`.
    async fn first_response(
        &self,
        headers: &[(&str, &[u8])],
        last_error: &mut OriginError,
    ) -> Option<OriginResponse> {
        let _permit = self.concurrency.acquire().await;
        if let Err(error) = self.look_up_unknown().await {
            *last_error = error;
            return None;
        }
        let mut attempts = FuturesUnordered::new();
        let mut under_way = Vec::with_capacity(MAX_ATTEMPTS);
        for _ in 0..MAX_ATTEMPTS {
            let Some(address) = self.next_address(&under_way) else {
                break;
            };
            under_way.push(address);
            attempts.push(self.attempt(address, headers));
            match timeout(HEDGE_DELAY, attempts.next()).await {
                Ok(Some((_, Ok(response)))) => return Some(response),
                Ok(Some((failed, Err(error)))) => {
                    under_way.retain(|address| *address != failed);
                    *last_error = error;
                }
                // None of the attempts has ended.
                Ok(None) | Err(_) => self.avoid(address),
            }
        }
        while let Some((_, result)) = attempts.next().await {
            match result {
                Ok(response) => return Some(response),
                Err(error) => *last_error = error,
            }
        }
        None
    }

    /// Looks the addresses of the server's name up if they are not known, or were looked up some time ago, and
    /// closes idle connections that have expired.
    ///
    /// # Errors
    /// Returns an error if the name cannot be resolved. The known addresses stay.
    pub(crate) async fn maintain(&self) -> Result<(), OriginError> {
        let now = Instant::now();
        let looked_up = self.addresses.lock().looked_up;
        let is_fresh = |looked_up: Instant| now.since(looked_up) < LOOKUP_INTERVAL;
        if !looked_up.is_some_and(is_fresh) {
            self.look_up().await?;
        }
        let mut idle = std::mem::take(&mut *self.idle.lock());
        idle.retain_mut(|kept| {
            now.since(kept.since) < IDLE_TIMEOUT && kept.connection.is_still_idle()
        });
        self.idle.lock().append(&mut idle);
        Ok(())
    }

    async fn look_up(&self) -> Result<(), OriginError> {
        let Server { host, port, .. } = &self.url.server;
        let mut found: Vec<_> = tokio::net::lookup_host((host.as_str(), *port))
            .await?
            .collect();
        found.sort();
        found.dedup();
        if found.is_empty() {
            return Err(io::Error::other("the name has no address").into());
        }
        let mut addresses = self.addresses.lock();
        let known = std::mem::take(&mut addresses.known);
        let avoided_until = |address| {
            let known = known.iter().find(|known| known.address == address);
            known.map_or_else(Instant::default, |known| known.avoided_until)
        };
        addresses.known = found
            .iter()
            .map(|&address| Address {
                address,
                avoided_until: avoided_until(address),
            })
            .collect();
        addresses.looked_up = Some(Instant::now());
        drop(addresses);
        let is_current = |kept: &mut IdleConnection| found.contains(&kept.address);
        self.idle.lock().retain_mut(is_current);
        Ok(())
    }

    async fn look_up_unknown(&self) -> Result<(), OriginError> {
        let is_known = !self.addresses.lock().known.is_empty();
        if is_known {
            Ok(())
        } else {
            self.look_up().await
        }
    }

    /// Returns the next address in turn that is not one of `excluded`, preferably one that has not failed a short time ago.
    fn next_address(&self, excluded: &[SocketAddr]) -> Option<SocketAddr> {
        let mut addresses = self.addresses.lock();
        let (now, count) = (Instant::now(), addresses.known.len());
        let first = addresses.next;
        addresses.next = first.wrapping_add(1);
        let in_turn = (0..count)
            .map(|offset| &addresses.known[first.wrapping_add(offset) % count])
            .filter(|candidate| !excluded.contains(&candidate.address));
        let chosen = in_turn
            .clone()
            .find(|candidate| candidate.avoided_until <= now)
            .or_else(|| in_turn.min_by_key(|candidate| candidate.avoided_until));
        chosen.map(|chosen| chosen.address)
    }

    fn avoid(&self, address: SocketAddr) {
        // Idle connections may be as dead as the one that failed.
        self.idle.lock().retain(|kept| kept.address != address);
        let until = Instant::now().saturating_add(AVOIDANCE);
        let mut addresses = self.addresses.lock();
        let mut known = addresses.known.iter_mut();
        if let Some(failed) = known.find(|known| known.address == address) {
            failed.avoided_until = until;
        }
    }

    /// Sends a request to an address, which is avoided from now on if that fails.
    async fn attempt(
        &self,
        address: SocketAddr,
        headers: &[(&str, &[u8])],
    ) -> (SocketAddr, Result<OriginResponse, OriginError>) {
        let result = self.exchange(address, headers).await;
        if result.is_err() {
            self.avoid(address);
        }
        (address, result)
    }

    async fn exchange(
        &self,
        address: SocketAddr,
        headers: &[(&str, &[u8])],
    ) -> Result<OriginResponse, OriginError> {
        while let Some(mut connection) = self.take_idle(address) {
            match self.exchange_on(address, &mut connection, headers).await {
                // The server may have closed the idle connection meanwhile.
                Err(OriginError::Exchange { .. })
                    if connection.may_have_been_stale(Instant::now()) => {}
                result => return self.finish(address, connection, result),
            }
        }
        let mut connection = self.connect(address).await?;
        let result = self.exchange_on(address, &mut connection, headers).await;
        self.finish(address, connection, result)
    }

    /// Keeps the connection after a complete response.
    fn finish(
        &self,
        address: SocketAddr,
        mut connection: Connection,
        result: Result<OriginResponse, OriginError>,
    ) -> Result<OriginResponse, OriginError> {
        let response = result?;
        if connection.is_reusable() {
            connection.mark_pooled();
            self.idle.lock().push(IdleConnection {
                address,
                connection,
                since: Instant::now(),
            });
        }
        if response.status.is_server_error() {
            return Err(OriginError::Status(address, response.status));
        }
        Ok(response)
    }

    fn take_idle(&self, address: SocketAddr) -> Option<Connection> {
        loop {
            let mut idle = self.idle.lock();
            let index = idle.iter().rposition(|kept| kept.address == address)?;
            let mut kept = idle.swap_remove(index);
            drop(idle);
            let is_expired = Instant::now().since(kept.since) >= IDLE_TIMEOUT;
            if !is_expired && kept.connection.is_still_idle() {
                return Some(kept.connection);
            }
        }
    }

    async fn connect(&self, address: SocketAddr) -> Result<Connection, OriginError> {
        let connector = Connector {
            stream: &*self.connector,
            tls: self.tls.as_ref(),
        };
        // Boxed because it is rare: inline, it would enlarge the future of every request.
        Box::pin(connector.open(&self.url.server, address, CONNECT_TIMEOUT))
            .await
            .map_err(|error| OriginError::Connect { address, error })
    }

    async fn exchange_on(
        &self,
        address: SocketAddr,
        connection: &mut Connection,
        headers: &[(&str, &[u8])],
    ) -> Result<OriginResponse, OriginError> {
        let output = connection.begin_request(&Method::GET, Framing::Empty, Upgrade::None);
        let server = &self.url.server;
        put_request_line(output, &Method::GET, &[self.url.path.as_bytes()]);
        put_header(output, b"host", server.authority(server.port).as_bytes());
        put_header(output, b"user-agent", USER_AGENT);
        for (name, value) in headers {
            put_header(output, name.as_bytes(), value);
        }
        output.extend_from_slice(b"\r\n");
        connection.finish_request();
        self.read_response(address, connection).await
    }

    async fn read_response(
        &self,
        address: SocketAddr,
        connection: &mut Connection,
    ) -> Result<OriginResponse, OriginError> {
        let mut response = OriginResponse {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Vec::new(),
        };
        loop {
            let event = poll_fn(|cx| connection.poll(cx, Backpressure::Ready)).await;
            match event.map_err(|error| OriginError::Exchange { address, error })? {
                UpstreamEvent::Interim(_) => {}
                UpstreamEvent::Headers(received) => {
                    response.status = received.status;
                    response.headers = received.headers;
                }
                UpstreamEvent::Data(data) if response.body.len() + data.len() > self.max_body => {
                    return Err(OriginError::BodyTooLarge(address, self.max_body));
                }
                UpstreamEvent::Data(data) => response.body.extend_from_slice(&data),
                UpstreamEvent::End => return Ok(response),
            }
        }
    }
}

impl fmt::Debug for OriginClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OriginClient")
            .field("url", &self.url)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}
