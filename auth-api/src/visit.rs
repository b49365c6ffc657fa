//! What every request has in common: its line in the access log, its count in the metrics, and the
//! headers that each answer carries.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, CONNECTION, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use crate::app::App;
use crate::domain::session::Origin;

/// Asked for every other second by whoever watches us.
const PROBES: [&str; 2] = ["/ready", "/health"];
/// What these lines are called in the log.
pub(crate) const TARGET: &str = module_path!();
const UNMATCHED: &str = "unmatched";
/// What is kept of a user agent: enough to recognise a device.
const USER_AGENT_BYTES: usize = 256;

/// Who may see an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privacy {
    Public,
    /// Whoever asked: it has a token, personal data or a verdict on them. No cache keeps it.
    Personal,
}

impl Privacy {
    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/api/") {
            Self::Personal
        } else {
            Self::Public
        }
    }
}

/// Lets a request through and records what became of it.
pub(crate) async fn record(State(app): State<App>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let request_id = request_id(request.headers()).to_owned();
    let client = client(request.headers()).to_owned();
    let route = request.extensions().get::<MatchedPath>().cloned();

    let mut response = next.run(request).await;

    let took = start.elapsed();
    let status = response.status().as_u16();
    let route = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    let known_method = match method.as_str() {
        known @ ("GET" | "POST" | "DELETE" | "HEAD" | "PUT" | "PATCH" | "OPTIONS") => known,
        _ => "other",
    };
    app.metrics.answered(route, known_method, status, took);
    let seconds = took.as_secs_f64();
    if PROBES.contains(&path.as_str()) {
        tracing::debug!(request_id, client, %method, path, status, seconds, "request");
    } else {
        tracing::info!(request_id, client, %method, path, status, seconds, "request");
        app.lifecycle.request();
    }

    let headers = response.headers_mut();
    if app.lifecycle.is_ending() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if Privacy::of(&path) == Privacy::Personal {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// What the gateway called a request.
pub(crate) fn request_id(headers: &HeaderMap) -> &str {
    header(headers, "x-request-id")
}

/// Where a request came from.
pub(crate) fn origin(headers: &HeaderMap) -> Origin {
    let agent = header(headers, "user-agent");
    let end = (0..=USER_AGENT_BYTES.min(agent.len()))
        .rev()
        .find(|end| agent.is_char_boundary(*end))
        .unwrap_or(0);
    Origin {
        address: client(headers).to_owned(),
        user_agent: agent[..end].to_owned(),
    }
}

/// The last address of `X-Forwarded-For`, which the gateway wrote.
fn client(headers: &HeaderMap) -> &str {
    header(headers, "x-forwarded-for")
        .rsplit(',')
        .next()
        .unwrap_or("")
        .trim()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("")
}
