//! An ending holds on every replica before it is acknowledged, whatever has happened to one of them.

use anyhow::{Context, Result};
use fred::clients::Client as Redis;
use fred::interfaces::{ClientLike, KeysInterface, PubsubInterface};
use fred::types::CustomCommand;
use rustix::process::Signal;
use tests::client::Client;
use tests::raw::status;
use tests::replica::{self, Replica, Replicas};
use tests::slow::SlowWay;
use tests::{Store, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Two replicas, and a connection of our own to the Redis that they share.
async fn two_replicas() -> Result<(Replicas, Redis)> {
    let replicas = Replicas::start(Store::PostgresRedis, 2).await?;
    let server = replicas.redis.as_ref().context("it has one")?;
    let redis = server.connect().await?;
    replicas.client(0)?.register("alice").await?;
    Ok((replicas, redis))
}

async fn token(client: &Client) -> Result<String> {
    let tokens = client.login("alice").await?.json();
    Ok(tokens["access_token"]
        .as_str()
        .context("a token")?
        .to_owned())
}

/// How many scripts Redis has run.
async fn scripts(redis: &Redis) -> Result<u64> {
    let info = CustomCommand::new_static("INFO", None, false);
    let info: String = redis.custom(info, vec!["commandstats"]).await?;
    let calls = info
        .split_once("cmdstat_evalsha:calls=")
        .and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
    Ok(calls.unwrap_or_default())
}

/// Until a replica knows a session without asking Redis.
async fn until_it_remembers(redis: &Redis, client: &Client, token: &str) -> Result<()> {
    wait::until("the replica to remember", async || {
        let before = scripts(redis).await.ok();
        let profile = client.get_as(token, "/api/profile").await;
        let after = scripts(redis).await.ok();
        profile.is_ok_and(|answer| answer.status == 200) && before == after
    })
    .await
}

/// What a replica that is stopped says to a request as soon as it goes on.
async fn status_when_it_goes_on(replica: &Replica, token: &str) -> Result<u16> {
    let mut client = TcpStream::connect(replica.address).await?;
    let request = format!(
        "GET /api/profile HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await?;
    replica.process.signal(Signal::CONT)?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    Ok(status(&answer))
}

#[tokio::test]
async fn a_replica_that_was_stopped_does_not_go_on_with_what_it_remembers() -> Result<()> {
    let (replicas, redis) = two_replicas().await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    for _ in 0..5 {
        let token = token(&client).await?;
        until_it_remembers(&redis, &other, &token).await?;
        let stopped = &replicas.all[1];
        stopped.process.signal(Signal::STOP)?;
        let logout = client.post_as(&token, "/api/logout", None).await?;
        assert_eq!(logout.status, 200, "{}", logout.text);
        assert_eq!(status_when_it_goes_on(stopped, &token).await?, 401);
    }
    Ok(())
}

#[tokio::test]
async fn a_second_logout_is_not_answered_before_the_first_is_heard() -> Result<()> {
    let (replicas, redis) = two_replicas().await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    for _ in 0..5 {
        let token = token(&client).await?;
        until_it_remembers(&redis, &other, &token).await?;
        let sessions = client.get_as(&token, "/api/sessions").await?.json();
        let session = sessions["sessions"][0]["id"].as_str().context("an id")?;
        let key = format!("session:{session}");

        let stopped = &replicas.all[1];
        stopped.process.signal(Signal::STOP)?;
        let first = tokio::spawn({
            let (client, token) = (client.clone(), token.clone());
            async move { client.post_as(&token, "/api/logout", None).await }
        });
        wait::until("the session to end", async || {
            redis.exists(&key).await.is_ok_and(|count: u64| count == 0)
        })
        .await?;
        let second = client.post_as(&token, "/api/logout", None).await?;
        assert_eq!(second.status, 400, "{}", second.text);
        assert_eq!(status_when_it_goes_on(stopped, &token).await?, 401);
        assert_eq!(first.await??.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn a_replica_whose_line_died_without_a_word_believes_nothing_and_makes_another() -> Result<()>
{
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let server = replicas.redis.as_ref().context("it has one")?;
    let redis = server.connect().await?;
    let way = SlowWay::to(server.address).await?;
    for (name, value) in replica::redis(way.address) {
        replicas.set(&name, &value);
    }
    replicas.add()?;
    replicas.ready(1).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    client.register("alice").await?;
    let token = token(&client).await?;
    until_it_remembers(&redis, &other, &token).await?;

    way.silence();
    // The line on which it asks is missed at once, the one on which it is told of endings is not.
    wait::until("the other replica to ask Redis again", async || {
        let profile = other.get_as(&token, "/api/sessions").await;
        profile.is_ok_and(|answer| answer.status == 200)
    })
    .await?;
    let logout = client.post_as(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 200, "{}", logout.text);
    assert_eq!(other.get_as(&token, "/api/profile").await?.status, 401);
    let token = self::token(&client).await?;
    until_it_remembers(&redis, &other, &token).await
}

#[tokio::test]
async fn what_no_replica_says_switches_nothing_off() -> Result<()> {
    let (replicas, redis) = two_replicas().await?;
    let client = replicas.client(0)?;
    let token = token(&client).await?;
    for channel in ["sessions:ended", "sessions:alive"] {
        let _: () = redis.publish(channel, "hello").await?;
        until_it_remembers(&redis, &client, &token).await?;
    }
    // More at once than anybody listens to in time.
    let mut many = tokio::task::JoinSet::new();
    for number in 0..5000 {
        let redis = redis.clone();
        let ended = format!("nobody 0 user:{}", 1_000_000 + number);
        many.spawn(async move { redis.publish::<(), _, _>("sessions:ended", ended).await });
    }
    while let Some(told) = many.join_next().await {
        told??;
    }
    until_it_remembers(&redis, &client, &token).await
}
