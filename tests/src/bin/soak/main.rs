//! Soak: the edge at a third of its capacity for hours, with idle connections, reloads, renewals of the certificate,
//! endpoints and clients that come and go. Prints memory, open files and latency as they change, fits a line to each and
//! fails if one rises by more than noise or a request fails: `make soak`.

mod edge;
mod trend;
mod users;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tests::Edge;
use tokio::task::JoinSet;

use crate::edge::{Certificates, idle_connection, resources};
use crate::trend::Trend;
use crate::users::Load;

const USERS: usize = 24;
/// Duration of the load without pauses, which measures the capacity.
const CAPACITY_DURATION: Duration = Duration::from_secs(20);
const IDLE_CONNECTIONS: usize = 5000;
/// Idle connections that are replaced by new ones at each step.
const REPLACED_CONNECTIONS: usize = 5;
/// Interval of the steps: each replaces idle connections, some reload, renew the certificate or change the endpoints.
const STEP_INTERVAL: Duration = Duration::from_secs(1);
const RELOAD_STEPS: usize = 20;
const RENEWAL_STEPS: usize = 47;
/// Samples of a run.
const SAMPLES: u32 = 120;
const MIN_SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Part of the samples from before caches and allocators have reached their size, which the line leaves out.
const WARM_UP: f64 = 0.3;
/// Rise in the whole run, as a part of the mean, that counts as noise.
const MEMORY_TOLERANCE: f64 = 0.03;
const FILES_TOLERANCE: f64 = 0.01;
const LATENCY_TOLERANCE: f64 = 0.25;

#[tokio::main]
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "progress and results of a command-line program"
)]
async fn main() -> Result<ExitCode> {
    let minutes = std::env::args().nth(1).context("usage: soak MINUTES")?;
    let minutes: u32 = minutes.parse().context("MINUTES is no number")?;
    let duration = Duration::from_mins(minutes.into());
    let edge = edge::start().await?;
    let certificates = Certificates::new(&edge.gateway.certificate)?;
    let load = Arc::new(Load::new(edge.gateway.address, certificates));
    let mut users = JoinSet::new();
    for number in 0..USERS {
        users.spawn(users::run(Arc::clone(&load), number));
    }
    let rate = set_pause(&load).await;
    eprintln!("soak: capacity {rate:.0} requests/s, load a third of it, for {minutes} minutes");
    let mut idle = Vec::new();
    while idle.len() < IDLE_CONNECTIONS {
        idle.push(idle_connection(&edge, &load.certificates).await?);
    }
    eprintln!("soak: {} idle connections", idle.len());
    load.take_p99();

    let mut series = Series::default();
    let interval = (duration / SAMPLES).max(MIN_SAMPLE_INTERVAL);
    let start = Instant::now();
    let mut step = 0;
    println!("{}", Series::HEADER);
    while start.elapsed() < duration {
        tokio::time::sleep(STEP_INTERVAL).await;
        step += 1;
        for number in 0..REPLACED_CONNECTIONS {
            let index = (step * REPLACED_CONNECTIONS + number) % idle.len();
            if let Ok(connection) = idle_connection(&edge, &load.certificates).await {
                idle[index] = connection;
            }
        }
        if step.is_multiple_of(RELOAD_STEPS) {
            edge::write_config(&edge, step / RELOAD_STEPS)?;
            edge.gateway.process.signal(Signal::HUP)?;
        }
        if step.is_multiple_of(RENEWAL_STEPS) {
            load.certificates.renew(&edge, step).await?;
        }
        let sample_count = u32::try_from(series.samples.len()).unwrap_or(u32::MAX);
        if start.elapsed() >= interval * (sample_count + 1) {
            println!("{}", series.add(start.elapsed(), &edge, &load)?);
        }
    }
    load.is_over.store(true, Ordering::Relaxed);
    users.join_all().await;
    println!();
    let trends = series.print_trends();
    let failures = load.failures();
    for (error, count) in &failures {
        println!("failed: {count} × {error}");
    }
    Ok(if failures.is_empty() {
        trends
    } else {
        ExitCode::FAILURE
    })
}

