//! Which replicas there are: every address that a server's name stands for, asked for again and
//! again, so that scaling needs no word to the gateway.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::http::Connector;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use super::{Condition, Replica, Upstreams};
use crate::config::{HealthCheck, Server};
use crate::gateway::Gateway;

/// A replica that is not well is probed so much more often, to have it back soon.
const EAGERNESS: u32 = 4;

/// Keeps the list of replicas true, as long as the gateway runs.
#[derive(Debug)]
pub(crate) struct Discovery(pub(crate) Arc<Gateway>);

#[async_trait]
impl BackgroundService for Discovery {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let gateway = &self.0;
        let connector = Connector::new(None);
        let mut known = HashSet::new();
        for round in 0_u32.. {
            let live = gateway.live();
            let (servers, settings) = (&live.config.servers, &live.config.health_check);
            let everybody = round.is_multiple_of(EAGERNESS);
            if everybody || gateway.upstreams.all().is_empty() {
                gateway.upstreams.resolve(servers, &mut known).await;
                live.routes.keep_breakers(|address| {
                    let all = gateway.upstreams.all();
                    all.iter().any(|replica| replica.address == address)
                });
            }
            gateway
                .upstreams
                .probe(&connector, settings, everybody)
                .await;
            tokio::select! {
                () = tokio::time::sleep(pause(settings)) => {}
                // The list must stay true while the last requests are answered.
                _ = shutdown.changed() => {}
            }
        }
    }
}

fn pause(settings: &HealthCheck) -> Duration {
    settings.interval / EAGERNESS
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
    async fn probe(&self, connector: &Connector, settings: &HealthCheck, everybody: bool) {
        let replicas = self.all();
        let probes = replicas
            .iter()
            .filter(|replica| everybody || replica.condition() != Condition::Up)
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
