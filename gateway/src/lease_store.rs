//! Connection to the store that gateways share their quotas through, a Redis server.
//!
//! One task [sends](refills) the commands that requests cause, many at once on one connection, and one
//! [heartbeat](heartbeat) decides whether the store can be used. No command is sent twice: what the store may have
//! executed without a response is lost to its client until the lease ends.

mod connection;
mod heartbeat;
mod refills;
mod scripts;
mod store_link;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::config::RedisUrl;
use crate::features::rate_limit::shared::SharedQuotas;
use connection::Connection;
use heartbeat::Heartbeat;
use refills::Refills;
use store_link::StoreLink;

/// Task that connects a gateway's shared quotas with the store.
#[derive(Debug)]
pub(crate) struct LeaseStore {
    pub(crate) quotas: Arc<SharedQuotas>,
    pub(crate) url: RedisUrl,
    /// Prefix of all keys.
    pub(crate) keyspace: String,
}

impl LeaseStore {
    /// Runs without end. `ready` is dropped after the first attempt to use the store.
    ///
    /// # Errors
    /// Returns an error if no client can be created.
    pub(crate) async fn run<T>(&self, ready: T) -> Result<()> {
        let connection = Connection::start(&self.url).context("connecting to the quota store")?;
        let link = StoreLink {
            quotas: &self.quotas,
            connection: &connection,
            keyspace: &self.keyspace,
        };
        let (heartbeat, refills) = (Heartbeat(link), Refills(link));
        tokio::join!(heartbeat.run(ready), refills.run());
        Ok(())
    }
}
