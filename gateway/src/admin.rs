//! For operators: `/metrics`, `/health`, `/ready`, `/status`, in plain HTTP, never public.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use crate::downstream::RequestHead;
use crate::gateway::{Gateway, unix_seconds};
use crate::plain::{Oracle, Said};
use crate::upstream::Condition;

/// What the admin listener says.
#[derive(Debug)]
pub(crate) struct Admin(pub(crate) Arc<Gateway>);

impl Oracle for Admin {
    fn say(&self, head: &RequestHead) -> Said {
        let is_read = matches!(head.method, Method::GET | Method::HEAD);
        let gateway = &self.0;
        match head.target.path() {
            _ if !is_read => {
                Said::json(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": "Use GET"}))
            }
            "/metrics" => {
                let (text, content_type) = gateway.metrics.text();
                Said::new(StatusCode::OK, HeaderValue::from_static(content_type), text)
            }
            "/health" => Said::json(StatusCode::OK, &json!("Healthy")),
            "/ready" => ready(gateway),
            "/status" => Said::json(StatusCode::OK, &status(gateway)),
            _ => Said::json(
                StatusCode::NOT_FOUND,
                &json!({"error": "There are /metrics, /health, /ready and /status"}),
            ),
        }
    }
}

/// Whether new connections are welcome: some replica is well and the end has not begun.
fn ready(gateway: &Gateway) -> Said {
    let replicas = gateway.upstreams.all();
    let up = replicas
        .iter()
        .filter(|replica| replica.condition() == Condition::Up)
        .count();
    let is_ready = up > 0 && !gateway.is_ending();
    let status = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let facts = json!({
        "ready": is_ready,
        "ending": gateway.is_ending(),
        "replicas": {"up": up, "all": replicas.len()},
    });
    Said::json(status, &facts)
}

/// Everything that a person wants to know at a glance.
fn status(gateway: &Gateway) -> Value {
    let live = gateway.live();
    let replicas: Vec<_> = gateway
        .upstreams
        .all()
        .iter()
        .map(|replica| {
            json!({
                "address": replica.address.to_string(),
                "server": replica.server.to_string(),
                "condition": match replica.condition() {
                    Condition::Unknown => "unknown",
                    Condition::Up => "up",
                    Condition::Down => "down",
                },
                "in_flight": replica.in_flight(),
                "connect_failures": replica.metrics.connect_failures.get(),
                "timeouts": replica.metrics.timeouts.get(),
                "broken": replica.metrics.broken.get(),
            })
        })
        .collect();
    let breakers: Vec<_> = live
        .routes
        .all()
        .iter()
        .filter_map(|route| Some((route, route.breakers.as_ref()?)))
        .flat_map(|(route, breakers)| {
            breakers.states().into_iter().map(|(replica, state)| {
                json!({
                    "pattern": route.pattern,
                    "replica": replica.to_string(),
                    "state": state,
                })
            })
        })
        .collect();
    let certificates: Vec<_> = gateway
        .certificates
        .expiries()
        .into_iter()
        .map(|(file, expires)| json!({"file": file, "expires": time(expires)}))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": at(gateway.started),
        "ending": gateway.is_ending(),
        "configuration": {
            "hash": live.config.hash,
            "since": at(live.since),
            "paths": live.config.paths.len(),
        },
        "requests_in_flight": gateway.metrics.in_flight.get(),
        "connections": gateway.metrics.connections.get(),
        "replicas": replicas,
        "breakers": breakers,
        "certificates": certificates,
        "busiest": busiest(&live.routes),
    })
}

/// The patterns with most requests, each with what its requests took.
fn busiest(routes: &crate::route::Routes) -> Vec<Value> {
    const SHOWN: usize = 20;
    let mut routes: Vec<_> = routes
        .all()
        .iter()
        .filter(|route| route.metrics.duration.get_sample_count() > 0)
        .collect();
    routes.sort_by_key(|route| std::cmp::Reverse(route.metrics.duration.get_sample_count()));
    routes
        .into_iter()
        .take(SHOWN)
        .map(|route| {
            let quantile = |share| route.metrics.quantile(share);
            json!({
                "pattern": route.pattern,
                "requests": route.metrics.duration.get_sample_count(),
                "seconds": {"p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99)},
            })
        })
        .collect()
}

fn at(moment: SystemTime) -> String {
    time(unix_seconds(moment))
}

fn time(unix_seconds: i64) -> String {
    chrono::DateTime::from_timestamp(unix_seconds, 0)
        .unwrap_or_default()
        .format("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
