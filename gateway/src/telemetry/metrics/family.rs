//! Metrics whose values are not those of the library: values that a request changes, and families that collect them.
//!
//! A value of the library is an allocation of its own, beside its labels. Values of one pattern or one endpoint are fields of
//! one struct instead, in as few cache lines as possible: what a request changes is then in the caches of the processor, or
//! fetched at once, however many patterns and endpoints there are. Names, labels and text format stay the library's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus::core::Desc;
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::duration_histogram::{DurationHistogram, as_float};

/// Number that only increases.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Number that increases and decreases.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicI64);

impl Gauge {
    pub(crate) fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Name, help text and labels of a metric.
#[derive(Debug)]
pub(super) struct Family {
    desc: Desc,
    kind: MetricType,
}

impl Family {
    /// Describes a metric.
    ///
    /// # Errors
    /// Returns an error if its name or a label is not valid.
    pub(super) fn new(
        name: &str,
        help: &str,
        labels: &[&str],
        kind: MetricType,
    ) -> prometheus::Result<Self> {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())?;
        Ok(Self { desc, kind })
    }

    pub(super) fn desc(&self) -> &Desc {
        &self.desc
    }

    /// Begins a collection.
    pub(super) fn samples(&self) -> Samples<'_> {
        Samples {
            family: self,
            metrics: Vec::new(),
        }
    }
}

/// Samples of a metric at one instant.
pub(super) struct Samples<'f> {
    family: &'f Family,
    metrics: Vec<Metric>,
}

impl Samples<'_> {
    /// Adds the value of a counter, with a value of each label of the family.
    pub(super) fn add_counter(&mut self, labels: &[&str], counter: &Counter) {
        let mut value = proto::Counter::default();
        value.set_value(as_float(counter.get()));
        self.add(labels, |metric| metric.set_counter(value));
    }

    /// Adds the value of a gauge.
    pub(super) fn add_gauge(&mut self, labels: &[&str], gauge: &Gauge) {
        #[expect(clippy::cast_precision_loss, reason = "the text format has floats")]
        let number = gauge.get() as f64;
        let mut value = proto::Gauge::default();
        value.set_value(number);
        self.add(labels, |metric| metric.set_gauge(value));
    }

    /// Adds the buckets of a histogram.
    pub(super) fn add_histogram(&mut self, labels: &[&str], histogram: &DurationHistogram) {
        self.add(labels, |metric| metric.set_histogram(histogram.to_proto()));
    }

    fn add(&mut self, values: &[&str], set_value: impl FnOnce(&mut Metric)) {
        let names = &self.family.desc.variable_labels;
        debug_assert_eq!(names.len(), values.len(), "each label has a value");
        let pair = |(name, value): (&String, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value((*value).to_owned());
            pair
        };
        let mut pairs: Vec<_> = names.iter().zip(values).map(pair).collect();
        // As the library has them.
        pairs.sort_by(|one, other| one.name().cmp(other.name()));
        let mut metric = Metric::from_label(pairs);
        set_value(&mut metric);
        self.metrics.push(metric);
    }

    pub(super) fn into_proto(self) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.family.desc.fq_name.clone());
        family.set_help(self.family.desc.help.clone());
        family.set_field_type(self.family.kind);
        family.set_metric(self.metrics);
        family
    }
}
