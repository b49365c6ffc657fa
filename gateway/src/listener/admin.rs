//! Admin endpoints for operators: `/metrics`, `/health`, `/ready`, `/status`, in plain HTTP, never public.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::ALLOW;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use supervision::is_internal_name;

use crate::features::rate_limit::shared::SharedQuotas;
use crate::http::message::RequestHeaders;
use crate::http::syntax::host_name;
use crate::listener::cleartext::{Responder, StaticResponse};
use crate::proxy::state::GatewayState;
use crate::runtime::clock::unix_seconds;
use crate::telemetry::text::address_value;
use crate::upstream::{HealthStatus, UpstreamGroup};

const ALLOWED_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// Responder of the admin listener.
#[derive(Debug)]
pub(crate) struct Admin(pub(crate) Arc<GatewayState>);

impl Responder for Admin {
    fn default_host(&self, local: SocketAddr) -> Option<HeaderValue> {
        Some(address_value(local))
    }

    async fn respond(&self, request: &RequestHeaders) -> StaticResponse {
        let is_safe = matches!(request.method, Method::GET | Method::HEAD);
        let gateway = &self.0;
        match request.target.path() {
            _ if !request.host().is_some_and(is_internal_host) => StaticResponse::json(
                StatusCode::MISDIRECTED_REQUEST,
                &json!({"error": "Use the address of this listener or a name without a public domain"}),
            ),
            // The default health check of HAProxy is `OPTIONS / HTTP/1.0`.
            _ if request.method == Method::OPTIONS => {
                StaticResponse::empty(StatusCode::NO_CONTENT).with_header(ALLOW, ALLOWED_METHODS)
            }
            _ if !is_safe => {
                StaticResponse::json(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": "Use GET"}))
                    .with_header(ALLOW, ALLOWED_METHODS)
            }
            "/metrics" => {
                let (text, content_type) = gateway.metrics.encode();
                StaticResponse::new(StatusCode::OK, HeaderValue::from_static(content_type), text)
            }
            "/health" => StaticResponse::json(StatusCode::OK, &json!("Healthy")),
            "/ready" => ready(gateway),
            "/status" => StaticResponse::json(StatusCode::OK, &status(gateway)),
            _ => StaticResponse::json(
                StatusCode::NOT_FOUND,
                &json!({"error": "There are /metrics, /health, /ready and /status"}),
            ),
        }
    }
}

/// Returns whether a host is one that no web page can have a browser ask for (DNS rebinding).
fn is_internal_host(host: &str) -> bool {
    is_internal_name(host_name(host))
}

/// Readiness: at least one endpoint is healthy and no shutdown has begun.
fn ready(gateway: &GatewayState) -> StaticResponse {
    let active = gateway.snapshot();
    let groups = active.upstreams.all().iter();
    let (healthy, all) = groups.fold((0, 0), |(healthy, all), group| {
        let endpoints = group.endpoints().len();
        (healthy + group.healthy_endpoints(), all + endpoints)
    });
    let is_ready = healthy > 0 && !gateway.is_shutting_down();
    let status = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({
        "ready": is_ready,
        "ending": gateway.is_shutting_down(),
        "replicas": {"up": healthy, "all": all},
    });
    StaticResponse::json(status, &body)
}

/// Summary of the state of the gateway.
fn status(gateway: &GatewayState) -> Value {
    let active = gateway.snapshot();
    let endpoints: Vec<_> = active
        .upstreams
        .all()
        .iter()
        .flat_map(|group| endpoints_of(group))
        .collect();
    let breakers: Vec<_> = active
        .routes
        .all()
        .iter()
        .filter_map(|route| Some((route, route.breakers.as_ref()?)))
        .flat_map(|(route, breakers)| {
            breakers.states().into_iter().map(|(endpoint, state)| {
                json!({
                    "pattern": &*route.pattern,
                    "upstream": route.upstream.name(),
                    "replica": endpoint.to_string(),
                    "state": state,
                })
            })
        })
        .collect();
    let certificates: Vec<_> = gateway
        .certificates
        .expiries()
        .into_iter()
        .map(|(file, expires)| json!({"file": file, "expires": format_time(expires)}))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": format_system_time(gateway.started),
        "ending": gateway.is_shutting_down(),
        "configuration": {
            "hash": active.config.hash,
            "since": format_system_time(active.active_since),
            "paths": active.config.paths.len(),
        },
        "quotas": gateway.shared_quotas.as_ref().map(|quotas| quota_store(quotas)),
        "requests_in_flight": gateway.metrics.in_flight.get(),
        "connections": gateway.metrics.connections.get(),
        "replicas": endpoints,
        "breakers": breakers,
        "certificates": certificates,
        "busiest": busiest(&active.routes),
    })
}

