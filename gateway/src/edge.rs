//! Connections of clients: admitted, secured, read, closed.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use bytes::{BufMut, BytesMut};
use http::header::{CONNECTION, STRICT_TRANSPORT_SECURITY};
use http::{Method, Version};
use parking_lot::Mutex;
use pingora::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora::listeners::ALPN;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::protocols::{Shutdown, Stream};
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::access_log::Entry;
use crate::answer::{Answer, HSTS, REQUEST_ID};
use crate::client::ClientKey;
use crate::config::Limits;
use crate::gateway::Gateway;
use crate::handshake::Handshakes;
use crate::head::{self, Bounds, NoHead, Refused};
use crate::metrics::TooMany;
use crate::moment::Moment;
use crate::patience::Patience;
use crate::proxy::Proxy;
use crate::request::{Counted, RequestId};

/// Streams of one HTTP/2 connection at once.
const MAX_STREAMS: u32 = 128;
/// Bytes that a client may send ahead, of a stream and of a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams that a client may reset before they are served (CVE-2023-44487).
const MAX_EARLY_RESETS: usize = 32;
/// For a refused client to read why, before its connection is reset.
const LINGER: Duration = Duration::from_secs(1);

/// For a client that is about to send a request when the end begins: its answer tells it. Shorter
/// than what [`crate::serve`] waits for silent clients.
const LAST_CALL: Duration = Duration::from_millis(800);

/// What serves the connections of the https listener.
pub(crate) struct Edge {
    gateway: Arc<Gateway>,
    proxy: Arc<HttpProxy<Proxy>>,
    handshakes: Handshakes,
    open: Arc<Mutex<HashMap<ClientKey, usize>>>,
}

impl Edge {
    /// # Errors
    /// When the system has no randomness for session tickets.
    pub(crate) fn new(gateway: &Arc<Gateway>, conf: &Arc<ServerConf>) -> Result<Self> {
        let limits = gateway.glance().config.limits;
        let mut proxy = http_proxy(conf, Proxy(Arc::clone(gateway)));
        proxy.h2_options = Some(h2_options(limits));
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(limits.idle_timeout);
        proxy.server_options = Some(options);
        Ok(Self {
            gateway: Arc::clone(gateway),
            proxy: Arc::new(proxy),
            handshakes: Handshakes::new(&gateway.certificates, &gateway.metrics)?,
            open: Arc::default(),
        })
    }

    /// One request after another, until one side ends it.
    async fn serve_http1(&self, mut stream: Stream, limits: Limits, shutdown: &ShutdownWatch) {
        let mut bounds = Bounds {
            idle: limits.header_timeout,
            whole: limits.header_timeout,
            size: limits.max_header,
        };
        let mut patience = Patience::new();
        let mut ending = pin!(last_call(shutdown.clone()));
        loop {
            let head = tokio::select! {
                biased;
                head = head::read(&mut stream, bounds, &mut patience) => head,
                () = &mut ending => Err(NoHead::Closed),
            };
            let head = match head {
                Ok(head) => head,
                Err(NoHead::Closed) => return Shutdown::shutdown(&mut *stream).await,
                Err(NoHead::Refused(refused)) => return self.refuse(stream, refused).await,
            };
            let mut session = ServerSession::new_http1(stream);
            // The next head is read here, with our own patience.
            session.set_keepalive(Some(limits.idle_timeout.as_secs().max(1)));
            session.set_pipelined_prefix(head);
            let Some(reused) = self.proxy.process_new_http(session, shutdown).await else {
                return;
            };
            (stream, _) = reused.consume();
            bounds.idle = limits.idle_timeout;
        }
    }

