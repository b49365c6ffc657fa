//! Background service of upgrades: it acknowledges the one by which this process began, and has what the next one needs.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::sync::SetOnce;

use crate::server::upgrade_acknowledgement::{AcknowledgementSocket, Successor};

/// Service that Pingora starts after the listeners.
pub(super) struct UpgradeService {
    /// Filled with the listening sockets.
    pub(super) listeners: Arc<OnceLock<ListenFds>>,
    /// Socket for the gateway that this process replaces, if it does.
    pub(super) acknowledgement: Option<AcknowledgementSocket>,
    /// Set if the gateway that this one was to replace goes on serving.
    pub(super) not_replaced: Arc<SetOnce<()>>,
}

#[async_trait]
impl Service for UpgradeService {
    async fn start_service(
        &mut self,
        listeners: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        if let Some(listeners) = listeners {
            // The service starts once.
            let _ = self.listeners.set(listeners);
        }
        let Some(socket) = self.acknowledgement.take() else {
            return;
        };
        match socket.acknowledge().await {
            Ok(Successor::New) => tracing::debug!("the old gateway ends"),
            Ok(Successor::Old) => {
                // Nothing else sets it.
                let _ = self.not_replaced.set(());
            }
            Err(error) => tracing::warn!(%error, "upgrade not acknowledged"),
        }
    }

    fn name(&self) -> &'static str {
        "upgrade"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}
