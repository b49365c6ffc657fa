//! Connection to one Redis server, with bounded waits and automatic reconnection, and the URLs that name servers.

mod connection;
mod url;

pub use connection::{RedisConnection, WaitLimits, client_builder, is_read_only};
pub use url::{InvalidRedisUrl, parse_redis_url};
