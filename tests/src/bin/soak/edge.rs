//! The programs under test, and what is done to them: reloads, renewals of the certificate, endpoints that come and go.

use std::fs;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::certificate::Certificate;
use tests::client::HOST;
use tests::identity_edge::SIGNING_KEY;
use tests::process::Process;
use tests::raw_connection::RawConnection;
use tests::{Edge, Store};

/// Certificate that the gateway serves now, for new connections.
#[derive(Debug, Clone)]
pub(crate) struct CurrentCertificate(Arc<Mutex<Certificate>>);

impl CurrentCertificate {
    pub(crate) fn new(certificate: Certificate) -> Self {
        Self(Arc::new(Mutex::new(certificate)))
    }

    pub(crate) fn get(&self) -> Certificate {
        self.0.lock().expect("no holder of the lock panics").clone()
    }

    fn set(&self, certificate: Certificate) {
        *self.0.lock().expect("no holder of the lock panics") = certificate;
    }
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

/// Renews the certificate as a deploy hook does, and waits until the gateway serves it.
pub(crate) async fn renew_certificate(edge: &Edge, current: &CurrentCertificate) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let renewed = Certificate::generate(folder.path(), "cert", &[HOST, "127.0.0.1"])?;
    let served = &edge.gateway.certificate;
    for (new, old) in [
        (&renewed.key_file, &served.key_file),
        (&renewed.cert_file, &served.cert_file),
    ] {
        let beside = old.with_extension("renewed");
        fs::copy(new, &beside)?;
        fs::rename(beside, old)?;
    }
    tests::wait::until("the renewed certificate", async || {
        RawConnection::connect_with_server_name(&edge.gateway, HOST, &renewed)
            .await
            .is_ok()
    })
    .await?;
    current.set(renewed);
    Ok(())
}

/// Opens a connection, sends a request on it and leaves it idle.
pub(crate) async fn idle_connection(
    edge: &Edge,
    current: &CurrentCertificate,
) -> Result<RawConnection> {
    let certificate = current.get();
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
