//! `GET /ready`: whether the stores answer, and how fast, and whether we are to end. For the gateway and operators.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use crate::app::App;
use crate::unavailable::Unavailable;

#[derive(Debug, Serialize)]
pub(crate) struct Response {
    users: StoreState,
    sessions: StoreState,
}

#[derive(Debug, Serialize)]
struct StoreState {
    ready: bool,
    latency_ms: f64,
}

/// A gateway asks every two seconds and waits for one.
const PATIENCE: Duration = Duration::from_millis(900);

pub(crate) async fn handle(State(app): State<App>) -> (StatusCode, Json<Response>) {
    let (users, sessions) = tokio::join!(ask(app.users.ping()), ask(app.sessions.ping()));
    let status = if users.ready && sessions.ready && !app.lifecycle.is_ending() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(Response { users, sessions }))
}

async fn ask(ping: impl Future<Output = Result<(), Unavailable>>) -> StoreState {
    let start = Instant::now();
    let ready = matches!(tokio::time::timeout(PATIENCE, ping).await, Ok(Ok(())));
    StoreState {
        ready,
        latency_ms: start.elapsed().as_secs_f64() * 1000.0,
    }
}
