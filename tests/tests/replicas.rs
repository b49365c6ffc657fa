//! auth-api by itself, on both stores: the way of an account from registration to deletion.

use std::cell::RefCell;
use std::net::SocketAddr;

use anyhow::Result;
use rustix::process::Signal;
use serde_json::json;
use tests::client::{PASSWORD, credentials};
use tests::replica::Replicas;
use tests::{Store, on_both_stores, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

on_both_stores!(
    every_replica_knows_every_account_and_session,
    sigterm_ends_every_replica_well,
    nobody_holds_up_the_end_of_a_replica,
);

async fn every_replica_knows_every_account_and_session(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);

    assert_eq!(first.register("alice").await?.status, 201);
    assert_eq!(second.register("alice").await?.status, 409);
    let token = second.token("alice").await?;
    let profile = first.get_as(&token, "/api/profile").await?;
    assert_eq!(
        (profile.status, &profile.json()["login"]),
        (200, &json!("alice"))
    );
    assert_eq!(second.get_as(&token, "/api/profile").await?.status, 200);

    assert_eq!(
        first.post_as(&token, "/api/logout", None).await?.status,
        200
    );
    let refused = second.get_as(&token, "/api/profile").await?;
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.json(),
        json!({"detail": "Token not found or expired"})
    );

    let deleted = second
        .post("/api/delete", &credentials("alice", PASSWORD))
        .await?;
    assert_eq!(deleted.status, 200);
    assert_eq!(first.login("alice").await?.status, 401);
    Ok(())
}

async fn sigterm_ends_every_replica_well(store: Store) -> Result<()> {
    let mut replicas = Replicas::start(store, 2).await?;
    for replica in &mut replicas.all {
        assert!(
            replica.process.stop()?.success(),
            "{}",
            replica.process.log()
        );
    }
    Ok(())
}

async fn ask(replica: SocketAddr, request: &str) -> Result<String> {
    let mut client = TcpStream::connect(replica).await?;
    client.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn nobody_holds_up_the_end_of_a_replica(store: Store) -> Result<()> {
    let mut replicas = Replicas::start(store, 1).await?;
    let address = replicas.all[0].address;
    let stuck = "POST /api/login HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    let stuck = tokio::spawn(ask(address, stuck));
    let another = "GET /api/profile HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    ask(address, another).await?;
    let goes_on = tokio::spawn(async move { while ask(address, another).await.is_ok() {} });

    replicas.all[0].process.signal(Signal::TERM)?;
    let answer = stuck.await??;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let process = RefCell::new(&mut replicas.all[0].process);
    wait::until("the end, within 30 seconds", async || {
        !process.borrow_mut().is_running()
    })
    .await?;
    assert!(process.borrow_mut().ended()?.success());
    goes_on.await?;
    Ok(())
}
