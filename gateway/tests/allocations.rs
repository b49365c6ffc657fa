//! Heap allocations of the decisions about a request.

use std::alloc::System;

use gateway::bench::{DecisionBench, QuotaCounters};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_decision_does_not_allocate() {
    for (patterns, counters) in [
        (1, QuotaCounters::Local),
        (1000, QuotaCounters::Local),
        (1, QuotaCounters::Leased),
    ] {
        let mut bench = DecisionBench::new(patterns, 1000, counters);
        // Warm-up: the quota store allocates its buckets, the path matcher its states, metrics their counters.
        for _ in 0..2_000_000 {
            assert!(bench.decide());
        }
        let region = Region::new(ALLOCATOR);
        for _ in 0..1000 {
            assert!(bench.decide());
        }
        let allocations = region.change().allocations;
        assert_eq!(allocations, 0, "{patterns} patterns, {counters:?}");
    }
}
