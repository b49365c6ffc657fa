//! URL of a Redis server.

use std::fmt;

use fred::types::config::Config;
use redis_connection::{InvalidRedisUrl, parse_redis_url};

use crate::config::node::Mapping;

/// Valid URL of a Redis server, `redis://` or, for TLS, `rediss://`. It may contain a password: it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisUrl(String);

impl RedisUrl {
    /// Parses a URL. The message of an error has no part of it.
    fn parse(text: &str) -> Result<Self, String> {
        match parse_redis_url(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Returns the settings of a client.
    ///
    /// # Errors
    /// Returns an error if the certificates of the authorities that the system trusts cannot be read any more.
    pub(crate) fn to_config(&self) -> Result<Config, InvalidRedisUrl> {
        parse_redis_url(&self.0)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RedisUrl(…)")
    }
}

/// Parses the URL of a key that may be absent or empty. Returns `Some(None)` then, and `None` if the URL is invalid.
#[expect(
    clippy::option_option,
    reason = "an error and an absent URL are distinct"
)]
pub(super) fn parse_optional_url(
    mapping: &mut Mapping<'_, '_>,
    key: &'static str,
) -> Option<Option<RedisUrl>> {
    match mapping.get(key).filter(|value| !value.is_empty()) {
        Some(value) => value.parse(RedisUrl::parse).map(Some),
        None => Some(None),
    }
}
