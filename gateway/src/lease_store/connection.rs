//! Client of the store, with bounded waits and automatic reconnection.

use std::time::Duration;

use fred::clients::Client;
use fred::error::Error as RedisError;
use fred::interfaces::ClientLike;
use fred::types::Builder;
use fred::types::config::ReconnectPolicy;
use tokio::time::timeout;

use crate::config::StoreUrl;

/// Longest duration of a command. A request waits no longer than `quotas.timeout`; later responses still bring
/// leases that are valid.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between attempts to connect: the store is used again within a second of its return.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);
const UNRESPONSIVE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// One multiplexed connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
}

impl Connection {
    /// Starts to connect, without waiting: the store may start after the gateway.
    pub(super) fn start(url: &StoreUrl) -> Result<Self, RedisError> {
        let mut builder = Builder::from_config(url.to_config()?);
        builder
            .with_connection_config(|connection| {
                connection.connection_timeout = COMMAND_TIMEOUT;
                connection.internal_command_timeout = COMMAND_TIMEOUT;
                // A command that may have been executed must not be sent again.
                connection.max_command_attempts = 1;
                connection.reconnect_on_auth_error = true;
                connection.unresponsive.max_timeout = Some(COMMAND_TIMEOUT);
                connection.unresponsive.interval = UNRESPONSIVE_CHECK_INTERVAL;
            })
            .with_performance_config(|performance| {
                performance.default_command_timeout = COMMAND_TIMEOUT;
            })
            .set_policy(ReconnectPolicy::new_constant(
                0,
                u32::try_from(RECONNECT_DELAY.as_millis()).expect("the delay fits 32 bits"),
            ));
        let client = builder.build()?;
        client.connect();
        Ok(Self { client })
    }

    /// Replaces the connection: its peer may be gone without closing it, and after a failover the same address
    /// may lead to the new primary.
    pub(super) async fn replace(&self) {
        if self.client.is_connected() {
            // The client goes on to connect in the background.
            let _ = timeout(COMMAND_TIMEOUT, self.client.force_reconnection()).await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let client = self.client.clone();
        // Only a task that panicked ends while the runtime goes on.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { client.quit().await });
        }
    }
}
