//! Which replicas there are: every address that a server's name stands for, asked for again and
//! again, so that scaling needs no word to the gateway.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::http::Connector;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;

use super::{Condition, Replica, Upstreams};
use crate::config::{HealthCheck, Server};
use crate::gateway::Gateway;
use crate::moment::Moment;

/// A replica that is not well is probed so much more often, to have it back soon.
const EAGERNESS: u32 = 4;
/// How long the first look may delay the start.
const PATIENCE: Duration = Duration::from_secs(1);

/// Keeps the list of replicas true, as long as the gateway runs.
#[derive(Debug)]
pub(crate) struct Discovery(pub(crate) Arc<Gateway>);

#[async_trait]
impl BackgroundService for Discovery {
    async fn start_with_ready_notifier(
        &self,
        mut shutdown: ShutdownWatch,
        ready: ServiceReadyNotifier,
    ) {
        let connector = Connector::new(None);
        let mut unresolved = HashSet::new();
        // The first request should find the replicas known, if they can be known soon.
        {
            let mut first = pin!(self.round(Whom::Everybody, &connector, &mut unresolved));
            if tokio::time::timeout(PATIENCE, &mut first).await.is_ok() {
                ready.notify_ready();
            } else {
                ready.notify_ready();
                first.await;
            }
        }
        for round in 1_u32.. {
            let is_round = round.is_multiple_of(EAGERNESS) || self.0.upstreams.all().is_empty();
            let mut whom = if is_round {
                Whom::Everybody
            } else {
                Whom::TheUnwell
            };
            tokio::select! {
                () = tokio::time::sleep(self.pause()) => {}
                // There may be other servers now.
                () = self.0.changed.notified() => whom = Whom::Everybody,
                // The list must stay true while the last requests are answered.
                Ok(()) = shutdown.changed() => {}
            }
            self.round(whom, &connector, &mut unresolved).await;
        }
    }
}

/// Who is looked after in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// The names are resolved, and every replica is probed.
    Everybody,
    /// Only replicas that are not well are probed.
    TheUnwell,
}

impl Discovery {
    async fn round(&self, whom: Whom, connector: &Connector, unresolved: &mut HashSet<Server>) {
        let live = self.0.live();
        let upstreams = &self.0.upstreams;
        if whom == Whom::Everybody {
            upstreams.resolve(&live.config.servers, unresolved).await;
            let all = upstreams.all();
            live.routes
                .keep_breakers(|address| all.iter().any(|replica| replica.address == address));
        }
        upstreams
            .probe(whom, connector, &live.config.health_check)
            .await;
        let now = Moment::now();
        for replica in upstreams.all().iter() {
            replica.idle.tidy(now);
        }
    }

    fn pause(&self) -> Duration {
        self.0.glance().config.health_check.interval / EAGERNESS
    }
}

impl Upstreams {
    /// Takes in the addresses that the servers' names stand for now, and lets go of the others.
    /// A name that cannot be resolved keeps the addresses that it had.
    async fn resolve(&self, servers: &[Server], unresolved: &mut HashSet<Server>) {
        let current = self.all();
        let mut replicas: Vec<Arc<Replica>> = Vec::new();
        for server in servers {
            let addresses = match lookup(server).await {
                Ok(addresses) => {
                    unresolved.remove(server);
                    addresses
                }
                Err(error) => {
                    if unresolved.insert(server.clone()) {
                        tracing::warn!(%server, %error, "name cannot be resolved");
                    }
                    current
                        .iter()
                        .filter(|replica| replica.server == *server)
                        .map(|replica| replica.address)
                        .collect()
                }
            };
            for address in addresses {
                if replicas.iter().any(|replica| replica.address == address) {
                    continue;
                }
                let known = current
                    .iter()
                    .find(|replica| replica.address == address && replica.server == *server);
                replicas.push(known.map_or_else(|| self.add(address, server), Arc::clone));
            }
        }
        let is_same = current.len() == replicas.len()
            && current
                .iter()
                .zip(&replicas)
                .all(|(one, other)| Arc::ptr_eq(one, other));
        if is_same {
            return;
        }
        for gone in current.iter() {
            if !replicas
                .iter()
                .any(|replica| replica.address == gone.address)
            {
                tracing::info!(replica = %gone.address, "replica is gone");
                self.metrics.forget_replica(&gone.address.to_string());
            }
        }
        self.replicas.store(Arc::new(replicas));
    }

    fn add(&self, address: SocketAddr, server: &Server) -> Arc<Replica> {
        tracing::info!(replica = %address, %server, "replica found");
        let metrics = self.metrics.replica(&address.to_string());
        Arc::new(Replica::new(address, server, metrics))
    }

    /// Probes all replicas at once, or only those that are not well.
    async fn probe(&self, whom: Whom, connector: &Connector, settings: &HealthCheck) {
        let replicas = self.all();
        let probes = replicas
            .iter()
            .filter(|replica| whom == Whom::Everybody || replica.condition() != Condition::Up)
            .map(|replica| replica.probe(connector, settings));
        futures::future::join_all(probes).await;
    }
}

async fn lookup(server: &Server) -> std::io::Result<Vec<SocketAddr>> {
    let addresses = tokio::net::lookup_host((server.host.as_str(), server.port)).await?;
    let mut addresses: Vec<_> = addresses.collect();
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(std::io::Error::other("it stands for no address"));
    }
    Ok(addresses)
}
