//! Logs, audit events and metrics.

pub(crate) mod access_log;
pub(crate) mod audit;
pub(crate) mod logging;
pub(crate) mod metrics;
pub(crate) mod request_info;
