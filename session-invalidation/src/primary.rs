//! Invalidations that only the primary publishes.
//!
//! `PUBLISH` is no write: a primary that is cut off from its replicas, or was stopped until another one was promoted, accepts it
//! from the clients that are still connected. Writes it rejects, if it has `min-replicas-to-write`.

use fred::error::Error as RedisError;
use redis_connection::RedisConnection;

use crate::message::PRIMARY_KEY;

/// Publishes a message after a write that a server which is not the primary rejects.
///
/// # Errors
/// Returns an error if the server rejects the write as one that is not the primary, or does not accept the message.
pub(crate) async fn publish_at_primary(
    redis: &RedisConnection,
    channel: &str,
    message: String,
) -> Result<(), RedisError> {
    redis.confirm_primary(PRIMARY_KEY).await?;
    redis.publish(channel, message).await
}
