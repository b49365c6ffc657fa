//! Both programs with the kinds of Redis that they support: users with few permissions, TLS, Sentinel and a cluster.

use std::net::Ipv4Addr;

use anyhow::Result;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::CustomCommand;
use tests::address::{random_loopback, unused_loopback};
use tests::certificate::Certificate;
use tests::client::Protocol;
use tests::redis::RedisServer;
use tests::redis_deployments::{RedisCluster, SentinelGroup};
use tests::replicas::Replicas;
use tests::settings::settings;
use tests::{Client, Gateway, MockUpstream, Store};

const ALGORITHMS: [&str; 3] = ["fixed_window", "sliding_window", "token_bucket"];

/// Returns the configuration of a gateway with the store `url` and one path for each algorithm.
fn config(url: &str) -> String {
    let path = |algorithm: &str| {
        format!(
            "    - {{pattern: /{algorithm}/*, features: {{rate_limit: {{quota: 100, duration: 864000, \
             algorithm: {algorithm}}}}}}}\n"
        )
    };
    let paths: String = ALGORITHMS.into_iter().map(path).collect();
    format!(
        "premier:
  keyspace: edge
  quotas: {{store: '{url}', timeout: 5}}
  paths:
{paths}"
    )
}

/// Starts a gateway that shares quotas, and waits until it does.
async fn gateway(upstream: &MockUpstream, config: &str, trusted: Option<&str>) -> Result<Gateway> {
    let mut builder = Gateway::builder(&[upstream.address]).config(config);
    if let Some(file) = trusted {
        builder = builder.set("SSL_CERT_FILE", file);
    }
    let gateway = builder.start().await?;
    gateway
        .wait_for_metric("gateway_quota_store_up", &[], 1.0)
        .await?;
    Ok(gateway)
}

/// Returns how many of `count` requests pass.
async fn passed(gateway: &Gateway, source: Ipv4Addr, path: &str, count: usize) -> Result<usize> {
    let client = Client::new(
        gateway.address,
        &gateway.certificate,
        source,
        Protocol::Http2,
    )?;
    let mut passed = 0;
    for _ in 0..count {
        passed += usize::from(client.get(path).await?.status == 200);
    }
    Ok(passed)
}