/// Endpoints of an upstream group, with their health and load.
fn endpoints_of(group: &UpstreamGroup) -> Vec<Value> {
    let limits = group.settings.load_balancing.endpoint_limits;
    let endpoints = group.endpoints();
    endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "upstream": group.name(),
                "address": endpoint.address.to_string(),
                "server": endpoint.server.to_string(),
                "condition": match endpoint.health() {
                    HealthStatus::Unknown => "unknown",
                    HealthStatus::Healthy => "up",
                    HealthStatus::Unhealthy => "down",
                },
                "in_flight": endpoint.in_flight(),
                "connections_in_use": endpoint.connections_in_use(),
                "max_connections": limits.max_connections,
                "pending": endpoint.pending(),
                "connect_failures": endpoint.metrics.connect_failures.get(),
                "timeouts": endpoint.metrics.timeouts.get(),
                "broken": endpoint.metrics.broken.get(),
            })
        })
        .collect()
}

/// State of the store that gateways share their quotas through.
fn quota_store(quotas: &SharedQuotas) -> Value {
    let metrics = &quotas.metrics;
    json!({
        "store": if quotas.is_available() { "up" } else { "down" },
        "gateways": quotas.gateways(),
        "leases": metrics.leases.get(),
        "commands": metrics.commands.get(),
        "failed_commands": metrics.failed_commands.get(),
        "units": {
            "leased": metrics.leased_units.get(),
            "returned": metrics.returned_units.get(),
        },
        "local_decisions": metrics.local_decisions.get(),
    })
}

/// Patterns with the most requests, with quantiles of their durations.
fn busiest(routes: &crate::proxy::route::Routes) -> Vec<Value> {
    const MAX_PATTERNS: usize = 20;
    let mut routes: Vec<_> = routes
        .all()
        .iter()
        .filter(|route| route.metrics.duration.count() > 0)
        .collect();
    routes.sort_by_key(|route| std::cmp::Reverse(route.metrics.duration.count()));
    routes
        .into_iter()
        .take(MAX_PATTERNS)
        .map(|route| {
            let quantile = |quantile| route.metrics.duration.quantile(quantile);
            json!({
                "pattern": &*route.pattern,
                "requests": route.metrics.duration.count(),
                "seconds": {"p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99)},
            })
        })
        .collect()
}

fn format_system_time(time: SystemTime) -> String {
    format_time(unix_seconds(time))
}

fn format_time(unix_seconds: i64) -> String {
    chrono::DateTime::from_timestamp(unix_seconds, 0)
        .unwrap_or_default()
        .format("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_names_are_not_served() {
        for host in [
            "127.0.0.1:9901",
            "[::1]:9901",
            "10.0.0.1",
            "localhost",
            "LOCALHOST.:9901",
            "gateway",
            "tasks.gateway.internal",
            "gateway.default.svc.cluster.local:9901",
        ] {
            assert!(is_internal_host(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example.:9901",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "1.2.3",
        ] {
            assert!(!is_internal_host(host), "{host}");
        }
    }
}
