//! Metrics, access log and logging.

pub(crate) mod access_log;
pub(crate) mod event_interval;
pub(crate) mod gauge_guard;
pub(crate) mod logging;
pub(crate) mod metrics;
pub(crate) mod request_id;
pub(crate) mod text;
