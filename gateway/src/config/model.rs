//! Values of a valid configuration.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use rustls_pki_types::ServerName;

use crate::config::authorities::TrustedAuthorities;
use crate::config::certificate::Certificate;
use crate::config::host::HostPattern;
use crate::config::http_url::HttpUrl;
use crate::config::origin::AllowedOrigins;
use crate::config::path_prefix::PathPrefix;
use crate::config::pattern::PathPattern;
use crate::config::redis_url::RedisUrl;
use crate::config::server::Server;

/// Name of the upstream group that `servers` makes up.
pub(crate) const DEFAULT_UPSTREAM: &str = "default";

/// Position of an upstream group among [`Config::upstream_groups`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UpstreamIndex(pub(crate) usize);

impl UpstreamIndex {
    /// Group that `servers` makes up.
    pub(crate) const DEFAULT: Self = Self(0);
}

/// A whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// Label of every metric, and prefix of every key in a shared store.
    pub(crate) keyspace: String,
    pub(crate) listen: ListenAddresses,
    /// Folder with the ACME challenges that the http listener serves.
    pub(crate) acme_challenges: Option<PathBuf>,
    /// Selected by SNI; the first is the default. Never empty.
    pub(crate) certificates: Vec<Certificate>,
    /// Never empty.
    pub(crate) servers: Vec<Server>,
    pub(crate) load_balancing: LoadBalancingSettings,
    pub(crate) health_check: HealthCheckSettings,
    /// Groups besides the default one, which has the three settings above.
    pub(crate) upstreams: Vec<UpstreamSettings>,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) limits: Limits,
    /// `None`: no path has the feature `auth`.
    pub(crate) identity: Option<IdentitySettings>,
    pub(crate) quotas: QuotaStoreSettings,
    /// The first rule whose pattern matches applies, and only that one.
    pub(crate) paths: Vec<PathRule>,
    /// Features of paths that no pattern matches.
    pub(crate) default_features: Features,
    /// Settings that are accepted but may not have the intended effect.
    pub(crate) warnings: Vec<String>,
    /// Hash of the file's text, to distinguish configurations.
    pub(crate) hash: String,
}

impl Config {
    /// Returns the settings of all upstream groups, the default one first.
    pub(crate) fn upstream_groups(&self) -> impl Iterator<Item = UpstreamSettings> {
        let default = UpstreamSettings {
            name: DEFAULT_UPSTREAM.to_owned(),
            servers: self.servers.clone(),
            load_balancing: self.load_balancing,
            health_check: self.health_check.clone(),
            tls: UpstreamTlsSettings::default(),
        };
        std::iter::once(default).chain(self.upstreams.iter().cloned())
    }

    /// Returns the certificates that the gateway presents to servers.
    pub(crate) fn client_certificates(&self) -> impl Iterator<Item = &Certificate> {
        let groups = self.upstreams.iter();
        groups.filter_map(|group| group.tls.client_certificate.as_ref())
    }

    /// Returns the files of certificates and keys.
    pub(crate) fn certificate_files(&self) -> impl Iterator<Item = &Path> {
        let certificates = self.certificates.iter().chain(self.client_certificates());
        let files = certificates.flat_map(|one| [&*one.files.cert, &*one.files.key]);
        let authorities = self.upstreams.iter();
        let authorities = authorities.filter_map(|group| group.tls.authorities.as_ref());
        files.chain(authorities.map(|authorities| &*authorities.file))
    }
}

/// Addresses of the listeners. Changes need a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListenAddresses {
    pub(crate) https: SocketAddr,
    /// Listener that redirects requests to https with 308, and serves ACME challenges.
    pub(crate) http: Option<SocketAddr>,
    /// Listener for metrics, health and status, in cleartext.
    pub(crate) admin: SocketAddr,
    /// Port of https as clients see it. Differs from the listener's if a port mapping changes it.
    pub(crate) public_port: u16,
}

impl ListenAddresses {
    /// Returns the addresses of all listeners.
    pub(crate) fn all(self) -> impl Iterator<Item = SocketAddr> {
        [self.https, self.admin].into_iter().chain(self.http)
    }
}

/// Strategy that selects the endpoint of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BalancingStrategy {
    /// The one with fewer requests in flight of two random endpoints (Mitzenmacher 2001).
    LeastRequests,
    RoundRobin,
    Random,
}

/// Load balancing, and limits of each endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoadBalancingSettings {
    pub(crate) strategy: BalancingStrategy,
    pub(crate) endpoint_limits: EndpointLimits,
}

/// Limits of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndpointLimits {
    /// Maximum number of connections for requests; those of health checks are not counted.
    pub(crate) max_connections: usize,
    /// Maximum number of requests that wait for a connection.
    pub(crate) max_pending_requests: usize,
}

/// Servers that requests are balanced among, and how.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UpstreamSettings {
    /// Name in the file, in metrics and in logs.
    pub(crate) name: String,
    /// Never empty.
    pub(crate) servers: Vec<Server>,
    pub(crate) load_balancing: LoadBalancingSettings,
    pub(crate) health_check: HealthCheckSettings,
    pub(crate) tls: UpstreamTlsSettings,
}

