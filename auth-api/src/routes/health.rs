//! `GET /health`: the process is alive. It asks no store, so that an outage of one ends no replica.

use axum::Json;
use axum::http::StatusCode;

use crate::openapi::Operation;

const ALIVE: &str = "Healthy";

pub(crate) fn operation() -> Operation {
    Operation::new("Ask whether the service is alive", "It asks no store.").answers(
        StatusCode::OK,
        "Alive",
        &ALIVE,
    )
}

pub(crate) async fn handle() -> Json<&'static str> {
    Json(ALIVE)
}
