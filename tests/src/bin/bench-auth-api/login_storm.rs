//! Latency of logins and of other requests while more clients log in than can be served.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::client::{Client, Protocol};
use tokio::task::JoinSet;

use crate::edge::{PRODUCTION_BCRYPT_COST, start_edge};

const LOGIN_CLIENTS: usize = 200;
const STORM_DURATION: Duration = Duration::from_secs(20);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// Pause after a failed login, as its `Retry-After` requires.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn run() -> Result<String> {
    let edge = start_edge(PRODUCTION_BCRYPT_COST).await?;
    let token = edge.client()?.register_and_login("alice").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut login_tasks = JoinSet::new();
    for _ in 0..LOGIN_CLIENTS {
        let client = edge.client_with_protocol(Protocol::Http1)?;
        login_tasks.spawn(log_in_repeatedly(client, Arc::clone(&stop)));
    }
    let mut probes = Vec::new();
    for path in ["/health", "/api/profile"] {
        let (client, token, stop) = (edge.client()?, token.clone(), Arc::clone(&stop));
        probes.push((path, tokio::spawn(probe(client, path, token, stop))));
    }
    tokio::time::sleep(STORM_DURATION).await;
    stop.store(true, Ordering::Relaxed);

    let mut logins_by_status: BTreeMap<u16, Vec<Duration>> = BTreeMap::new();
    for (status, latency) in login_tasks.join_all().await.into_iter().flatten() {
        logins_by_status.entry(status).or_default().push(latency);
    }
    let mut table = format!(
        "| storm of {LOGIN_CLIENTS} login clients | count | p50 | p99 | slowest |\n|---|---|---|---|---|\n"
    );
    for (status, latencies) in logins_by_status {
        table += &row(&format!("login, response {status}"), latencies);
    }
    for (path, probe) in probes {
        let (latencies, failed) = probe.await?;
        table += &row(&format!("{path}, {failed} failed"), latencies);
    }
    Ok(table)
}

/// Returns status and latency of each login; a login without response has the status 0.
async fn log_in_repeatedly(client: Client, stop: Arc<AtomicBool>) -> Vec<(u16, Duration)> {
    let mut logins = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let response = client.login("alice").await;
        let status = response.map_or(0, |response| response.status);
        logins.push((status, start.elapsed()));
        if status != 200 {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
    logins
}

/// Returns the latencies of successful requests and the number of failed ones.
async fn probe(
    client: Client,
    path: &'static str,
    token: String,
    stop: Arc<AtomicBool>,
) -> (Vec<Duration>, usize) {
    let (mut latencies, mut failed) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        match client.get_with_token(&token, path).await {
            Ok(response) if response.status == 200 => latencies.push(start.elapsed()),
            _ => failed += 1,
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
    (latencies, failed)
}

fn row(name: &str, mut latencies: Vec<Duration>) -> String {
    latencies.sort();
    let count = u32::try_from(latencies.len()).unwrap_or(u32::MAX);
    let percentile = |percent: usize| {
        let last = latencies.len().saturating_sub(1);
        latencies
            .get((latencies.len() * percent / 100).min(last))
            .copied()
            .unwrap_or_default()
    };
    format!(
        "| {name} | {count} ({:.1}/s) | {:.1?} | {:.1?} | {:.1?} |\n",
        f64::from(count) / STORM_DURATION.as_secs_f64(),
        percentile(50),
        percentile(99),
        percentile(100)
    )
}
