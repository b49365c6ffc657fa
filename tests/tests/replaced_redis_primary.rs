//! Both programs while they are connected to a primary of Redis that is cut off from its replicas, or that was replaced
//! while it was stopped: another primary may have ended the sessions that it still has.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use fred::interfaces::{ClientLike, PubsubInterface};
use fred::types::CustomCommand;
use rustix::process::Signal;
use tests::address::unused_loopback;
use tests::client::Client;
use tests::fault_proxy::FaultProxy;
use tests::identity_edge::IdentityEdge;
use tests::redis::RedisServer;
use tests::settings::redis_settings;
use tests::{Store, wait};

/// Number of requests that each program gets.
const REQUESTS: usize = 20;

/// Makes the Redis of `edge` need a replica for writes, and starts one.
async fn start_redis_replica(edge: &IdentityEdge) -> Result<RedisServer> {
    let primary = edge.replicas.redis.as_ref().context("a Redis server")?;
    let (host, port) = (
        primary.address.ip().to_string(),
        primary.address.port().to_string(),
    );
    let replica = RedisServer::start_with(
        unused_loopback(),
        &[
            "--replicaof",
            &host,
            &port,
            "--repl-diskless-sync-delay",
            "0",
        ],
    )?;
    // A replica counts as one for as long as the longest pause of a busy machine.
    primary.set_config("min-replicas-max-lag", "60").await?;
    primary.set_config("min-replicas-to-write", "1").await?;
    wait_for_info(primary, "min_slaves_good_slaves:1").await?;
    Ok(replica)
}

/// Starts a replica of auth-api that uses the Redis at `redis`. Returns its index.
async fn start_replica(edge: &mut IdentityEdge, redis: SocketAddr) -> Result<usize> {
    for (name, value) in redis_settings(redis) {
        edge.replicas.set(&name, &value);
    }
    edge.replicas.start_another()?;
    let index = edge.replicas.instances.len() - 1;
    edge.replicas.wait_until_ready(index).await?;
    Ok(index)
}

async fn wait_for_info(server: &RedisServer, text: &str) -> Result<()> {
    let connection = server.connect().await?;
    wait::until(text, async || {
        let info = CustomCommand::new_static("INFO", None, false);
        let info: Result<String, _> = connection.custom(info, vec!["replication"]).await;
        info.is_ok_and(|info| info.contains(text))
    })
    .await
}

async fn replicaof(server: &RedisServer, primary: &[&str]) -> Result<()> {
    let connection = server.connect().await?;
    let replicaof = CustomCommand::new_static("REPLICAOF", None, false);
    Ok(connection.custom(replicaof, primary.to_vec()).await?)
}

/// Logs alice in and returns a token that the first replica and the gateway accept without asking.
async fn log_in(edge: &IdentityEdge) -> Result<String> {
    let client = edge.replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    edge.wait_until_remembered(0, &token).await?;
    Ok(token)
}

async fn profile(client: &Client, token: &str) -> Result<u16> {
    Ok(client.get_with_token(token, "/api/profile").await?.status)
}

#[tokio::test]
async fn a_primary_that_was_replaced_while_it_was_stopped_accepts_no_token() -> Result<()> {
    let mut edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let promoted = start_redis_replica(&edge).await?;
    let (token, kept) = (log_in(&edge).await?, edge.replicas.client(0)?);
    let kept = kept.login("alice").await?.access_token()?;

    let stopped = edge.replicas.redis.as_ref().context("a Redis server")?;
    stopped
        .process()
        .context("a process")?
        .signal(Signal::STOP)?;
    replicaof(&promoted, &["NO", "ONE"]).await?;
    let current = start_replica(&mut edge, promoted.address).await?;
    let current = edge.replicas.client(current)?;
    let logout = current.post_with_token(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 200, "{}", logout.text);

    let (replica, gateway) = (edge.replicas.client(0)?, edge.gateways[0].client()?);
    let waiting = tokio::spawn({
        let (replica, token) = (replica.clone(), token.clone());
        async move { profile(&replica, &token).await }
    });
    let stopped = edge.replicas.redis.as_ref().context("a Redis server")?;
    stopped
        .process()
        .context("a process")?
        .signal(Signal::CONT)?;
    assert_eq!(waiting.await??, 503);
    for _ in 0..REQUESTS {
        assert_eq!(profile(&replica, &token).await?, 503);
        let response = gateway.get_with_token(&token, "/private/a").await?;
        assert_eq!(response.status, 503, "{}", response.text);
        // It cannot end sessions either, since the other one would not know.
        let logout = replica.post_with_token(&kept, "/api/logout", None).await?;
        assert_eq!(logout.status, 503, "{}", logout.text);
    }
    assert_eq!(profile(&current, &token).await?, 401);
    assert_eq!(profile(&current, &kept).await?, 200);
    Ok(())
}

