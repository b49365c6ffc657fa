//! Configuration of the gateway: gateway.yml, parsed into types that cannot hold an invalid value.

mod authorities;
mod certificate;
mod cors;
mod document;
mod error;
mod features;
mod header_rules;
mod host;
mod http_url;
mod identity;
mod interpolate;
mod listen;
mod load;
mod model;
mod node;
mod origin;
mod path_prefix;
mod paths;
mod pattern;
mod premier;
mod quotas;
mod redis_url;
mod schema;
mod server;
mod suggestion;
mod upstream_tls;
mod upstreams;

pub(crate) use certificate::Certificate;
pub(crate) use error::ConfigErrors;
pub(crate) use header_rules::{folded_name, is_spelling_of};
pub(crate) use host::{HostPattern, wildcard};
pub(crate) use http_url::HttpUrl;
pub(crate) use interpolate::Environment;
pub(crate) use load::admin_address;
pub(crate) use model::{
    AuthRequirement, BalancingStrategy, CircuitBreakerSettings, Config, CorsCredentials,
    CorsSettings, EndpointLimits, ErrorResponseSettings, Features, HeaderChanges,
    HealthCheckMethod, HealthCheckSettings, IdentitySettings, Limits, ListenAddresses,
    LoadBalancingSettings, MonitoringSettings, OnStoreFailure, PathRule, QuotaKeyPart,
    RateLimitAlgorithm, RateLimitMode, RateLimitSettings, RetrySettings, TimeoutSettings,
    UpstreamIndex, UpstreamSettings, UpstreamTlsSettings,
};
pub(crate) use origin::AllowedOrigins;
pub(crate) use path_prefix::PathPrefix;
pub(crate) use pattern::{Matcher, PathPattern, pattern_syntax};
pub(crate) use redis_url::RedisUrl;
pub(crate) use schema::SCHEMA;
pub(crate) use server::{Scheme, Server};

#[cfg(test)]
mod tests;