/// TLS of connections to the `https` servers of a group.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct UpstreamTlsSettings {
    /// Name that is sent as SNI and that the server's certificate must have. `None`: the host of the server.
    pub(crate) server_name: Option<ServerName<'static>>,
    /// Authorities that issue the certificates of servers. `None`: those that the system trusts.
    pub(crate) authorities: Option<TrustedAuthorities>,
    /// Certificate that the gateway presents.
    pub(crate) client_certificate: Option<Certificate>,
}

/// Method of an active health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HealthCheckMethod {
    /// A GET request of this path has to be responded to with 2xx.
    Http { path: String },
    /// A TCP connection has to be accepted: servers need no path for health checks.
    TcpConnect,
    /// Nothing. An endpoint that could not be connected is used again after an interval.
    None,
}

/// Active health checks of the endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthCheckSettings {
    pub(crate) method: HealthCheckMethod,
    /// Port of the probes, if it differs from the server's.
    pub(crate) port: Option<u16>,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    /// Consecutive successful probes after which an endpoint is healthy.
    pub(crate) healthy_after: NonZeroU32,
    /// Consecutive failed probes after which an endpoint is unhealthy.
    pub(crate) unhealthy_after: NonZeroU32,
}

/// Limits of requests and client connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Maximum size of a request body.
    pub(crate) max_body_bytes: u64,
    /// Maximum size of the request line and all headers together.
    pub(crate) max_header_bytes: usize,
    /// Time for the TLS handshake, and for the headers of a request.
    pub(crate) header_timeout: Duration,
    /// Longest pause of a request body, and time spent waiting for it after which it must have a least rate.
    pub(crate) body_timeout: Duration,
    /// Time between two requests on a connection.
    pub(crate) idle_timeout: Duration,
    /// Time without progress of an endpoint on a path without `timeout`, and of both sides of a WebSocket.
    pub(crate) stream_idle_timeout: Duration,
    /// Maximum number of concurrent connections.
    pub(crate) max_connections: usize,
    /// Maximum number of concurrent connections of one client, if set; otherwise it is a share of the total,
    /// see [`Limits::connections_per_client`].
    pub(crate) max_connections_per_client: Option<usize>,
    /// Maximum number of concurrent upstream requests of one client.
    pub(crate) max_upstream_requests_per_client: usize,
    /// Number of upstream requests that one client may abandon within 10 seconds.
    pub(crate) max_abandoned_requests_per_client: NonZeroU32,
    /// Response bytes that may wait for clients to read them.
    pub(crate) max_buffered_bytes: usize,
    pub(crate) max_buffered_bytes_per_client: usize,
}

impl Limits {
    /// One of so many shares of all connections is what a client may have by default: it takes at least ten
    /// clients to leave none for others.
    const CLIENT_SHARES: usize = 10;

    /// Returns the maximum number of concurrent connections of one client where there can be `total` of all
    /// clients. A client may always have one.
    pub(crate) fn connections_per_client(&self, total: usize) -> usize {
        self.max_connections_per_client
            .unwrap_or((total / Self::CLIENT_SHARES).max(1))
    }
}

/// Source of the identity of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdentitySettings {
    /// JSON Web Key Set of the issuer. Without it, every token is checked at `verify`.
    pub(crate) keys: Option<HttpUrl>,
    /// Resource that checks a token and its session.
    pub(crate) verify: HttpUrl,
    /// Redis server that session invalidations are published on. Without it, `verify` is asked for each request.
    pub(crate) sessions: Option<RedisUrl>,
    /// Required `iss` of a token.
    pub(crate) issuer: String,
    /// Required `aud` of a token, if set.
    pub(crate) audience: Option<String>,
}

/// Store that gateways share their quotas through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QuotaStoreSettings {
    /// `None`: requests are counted in this process alone. Changes need a restart.
    pub(crate) store: Option<RedisUrl>,
    pub(crate) on_store_failure: OnStoreFailure,
    /// Longest time that a request waits for the store.
    pub(crate) timeout: Duration,
}

/// Treatment of requests with a quota while the store cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnStoreFailure {
    /// Each gateway counts alone.
    CountLocally,
    /// They get 503.
    Refuse,
}

/// A path pattern, the hosts and the upstream group that it is for, and its features.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PathRule {
    pub(crate) pattern: PathPattern,
    /// Hosts of the requests that it matches. Empty: all.
    pub(crate) hosts: Vec<HostPattern>,
    pub(crate) upstream: UpstreamIndex,
    /// Prefix that is removed from the path before it is forwarded.
    pub(crate) strip_prefix: Option<PathPrefix>,
    pub(crate) features: Features,
}

impl PathRule {
    /// Returns the name of the rule in metrics and logs: its pattern, after its hosts if it has any. Rules of
    /// different hosts have quotas and circuit breakers of their own.
    pub(crate) fn name(&self) -> String {
        if self.hosts.is_empty() {
            return self.pattern.to_string();
        }
        let hosts: Vec<_> = self.hosts.iter().map(HostPattern::as_str).collect();
        format!("{} {}", hosts.join(","), self.pattern)
    }

