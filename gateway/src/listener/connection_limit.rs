//! Limits of client connections: in total, and per client. A trusted proxy is no client: it connects for many of them, so
//! that its connections count in total only.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pingora::protocols::Stream;

use crate::client::{ClientKey, is_trusted_proxy};
use crate::config::Config;
use crate::runtime::fd_limit;
use crate::telemetry::gauge_guard::GaugeGuard;
use crate::telemetry::metrics::{ExceededLimit, Metrics};

/// Counter of open client connections, with its limits.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionLimit {
    metrics: Arc<Metrics>,
    /// Connections for which there are file descriptors, whatever the configuration allows.
    max_by_fd_limit: usize,
    per_client: Arc<Mutex<HashMap<ClientKey, usize>>>,
}

impl ConnectionLimit {
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            max_by_fd_limit: fd_limit::max_client_connections(),
            per_client: Arc::default(),
        }
    }

    /// Returns a permit for a connection, or `None` if a limit is reached.
    pub(crate) fn acquire(&self, stream: &Stream, config: &Config) -> Option<ConnectionPermit> {
        let metrics = &self.metrics;
        metrics.accepted_connections.inc();
        let digest = stream.get_socket_digest()?;
        let address = digest.peer_addr()?.as_inet()?.ip();
        let guard = GaugeGuard::increment(&metrics.connections);
        let total = usize::try_from(metrics.connections.get()).unwrap_or(0);
        let max_total = config.limits.max_connections.min(self.max_by_fd_limit);
        if total > max_total {
            metrics.count_rejected_connection(ExceededLimit::Total);
            return None;
        }
        let client = if is_trusted_proxy(address, &config.trusted_proxies) {
            None
        } else {
            let max = config.limits.connections_per_client(max_total);
            Some(self.acquire_of_client(ClientKey::from(address), max)?)
        };
        Some(ConnectionPermit {
            _client: client,
            _total: guard,
        })
    }

    fn acquire_of_client(&self, client: ClientKey, max: usize) -> Option<ClientPermit> {
        let mut per_client = self.per_client.lock();
        let count = per_client.entry(client).or_default();
        if *count >= max {
            self.metrics
                .count_rejected_connection(ExceededLimit::PerClient);
            return None;
        }
        *count += 1;
        drop(per_client);
        Some(ClientPermit {
            client,
            per_client: Arc::clone(&self.per_client),
        })
    }
}

/// Permit for one open connection. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    /// `None` for a trusted proxy.
    _client: Option<ClientPermit>,
    _total: GaugeGuard,
}

/// Part of a client's share.
#[derive(Debug)]
struct ClientPermit {
    client: ClientKey,
    per_client: Arc<Mutex<HashMap<ClientKey, usize>>>,
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        let mut per_client = self.per_client.lock();
        if let Some(count) = per_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                per_client.remove(&self.client);
            }
        }
    }
}
