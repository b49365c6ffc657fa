//! Connection to Redis, with bounded waits and automatic reconnection, and the URLs that name its servers.

mod connection;
mod url;

pub use connection::{
    REPLACEMENT_INTERVAL, RedisConnection, Success, WaitLimits, client_builder, confirm_primary,
    has_too_few_replicas, is_not_persistent, is_read_only,
};
pub use url::{Deployments, InvalidRedisUrl, parse_redis_url};
