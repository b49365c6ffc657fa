//! Background service that shares quotas with other gateways.

use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use supervision::Supervisor;

use crate::features::rate_limit::shared::SharedQuotas;
use crate::lease_store::LeaseStore;

/// Name of the task in the metrics.
const TASK: &str = "quota_leases";
/// Longest time for which the end of the process waits until unused units have been returned.
const RETURN_TIMEOUT: Duration = Duration::from_millis(500);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Background task that takes and returns leases.
#[derive(Debug)]
pub(crate) struct QuotaLeases {
    pub(crate) store: LeaseStore,
    pub(crate) supervisor: Supervisor,
}

#[async_trait]
impl BackgroundService for QuotaLeases {
    /// Runs until the process ends: requests in flight need leases during the shutdown too. The listener starts
    /// when the store has been reached, or cannot be.
    async fn start_with_ready_notifier(
        &self,
        _shutdown: ShutdownWatch,
        ready: ServiceReadyNotifier,
    ) {
        let mut ready = Some(ready);
        self.supervisor
            .run(TASK, || {
                let (store, ready) = (&self.store, ready.take());
                async move {
                    if let Err(error) = store.run(ready).await {
                        tracing::error!(%error, "quotas cannot be shared");
                    }
                }
            })
            .await;
    }
}

/// Returns all leases at the end of the process, as far as the store responds in time.
pub(super) fn return_leases(quotas: &SharedQuotas) {
    let start = Instant::now();
    quotas.begin_drain();
    loop {
        let is_settled = quotas.has_returned_leases();
        quotas.return_all();
        // Nothing was left to return.
        let is_complete = is_settled && quotas.has_returned_leases();
        if is_complete || start.elapsed() >= RETURN_TIMEOUT {
            return;
        }
        thread::sleep(POLL_INTERVAL);
    }
}