/// Measures the capacity and sets the pause with which the users send a third of it. Returns the capacity, in requests
/// per second.
async fn set_pause(load: &Load) -> f64 {
    let measure = async || {
        let before = load.requests.load(Ordering::Relaxed);
        let start = Instant::now();
        tokio::time::sleep(CAPACITY_DURATION).await;
        let requests = load.requests.load(Ordering::Relaxed) - before;
        f64::from(u32::try_from(requests).unwrap_or(u32::MAX)) / start.elapsed().as_secs_f64()
    };
    // Users have registered, connections are open.
    measure().await;
    let capacity = measure().await;
    // A user sends one request in the pause and the latency, which is low at this rate.
    let users = f64::from(u32::try_from(USERS).unwrap_or(u32::MAX));
    let pause = Duration::from_secs_f64(users / (capacity / 3.0));
    let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
    load.pause_us.store(pause_us, Ordering::Relaxed);
    capacity
}

/// A sampled value.
#[derive(Debug, Clone, Copy)]
struct Column {
    name: &'static str,
    tolerance: f64,
}

const COLUMNS: [Column; 7] = [
    column("gateway memory, MiB", MEMORY_TOLERANCE),
    column("gateway files", FILES_TOLERANCE),
    column("auth-api 1 memory, MiB", MEMORY_TOLERANCE),
    column("auth-api 1 files", FILES_TOLERANCE),
    column("auth-api 2 memory, MiB", MEMORY_TOLERANCE),
    column("auth-api 2 files", FILES_TOLERANCE),
    column("p99, ms", LATENCY_TOLERANCE),
];

const fn column(name: &'static str, tolerance: f64) -> Column {
    Column { name, tolerance }
}

/// Samples of a run.
#[derive(Debug, Default)]
struct Series {
    /// Hours since the start, with a value for each of [`COLUMNS`].
    samples: Vec<(f64, [f64; COLUMNS.len()])>,
}

impl Series {
    const HEADER: &str = "minutes  gateway MiB  files  auth-api 1 MiB  files  auth-api 2 MiB  files  p99 ms  requests  failures";

    /// Takes a sample and returns it as a line.
    fn add(&mut self, elapsed: Duration, edge: &Edge, load: &Load) -> Result<String> {
        let gateway = resources(&edge.gateway.process)?;
        let [first, second] = [0, 1].map(|index| &edge.replicas.instances[index].process);
        let (first, second) = (resources(first)?, resources(second)?);
        let p99 = load.take_p99().unwrap_or_default().as_secs_f64() * 1000.0;
        let values = [
            gateway.memory_mib,
            gateway.files,
            first.memory_mib,
            first.files,
            second.memory_mib,
            second.files,
            p99,
        ];
        let hours = elapsed.as_secs_f64() / 3600.0;
        self.samples.push((hours, values));
        Ok(format!(
            "{:7.1}  {:11.1}  {:5.0}  {:14.1}  {:5.0}  {:14.1}  {:5.0}  {:6.1}  {:8}  {:8}",
            hours * 60.0,
            values[0],
            values[1],
            values[2],
            values[3],
            values[4],
            values[5],
            values[6],
            load.requests.load(Ordering::Relaxed),
            load.failure_count(),
        ))
    }

    /// Prints the line of each value, and returns a failure if one rises.
    #[expect(clippy::print_stdout, reason = "results of a command-line program")]
    fn print_trends(&self) -> ExitCode {
        let end = self.samples.last().map_or(0.0, |(hours, _)| *hours);
        let settled = self
            .samples
            .iter()
            .filter(|(hours, _)| *hours >= WARM_UP * end);
        let settled: Vec<_> = settled.collect();
        let mut outcome = ExitCode::SUCCESS;
        println!(
            "| value | mean | change in an hour | standard error | verdict |\n|---|---|---|---|---|"
        );
        for (index, column) in COLUMNS.iter().enumerate() {
            let samples: Vec<_> = settled
                .iter()
                .map(|(hours, values)| (*hours, values[index]))
                .collect();
            let Some(trend) = Trend::fit(&samples) else {
                println!("| {} | too few samples | | | |", column.name);
                outcome = ExitCode::FAILURE;
                continue;
            };
            let verdict = if trend.rises(column.tolerance) {
                outcome = ExitCode::FAILURE;
                "rises"
            } else {
                "flat"
            };
            println!(
                "| {} | {:.1} | {:+.2} | {:.2} | {verdict} |",
                column.name, trend.mean, trend.per_hour, trend.error
            );
        }
        outcome
    }
}
