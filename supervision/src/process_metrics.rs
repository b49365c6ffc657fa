//! Metrics of the process itself, under the names that Prometheus's client libraries give them
//! (Prometheus, "Writing client libraries", section "Standard and runtime collectors").

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, IntGauge, Registry};
use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Returns a registry of the metrics `process_*`, which have no prefix and no labels. They are read from
/// the kernel whenever they are gathered.
///
/// # Panics
/// Never: the names of the metrics are valid.
#[must_use]
pub fn process_registry() -> Registry {
    let registry = Registry::new();
    let registered = registry.register(Box::new(ProcessCollector::new()));
    registered.expect("the names are registered once");
    registry
}

struct ProcessCollector {
    cpu_seconds: Counter,
    start_time: Gauge,
    resident_memory: IntGauge,
    virtual_memory: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
    threads: IntGauge,
}

impl ProcessCollector {
    fn new() -> Self {
        const VALID: &str = "the name is valid";
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect(VALID);
        let start_time = Gauge::new(
            "process_start_time_seconds",
            "Time when the process started, in Unix time.",
        );
        let start_time = start_time.expect(VALID);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        start_time.set(now.unwrap_or_default().as_secs_f64());
        let cpu_seconds = Counter::new(
            "process_cpu_seconds_total",
            "CPU time of the process, user and system, in seconds.",
        );
        Self {
            cpu_seconds: cpu_seconds.expect(VALID),
            start_time,
            resident_memory: gauge("process_resident_memory_bytes", "Resident memory."),
            virtual_memory: gauge("process_virtual_memory_bytes", "Virtual memory."),
            open_fds: gauge("process_open_fds", "Open file descriptors."),
            max_fds: gauge("process_max_fds", "Limit of open file descriptors."),
            threads: gauge("process_threads", "Threads."),
        }
    }

    fn metrics(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu_seconds,
            &self.start_time,
            &self.resident_memory,
            &self.virtual_memory,
            &self.open_fds,
            &self.max_fds,
            &self.threads,
        ]
    }

    /// Reads the values. One that cannot be read keeps its last value.
    fn update(&self) {
        let cpu_time = clock_gettime(ClockId::ProcessCPUTime);
        #[expect(clippy::cast_precision_loss, reason = "exact for millions of years")]
        let cpu_seconds = cpu_time.tv_sec as f64 + cpu_time.tv_nsec as f64 * 1e-9;
        // Of two concurrent gatherings one may find that the other has counted more.
        self.cpu_seconds
            .inc_by((cpu_seconds - self.cpu_seconds.get()).max(0.0));
        if let Some((virtual_pages, resident_pages)) = memory_pages() {
            let page_size = i64::try_from(page_size()).unwrap_or_default();
            self.virtual_memory.set(virtual_pages * page_size);
            self.resident_memory.set(resident_pages * page_size);
        }
        if let Some(descriptors) = entries("/proc/self/fd") {
            // The one with which the folder is read is not counted.
            self.open_fds.set(descriptors - 1);
        }
        let limit = getrlimit(Resource::Nofile).current;
        let limit = limit.and_then(|limit| i64::try_from(limit).ok());
        self.max_fds.set(limit.unwrap_or(i64::MAX));
        if let Some(threads) = entries("/proc/self/task") {
            self.threads.set(threads);
        }
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.metrics()
            .into_iter()
            .flat_map(Collector::desc)
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.update();
        let metrics = self.metrics().into_iter();
        metrics.flat_map(Collector::collect).collect()
    }
}

/// Returns the virtual and the resident memory in pages (proc(5), `/proc/pid/statm`).
fn memory_pages() -> Option<(i64, i64)> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split_ascii_whitespace().map(str::parse);
    Some((pages.next()?.ok()?, pages.next()?.ok()?))
}

fn entries(folder: &str) -> Option<i64> {
    i64::try_from(fs::read_dir(folder).ok()?.count()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_has_a_plausible_value() {
        let families = process_registry().gather();
        assert_eq!(families.len(), 7);
        for family in &families {
            let metric = &family.get_metric()[0];
            let value = metric.get_gauge().get_value() + metric.get_counter().get_value();
            assert!(value > 0.0, "{}: {value}", family.name());
        }
    }
}
