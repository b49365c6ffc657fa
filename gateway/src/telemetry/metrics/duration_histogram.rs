//! Histogram of durations, whose counts become cumulative when they are collected.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::proto::{Bucket, Histogram};

use crate::runtime::clock::nanoseconds;

/// Upper bounds of the buckets in microseconds.
const UPPER_BOUNDS: [u32; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];
const MICROSECONDS_PER_SECOND: f64 = 1e6;
const NANOSECONDS_PER_MICROSECOND: u64 = 1_000;
const NANOSECONDS_PER_SECOND: f64 = 1e9;

/// Histogram of durations in two cache lines. The sum and the buckets of up to 50 ms are in the first one, so that most
/// observations touch no other.
///
/// The number of observations is the sum of the buckets: it is always that of the bucket `+Inf`. A sum that is
/// collected while durations are observed may have others of them than the buckets.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct DurationHistogram {
    /// Sum of all durations, which wraps after 584 years.
    nanoseconds: AtomicU64,
    /// Durations up to each bound and above the one before; last, those above all bounds.
    buckets: [AtomicU64; UPPER_BOUNDS.len() + 1],
}

impl DurationHistogram {
    pub(crate) fn observe(&self, duration: Duration) {
        let nanoseconds = nanoseconds(duration);
        let is_within =
            |bound: &u32| nanoseconds <= u64::from(*bound) * NANOSECONDS_PER_MICROSECOND;
        let bucket = UPPER_BOUNDS.iter().position(is_within);
        let bucket = bucket.unwrap_or(UPPER_BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Returns the number of observations.
    pub(crate) fn count(&self) -> u64 {
        let buckets = self.buckets.iter();
        buckets.map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// Returns the `quantile` (0 to 1) in seconds: the upper bound of its bucket. `None` if there were no
    /// observations or it exceeds all bounds.
    pub(crate) fn quantile(&self, quantile: f64) -> Option<f64> {
        let histogram = self.to_proto();
        let count = histogram.get_sample_count();
        if count == 0 {
            return None;
        }
        let rank = as_float(count) * quantile;
        let mut buckets = histogram.get_bucket().iter();
        let bucket = buckets.find(|bucket| as_float(bucket.cumulative_count()) >= rank)?;
        Some(bucket.upper_bound())
    }

    /// Returns the cumulative buckets. The library adds `+Inf`.
    pub(super) fn to_proto(&self) -> Histogram {
        let mut count = 0;
        let mut cumulative = self.buckets.iter().map(|bucket| {
            count += bucket.load(Ordering::Relaxed);
            count
        });
        let buckets = UPPER_BOUNDS.iter().zip(&mut cumulative);
        let buckets = buckets.map(|(bound, cumulative_count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(f64::from(*bound) / MICROSECONDS_PER_SECOND);
            bucket.set_cumulative_count(cumulative_count);
            bucket
        });
        let buckets = buckets.collect();
        let all = cumulative.next();
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(all.expect("the last bucket has no bound"));
        let nanoseconds = self.nanoseconds.load(Ordering::Relaxed);
        histogram.set_sample_sum(as_float(nanoseconds) / NANOSECONDS_PER_SECOND);
        histogram
    }
}

#[expect(clippy::cast_precision_loss, reason = "the text format has floats")]
pub(super) fn as_float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;
    use prometheus::core::Metric;
    use proptest::prelude::*;

    use super::*;

    /// Bounds as the library takes them.
    const SECONDS: [f64; 14] = [
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    ];

    fn bound_or_any() -> impl Strategy<Value = Duration> {
        let bound = prop::sample::select(UPPER_BOUNDS.to_vec());
        let near_bound = (bound, -1..=1_i64).prop_map(|(bound, offset)| {
            let nanoseconds = u64::from(bound) * NANOSECONDS_PER_MICROSECOND;
            Duration::from_nanos(nanoseconds.saturating_add_signed(offset))
        });
        let any = (0..20_000_000_000_u64).prop_map(Duration::from_nanos);
        prop_oneof![near_bound, any]
    }

    proptest! {
        #[test]
        fn the_buckets_are_those_of_the_library(
            durations in prop::collection::vec(bound_or_any(), 0..50),
        ) {
            let options = HistogramOpts::new("name", "help").buckets(SECONDS.into());
            let model = prometheus::Histogram::with_opts(options).unwrap();
            let histogram = DurationHistogram::default();
            for duration in &durations {
                model.observe(duration.as_secs_f64());
                histogram.observe(*duration);
            }
            let (model, histogram) = (model.metric(), histogram.to_proto());
            let model = model.get_histogram();
            let values = |histogram: &Histogram| {
                let buckets = histogram.get_bucket().iter();
                let buckets = buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
                (histogram.get_sample_count(), buckets.collect::<Vec<_>>())
            };
            prop_assert_eq!(values(&histogram), values(model));
            let difference = histogram.get_sample_sum() - model.get_sample_sum();
            prop_assert!(difference.abs() < 1e-9, "{difference}");
        }
    }

    #[test]
    fn a_quantile_is_the_upper_bound_of_its_bucket() {
        let histogram = DurationHistogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for milliseconds in [1, 2, 3, 20_000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        assert_eq!(histogram.count(), 4);
        assert_eq!(histogram.quantile(0.5), Some(0.0025));
        assert_eq!(histogram.quantile(0.99), None);
    }

    #[test]
    fn a_histogram_has_two_cache_lines() {
        assert_eq!(size_of::<DurationHistogram>(), 2 * 64);
    }
}
