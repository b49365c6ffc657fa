//! The https listener: connections are limited, secured, and served by the version of HTTP that ALPN
//! negotiated.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use http::{HeaderValue, Method, Version};
use pingora::apps::ServerApp;
use pingora::listeners::ALPN;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use prometheus::IntGauge;

use crate::config::Limits;
use crate::http::downstream::Downstream;
use crate::http::handler::RequestHandler;
use crate::http::message::{RequestError, RequestHeaders};
use crate::http::{h1, h2};
use crate::listener::connection_limit::ConnectionLimit;
use crate::proxy;
use crate::proxy::state::GatewayState;
use crate::runtime::idle_timer::IdleTimer;
use crate::telemetry::text::address_value;
use crate::tls::handshake::{Peer, TlsAcceptService};

/// Application of the https listener.
pub(crate) struct HttpsApp {
    gateway: Arc<GatewayState>,
    tls: TlsAcceptService,
    connection_limit: ConnectionLimit,
}

impl HttpsApp {
    /// Creates the application of the `https` listener.
    ///
    /// # Errors
    /// Returns an error if the system provides no random numbers for session tickets.
    pub(crate) fn new(
        gateway: &Arc<GatewayState>,
        connection_limit: &ConnectionLimit,
    ) -> Result<Self> {
        Ok(Self {
            gateway: Arc::clone(gateway),
            tls: TlsAcceptService::new(&gateway.certificates, &gateway.metrics)?,
            connection_limit: connection_limit.clone(),
        })
    }
}

#[async_trait]
impl ServerApp for HttpsApp {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let _permit = {
            let active = self.gateway.current();
            self.connection_limit.acquire(&stream, &active.config)?
        };
        let limits = self.gateway.limits();
        let stream = self.tls.accept(stream, limits.header_timeout).await?;
        let handler = ProxyHandler {
            gateway: &self.gateway,
            peer: &Peer::of(&stream)?,
        };
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            h2::server::serve(&handler, stream, shutdown).await;
        } else {
            h1::server::serve(&handler, stream, shutdown).await;
        }
        None
    }
}

/// Serves the requests of one connection through the proxy.
struct ProxyHandler<'c> {
    gateway: &'c GatewayState,
    peer: &'c Peer,
}

impl RequestHandler for ProxyHandler<'_> {
    fn limits(&self) -> Limits {
        self.gateway.limits()
    }

    fn default_host(&self, local: SocketAddr) -> Option<HeaderValue> {
        let requested = self.peer.server_name();
        requested
            .and_then(|name| HeaderValue::from_str(name).ok())
            .or_else(|| self.gateway.certificates.default_host())
            .or_else(|| Some(address_value(local)))
    }

    fn unsent_responses(&self) -> &IntGauge {
        &self.gateway.unsent_responses
    }

    async fn serve(
        &self,
        request: RequestHeaders,
        downstream: &mut impl Downstream,
        timer: &mut IdleTimer,
    ) {
        proxy::serve(self.gateway, self.peer, request, downstream, timer).await;
    }

    fn reject(
        &self,
        error: RequestError,
        method: &Method,
        version: Version,
        downstream: &mut impl Downstream,
    ) {
        proxy::reject(self.gateway, self.peer, error, method, version, downstream);
    }

    fn record_malformed(&self, version: Version) {
        proxy::record_malformed(self.gateway, self.peer, version);
    }
}

impl fmt::Debug for HttpsApp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HttpsApp").finish_non_exhaustive()
    }
}
