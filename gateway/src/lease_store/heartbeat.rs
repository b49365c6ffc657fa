//! Heartbeat: registers this gateway, and decides whether the store can be used.
//!
//! It writes, so that a store that is a replica, is out of memory or cannot persist is not used.

use std::time::Duration;

use fred::error::{Error as RedisError, ErrorKind};
use fred::interfaces::EventInterface;
use fred::types::config::Server;
use redis_connection::is_read_only;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::{sleep, timeout};

use super::scripts::HEARTBEAT;
use super::store_link::StoreLink;
use crate::features::rate_limit::shared::HashKey;

const INTERVAL: Duration = Duration::from_millis(250);
/// Longest time for which the store may not respond to a heartbeat.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Time without a heartbeat after which a gateway does not count any more.
const LIFETIME: Duration = Duration::from_secs(2);

/// Heartbeat of this gateway.
#[derive(Debug)]
pub(super) struct Heartbeat<'s>(pub(super) StoreLink<'s>);

impl Heartbeat<'_> {
    /// Sends heartbeats without end. `ready` is dropped after the first one.
    pub(super) async fn run<T>(&self, ready: T) {
        let mut ready = Some(ready);
        let mut connection_errors = self.0.connection.client.error_rx();
        let id = format!("{:016x}", fastrand::u64(..));
        loop {
            let outcome = match timeout(TIMEOUT, self.send(&id)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(RedisError::new(
                    ErrorKind::Timeout,
                    "no response to a heartbeat",
                )),
            };
            drop(ready.take());
            match outcome {
                Ok((key, gateways)) => {
                    // Those of an earlier outage are not the reason for the next one.
                    let _ = last_error(&mut connection_errors);
                    if self.0.quotas.record_heartbeat(key, gateways) {
                        tracing::info!(gateways, "quota store is available: quotas are shared");
                    }
                }
                Err(error) => {
                    let cause = last_error(&mut connection_errors).unwrap_or_else(|| error.clone());
                    self.0.record_failure(&cause);
                    // After a pause of the process the replies may wait in the socket.
                    let is_dead =
                        *error.kind() == ErrorKind::Timeout && !self.0.quotas.was_paused();
                    if is_dead || is_read_only(&error) {
                        self.0.connection.replace().await;
                    }
                }
            }
            sleep(INTERVAL).await;
        }
    }

    async fn send(&self, id: &str) -> Result<(HashKey, u32), RedisError> {
        let keys = vec![format!("{}:quota-gateways", self.0.keyspace)];
        let arguments = vec![
            id.to_owned(),
            self.0.quotas.proposed_hash_key().to_hex(),
            LIFETIME.as_micros().to_string(),
        ];
        let (key, gateways): (String, u32) = HEARTBEAT
            .evalsha_with_reload(&self.0.connection.client, keys, arguments)
            .await?;
        let key = HashKey::from_hex(&key).ok_or_else(|| {
            RedisError::new(
                ErrorKind::Parse,
                "the field `key` of the key :quota-gateways is no key: delete that key",
            )
        })?;
        Ok((key, gateways))
    }
}

/// Returns the last error of the connection, if there is a new one. A command that waits for a connection
/// only times out.
fn last_error(errors: &mut Receiver<(RedisError, Option<Server>)>) -> Option<RedisError> {
    let mut last = None;
    loop {
        match errors.try_recv() {
            Ok((error, _)) => last = Some(error),
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return last,
        }
    }
}
