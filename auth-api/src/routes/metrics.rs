//! `GET /metrics` on the internal port: metrics in the text format of Prometheus.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use crate::state::AppState;

pub(crate) async fn handle(State(state): State<AppState>) -> impl IntoResponse {
    let users = &state.users;
    state
        .metrics
        .set_pool_usage(users.store_label(), users.pool_usage());
    (
        [(CONTENT_TYPE, prometheus::TEXT_FORMAT)],
        state.metrics.encode(),
    )
}
