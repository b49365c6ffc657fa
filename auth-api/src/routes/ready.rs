//! `GET /ready`: readiness for requests, with the latency of each store. For the gateway's health
//! check and for operators.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use crate::state::AppState;
use crate::store::unavailable::Unavailable;

#[derive(Debug, Serialize)]
pub(crate) struct Readiness {
    users: StoreReadiness,
    sessions: StoreReadiness,
}

#[derive(Debug, Serialize)]
struct StoreReadiness {
    ready: bool,
    latency_ms: f64,
}

/// Longest wait for a store. The gateway's health check times out after one second.
const PING_TIMEOUT: Duration = Duration::from_millis(900);

pub(crate) async fn handle(State(state): State<AppState>) -> (StatusCode, Json<Readiness>) {
    let (users, sessions) =
        tokio::join!(measure(state.users.ping()), measure(state.sessions.ping()));
    let status = if users.ready && sessions.ready && !state.lifecycle.is_shutting_down() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(Readiness { users, sessions }))
}

async fn measure(ping: impl Future<Output = Result<(), Unavailable>>) -> StoreReadiness {
    let start = Instant::now();
    let ready = matches!(tokio::time::timeout(PING_TIMEOUT, ping).await, Ok(Ok(())));
    StoreReadiness {
        ready,
        latency_ms: start.elapsed().as_secs_f64() * 1000.0,
    }
}
