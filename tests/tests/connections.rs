//! Connections of a replica: their number and the time for request headers are limited.

use anyhow::Result;
use tests::client::Client;
use tests::replicas::Replicas;
use tests::{Store, on_both_stores};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

on_both_stores!(incomplete_requests_use_up_no_files_and_are_closed);

async fn incomplete_requests_use_up_no_files_and_are_closed(store: Store) -> Result<()> {
    let mut replicas = Replicas::start(store, 0).await?;
    replicas.limit_open_files(128);
    replicas.start_another()?;
    replicas.wait_until_ready(0).await?;
    let (address, internal_address) = {
        let replica = &replicas.instances[0];
        (replica.address, replica.internal_address)
    };
    // One of them has had a complete request before.
    let request = "GET /health HTTP/1.1\r\nhost: x\r\n";
    let mut reused = TcpStream::connect(address).await?;
    reused
        .write_all(format!("{request}\r\n").as_bytes())
        .await?;
    let mut response = [0; 12];
    reused.read_exact(&mut response).await?;
    assert_eq!(&response, b"HTTP/1.1 200");

    reused.write_all(request.as_bytes()).await?;
    let mut incomplete = vec![reused];
    for _ in 0..140 {
        let mut connection = TcpStream::connect(address).await?;
        connection.write_all(request.as_bytes()).await?;
        incomplete.push(connection);
    }
    replicas.wait_for_log("too many connections").await?;
    let internal_client = Client::cleartext(internal_address)?;
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(internal_client.get(path).await?.status, 200, "{path}");
    }
    // The replica closes what is incomplete, or resets it, as bytes are unread.
    for connection in incomplete.iter_mut().take(2) {
        let _ = connection.read_to_end(&mut Vec::new()).await;
    }
    drop(incomplete);
    assert_eq!(replicas.client(0)?.get("/health").await?.status, 200);
    Ok(())
}
