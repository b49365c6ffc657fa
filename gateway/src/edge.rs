//! Connections of clients: admitted, secured, and handed to the version of HTTP that they speak.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::listeners::ALPN;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use crate::client::ClientKey;
use crate::config::Limits;
use crate::gateway::Gateway;
use crate::handshake::{Handshakes, Peer};
use crate::metrics::TooMany;
use crate::request::Counted;
use crate::{http1, http2};

/// What serves the connections of the https listener.
pub(crate) struct Edge {
    gateway: Arc<Gateway>,
    handshakes: Handshakes,
    open: Arc<Mutex<HashMap<ClientKey, usize>>>,
}

impl Edge {
    /// # Errors
    /// When the system has no randomness for session tickets.
    pub(crate) fn new(gateway: &Arc<Gateway>) -> Result<Self> {
        Ok(Self {
            gateway: Arc::clone(gateway),
            handshakes: Handshakes::new(&gateway.certificates, &gateway.metrics)?,
            open: Arc::default(),
        })
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
        let (gateway, peer) = (&*self.gateway, Peer::of(&stream)?);
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            http2::serve(gateway, stream, &peer, limits, shutdown).await;
        } else {
            http1::serve(gateway, stream, &peer, limits, shutdown).await;
        }
        None
    }
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

impl fmt::Debug for Edge {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Edge").finish_non_exhaustive()
    }
}
