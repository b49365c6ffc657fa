//! For operators: `/metrics`, `/health`, `/ready`, `/status`, in plain HTTP, never public.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, Response, StatusCode};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use serde_json::{Value, json};

use crate::gateway::{Gateway, unix_seconds};
use crate::upstream::Condition;

const JSON: &str = "application/json";

/// What serves the admin listener.
#[derive(Debug)]
pub(crate) struct Admin(pub(crate) Arc<Gateway>);

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let header = session.req_header();
        let is_read = matches!(header.method, Method::GET | Method::HEAD);
        let gateway = &self.0;
        match header.uri.path() {
            _ if !is_read => answer(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": "Use GET"})),
            "/metrics" => {
                let (text, content_type) = gateway.metrics.text();
                response(StatusCode::OK, content_type, text)
            }
            "/health" => answer(StatusCode::OK, &json!("Healthy")),
            "/ready" => ready(gateway),
            "/status" => answer(StatusCode::OK, &status(gateway)),
            _ => answer(
                StatusCode::NOT_FOUND,
                &json!({"error": "There are /metrics, /health, /ready and /status"}),
            ),
        }
    }
}

/// Whether new connections are welcome: some replica is well and the end has not begun.
fn ready(gateway: &Gateway) -> Response<Vec<u8>> {
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
    answer(status, &facts)
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

fn answer(status: StatusCode, body: &Value) -> Response<Vec<u8>> {
    response(status, JSON, body.to_string().into_bytes())
}

fn response(status: StatusCode, content_type: &str, body: Vec<u8>) -> Response<Vec<u8>> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .header(CONTENT_LENGTH, body.len())
        .body(body)
        .expect("the headers are constants and a number")
}

/// What serves the http listener: nothing but the way to https.
#[derive(Debug)]
pub(crate) struct ToHttps {
    /// Of the https listener.
    pub(crate) port: u16,
}

#[async_trait]
impl ServeHttp for ToHttps {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        session.set_keepalive(None);
        let header = session.req_header();
        let host = header
            .headers
            .get(http::header::HOST)
            .filter(|host| crate::head::is_authority(host.as_bytes()))
            .and_then(|host| host.to_str().ok());
        let Some(host) = host else {
            return answer(StatusCode::BAD_REQUEST, &json!({"error": "Which host?"}));
        };
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => name,
            _ => host,
        };
        let target = header
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let target = if target.starts_with('/') { target } else { "/" };
        let location = match self.port {
            443 => format!("https://{name}{target}"),
            port => format!("https://{name}:{port}{target}"),
        };
        let mut redirect = answer(
            StatusCode::PERMANENT_REDIRECT,
            &json!({"error": "Use https"}),
        );
        match location.parse() {
            Ok(location) => {
                redirect
                    .headers_mut()
                    .insert(http::header::LOCATION, location);
                redirect
            }
            Err(_) => answer(StatusCode::BAD_REQUEST, &json!({"error": "Which path?"})),
        }
    }
}
