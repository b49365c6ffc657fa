//! Linear trend of samples, and whether it is more than noise.

/// Standard errors by which a slope has to differ from zero: chance alone exceeds this in one of a thousand series.
const SIGNIFICANT_ERRORS: f64 = 3.3;

/// Least-squares line through samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Trend {
    /// Value by which the line rises in one hour.
    pub(crate) per_hour: f64,
    /// Standard error of that.
    pub(crate) error: f64,
    pub(crate) mean: f64,
    /// Hours from the first sample to the last one.
    pub(crate) hours: f64,
}

impl Trend {
    /// Fits a line to samples of (hours, value). Returns `None` if there are fewer than three.
    pub(crate) fn fit(samples: &[(f64, f64)]) -> Option<Self> {
        if samples.len() < 3 {
            return None;
        }
        let count = f64::from(u32::try_from(samples.len()).ok()?);
        let mean_of =
            |value: fn(&(f64, f64)) -> f64| samples.iter().map(value).sum::<f64>() / count;
        let (mean_time, mean) = (mean_of(|sample| sample.0), mean_of(|sample| sample.1));
        let spread: f64 = samples
            .iter()
            .map(|(time, _)| (time - mean_time).powi(2))
            .sum();
        let common: f64 = samples
            .iter()
            .map(|(time, value)| (time - mean_time) * (value - mean))
            .sum();
        let per_hour = common / spread;
        let residuals: f64 = samples
            .iter()
            .map(|(time, value)| (value - mean - per_hour * (time - mean_time)).powi(2))
            .sum();
        Some(Self {
            per_hour,
            error: (residuals / (count - 2.0) / spread).sqrt(),
            mean,
            hours: samples.last()?.0 - samples.first()?.0,
        })
    }

    /// Returns true if the values rise by more than noise: significantly, and in the whole time by more than
    /// `tolerance`, a part of their mean. Neighbouring samples depend on one another, so that the standard error alone
    /// is too small.
    pub(crate) fn rises(self, tolerance: f64) -> bool {
        self.per_hour > SIGNIFICANT_ERRORS * self.error
            && self.per_hour * self.hours > tolerance * self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a value for each minute of an hour, with noise of up to `noise` that repeats every seven minutes.
    fn series(start: f64, per_hour: f64, noise: f64) -> Vec<(f64, f64)> {
        (0..=60)
            .map(|minute| {
                let hours = f64::from(minute) / 60.0;
                let disturbance = f64::from(minute * 3 % 7 - 3) / 3.0 * noise;
                (hours, start + per_hour * hours + disturbance)
            })
            .collect()
    }

    fn trend(samples: &[(f64, f64)]) -> Trend {
        Trend::fit(samples).expect("there are enough samples")
    }

    #[test]
    fn a_line_is_found_exactly() {
        let trend = trend(&series(100.0, 12.0, 0.0));
        assert!((trend.per_hour - 12.0).abs() < 1e-6 && trend.error < 1e-6);
        assert!((trend.mean - 106.0).abs() < 1e-6 && (trend.hours - 1.0).abs() < 1e-6);
    }

    #[test]
    fn noise_does_not_rise() {
        assert!(!trend(&series(100.0, 0.0, 30.0)).rises(0.02));
    }

    #[test]
    fn a_leak_within_noise_rises() {
        assert!(trend(&series(100.0, 20.0, 10.0)).rises(0.02));
    }

    #[test]
    fn a_fall_and_a_rise_within_tolerance_do_not_rise() {
        assert!(!trend(&series(100.0, -20.0, 0.0)).rises(0.02));
        assert!(!trend(&series(100.0, 1.0, 0.0)).rises(0.02));
    }

    #[test]
    fn two_samples_have_no_trend() {
        assert_eq!(Trend::fit(&[(0.0, 1.0), (1.0, 2.0)]), None);
    }
}