/// Checks that two gateways have one quota for each algorithm, all of which the store has counted.
async fn assert_shared(first: &Gateway, second: &Gateway) -> Result<()> {
    let source = random_loopback();
    for algorithm in ALGORITHMS {
        let path = format!("/{algorithm}/a");
        assert_eq!(passed(first, source, &path, 30).await?, 30, "{algorithm}");
        let rest = passed(second, source, &path, 100).await?;
        // A lease that the first one has not used goes back within ten seconds.
        assert!((30..=70).contains(&rest), "{algorithm}: {rest}");
    }
    for gateway in [first, second] {
        let local = gateway
            .metric("gateway_quota_local_decisions_total", &[])
            .await?;
        assert_eq!(local, Some(0.0));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_are_shared_by_an_acl_user_over_tls() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let folder = tempfile::tempdir()?;
    let address = unused_loopback();
    let ip = address.ip().to_string();
    let certificate = Certificate::generate(folder.path(), "server", &[&ip])?;
    let acl_file = folder.path().join("users.acl");
    let users = "user default off\n\
                 user edge on >p@:/?#%ä€ ~edge:quota* resetchannels -@all +evalsha +script|load +time \
                 +hget +hset +hsetnx +hmget +hgetall +hdel +hincrby +pexpire +ping +client +hello +info +select\n";
    std::fs::write(&acl_file, users)?;
    let arguments = ["--aclfile", &acl_file.display().to_string()];
    let mut redis = RedisServer::start_with(address, &arguments)?;
    redis.require_tls(&certificate)?;
    let password = "p%40%3A%2F%3F%23%25%C3%A4%E2%82%AC";
    let config = config(&format!("rediss://edge:{password}@{address}/0"));
    let trusted = certificate.cert_file.display().to_string();
    let first = gateway(&upstream, &config, Some(&trusted)).await?;
    let second = gateway(&upstream, &config, Some(&trusted)).await?;
    assert_shared(&first, &second).await?;
    assert!(!first.process.log().contains(password), "it is logged");

    // A certificate of another authority is not accepted.
    let other = Certificate::generate(folder.path(), "other", &[&ip])?;
    let untrusting = Gateway::builder(&[upstream.address])
        .config(&config)
        .set("SSL_CERT_FILE", &other.cert_file.display().to_string())
        .start()
        .await?;
    let log = &untrusting.process;
    log.wait_for_log("quota store is unavailable").await?;
    let up = untrusting.metric("gateway_quota_store_up", &[]).await?;
    assert_eq!(up, Some(0.0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_are_shared_by_a_cluster() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    for masters in [1, 3] {
        let cluster = RedisCluster::start(masters).await?;
        let config = config(&cluster.url());
        let first = gateway(&upstream, &config, None).await?;
        let second = gateway(&upstream, &config, None).await?;
        assert_shared(&first, &second).await?;
        // Many keys, so that each master has some.
        let source = random_loopback();
        for number in 0..30 {
            let path = format!("/fixed_window/{number}");
            assert_eq!(passed(&first, source, &path, 1).await?, 1);
        }
        for master in &cluster.masters {
            let connection = master.connect().await?;
            let size = CustomCommand::new_static("DBSIZE", None, false);
            let keys: i64 = connection.custom(size, Vec::<String>::new()).await?;
            assert!(keys > 0, "{masters} masters");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_survive_a_failover_by_sentinel() -> Result<()> {
    let (mut group, upstream) = (
        SentinelGroup::start().await?,
        MockUpstream::always_ok().await?,
    );
    let config = config(&group.url());
    let first = gateway(&upstream, &config, None).await?;
    let source = random_loopback();
    assert_eq!(passed(&first, source, "/token_bucket/a", 30).await?, 30);
    group.fail_over().await?;
    let replica = group.replica.connect().await?;
    // The gateway has found the new primary when its heartbeat is there.
    let _: i64 = replica.del("edge:quota-gateways").await?;
    tests::wait::until("the gateway to follow", async || {
        let exists = replica.exists::<i64, _>("edge:quota-gateways").await;
        exists.is_ok_and(|count| count == 1)
    })
    .await?;
    first
        .wait_for_metric("gateway_quota_store_up", &[], 1.0)
        .await?;
    let rest = passed(&first, source, "/token_bucket/a", 100).await?;
    assert!((30..=70).contains(&rest), "{rest}: {}", group.log()?);
    // So does a gateway that starts after the failover.
    let second = gateway(&upstream, &config, None).await?;
    assert_eq!(passed(&second, source, "/token_bucket/a", 100).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_survive_a_failover_by_sentinel() -> Result<()> {
    let mut group = SentinelGroup::start().await?;
    let url = settings([("REDIS_URL", group.url())]);
    let replicas = Replicas::start_with(Store::PostgresRedis, 2, url).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    let token = client.register_and_login("alice").await?;
    let profile = async |client: &Client| client.get_with_token(&token, "/api/profile").await;
    assert_eq!(profile(&client).await?.status, 200);
    group.fail_over().await?;
    for client in [&client, &other] {
        client
            .wait_for_response("/ready", |response| response.status == 200)
            .await?;
        tests::wait::until("the session", async || {
            profile(client)
                .await
                .is_ok_and(|response| response.status == 200)
        })
        .await?;
    }
    // A logout reaches the other replica through the new primary.
    let logout = client.post_with_token(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 200, "{}", logout.text);
    assert_eq!(profile(&other).await?.status, 401);
    Ok(())
}

#[tokio::test]
async fn a_cluster_is_rejected_where_it_cannot_work() -> Result<()> {
    let url = "redis-cluster://:secret@127.0.0.1:7000".to_owned();
    let replicas = Replicas::start_with(
        Store::PostgresRedis,
        1,
        settings([("REDIS_URL", url.clone())]),
    );
    let error = replicas.await.err().map(|error| format!("{error:#}"));
    let error = error.unwrap_or_default();
    assert!(error.contains("REDIS_URL names a Redis Cluster"), "{error}");
    assert!(!error.contains("secret"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_replica_that_starts_while_redis_is_down_uses_it_once_it_is_back() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    replicas.take_sessions_away().await?;
    replicas.start_another()?;
    let process = &replicas.instances[1].process;
    process.wait_for_log("store connection failed").await?;
    replicas.bring_sessions_back().await?;
    replicas.wait_until_ready(1).await?;
    let client = replicas.client(1)?;
    let token = client.register_and_login("alice").await?;
    let profile = client.get_with_token(&token, "/api/profile").await?;
    assert_eq!(profile.status, 200, "{}", profile.text);
    let process = &replicas.instances[1].process;
    process
        .wait_for_log("subscribed to session invalidations")
        .await
}

#[tokio::test]
async fn a_gateway_that_starts_while_redis_is_down_uses_it_once_it_is_back() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut redis = RedisServer::start()?;
    redis.kill();
    let url = format!("redis://{}/0", redis.address);
    let identity = format!(
        "  identity: {{verify: 'http://{}/verify', sessions: '{url}'}}\n",
        upstream.address
    );
    let gateway = Gateway::builder(&[upstream.address])
        .config(&(config(&url) + &identity))
        .start()
        .await?;
    let log = &gateway.process;
    log.wait_for_log("quota store is unavailable").await?;
    redis.start_again()?;
    gateway
        .wait_for_metric("gateway_quota_store_up", &[], 1.0)
        .await?;
    log.wait_for_log("subscribed to session invalidations")
        .await
}
