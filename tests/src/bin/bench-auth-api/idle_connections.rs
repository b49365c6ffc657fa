//! Memory of the gateway for idle TLS connections.

use anyhow::Result;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::raw_connection::RawConnection;
use tests::{Gateway, MockUpstream};

const CONNECTIONS: u64 = 10_000;
/// Files that a process has open besides its connections.
const OTHER_FILES: u64 = 200;
/// Keeps the connections open for longer than the benchmark takes, and lets its one client have all of them.
const CONFIG: &str = "premier: {limits: {idle_timeout: 600, max_connections_per_client: 20000}}";

pub(crate) async fn run() -> Result<String> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address])
        .config(CONFIG)
        .start()
        .await?;
    let memory_before = gateway.process.resident_memory()? >> 20;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS.min(raise_connection_limit()?) {
        let mut connection = RawConnection::connect(&gateway).await?;
        connection
            .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await?;
        connection.read_until("\r\n\r\n").await?;
        connections.push(connection);
    }
    let memory_after = gateway.process.resident_memory()? >> 20;
    Ok(format!(
        "| idle TLS connections | MiB of the gateway |\n|---|---|\n\
         | 0 | {memory_before} |\n| {} | {memory_after} |\n",
        connections.len()
    ))
}

/// Raises the limit of open files to its maximum and returns the number of connections that a
/// gateway accepts under it: the gateway reserves a second file, for the upstream connection of
/// each.
fn raise_connection_limit() -> Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES) / 2)
}
