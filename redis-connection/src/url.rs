//! URLs of Redis deployments.

use fred::error::ErrorKind;
use fred::types::config::Config;
use thiserror::Error;

/// Query parameters of the URL of Sentinels.
const SENTINEL_PARAMETERS: [&str; 4] = [
    SENTINEL_SERVICE,
    "node",
    "sentinelUsername",
    "sentinelPassword",
];
const SENTINEL_SERVICE: &str = "sentinelServiceName";
/// Query parameters of the URL of a cluster.
const CLUSTER_PARAMETERS: [&str; 1] = ["node"];

/// Deployments that a client can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deployments {
    /// One primary, which the URL or Sentinels name.
    Primary,
    /// Also a Redis Cluster: each command and script of the client has one key, and it does not subscribe.
    PrimaryOrCluster,
}

/// Reason a URL is rejected. Its `Display` continues a sentence that begins with the setting's name, and has
/// no part of the URL, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidRedisUrl {
    #[error(
        "must look like redis://user:password@host:6379/0 (rediss:// for TLS), with special characters of \
         the password as in %40 for @"
    )]
    Malformed,
    /// A deployment that the client does not support.
    #[error(
        "names {0}, which is not supported: use one primary, redis://host:6379/0, its Sentinels, \
         redis-sentinel://host:26379/0?sentinelServiceName=mymaster, or an address that leads to the current \
         primary, such as that of a proxy"
    )]
    Unsupported(&'static str),
    #[error(
        "must name Sentinels as in redis-sentinel://user:password@host1:26379/0?sentinelServiceName=mymaster&\
         node=host2:26379&node=host3:26379 (rediss-sentinel:// for TLS), with credentials of the primary; those of the \
         Sentinels are sentinelUsername and sentinelPassword"
    )]
    MalformedSentinel,
    #[error(
        "must name a Redis Cluster as in redis-cluster://user:password@host1:6379?node=host2:6379&node=host3:6379 \
         (rediss-cluster:// for TLS), without a database, since it has only one"
    )]
    MalformedCluster,
    #[error(
        "requires TLS, but the certificates of trusted authorities, which SSL_CERT_FILE or \
         SSL_CERT_DIR names, cannot be read: {0}"
    )]
    Certificates(String),
}

/// Parses the URL of a deployment.
///
/// # Errors
/// Returns an error if the URL is malformed, or names a deployment that is not one of `deployments`.
pub fn parse_redis_url(url: &str, deployments: Deployments) -> Result<Config, InvalidRedisUrl> {
    // The parser of the library also accepts kinds of deployments that fail later, and any other scheme.
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let malformed = match scheme.to_ascii_lowercase().as_str() {
        "redis" | "rediss" => InvalidRedisUrl::Malformed,
        "redis-sentinel" | "rediss-sentinel" => {
            check_sentinel(rest)?;
            InvalidRedisUrl::MalformedSentinel
        }
        "redis-cluster" | "rediss-cluster" if deployments == Deployments::PrimaryOrCluster => {
            check_cluster(rest)?;
            InvalidRedisUrl::MalformedCluster
        }
        scheme if scheme.ends_with("-cluster") => {
            return Err(InvalidRedisUrl::Unsupported("a Redis Cluster"));
        }
        scheme if scheme.ends_with("+unix") => {
            return Err(InvalidRedisUrl::Unsupported("a Unix socket"));
        }
        _ => return Err(InvalidRedisUrl::Malformed),
    };
    Config::from_url(url).map_err(|error| match error.kind() {
        ErrorKind::Tls => InvalidRedisUrl::Certificates(error.details().to_owned()),
        _ => malformed,
    })
}

/// Checks what the library ignores: parameters that it does not know.
fn check_sentinel(rest: &str) -> Result<(), InvalidRedisUrl> {
    let has_service = parameters(rest).any(|name| name == SENTINEL_SERVICE);
    if has_service && parameters(rest).all(|name| SENTINEL_PARAMETERS.contains(&name)) {
        Ok(())
    } else {
        Err(InvalidRedisUrl::MalformedSentinel)
    }
}

