//! gateway.yml as types: what a configuration says, after everything that could be wrong with it
//! has been ruled out.

mod certificate;
mod interpolate;
mod listen;
mod mistake;
mod pattern;
mod read;
mod schema;
mod section;
mod server;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use ipnet::IpNet;

pub(crate) use certificate::{Certificate, CertificateFiles};
pub(crate) use interpolate::Environment;
pub(crate) use mistake::Mistakes;
pub(crate) use pattern::{Matcher, PathPattern, syntax as pattern_syntax};
pub(crate) use schema::SCHEMA;
pub(crate) use server::{Scheme, Server};

/// A whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// A label of every metric, to tell gateways apart.
    pub(crate) keyspace: String,
    pub(crate) listen: Listen,
    /// Chosen by SNI; the first is the default. Never empty.
    pub(crate) certificates: Vec<Certificate>,
    /// Never empty.
    pub(crate) servers: Vec<Server>,
    pub(crate) strategy: Strategy,
    pub(crate) health_check: HealthCheck,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) limits: Limits,
    /// The first whose pattern matches wins, whole.
    pub(crate) paths: Vec<PathRule>,
    /// For a path that no pattern matches.
    pub(crate) default_features: Features,
    /// What was accepted and may not do what was meant.
    pub(crate) warnings: Vec<String>,
    /// Of the file's text: tells two configurations apart.
    pub(crate) hash: String,
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// Every mistake in it, each with its place.
    pub(crate) fn load(file: &Path, environment: &Environment) -> Result<Self, Mistakes> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Mistakes::of_file(file, format!("cannot be read: {error}")))?;
        Self::parse(file, &text, environment)
    }

    /// [`Config::load`] of a text that was read from `file`.
    pub(crate) fn parse(
        file: &Path,
        text: &str,
        environment: &Environment,
    ) -> Result<Self, Mistakes> {
        read::read(file, text, environment)
    }
}

/// Where the admin listener of a gateway with this configuration is. Whatever else is wrong with
/// the file does not matter: a gateway that runs goes on with what it has read before.
pub(crate) fn admin_address(file: &Path, environment: &Environment) -> SocketAddr {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    listen::admin_address(&text, environment)
}

/// Where the gateway listens. Changes need a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) https: SocketAddr,
    /// Answers 308 to https and nothing else.
    pub(crate) http: Option<SocketAddr>,
    /// Metrics, health and status, in plain HTTP.
    pub(crate) admin: SocketAddr,
    /// Where clients know https: not the listener's own where something maps another port to it.
    pub(crate) public_port: u16,
}

/// How a replica is picked for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// Two random replicas, the one with fewer requests in flight.
    LeastRequests,
    RoundRobin,
    Random,
}

/// How replicas are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    pub(crate) path: String,
    /// Where that is not the port of the server itself.
    pub(crate) port: Option<u16>,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    /// Good probes in a row that bring a replica back.
    pub(crate) healthy_after: NonZeroU32,
    /// Bad ones in a row that take it out.
    pub(crate) unhealthy_after: NonZeroU32,
}

/// What a request and a connection may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes.
    pub(crate) max_body: u64,
    /// Bytes of request line and header fields together.
    pub(crate) max_header: usize,
    /// Until the TLS handshake is done, and until a request's header is.
    pub(crate) header_timeout: Duration,
    /// Between two requests on a connection.
    pub(crate) idle_timeout: Duration,
    /// Open at once.
    pub(crate) max_connections: usize,
    /// Of them by one client.
    pub(crate) max_connections_per_client: usize,
}

/// A path pattern and what holds for the requests under it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PathRule {
    pub(crate) pattern: PathPattern,
    pub(crate) features: Features,
}

/// What holds for a request. Without any it is forwarded as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Features {
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) monitoring: Option<Monitoring>,
    pub(crate) timeout: Option<Timeout>,
    pub(crate) retry: Option<Retry>,
    pub(crate) circuit_breaker: Option<CircuitBreaker>,
}

/// So many requests in so much time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RateLimit {
    pub(crate) quota: NonZeroU32,
    pub(crate) duration: Duration,
    pub(crate) algorithm: Algorithm,
    /// What one quota is counted for; nothing is one quota for everybody.
    pub(crate) per: Vec<Per>,
    /// Token and leaky bucket: the burst, or the places in the queue.
    pub(crate) bucket_size: NonZeroU32,
    pub(crate) refusal: Refusal,
}

/// How a quota is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Algorithm {
    FixedWindow,
    SlidingWindow,
    TokenBucket,
    LeakyBucket,
}

/// A part of what a quota is counted for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Per {
    Client,
    Endpoint,
    /// The value of this request header.
    Header(http::HeaderName),
}

/// How a request that may not pass is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

/// Slower requests are logged as a warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Monitoring {
    pub(crate) log_threshold: Duration,
}

/// The time that a whole exchange with the replicas may take, retries included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timeout {
    pub(crate) limit: Duration,
    pub(crate) refusal: Refusal,
}

/// How often a request is tried, where trying again is safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Retry {
    /// The first try included.
    pub(crate) max_attempts: NonZeroU32,
    /// Before the second try, the third…; the last one repeats. Never empty.
    pub(crate) wait: Vec<Duration>,
}

/// When a replica is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CircuitBreaker {
    /// Failures in a row.
    pub(crate) failure_threshold: NonZeroU32,
    pub(crate) recovery_timeout: Duration,
}

#[cfg(test)]
mod tests;
