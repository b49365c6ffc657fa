//! Session revocation: a logout takes effect on every replica before its response is sent, even if
//! one of them is paused or has lost its connection to Redis.

use anyhow::{Context, Result};
use fred::clients::Client as RedisClient;
use fred::interfaces::{ClientLike, EventInterface, KeysInterface, PubsubInterface};
use fred::types::CustomCommand;
use rustix::process::Signal;
use tests::client::Client;
use tests::fault_proxy::FaultProxy;
use tests::raw_connection::parse_status;
use tests::replicas::{Replica, Replicas};
use tests::settings::redis_settings;
use tests::{Store, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Starts two replicas with the account of alice. Returns them with a connection of the test to
/// their Redis.
async fn start_two_replicas() -> Result<(Replicas, RedisClient)> {
    let replicas = Replicas::start(Store::PostgresRedis, 2).await?;
    let server = replicas.redis.as_ref().context("a Redis server")?;
    let redis = server.connect().await?;
    replicas.client(0)?.register("alice").await?;
    Ok((replicas, redis))
}

/// Logs alice in and returns her access token.
async fn log_in(client: &Client) -> Result<String> {
    client.login("alice").await?.access_token()
}

/// Number of scripts that Redis has run.
async fn script_count(redis: &RedisClient) -> Result<u64> {
    let info = CustomCommand::new_static("INFO", None, false);
    let statistics: String = redis.custom(info, vec!["commandstats"]).await?;
    let calls = statistics
        .split_once("cmdstat_evalsha:calls=")
        .and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
    Ok(calls.unwrap_or_default())
}

/// Waits until a replica serves a session from its cache, without a request to Redis.
async fn wait_until_cached(redis: &RedisClient, client: &Client, token: &str) -> Result<()> {
    wait::until("the replica to cache the session", async || {
        let before = script_count(redis).await.ok();
        let profile = client.get_with_token(token, "/api/profile").await;
        let after = script_count(redis).await.ok();
        profile.is_ok_and(|response| response.status == 200) && before == after
    })
    .await
}

/// Sends a request to a paused replica, resumes the replica, and returns the response status.
async fn status_on_resume(replica: &Replica, token: &str) -> Result<u16> {
    let mut connection = TcpStream::connect(replica.address).await?;
    let request = format!(
        "GET /api/profile HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await?;
    replica.process.signal(Signal::CONT)?;
    let mut response = String::new();
    connection.read_to_string(&mut response).await?;
    Ok(parse_status(&response))
}

#[tokio::test]
async fn a_replica_paused_during_a_logout_rejects_the_token_when_it_resumes() -> Result<()> {
    let (replicas, redis) = start_two_replicas().await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    for _ in 0..5 {
        let token = log_in(&client).await?;
        wait_until_cached(&redis, &other, &token).await?;
        let paused = &replicas.instances[1];
        paused.process.signal(Signal::STOP)?;
        let logout = client.post_with_token(&token, "/api/logout", None).await?;
        assert_eq!(logout.status, 200, "{}", logout.text);
        assert_eq!(status_on_resume(paused, &token).await?, 401);
    }
    Ok(())
}

#[tokio::test]
async fn a_second_logout_gets_no_response_before_the_first_is_acknowledged() -> Result<()> {
    let (replicas, redis) = start_two_replicas().await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    for _ in 0..5 {
        let token = log_in(&client).await?;
        wait_until_cached(&redis, &other, &token).await?;
        let sessions = client.get_with_token(&token, "/api/sessions").await?.json();
        let id = sessions["sessions"][0]["id"]
            .as_str()
            .context("a session id")?;
        let key = format!("session:{id}");

        let paused = &replicas.instances[1];
        paused.process.signal(Signal::STOP)?;
        let first = tokio::spawn({
            let (client, token) = (client.clone(), token.clone());
            async move { client.post_with_token(&token, "/api/logout", None).await }
        });
        wait::until("the session to end", async || {
            redis.exists(&key).await.is_ok_and(|count: u64| count == 0)
        })
        .await?;
        let second = client.post_with_token(&token, "/api/logout", None).await?;
        assert_eq!(second.status, 400, "{}", second.text);
        assert_eq!(status_on_resume(paused, &token).await?, 401);
        assert_eq!(first.await??.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn a_replica_with_a_dead_subscription_caches_no_session_and_reconnects() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let server = replicas.redis.as_ref().context("a Redis server")?;
    let redis = server.connect().await?;
    let proxy = FaultProxy::start(server.address).await?;
    for (name, value) in redis_settings(proxy.address) {
        replicas.set(&name, &value);
    }
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    client.register("alice").await?;
    let token = log_in(&client).await?;
    wait_until_cached(&redis, &other, &token).await?;

    proxy.blackhole_open_connections();
    // A dead command connection is noticed by the next command, a dead subscription only by its
    // missing heartbeats.
    wait::until("the other replica to reach Redis again", async || {
        let sessions = other.get_with_token(&token, "/api/sessions").await;
        sessions.is_ok_and(|response| response.status == 200)
    })
    .await?;
    let logout = client.post_with_token(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 200, "{}", logout.text);
    assert_eq!(
        other.get_with_token(&token, "/api/profile").await?.status,
        401
    );
    let token = log_in(&client).await?;
    wait_until_cached(&redis, &other, &token).await
}

#[tokio::test]
async fn foreign_messages_do_not_disable_the_session_cache() -> Result<()> {
    let (replicas, redis) = start_two_replicas().await?;
    let client = replicas.client(0)?;
    let token = log_in(&client).await?;
    for channel in ["sessions:ended", "sessions:alive"] {
        let _: () = redis.publish(channel, "hello").await?;
        wait_until_cached(&redis, &client, &token).await?;
    }
    // More invalidations at once than a replica can process in time.
    let mut publishing = tokio::task::JoinSet::new();
    for number in 0..5000 {
        let redis = redis.clone();
        let message = format!("nobody 0 user:{}", 1_000_000 + number);
        publishing.spawn(async move { redis.publish::<(), _, _>("sessions:ended", message).await });
    }
    while let Some(published) = publishing.join_next().await {
        published??;
    }
    wait_until_cached(&redis, &client, &token).await
}

// A client may present such a token without end.
#[tokio::test]
async fn caches_are_told_once_of_a_session_that_its_account_refuses() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let server = replicas.redis.as_ref().context("a Redis server")?;
    let (subscriber, redis) = (server.connect().await?, server.connect().await?);
    let mut received = subscriber.message_rx();
    subscriber.subscribe("sessions:ended").await?;
    // A replica publishes twice if Redis has not responded to it for a while.
    wait_until_cached(&redis, &client, &token).await?;
    let end = "UPDATE users SET sessions_valid_after = now() WHERE login = 'alice'";
    replicas.execute(end).await?;
    for _ in 0..20 {
        let profile = client.get_with_token(&token, "/api/profile").await?;
        assert_eq!(profile.status, 401, "{}", profile.text);
    }
    let _: () = redis.publish("sessions:ended", "the last one").await?;
    let mut messages = Vec::new();
    while messages.last().is_none_or(|last| last != "the last one") {
        let message = tokio::time::timeout(wait::TIMEOUT, received.recv()).await??;
        messages.push(message.value.convert::<String>()?);
    }
    assert_eq!(messages.len(), 2, "{messages:?}");
    Ok(())
}
