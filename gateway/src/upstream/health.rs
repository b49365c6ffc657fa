//! Health of an endpoint, from the results of its probes.

use std::num::NonZeroU32;

use crate::config::HealthCheckSettings;

/// Health of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HealthStatus {
    /// No probe has completed yet: the endpoint is used if no healthy one is available.
    Unknown,
    Healthy,
    Unhealthy,
}

/// Number of consecutive probes with the same result.
#[derive(Debug, Default)]
pub(super) struct ProbeHistory {
    successes: u32,
    failures: u32,
}

impl ProbeHistory {
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Records the result of a probe. Returns the new health once enough probes in a row had this
    /// result.
    pub(super) fn record(
        &mut self,
        is_success: bool,
        settings: &HealthCheckSettings,
    ) -> Option<HealthStatus> {
        let (same, opposite, threshold, status) = if is_success {
            (
                &mut self.successes,
                &mut self.failures,
                settings.healthy_after,
                HealthStatus::Healthy,
            )
        } else {
            (
                &mut self.failures,
                &mut self.successes,
                settings.unhealthy_after,
                HealthStatus::Unhealthy,
            )
        };
        *opposite = 0;
        *same = same.saturating_add(1);
        (*same >= NonZeroU32::get(threshold)).then_some(status)
    }
}
