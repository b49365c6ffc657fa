//! Copies of stored sessions, with which a test makes a store lose writes as a failover or the
//! restoration of a backup does.

use anyhow::{Context, Result};
use fred::interfaces::KeysInterface;
use fred::prelude::ClientLike;
use fred::types::{CustomCommand, Value};

use crate::replicas::Replicas;

/// Expiry of restored sessions, which a dump does not contain: an hour, in milliseconds.
const LIFETIME_MS: i64 = 3_600_000;

/// Sessions of all users at one time. There can be one copy of an embedded store.
#[derive(Debug)]
pub struct SessionBackup {
    /// Keys of Redis with their dumped values; empty for the embedded store.
    dumps: Vec<(String, Value)>,
}

impl SessionBackup {
    /// Copies the sessions.
    ///
    /// # Errors
    /// Returns an error if the store is unavailable.
    pub async fn take(replicas: &Replicas) -> Result<Self> {
        let Some(server) = &replicas.redis else {
            replicas
                .execute(
                    "DROP TABLE IF EXISTS backup; CREATE TABLE backup AS SELECT * FROM sessions",
                )
                .await?;
            return Ok(Self { dumps: Vec::new() });
        };
        let redis = server.connect().await?;
        let list_keys = CustomCommand::new_static("KEYS", None, false);
        let keys: Vec<String> = redis.custom(list_keys, vec!["session*"]).await?;
        let mut dumps = Vec::new();
        for key in keys {
            let dump = redis.dump(&key).await?;
            dumps.push((key, dump));
        }
        Ok(Self { dumps })
    }

    /// Puts the copied sessions back in the place of those that the store has.
    ///
    /// # Errors
    /// Returns an error if the store is unavailable.
    pub async fn restore(&self, replicas: &Replicas) -> Result<()> {
        let Some(server) = &replicas.redis else {
            return replicas
                .execute("DELETE FROM sessions; INSERT INTO sessions SELECT * FROM backup")
                .await;
        };
        let redis = server.connect().await?;
        for (key, dump) in &self.dumps {
            let _: () = redis
                .restore(key, LIFETIME_MS, dump.clone(), true, false, None, None)
                .await
                .context("restoring a session")?;
        }
        Ok(())
    }
}
