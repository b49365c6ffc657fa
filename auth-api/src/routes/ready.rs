//! `GET /ready`: readiness for requests, with the latency of each store. For the gateway's health
//! check and for operators.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use crate::readiness::StoreStatus;
use crate::state::AppState;

#[derive(Debug, Serialize)]
pub(crate) struct Readiness {
    users: StoreReadiness,
    sessions: StoreReadiness,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_log: Option<StoreReadiness>,
}

#[derive(Debug, Serialize)]
struct StoreReadiness {
    ready: bool,
    latency_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub(crate) async fn handle(State(state): State<AppState>) -> (StatusCode, Json<Readiness>) {
    let audit_log = state.readiness.audit_log.as_ref();
    let readiness = Readiness {
        users: state.readiness.users.status().into(),
        sessions: state.readiness.sessions.status().into(),
        audit_log: audit_log.map(|health| health.status().into()),
    };
    let is_ready = readiness.users.ready
        && readiness.sessions.ready
        && readiness.audit_log.as_ref().is_none_or(|log| log.ready)
        && !state.lifecycle.is_shutting_down();
    let status = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness))
}

impl From<StoreStatus> for StoreReadiness {
    fn from(status: StoreStatus) -> Self {
        Self {
            ready: status.is_ready,
            latency_ms: status.latency.as_ref().map_or(0.0, Duration::as_secs_f64) * 1000.0,
            problem: status.problem.map(|problem| problem.to_string()),
        }
    }
}
