//! Graceful shutdown of both programs: exit status, requests in flight, open connections.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use rustix::process::Signal;
use tests::raw_connection::{RawConnection, parse_status};
use tests::replicas::Replicas;
use tests::{Edge, Gateway, MockResponse, MockUpstream, Store, on_both_stores, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

on_both_stores!(
    every_program_exits_successfully_on_sigterm,
    every_replica_exits_successfully_on_sigterm,
    no_client_delays_the_shutdown_of_a_replica,
);

#[tokio::test]
async fn a_replica_whose_terminal_is_closed_shuts_down() -> Result<()> {
    let mut replicas = Replicas::start(Store::Embedded, 1).await?;
    let process = &mut replicas.instances[0].process;
    process.signal(Signal::HUP)?;
    assert!(process.wait_for_exit()?.success(), "{}", process.log());
    Ok(())
}

async fn every_replica_exits_successfully_on_sigterm(store: Store) -> Result<()> {
    let mut replicas = Replicas::start(store, 2).await?;
    for replica in &mut replicas.instances {
        assert!(
            replica.process.terminate()?.success(),
            "{}",
            replica.process.log()
        );
    }
    Ok(())
}

/// Sends a request on a new connection and returns everything received until the replica closes it.
async fn exchange(replica: SocketAddr, request: &str) -> Result<String> {
    let mut connection = TcpStream::connect(replica).await?;
    connection.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    connection.read_to_string(&mut response).await?;
    Ok(response)
}

async fn no_client_delays_the_shutdown_of_a_replica(store: Store) -> Result<()> {
    let mut replicas = Replicas::start(store, 1).await?;
    let address = replicas.instances[0].address;
    let incomplete = "POST /api/login HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    let incomplete = tokio::spawn(exchange(address, incomplete));
    let complete = "GET /api/profile HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    exchange(address, complete).await?;
    let busy_client =
        tokio::spawn(async move { while exchange(address, complete).await.is_ok() {} });

    replicas.instances[0].process.signal(Signal::TERM)?;
    let response = incomplete.await??;
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
    let process = RefCell::new(&mut replicas.instances[0].process);
    wait::until("the replica to exit", async || {
        !process.borrow_mut().is_running()
    })
    .await?;
    assert!(process.borrow_mut().wait_for_exit()?.success());
    busy_client.await?;
    Ok(())
}

async fn every_program_exits_successfully_on_sigterm(store: Store) -> Result<()> {
    let mut edge = Edge::builder(store).start().await?;
    let gateway = &mut edge.gateway.process;
    assert!(gateway.terminate()?.success(), "{}", gateway.log());
    for replica in &mut edge.replicas.instances {
        assert!(
            replica.process.terminate()?.success(),
            "{}",
            replica.process.log()
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_request_in_flight_is_finished_at_shutdown() -> Result<()> {
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nfinished";
    let upstream = MockUpstream::start(move |_| {
        MockResponse::BytesAfter(Arc::clone(&released), response.to_vec())
    })
    .await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let client = gateway.client()?;
    let request = tokio::spawn(async move { client.get("/").await });
    wait::until("the request to arrive", async || {
        !upstream.received_requests().is_empty()
    })
    .await?;
    gateway.process.signal(Signal::TERM)?;
    gateway.process.wait_for_log("shutting down").await?;
    release.notify_one();
    let response = request.await??;
    assert_eq!((response.status, response.text.as_str()), (200, "finished"));
    assert!(gateway.process.wait_for_exit()?.success());
    Ok(())
}

#[tokio::test]
async fn an_open_connection_gets_one_more_response_at_shutdown() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut connection = RawConnection::connect(&gateway).await?;
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    connection.send(request).await?;
    connection.read_until("\r\n\r\n").await?;
    gateway.process.signal(Signal::TERM)?;
    gateway
        .process
        .wait_for_log("draining requests in flight")
        .await?;
    connection.send(request).await?;
    let response = connection.read_to_string().await?;
    let last = response.rfind("HTTP/1.1 ").map_or("", |at| &response[at..]);
    assert_eq!(parse_status(last), 200, "{response}");
    assert!(last.to_lowercase().contains("connection: close"), "{last}");
    assert!(gateway.process.wait_for_exit()?.success());
    Ok(())
}
