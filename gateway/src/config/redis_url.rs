//! URL of a Redis deployment.

use std::fmt;

use fred::types::config::Config;
use redis_connection::{Deployments, InvalidRedisUrl, parse_redis_url};

use crate::config::node::Mapping;

/// Valid URL of a Redis deployment. It may contain a password: it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisUrl {
    text: String,
    deployments: Deployments,
}

impl RedisUrl {
    /// Parses a URL. The message of an error has no part of it.
    fn parse(text: &str, deployments: Deployments) -> Result<Self, String> {
        match parse_redis_url(text, deployments) {
            Ok(_) => Ok(Self {
                text: text.to_owned(),
                deployments,
            }),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Returns the settings of a client.
    ///
    /// # Errors
    /// Returns an error if the certificates of the authorities that the system trusts cannot be read any more.
    pub(crate) fn to_config(&self) -> Result<Config, InvalidRedisUrl> {
        parse_redis_url(&self.text, self.deployments)
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
    deployments: Deployments,
) -> Option<Option<RedisUrl>> {
    match mapping.get(key).filter(|value| !value.is_empty()) {
        Some(value) => value
            .parse(|text| RedisUrl::parse(text, deployments))
            .map(Some),
        None => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_never_shown() {
        let parse = |text| RedisUrl::parse(text, Deployments::Primary);
        let url = parse("redis://edge:secret@redis.example:6380").unwrap();
        let password = url.to_config().unwrap().password;
        assert_eq!(password.as_deref(), Some("secret"));
        assert!(!format!("{url:?}").contains("secret"));
        for invalid in [
            "http://edge:secret@a",
            "redis-cluster://edge:secret@a",
            "secret",
        ] {
            let problem = parse(invalid).unwrap_err();
            assert!(!problem.contains("secret"), "{problem}");
        }
    }
}
