//! Resolution of server names, which the operating system may delay for minutes.
//!
//! Invariant: a lookup holds up neither the lookups of other names nor health checks, and at most one of a
//! name is in progress. A round waits briefly for its lookups. One that takes longer goes on, and the
//! round that finds it complete takes its result.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, join_all};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::config::Server;

/// Time that a round waits for lookups while endpoints are known.
const ROUND_WAIT: Duration = Duration::from_millis(100);
/// Time that a round waits for lookups while no endpoint is known.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Duration after which a lookup is logged as a failure.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) type Addresses = io::Result<Vec<SocketAddr>>;
pub(super) type Lookup = fn(Server) -> BoxFuture<'static, Addresses>;

/// Lookups of all servers.
#[derive(Debug)]
pub(crate) struct Resolver {
    lookup: Lookup,
    in_progress: HashMap<Server, PendingLookup>,
    /// Servers whose failure was logged.
    failed: HashSet<Server>,
}

#[derive(Debug)]
struct PendingLookup {
    started: Instant,
    result: JoinHandle<Addresses>,
}

/// Urgency of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    EndpointsKnown,
    NoEndpoint,
}

impl Resolver {
    pub(crate) fn new() -> Self {
        Self::with_lookup(|server| lookup(server).boxed())
    }

    pub(super) fn with_lookup(lookup: Lookup) -> Self {
        Self {
            lookup,
            in_progress: HashMap::new(),
            failed: HashSet::new(),
        }
    }

    /// Returns the addresses of each server, `None` if its lookup failed or is in progress.
    pub(super) async fn resolve(
        &mut self,
        servers: &[Server],
        urgency: Urgency,
    ) -> Vec<Option<Vec<SocketAddr>>> {
        let wait = match urgency {
            Urgency::EndpointsKnown => ROUND_WAIT,
            Urgency::NoEndpoint => FIRST_WAIT,
        };
        self.in_progress
            .retain(|server, _| servers.contains(server));
        let pending: Vec<_> = servers
            .iter()
            .map(|server| {
                let pending = self.in_progress.remove(server);
                pending.unwrap_or_else(|| PendingLookup {
                    started: Instant::now(),
                    result: tokio::spawn((self.lookup)(server.clone())),
                })
            })
            .collect();
        let results = join_all(pending.into_iter().map(|mut pending| async move {
            match timeout(wait, &mut pending.result).await {
                Ok(result) => Ok(result.unwrap_or_else(|error| Err(io::Error::other(error)))),
                Err(_) => Err(pending),
            }
        }));
        let results = results.await.into_iter().zip(servers);
        results
            .map(|(result, server)| match result {
                Ok(addresses) => self.record(server, addresses),
                Err(pending) => {
                    if pending.started.elapsed() >= LOOKUP_TIMEOUT {
                        let error = io::Error::from(io::ErrorKind::TimedOut);
                        self.record(server, Err(error));
                    }
                    self.in_progress.insert(server.clone(), pending);
                    None
                }
            })
            .collect()
    }

    /// Logs a failure once, until a lookup succeeds.
    fn record(&mut self, server: &Server, addresses: Addresses) -> Option<Vec<SocketAddr>> {
        match addresses {
            Ok(addresses) => {
                self.failed.remove(server);
                Some(addresses)
            }
            Err(error) => {
                if self.failed.insert(server.clone()) {
                    tracing::warn!(%server, %error, "server name cannot be resolved");
                }
                None
            }
        }
    }
}

/// Resolves the name of a server to its addresses, sorted and without duplicates.
async fn lookup(server: Server) -> Addresses {
    let addresses = tokio::net::lookup_host((server.host.as_str(), server.port)).await?;
    let mut addresses: Vec<_> = addresses.collect();
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(io::Error::other("the name has no address"));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static LOOKUPS_OF_SLOW_NAME: AtomicUsize = AtomicUsize::new(0);

    /// Looks `slow` up in ten seconds and any other name at once.
    fn scripted_lookup(server: Server) -> BoxFuture<'static, Addresses> {
        async move {
            if server.host == "slow" {
                LOOKUPS_OF_SLOW_NAME.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
            Ok(vec![([192, 0, 2, 1], server.port).into()])
        }
        .boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_lookup_holds_up_no_other_and_its_result_is_used() {
        let mut resolver = Resolver::with_lookup(scripted_lookup);
        let servers = ["http://slow", "http://fast"].map(|url| url.parse().unwrap());
        let start = Instant::now();
        let first = resolver.resolve(&servers, Urgency::EndpointsKnown).await;
        assert!(first[0].is_none());
        assert!(first[1].is_some());
        assert!(start.elapsed() < 2 * ROUND_WAIT);
        let mut rounds = 1;
        while resolver.resolve(&servers, Urgency::EndpointsKnown).await[0].is_none() {
            rounds += 1;
            assert!(rounds < 1000, "the result is lost");
        }
        assert!(start.elapsed() >= Duration::from_secs(10));
        assert_eq!(LOOKUPS_OF_SLOW_NAME.load(Ordering::Relaxed), 1);
    }
}
