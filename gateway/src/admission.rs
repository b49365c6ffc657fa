//! Places for connections: so many in all, and so many of one client.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pingora::protocols::Stream;

use crate::client::ClientKey;
use crate::config::Limits;
use crate::metrics::{Metrics, TooMany};
use crate::open_files;
use crate::request::Counted;

/// Lets connections of clients in.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    metrics: Arc<Metrics>,
    /// What there are files for, whatever the configuration allows.
    room: usize,
    open: Arc<Mutex<HashMap<ClientKey, usize>>>,
}

impl Admission {
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            room: open_files::connections(),
            open: Arc::default(),
        }
    }

    /// A place for a connection, unless too many are taken.
    pub(crate) fn admit(&self, stream: &Stream, limits: Limits) -> Option<Admitted> {
        let metrics = &self.metrics;
        metrics.accepted_connections.inc();
        let digest = stream.get_socket_digest()?;
        let client = ClientKey::from(digest.peer_addr()?.as_inet()?.ip());
        let counted = Counted::one_more(&metrics.connections);
        let total = usize::try_from(metrics.connections.get()).unwrap_or(0);
        if total > limits.max_connections.min(self.room) {
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

/// A connection that counts, until it is closed.
#[derive(Debug)]
pub(crate) struct Admitted {
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
