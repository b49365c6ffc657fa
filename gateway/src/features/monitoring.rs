//! Threshold above which a request is logged as slow.

use std::time::Duration;

use crate::config::MonitoringSettings;

/// Returns true if a request took longer than `log_threshold`.
pub(crate) fn is_slow(settings: Option<MonitoringSettings>, duration: Duration) -> bool {
    settings.is_some_and(|monitoring| duration > monitoring.log_threshold)
}
