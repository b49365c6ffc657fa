//! `GET /health`: the process is alive. It asks no store, so that an outage of one ends no replica.

use axum::Json;

pub(crate) async fn handle() -> Json<&'static str> {
    Json("Healthy")
}
