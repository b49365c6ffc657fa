//! Time from the start of a program to its first response, and its memory then.

use std::time::{Duration, Instant};

use anyhow::Result;
use tests::client::credentials;
use tests::{Edge, Gateway, Store};

const POLL_INTERVAL: Duration = Duration::from_millis(1);

pub(crate) async fn run() -> Result<String> {
    let mut edge = Edge::builder(Store::Embedded).start().await?;
    let start = Instant::now();
    edge.replicas.start_another()?;
    let index = edge.replicas.instances.len() - 1;
    let client = edge.replicas.client(index)?;
    while client
        .post("/api/login", &credentials("nobody", "nothing"))
        .await
        .is_err()
    {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let auth_api_startup = start.elapsed();

    let replica = &edge.replicas.instances[index];
    let start = Instant::now();
    let gateway = Gateway::builder(&[replica.address]).start().await?;
    let client = gateway.client()?;
    while !client
        .get("/health")
        .await
        .is_ok_and(|response| response.status == 200)
    {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let gateway_startup = start.elapsed();
    Ok(format!(
        "| time to first response, embedded store | |\n|---|---|\n\
         | auth-api | {auth_api_startup:.0?}, {} MiB of memory |\n\
         | gateway | {gateway_startup:.0?}, {} MiB of memory |\n",
        replica.process.resident_memory()? >> 20,
        gateway.process.resident_memory()? >> 20,
    ))
}
