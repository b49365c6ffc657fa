//! Address of a store that gateways share.

use std::fmt;

use fred::error::Error as RedisError;
use fred::types::config::Config;

/// URL of a Redis server, `redis://` or, for TLS, `rediss://`. It may contain a password: it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct StoreUrl(String);

const TLS_SCHEME: &str = "rediss://";
const CLEARTEXT_SCHEME: &str = "redis://";

impl StoreUrl {
    /// Parses a URL. The message of an error has no part of it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let after_scheme = text
            .strip_prefix(TLS_SCHEME)
            .or_else(|| text.strip_prefix(CLEARTEXT_SCHEME));
        // The parser of the library accepts other schemes, and loads certificates for TLS.
        let is_valid = after_scheme.is_some_and(|rest| {
            Config::from_url_centralized(&format!("{CLEARTEXT_SCHEME}{rest}")).is_ok()
        });
        if is_valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "must look like redis://user:password@host:6379/0 (rediss:// for TLS), with special \
                 characters of the password as in %40 for @"
                    .to_owned(),
            )
        }
    }

    /// Returns the settings of a client.
    ///
    /// # Errors
    /// Returns an error if the certificates of the authorities that the system trusts cannot be read.
    pub(crate) fn to_config(&self) -> Result<Config, RedisError> {
        Config::from_url_centralized(&self.0)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StoreUrl(…)")
    }
}
