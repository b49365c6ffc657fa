//! Client of the store, with bounded waits and automatic reconnection.

use std::time::Duration;

use anyhow::Result;
use fred::clients::Client;
use fred::interfaces::ClientLike;
use redis_connection::{WaitLimits, client_builder};
use tokio::time::timeout;

use crate::config::RedisUrl;

/// Time for connecting. A request waits no longer than `quotas.timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time after which a reply is given up. After a pause of this process replies wait in the socket, and their units would
/// be lost to clients; that the store does not respond is found out by heartbeats before.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
const WAIT_LIMITS: WaitLimits = WaitLimits {
    command_timeout: CONNECT_TIMEOUT,
    // The store is used again within a second of its return.
    reconnect_delay: Duration::from_millis(100),
};

/// One multiplexed connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
}

impl Connection {
    /// Starts to connect, without waiting: the store may start after the gateway.
    pub(super) fn start(url: &RedisUrl) -> Result<Self> {
        let config = url.to_config()?;
        let is_one_server = !config.server.is_clustered();
        let client = client_builder(config, WAIT_LIMITS)
            .with_connection_config(|connection| {
                // The library would close the connection after a pause of this process, and lose the commands that are
                // not sent again. Heartbeats find out whether the peer is gone, in a cluster that of one connection.
                if is_one_server {
                    connection.unresponsive.max_timeout = None;
                }
            })
            .with_performance_config(|performance| {
                performance.default_command_timeout = REPLY_TIMEOUT;
            })
            .build()?;
        client.connect();
        Ok(Self { client })
    }

    /// Replaces the connection: its peer may be gone without closing it, and after a failover the same address
    /// may lead to the new primary.
    pub(super) async fn replace(&self) {
        if self.client.is_connected() {
            // The client goes on to connect in the background.
            let _ = timeout(CONNECT_TIMEOUT, self.client.force_reconnection()).await;
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
