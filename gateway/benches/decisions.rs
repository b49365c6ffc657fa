//! Benchmark of the decisions about a request, without network I/O: `cargo bench -p gateway`.

use criterion::{Criterion, criterion_group, criterion_main};
use gateway::bench::{DecisionBench, QuotaCounters};

fn decisions(criterion: &mut Criterion) {
    for patterns in [1, 1000] {
        criterion.bench_function(&format!("match, {patterns} patterns"), |bencher| {
            let mut bench = DecisionBench::new(patterns, 1, QuotaCounters::Local);
            bencher.iter(|| bench.find());
        });
        for clients in [1, 100_000] {
            let name =
                format!("match + quota + metrics + log, {patterns} patterns, {clients} clients");
            criterion.bench_function(&name, |bencher| {
                let mut bench = DecisionBench::new(patterns, clients, QuotaCounters::Local);
                bencher.iter(|| bench.decide());
            });
        }
    }
    for clients in [1, 100_000] {
        let name = format!("match + leased quota + metrics + log, 1 patterns, {clients} clients");
        criterion.bench_function(&name, |bencher| {
            let mut bench = DecisionBench::new(1, clients, QuotaCounters::Leased);
            bencher.iter(|| bench.decide());
        });
    }
}

criterion_group!(benches, decisions);
criterion_main!(benches);
