//! What the gateway decides about a request, in nanoseconds: `cargo bench -p gateway`.

use criterion::{Criterion, criterion_group, criterion_main};
use gateway::measure::Decisions;

fn decisions(criterion: &mut Criterion) {
    for patterns in [1, 1000] {
        criterion.bench_function(&format!("match, {patterns} patterns"), |bencher| {
            let mut decisions = Decisions::new(patterns, 1);
            bencher.iter(|| decisions.find());
        });
        for clients in [1, 100_000] {
            let name =
                format!("match + quota + metrics + log, {patterns} patterns, {clients} clients");
            criterion.bench_function(&name, |bencher| {
                let mut decisions = Decisions::new(patterns, clients);
                bencher.iter(|| decisions.decide());
            });
        }
    }
}

criterion_group!(benches, decisions);
criterion_main!(benches);
