//! Users: each logs in, uses its token, refreshes it and logs out, over and over, on connections of its own.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::Client;
use tests::address::random_loopback;
use tests::certificate::Certificate;
use tests::client::{Protocol, Response};
use tokio::time::sleep;

use crate::edge::Certificates;

/// Requests with a token in a round.
const PROFILE_READS: usize = 16;
/// Pause of a user whose request has failed.
const FAILURE_PAUSE: Duration = Duration::from_millis(500);

/// What the users share.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) gateway: SocketAddr,
    pub(crate) certificates: Certificates,
    /// Pause before each request, in microseconds.
    pub(crate) pause_us: AtomicU64,
    pub(crate) is_over: AtomicBool,
    latencies: Mutex<Vec<Duration>>,
    pub(crate) requests: AtomicU64,
    /// Failed rounds, by their errors.
    failures: Mutex<BTreeMap<String, u64>>,
}

impl Load {
    pub(crate) fn new(gateway: SocketAddr, certificates: Certificates) -> Self {
        Self {
            gateway,
            certificates,
            pause_us: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            latencies: Mutex::default(),
            requests: AtomicU64::new(0),
            failures: Mutex::default(),
        }
    }

    /// Returns the number of failed rounds.
    pub(crate) fn failure_count(&self) -> u64 {
        let failures = self.failures.lock().expect("no holder of the lock panics");
        failures.values().sum()
    }

    /// Returns the errors of failed rounds with their numbers.
    pub(crate) fn failures(&self) -> BTreeMap<String, u64> {
        let failures = self.failures.lock().expect("no holder of the lock panics");
        failures.clone()
    }

    fn record_failure(&self, error: &anyhow::Error) {
        let mut failures = self.failures.lock().expect("no holder of the lock panics");
        *failures.entry(format!("{error:#}")).or_default() += 1;
    }

    /// Returns the 99th percentile of the latencies since the last call.
    pub(crate) fn take_p99(&self) -> Option<Duration> {
        let mut latencies =
            std::mem::take(&mut *self.latencies.lock().expect("no holder of the lock panics"));
        latencies.sort();
        latencies.get(latencies.len() * 99 / 100).copied()
    }

    async fn request<F>(&self, request: F) -> Result<Response>
    where
        F: Future<Output = Result<Response>>,
    {
        sleep(Duration::from_micros(self.pause_us.load(Ordering::Relaxed))).await;
        let start = Instant::now();
        let response = request.await?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut latencies = self.latencies.lock().expect("no holder of the lock panics");
        latencies.push(start.elapsed());
        Ok(response)
    }
}

/// Runs one user until the load is over.
pub(crate) async fn run(load: Arc<Load>, number: usize) {
    let login = format!("soak {number}");
    let protocol = if number.is_multiple_of(2) {
        Protocol::Http2
    } else {
        Protocol::Http1
    };
    while !load.is_over.load(Ordering::Relaxed) {
        // A new connection in each round, from an address that may be new too.
        let certificate = load.certificates.trusted();
        let source = random_loopback();
        if let Err(error) = round(&load, &login, &certificate, source, protocol).await {
            load.record_failure(&error);
            sleep(FAILURE_PAUSE).await;
        }
    }
}

async fn round(
    load: &Load,
    login: &str,
    certificate: &Certificate,
    source: Ipv4Addr,
    protocol: Protocol,
) -> Result<()> {
    let client = Client::new(load.gateway, certificate, source, protocol)?;
    let mut response = load.request(client.login(login)).await?;
    if response.status == 401 {
        load.request(client.register(login)).await?;
        response = load.request(client.login(login)).await?;
    }
    let mut token = response.access_token()?;
    let mut refresh_token = refresh_token(&response)?;
    for read in 0..PROFILE_READS {
        let path = if read % 2 == 0 {
            "/api/profile"
        } else {
            "/edge/health"
        };
        let response = load.request(client.get_with_token(&token, path)).await?;
        ensure!(response.status == 200, "{}", response.text);
        if read == PROFILE_READS / 2 {
            let body = json!({"refresh_token": refresh_token});
            let response = load.request(client.post("/api/refresh", &body)).await?;
            token = response.access_token()?;
            refresh_token = self::refresh_token(&response)?;
        }
    }
    let logout = client.post_with_token(&token, "/api/logout", None);
    load.request(logout).await?;
    Ok(())
}

fn refresh_token(response: &Response) -> Result<String> {
    let body: Value = serde_json::from_str(&response.text)?;
    let token = body["refresh_token"].as_str();
    Ok(token.context("no refresh token")?.to_owned())
}
