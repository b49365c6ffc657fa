//! Requests that took long are logged as a warning, with the facts that Premier printed.

use std::time::Duration;

use crate::config;

/// Whether a request took long enough to be warned of.
pub(crate) fn is_slow(settings: Option<config::Monitoring>, took: Duration) -> bool {
    settings.is_some_and(|monitoring| took > monitoring.log_threshold)
}
