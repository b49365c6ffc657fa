//! The programs under test, and what is done to them: reloads, renewals of the certificate, endpoints that come and go.

use std::fs;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tests::certificate::Certificate;
use tests::client::HOST;
use tests::identity_edge::SIGNING_KEY;
use tests::process::Process;
use tests::raw_connection::RawConnection;
use tests::{Edge, Store};

/// Certificate that the gateway serves, and the next one: a client trusts both, so that no renewal fails its requests.
#[derive(Debug)]
pub(crate) struct Certificates {
    folder: TempDir,
    trusted: Mutex<Certificate>,
    next: Mutex<Certificate>,
}

impl Certificates {
    /// Returns the certificates of a gateway that serves `served`.
    pub(crate) fn new(served: &Certificate) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let next = generate(&folder, 0)?;
        Ok(Self {
            folder,
            trusted: Mutex::new(either(served, &next)),
            next: Mutex::new(next),
        })
    }

    /// Returns what a new client trusts.
    pub(crate) fn trusted(&self) -> Certificate {
        lock(&self.trusted).clone()
    }

    /// Renews the certificate as a deploy hook does, and waits until the gateway serves the next one.
    pub(crate) async fn renew(&self, edge: &Edge, number: usize) -> Result<()> {
        let renewed = lock(&self.next).clone();
        let served = &edge.gateway.certificate;
        for (new, old) in [
            (&renewed.key_file, &served.key_file),
            (&renewed.cert_file, &served.cert_file),
        ] {
            fs::rename(new, old)?;
        }
        tests::wait::until("the renewed certificate", async || {
            RawConnection::connect_with_server_name(&edge.gateway, HOST, &renewed)
                .await
                .is_ok()
        })
        .await?;
        let next = generate(&self.folder, number)?;
        *lock(&self.trusted) = either(&renewed, &next);
        *lock(&self.next) = next;
        Ok(())
    }
}

fn generate(folder: &TempDir, number: usize) -> Result<Certificate> {
    Certificate::generate(folder.path(), &number.to_string(), &[HOST, "127.0.0.1"])
}

/// Returns what a client trusts that accepts two certificates.
fn either(first: &Certificate, second: &Certificate) -> Certificate {
    Certificate {
        pem: first.pem.clone() + &second.pem,
        ..first.clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of the lock panics")
}

/// Starts the gateway, two replicas of auth-api and their stores.
pub(crate) async fn start() -> Result<Edge> {
    let mut edge = Edge::builder(Store::PostgresRedis)
        .set("SIGNING_KEY", SIGNING_KEY)
        .set("LOG_LEVEL", "WARNING")
        .set_gateway("LOG_LEVEL", "WARNING")
        .start()
        .await?;
    write_config(&edge, 0)?;
    edge.gateway.process.signal(Signal::HUP)?;
    edge.gateway.process.ensure_running()?;
    Ok(edge)
}

/// Writes a configuration whose effects differ with `version`: the endpoints are all replicas, or all but one of them.
pub(crate) fn write_config(edge: &Edge, version: usize) -> Result<()> {
    let replicas = &edge.replicas.instances;
    let left_out = version % (replicas.len() + 1);
    let servers: Vec<_> = replicas
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != left_out)
        .map(|(_, replica)| format!("'http://{}'", replica.address))
        .collect();
    let servers = servers.join(", ");
    let redis = edge.replicas.redis.as_ref().context("there is Redis")?;
    let (redis, first) = (redis.address, replicas[0].address);
    let config = format!(
        "# {version}
premier:
  servers: [{servers}]
  limits: {{idle_timeout: 1000000, max_connections_per_client: 20000}}
  identity:
    keys: http://{first}/.well-known/jwks.json
    sessions: redis://{redis}/0
  paths:
    - pattern: /edge/*
      strip_prefix: /edge
      features: {{auth: {{required: true}}, timeout: {{seconds: 10}}}}
    - pattern: /api/*
      features:
        rate_limit: {{quota: 1000000, duration: 60, algorithm: sliding_window, per: [client, endpoint]}}
        timeout: {{seconds: 10}}
        retry: {{max_attempts: 3, wait: 0.1}}
        circuit_breaker: {{failure_threshold: 5, recovery_timeout: 5}}
"
    );
    let file = edge.gateway.config_file();
    let new_file = file.with_extension("new");
    fs::write(&new_file, config)?;
    Ok(fs::rename(new_file, file)?)
}

/// Opens a connection, sends a request on it and leaves it idle.
pub(crate) async fn idle_connection(
    edge: &Edge,
    certificates: &Certificates,
) -> Result<RawConnection> {
    let certificate = certificates.trusted();
    let mut connection =
        RawConnection::connect_with_server_name(&edge.gateway, HOST, &certificate).await?;
    connection
        .send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    let response = connection.read_some().await?;
    ensure!(!response.is_empty(), "the gateway closes the connection");
    Ok(connection)
}

/// Resources of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resources {
    pub(crate) memory_mib: f64,
    pub(crate) files: f64,
}

pub(crate) fn resources(process: &Process) -> Result<Resources> {
    let files = fs::read_dir(format!("/proc/{}/fd", process.id()))?.count();
    let memory_kib = u32::try_from(process.resident_memory()? >> 10)?;
    Ok(Resources {
        memory_mib: f64::from(memory_kib) / 1024.0,
        files: f64::from(u32::try_from(files)?),
    })
}