    /// Says why a head is not passed on, and closes.
    async fn refuse(&self, mut stream: Stream, refused: Refused) {
        let id = RequestId::new();
        let started = Moment::now();
        let answer = Answer::malformed(refused);
        if let Ok(bytes) = on_the_wire(&answer, id) {
            let patience = tokio::time::timeout(LINGER, async {
                stream.write_all(&bytes).await?;
                stream.flush().await?;
                Shutdown::shutdown(&mut *stream).await;
                // What is unread when a socket is closed resets it, and with it the answer.
                let mut rest = [0; 4096];
                while stream.read(&mut rest).await? > 0 {}
                std::io::Result::Ok(())
            });
            let _ = patience.await;
        }
        let live = self.gateway.glance();
        let route = live.routes.get(live.routes.default_number());
        let unread = Method::from_bytes(b"-").expect("a dash is a token");
        route.metrics.answered(&unread, Some(answer.status));
        let peer = stream
            .get_socket_digest()
            .and_then(|digest| Some(digest.peer_addr()?.as_inet()?.ip()));
        self.gateway.access_log.record(&Entry {
            id,
            client: peer,
            version: Version::HTTP_11,
            method: &unread,
            path: "-",
            pattern: &route.pattern,
            status: Some(answer.status),
            bytes: answer.body().len(),
            took: Moment::now().since(started),
            attempts: 0,
            upstream: None,
            upstream_took: Duration::ZERO,
        });
    }

    /// A place for a connection, unless too many are taken.
    fn admit(&self, stream: &Stream, limits: Limits) -> Option<Admitted> {
        let metrics = &self.gateway.metrics;
        metrics.accepted_connections.inc();
        let digest = stream.get_socket_digest()?;
        let client = ClientKey::from(digest.peer_addr()?.as_inet()?.ip());
        let counted = Counted::one_more(&metrics.connections);
        let total = usize::try_from(metrics.connections.get()).unwrap_or(0);
        if total > limits.max_connections {
            metrics.refused_connection(TooMany::InTotal);
            return None;
        }
        let mut open = self.open.lock();
        let of_client = open.entry(client).or_default();
        if *of_client >= limits.max_connections_per_client {
            metrics.refused_connection(TooMany::OfOneClient);
            return None;
        }
        *of_client += 1;
        drop(open);
        Some(Admitted {
            client,
            open: Arc::clone(&self.open),
            _counted: counted,
        })
    }
}

#[async_trait]
impl ServerApp for Edge {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let limits = self.gateway.glance().config.limits;
        let _admitted = self.admit(&stream, limits)?;
        let stream = self
            .handshakes
            .complete(stream, limits.header_timeout)
            .await?;
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            self.proxy.process_new(stream, shutdown).await;
        } else {
            self.serve_http1(stream, limits, shutdown).await;
        }
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

/// Until the end has begun and nobody may be in the middle of sending any more.
async fn last_call(mut ending: ShutdownWatch) {
    // An error means that whoever would tell us of the end has ended.
    let _ = ending.wait_for(|is_ending| *is_ending).await;
    tokio::time::sleep(LAST_CALL).await;
}

/// A connection that counts, until it is closed.
struct Admitted {
    client: ClientKey,
    open: Arc<Mutex<HashMap<ClientKey, usize>>>,
    _counted: Counted,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// Bounds on what a client may make us keep (RFC 9113, section 10.5).
fn h2_options(limits: Limits) -> H2Options {
    let mut options = default_h2_options();
    options
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(limits.max_header).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(MAX_EARLY_RESETS);
    options
}

/// An answer to a client for whom no session exists.
fn on_the_wire(answer: &Answer, id: RequestId) -> pingora::Result<BytesMut> {
    let mut header = answer.header()?;
    header.insert_header(REQUEST_ID, id.header())?;
    header.insert_header(STRICT_TRANSPORT_SECURITY, HSTS)?;
    header.insert_header(CONNECTION, "close")?;
    let mut bytes = BytesMut::new();
    let reason = answer.status.canonical_reason().unwrap_or("Error");
    bytes.put(format!("HTTP/1.1 {} {reason}\r\n", answer.status.as_u16()).as_bytes());
    header.header_to_h1_wire(&mut bytes);
    bytes.put(&b"\r\n"[..]);
    bytes.put(answer.body());
    Ok(bytes)
}

impl fmt::Debug for Edge {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Edge").finish_non_exhaustive()
    }
}