#[tokio::test]
async fn a_primary_without_its_replicas_is_not_asked_until_they_are_back() -> Result<()> {
    let edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let mut redis_replica = start_redis_replica(&edge).await?;
    let primary = edge.replicas.redis.as_ref().context("a Redis server")?;
    let token = log_in(&edge).await?;
    let (replica, gateway) = (edge.replicas.client(0)?, edge.gateways[0].client()?);
    let edge_status = async || {
        let response = gateway.get_with_token(&token, "/private/a").await?;
        anyhow::Ok(response.status)
    };

    redis_replica.kill();
    wait_for_info(primary, "min_slaves_good_slaves:0").await?;
    wait::until("the leases to expire", async || {
        let at_replica = profile(&replica, &token).await.ok();
        at_replica == Some(503) && edge_status().await.ok() == Some(503)
    })
    .await?;
    for _ in 0..REQUESTS {
        assert_eq!(profile(&replica, &token).await?, 503);
        assert_eq!(edge_status().await?, 503);
    }
    edge.replicas.instances[0]
        .process
        .wait_for_log("cut off from its replicas")
        .await?;

    redis_replica.start_again()?;
    wait::until("the session", async || {
        let at_replica = profile(&replica, &token).await.ok();
        at_replica == Some(200) && edge_status().await.ok() == Some(200)
    })
    .await?;
    edge.wait_until_remembered(0, &token).await
}

// A replica passes on what is published at its primary, but not what it has missed before it followed that.
#[tokio::test]
async fn programs_do_not_stay_subscribed_to_a_replica() -> Result<()> {
    let mut edge = IdentityEdge::start(Store::PostgresRedis, 0).await?;
    let promoted = start_redis_replica(&edge).await?;
    let former = edge.replicas.redis.as_ref().context("a Redis server")?;
    let proxy = FaultProxy::start(former.address).await?;
    let behind_proxy = start_replica(&mut edge, proxy.address).await?;
    edge.replicas.instances.swap(0, behind_proxy);
    edge.start_gateway(Some(proxy.address)).await?;
    let token = log_in(&edge).await?;
    let kept = edge.replicas.client(0)?.login("alice").await?;
    let kept = kept.access_token()?;

    replicaof(&promoted, &["NO", "ONE"]).await?;
    proxy.lead_to(promoted.address).await;
    let current = start_replica(&mut edge, promoted.address).await?;
    let current = edge.replicas.client(current)?;
    let logout = current.post_with_token(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 200, "{}", logout.text);

    // Their histories differ, so that the former primary copies the data of the other one.
    let former = edge.replicas.redis.as_ref().context("a Redis server")?;
    let _: () = former.connect().await?.publish("other", "message").await?;
    let (host, port) = (
        promoted.address.ip().to_string(),
        promoted.address.port().to_string(),
    );
    replicaof(former, &[&host, &port]).await?;
    wait_for_info(former, "master_link_status:up").await?;
    edge.wait_until_remembered(0, &kept).await?;
    let gateway = edge.gateways[0].client()?;
    for _ in 0..REQUESTS {
        let response = gateway.get_with_token(&token, "/private/a").await?;
        assert_eq!(response.status, 401, "{}", response.text);
        assert_eq!(profile(&edge.replicas.client(0)?, &token).await?, 401);
    }
    Ok(())
}
