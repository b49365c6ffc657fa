//! Shared quotas and the connection to their store, as the tasks of the store use them.

use fred::error::Error as RedisError;

use super::connection::Connection;
use crate::features::rate_limit::shared::SharedQuotas;

/// Shared quotas and the connection to their store.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoreLink<'s> {
    pub(super) quotas: &'s SharedQuotas,
    pub(super) connection: &'s Connection,
    /// Prefix of all keys.
    pub(super) keyspace: &'s str,
}

impl StoreLink<'_> {
    /// Records that the store cannot be used, and logs it once.
    pub(super) fn record_failure(&self, error: &RedisError) {
        if self.quotas.record_failure() {
            tracing::error!(
                %error,
                "quota store is unavailable: premier.quotas.on_store_failure applies"
            );
        } else {
            tracing::debug!(%error, "quota store is unavailable");
        }
    }
}
