//! Benchmark of the decisions about a request, without network I/O: `cargo bench -p gateway`.

use criterion::{Criterion, criterion_group, criterion_main};
use gateway::bench::DecisionBench;

fn decisions(criterion: &mut Criterion) {
    for patterns in [1, 1000] {
        criterion.bench_function(&format!("match, {patterns} patterns"), |bencher| {
            let mut bench = DecisionBench::new(patterns, 1);
            bencher.iter(|| bench.find());
        });
        for clients in [1, 100_000] {
            let name =
                format!("match + quota + metrics + log, {patterns} patterns, {clients} clients");
            criterion.bench_function(&name, |bencher| {
                let mut bench = DecisionBench::new(patterns, clients);
                bencher.iter(|| bench.decide());
            });
        }
    }
}

criterion_group!(benches, decisions);
criterion_main!(benches);