/// Checks what the library ignores: parameters that it does not know, and the number of a database.
fn check_cluster(rest: &str) -> Result<(), InvalidRedisUrl> {
    let authority_and_path = rest.split('?').next().unwrap_or_default();
    let (_, path) = authority_and_path.split_once('/').unwrap_or_default();
    let is_known = |name| CLUSTER_PARAMETERS.contains(&name);
    if matches!(path, "" | "0") && parameters(rest).all(is_known) {
        Ok(())
    } else {
        Err(InvalidRedisUrl::MalformedCluster)
    }
}

/// Returns the names of the query parameters.
fn parameters(rest: &str) -> impl Iterator<Item = &str> {
    let (_, query) = rest.split_once('?').unwrap_or_default();
    query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split('=').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use fred::types::config::{Server, ServerConfig};

    use super::*;

    fn parse(url: &str) -> Result<Config, InvalidRedisUrl> {
        parse_redis_url(url, Deployments::PrimaryOrCluster)
    }

    #[test]
    fn a_url_names_a_primary_with_any_password() {
        let url = "redis://edge:p%40%3A%2F%3F%23%25%C3%A4%E2%82%AC@redis.example:6380/3";
        let config = parse(url).unwrap();
        assert_eq!(
            config.server,
            ServerConfig::new_centralized("redis.example", 6380)
        );
        assert_eq!(config.username.as_deref(), Some("edge"));
        assert_eq!(config.password.as_deref(), Some("p@:/?#%ä€"));
        assert_eq!(config.database, Some(3));
    }

    #[test]
    fn a_url_names_sentinels() {
        let url = "redis-sentinel://user:of-primary@one:26379/2?sentinelServiceName=main&node=two:26380&\
                   sentinelPassword=of%40sentinels";
        let config = parse_redis_url(url, Deployments::Primary).unwrap();
        let ServerConfig::Sentinel {
            mut hosts,
            service_name,
            username,
            password,
        } = config.server
        else {
            panic!("{:?}", config.server);
        };
        hosts.sort();
        assert_eq!(
            hosts,
            [Server::new("one", 26379), Server::new("two", 26380)]
        );
        assert_eq!(service_name, "main");
        assert_eq!(
            (username, password.as_deref()),
            (None, Some("of@sentinels"))
        );
        assert_eq!(config.password.as_deref(), Some("of-primary"));
        assert_eq!(config.database, Some(2));
    }

    #[test]
    fn a_url_names_a_cluster_where_the_client_can_use_one() {
        let url = "redis-cluster://one:6379?node=two:6380";
        let config = parse(url).unwrap();
        assert!(config.server.is_clustered(), "{:?}", config.server);
        assert_eq!(
            parse_redis_url(url, Deployments::Primary).unwrap_err(),
            InvalidRedisUrl::Unsupported("a Redis Cluster")
        );
    }

    #[test]
    fn a_url_that_would_be_read_in_part_is_rejected() {
        for (url, expected) in [
            (
                "redis-sentinel://one:26379",
                InvalidRedisUrl::MalformedSentinel,
            ),
            (
                "redis-sentinel://one?sentinelServiceName=main&nodes=two:26379",
                InvalidRedisUrl::MalformedSentinel,
            ),
            (
                "redis-sentinel://one?sentinelServiceName=main&node=two",
                InvalidRedisUrl::MalformedSentinel,
            ),
            (
                "redis-cluster://one:6379/1",
                InvalidRedisUrl::MalformedCluster,
            ),
            (
                "redis-cluster://one:6379?database=1",
                InvalidRedisUrl::MalformedCluster,
            ),
            (
                "valkey-cluster://one:6379",
                InvalidRedisUrl::Unsupported("a Redis Cluster"),
            ),
            (
                "redis+unix:///run/redis",
                InvalidRedisUrl::Unsupported("a Unix socket"),
            ),
            ("http://one", InvalidRedisUrl::Malformed),
            ("one:6379", InvalidRedisUrl::Malformed),
        ] {
            assert_eq!(parse(url).unwrap_err(), expected, "{url}");
        }
    }
}
