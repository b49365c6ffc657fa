//! Guard that keeps a gauge accurate.

use prometheus::IntGauge;

/// Increments a gauge for as long as it exists, so that an early return or a panic decrements it too.
#[derive(Debug)]
pub(crate) struct GaugeGuard(IntGauge);

impl GaugeGuard {
    pub(crate) fn increment(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
