//! `GET /metrics`, on the internal port: what Prometheus scrapes.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use crate::app::App;

pub(crate) async fn handle(State(app): State<App>) -> impl IntoResponse {
    let (store, pool) = app.users.pool_use();
    app.metrics.pool(store, pool);
    (
        [(CONTENT_TYPE, prometheus::TEXT_FORMAT)],
        app.metrics.text(),
    )
}
