//! Background tasks of the identity of requests: the key set, the subscription to session invalidations, and the
//! addresses of the verify endpoint, for the active configuration.

use std::future::pending;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use supervision::Supervisor;

use crate::proxy::state::GatewayState;

/// Name of the task in the metrics.
const TASK: &str = "identity";

/// Background task that runs those of the active authenticator.
#[derive(Debug)]
pub(crate) struct IdentityTasks {
    pub(crate) gateway: Arc<GatewayState>,
    pub(crate) supervisor: Supervisor,
}

#[async_trait]
impl BackgroundService for IdentityTasks {
    // They go on during a shutdown, while requests in flight are drained.
    async fn start(&self, _shutdown: ShutdownWatch) {
        self.supervisor.run(TASK, || self.run()).await;
    }
}

impl IdentityTasks {
    async fn run(&self) {
        loop {
            let authenticator = self.gateway.snapshot().authenticator.clone();
            let tasks = async {
                if let Some(authenticator) = &authenticator {
                    Box::pin(authenticator.run(&self.supervisor)).await;
                }
                pending::<()>().await;
            };
            tokio::select! {
                () = tasks => {}
                () = self.gateway.authenticator_changed.notified() => {}
            }
        }
    }
}
