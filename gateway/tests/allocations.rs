//! Deciding about a request takes nothing from the heap.

use std::alloc::System;

use gateway::measure::Decisions;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_decision_takes_nothing_from_the_heap() {
    for patterns in [1, 1000] {
        let mut decisions = Decisions::new(patterns, 1000);
        // What is made once: buckets of the quota store, the matcher's states, counters.
        for _ in 0..2_000_000 {
            assert!(decisions.decide());
        }
        let region = Region::new(ALLOCATOR);
        for _ in 0..1000 {
            assert!(decisions.decide());
        }
        let allocations = region.change().allocations;
        assert_eq!(allocations, 0, "{patterns} patterns");
    }
}