    /// Returns whether it is for all hosts that `other` is for.
    pub(super) fn covers_hosts_of(&self, other: &Self) -> bool {
        let covers_host = |host| self.hosts.iter().any(|pattern| pattern.covers(host));
        self.hosts.is_empty() || !other.hosts.is_empty() && other.hosts.iter().all(covers_host)
    }
}

/// Features of a request. Without any, it is only forwarded.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Features {
    pub(crate) cors: Option<CorsSettings>,
    pub(crate) headers: Option<HeaderRules>,
    pub(crate) auth: Option<AuthRequirement>,
    pub(crate) rate_limit: Option<RateLimitSettings>,
    pub(crate) monitoring: Option<MonitoringSettings>,
    pub(crate) timeout: Option<TimeoutSettings>,
    pub(crate) retry: Option<RetrySettings>,
    pub(crate) circuit_breaker: Option<CircuitBreakerSettings>,
}

/// Cross-origin resource sharing: pages of other origins that may read responses (Fetch standard, section 3.3).
/// `*` in a list of names stands for all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CorsSettings {
    pub(crate) origins: AllowedOrigins,
    /// Methods that pages may use, which may also use GET, HEAD and POST. Never empty.
    pub(crate) methods: Vec<Method>,
    /// Headers that pages may send besides those that need no permission, such as `Accept`.
    pub(crate) headers: Vec<HeaderName>,
    /// Response headers that pages may read besides those that need no permission, such as `Cache-Control`.
    pub(crate) exposed_headers: Vec<HeaderName>,
    pub(crate) credentials: CorsCredentials,
    /// Seconds for which a browser may remember a preflight. `None`: its default, 5 seconds.
    pub(crate) max_age: Option<u64>,
}

/// Permission of requests with cookies, HTTP authentication or client certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CorsCredentials {
    /// Pages cannot read the responses to requests with credentials.
    Excluded,
    /// They can. No list has a `*` then.
    Included,
}

/// Changes of the headers of forwarded requests, and of responses, those of the gateway included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HeaderRules {
    pub(crate) request: HeaderChanges,
    pub(crate) response: HeaderChanges,
}

/// Changes of the headers of a message, in the order in which they are made. None is a header that frames the
/// message, concerns a connection, or is set by the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HeaderChanges {
    pub(crate) remove: Vec<HeaderName>,
    /// Headers that replace those of their name. No name occurs twice.
    pub(crate) set: Vec<(HeaderName, HeaderValue)>,
    /// Headers beside those of their name.
    pub(crate) add: Vec<(HeaderName, HeaderValue)>,
}

/// Treatment of a request without an access token on a path with `auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthRequirement {
    /// It is rejected.
    Required,
    /// It is forwarded without an identity.
    Optional,
}

/// Rate limit of `quota` requests per `duration`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RateLimitSettings {
    pub(crate) quota: NonZeroU32,
    pub(crate) duration: Duration,
    pub(crate) algorithm: RateLimitAlgorithm,
    pub(crate) mode: RateLimitMode,
    /// Key of the counters. Empty: one counter for all requests.
    pub(crate) per: Vec<QuotaKeyPart>,
    /// Token bucket: burst size; leaky bucket: queue length.
    pub(crate) bucket_size: NonZeroU32,
    pub(crate) error_response: ErrorResponseSettings,
}

/// Rate limiting algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RateLimitAlgorithm {
    FixedWindow,
    SlidingWindow,
    TokenBucket,
    LeakyBucket,
}

/// Effect of a rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RateLimitMode {
    /// Requests over the quota are rejected.
    Enforce,
    /// They are reported and pass.
    Observe,
}

/// Part of the key under which requests are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum QuotaKeyPart {
    Client,
    /// The user; the client, if the request has no identity.
    User,
    /// The request path; `endpoint` in the file, as in Premier.
    Path,
    /// Value of this request header.
    Header(HeaderName),
}

/// Status and message of an error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ErrorResponseSettings {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

/// Logging of slow requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MonitoringSettings {
    /// Duration above which a request is logged as slow, with level warning.
    pub(crate) log_threshold: Duration,
}

/// Time limit of the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimeoutSettings {
    /// Time for all attempts together, delays between them included.
    pub(crate) limit: Duration,
    pub(crate) error_response: ErrorResponseSettings,
}

/// Retries of requests that are safe to repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetrySettings {
    /// Maximum number of attempts, the first included.
    pub(crate) max_attempts: NonZeroU32,
    /// Delays before the second attempt, the third…; the last one repeats. Never empty.
    pub(crate) wait: Vec<Duration>,
    /// Time without progress after which an attempt that can be followed by another one fails.
    pub(crate) attempt_timeout: Option<Duration>,
}

/// Circuit breaker, one for each path pattern and endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CircuitBreakerSettings {
    /// Consecutive failures that open the circuit breaker.
    pub(crate) failure_threshold: NonZeroU32,
    /// Time that it stays open before one request probes the endpoint.
    pub(crate) recovery_timeout: Duration,
}
