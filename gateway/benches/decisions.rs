//! Benchmark of the decisions about a request, without network I/O: `cargo bench -p gateway`. Arguments select the
//! measurements whose names have each of them.
//!
//! Prints a table row for each measurement: the lower quartile, the median and the upper quartile of its samples.

use std::env;
use std::hint::black_box;
use std::time::{Duration, Instant};

use gateway::bench::{DecisionBench, QuotaCounters};

const SAMPLES: usize = 100;
/// Fills caches and tables, and shows how many calls a sample has.
const WARM_UP_TIME: Duration = Duration::from_secs(1);
/// Samples that take as long as the warm-up.
const SAMPLES_OF_WARM_UP: u32 = 20;

fn main() {
    for patterns in [1, 1000] {
        measure(&format!("match, {patterns} patterns"), || {
            let mut bench = DecisionBench::new(patterns, 1, QuotaCounters::Local);
            move || {
                black_box(bench.find());
            }
        });
        for clients in [1, 100_000] {
            let name =
                format!("match + quota + metrics + log, {patterns} patterns, {clients} clients");
            measure_decisions(&name, patterns, clients, QuotaCounters::Local);
        }
    }
    for clients in [1, 100_000] {
        let name = format!("match + leased quota + metrics + log, 1 patterns, {clients} clients");
        measure_decisions(&name, 1, clients, QuotaCounters::Leased);
    }
}

fn measure_decisions(name: &str, patterns: usize, clients: u32, counters: QuotaCounters) {
    measure(name, || {
        let mut bench = DecisionBench::new(patterns, clients, counters);
        move || {
            black_box(bench.decide());
        }
    });
}

/// Measures the calls of what `prepare` returns, if `name` is selected.
#[expect(clippy::print_stdout, reason = "the rows are the program's output")]
fn measure<Call: FnMut()>(name: &str, prepare: impl FnOnce() -> Call) {
    // Cargo adds options.
    let mut words = env::args().skip(1).filter(|word| !word.starts_with("--"));
    if !words.all(|word| name.contains(&word)) {
        return;
    }
    let mut call = prepare();
    let (start, mut calls) = (Instant::now(), 0);
    while start.elapsed() < WARM_UP_TIME {
        time_of_calls(&mut call, 1000);
        calls += 1000;
    }
    let calls_of_sample = calls / SAMPLES_OF_WARM_UP;
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let time = time_of_calls(&mut call, calls_of_sample);
            time.as_secs_f64() * 1e9 / f64::from(calls_of_sample)
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    let [low, median, high] = [1, 2, 3].map(|quarter| samples[SAMPLES * quarter / 4]);
    println!("| {name} | {low:.1} {median:.1} {high:.1} |");
}

fn time_of_calls(call: &mut impl FnMut(), calls: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..calls {
        call();
    }
    start.elapsed()
}
