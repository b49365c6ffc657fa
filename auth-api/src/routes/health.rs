//! `GET /health`: liveness of the process. It uses no store, so that an outage of one restarts no replica.

use axum::Json;
use axum::http::StatusCode;

use crate::http::openapi::Operation;

const HEALTHY: &str = "Healthy";

pub(crate) fn operation() -> Operation {
    Operation::new("Check liveness", "Does not depend on any store.").response(
        StatusCode::OK,
        "Alive",
        &HEALTHY,
    )
}

pub(crate) async fn handle() -> Json<&'static str> {
    Json(HEALTHY)
}
