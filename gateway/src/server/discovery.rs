//! Service discovery and active health checks: the names of the servers are resolved periodically, so
//! that scaling needs no reload, and the endpoints are probed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::http::Connector;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use supervision::Supervisor;

use crate::proxy::state::GatewayState;
use crate::runtime::clock::Instant;
use crate::upstream::{ProbeScope, Resolver};

/// Factor by which endpoints that are not healthy are probed more often, so that they return soon.
const UNHEALTHY_PROBE_FACTOR: u32 = 4;
/// Longest time that the first round may delay the start.
const START_TIMEOUT: Duration = Duration::from_secs(1);

/// Name of the task in the metrics.
const TASK: &str = "discovery";

/// Background task that keeps the endpoints and their health up to date.
#[derive(Debug)]
pub(crate) struct Discovery {
    pub(crate) gateway: Arc<GatewayState>,
    pub(crate) supervisor: Supervisor,
}

#[async_trait]
impl BackgroundService for Discovery {
    async fn start_with_ready_notifier(
        &self,
        shutdown: ShutdownWatch,
        ready: ServiceReadyNotifier,
    ) {
        let mut ready = Some(ready);
        self.supervisor
            .run(TASK, || self.run(shutdown.clone(), ready.take()))
            .await;
    }
}

impl Discovery {
    /// Runs rounds without end. After the first one, or if it panics, `ready` is dropped, which starts the
    /// listener.
    async fn run(&self, mut shutdown: ShutdownWatch, ready: Option<ServiceReadyNotifier>) {
        let connector = Connector::new(None);
        let mut resolver = Resolver::new();
        // The listener waits for the first round, so that the first request finds the endpoints.
        {
            let mut first = pin!(self.round(ProbeScope::AllEndpoints, &connector, &mut resolver));
            let is_complete = tokio::time::timeout(START_TIMEOUT, &mut first)
                .await
                .is_ok();
            drop(ready);
            if !is_complete {
                first.await;
            }
        }
        for round in 1_u32.. {
            let is_full_round = round.is_multiple_of(UNHEALTHY_PROBE_FACTOR)
                || self.gateway.upstreams.endpoints().is_empty();
            let mut scope = if is_full_round {
                ProbeScope::AllEndpoints
            } else {
                ProbeScope::NotHealthy
            };
            tokio::select! {
                () = tokio::time::sleep(self.interval()) => {}
                // The new configuration may name other servers.
                () = self.gateway.config_changed.notified() => scope = ProbeScope::AllEndpoints,
                // The endpoints stay up to date while requests in flight are drained.
                Ok(()) = shutdown.changed() => {}
            }
            self.round(scope, &connector, &mut resolver).await;
        }
    }

    async fn round(&self, scope: ProbeScope, connector: &Connector, resolver: &mut Resolver) {
        let active = self.gateway.snapshot();
        let upstreams = &self.gateway.upstreams;
        if scope == ProbeScope::AllEndpoints {
            upstreams.resolve(&active.config.servers, resolver).await;
            let all = upstreams.endpoints();
            active
                .routes
                .retain_breakers(|address| all.iter().any(|endpoint| endpoint.address == address));
        }
        let recovered = upstreams
            .probe(scope, connector, &active.config.health_check)
            .await;
        let now = Instant::now();
        for address in recovered {
            // The configuration may have been replaced during the probes.
            self.gateway.current().routes.probe_breakers(address, now);
        }
        upstreams.close_expired_connections(Instant::now());
    }

    fn interval(&self) -> Duration {
        self.gateway.current().config.health_check.interval / UNHEALTHY_PROBE_FACTOR
    }
}
