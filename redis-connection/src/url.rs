//! URLs of Redis servers.

use fred::error::ErrorKind;
use fred::types::config::Config;
use thiserror::Error;

/// Reason a URL is rejected. Its `Display` continues a sentence that begins with the setting's name, and has
/// no part of the URL, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidRedisUrl {
    #[error(
        "must look like redis://user:password@host:6379/0 (rediss:// for TLS), with special characters of \
         the password as in %40 for @"
    )]
    Malformed,
    /// A deployment that the protocol does not support, or that needs more than one address.
    #[error(
        "names {0}, which is not supported: use one primary, redis://host:6379/0, or an address \
         that leads to the current primary, such as that of a proxy"
    )]
    Unsupported(&'static str),
    #[error(
        "requires TLS, but the certificates of trusted authorities, which SSL_CERT_FILE or \
         SSL_CERT_DIR names, cannot be read: {0}"
    )]
    Certificates(String),
}

/// Parses the URL of one Redis server.
///
/// # Errors
/// Returns an error if the URL is malformed, or names another kind of deployment.
pub fn parse_redis_url(url: &str) -> Result<Config, InvalidRedisUrl> {
    // The parser of the library also accepts kinds of deployments that fail later, and any other scheme.
    let (scheme, _) = url.split_once("://").unwrap_or_default();
    match scheme.to_ascii_lowercase().as_str() {
        "redis" | "rediss" => {}
        scheme if scheme.ends_with("-cluster") => {
            return Err(InvalidRedisUrl::Unsupported("a Redis Cluster"));
        }
        scheme if scheme.ends_with("-sentinel") => {
            return Err(InvalidRedisUrl::Unsupported("Redis Sentinel"));
        }
        scheme if scheme.ends_with("+unix") => {
            return Err(InvalidRedisUrl::Unsupported("a Unix socket"));
        }
        _ => return Err(InvalidRedisUrl::Malformed),
    }
    Config::from_url(url).map_err(|error| match error.kind() {
        ErrorKind::Tls => InvalidRedisUrl::Certificates(error.details().to_owned()),
        _ => InvalidRedisUrl::Malformed,
    })
}
