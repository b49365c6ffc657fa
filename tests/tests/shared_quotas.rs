//! Quotas that several gateways share through Redis.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fred::clients::Client as RedisClient;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::CustomCommand;
use rustix::process::Signal;
use tests::address::random_loopback;
use tests::client::Protocol;
use tests::fault_proxy::FaultProxy;
use tests::redis::RedisServer;
use tests::{Client, Gateway, MockUpstream, wait};

/// Time limit of a request for the store where a test needs the store's decision although the machine is busy.
const PATIENT: &str = "timeout: 5";

/// Gateways with one store, and a client that all of them know by one address.
struct Group {
    gateways: Vec<Gateway>,
    source: Ipv4Addr,
}

impl Group {
    /// Starts `count` gateways in front of `upstream` with the quota `rule` on all paths.
    async fn start(
        count: usize,
        upstream: &MockUpstream,
        store: std::net::SocketAddr,
        settings: &str,
        rule: &str,
    ) -> Result<Self> {
        let config = format!(
            "premier:
  limits: {{max_connections_per_client: 5000}}
  quotas: {{store: 'redis://{store}', {settings}}}
  default_features: {{rate_limit: {{{rule}}}}}
"
        );
        let mut gateways = Vec::new();
        for _ in 0..count {
            let gateway = Gateway::builder(&[upstream.address])
                .config(&config)
                .start()
                .await?;
            gateways.push(gateway);
        }
        let group = Self {
            gateways,
            source: random_loopback(),
        };
        wait::until("all gateways to know each other", async || {
            for gateway in &group.gateways {
                match status(gateway).await {
                    Ok(quotas) if quotas["gateways"] == count => {}
                    _ => return false,
                }
            }
            true
        })
        .await?;
        Ok(group)
    }

    /// Returns a client of each gateway, all with one address.
    fn clients(&self) -> Result<Vec<Client>> {
        self.gateways
            .iter()
            .map(|gateway| client_of(gateway, self.source))
            .collect()
    }
}

fn client_of(gateway: &Gateway, source: Ipv4Addr) -> Result<Client> {
    Client::new(
        gateway.address,
        &gateway.certificate,
        source,
        Protocol::Http2,
    )
}

/// Returns the state of the store as `/status` of a gateway has it.
async fn status(gateway: &Gateway) -> Result<serde_json::Value> {
    let status = gateway.admin_client()?.get("/status").await?;
    Ok(status.json()["quotas"].clone())
}

/// Sends requests in turn by the clients, all at once. Returns how many passed and how many were refused.
async fn flood(clients: &[Client], path: &str, count: usize) -> Result<(usize, usize)> {
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..count {
        let (client, path) = (clients[number % clients.len()].clone(), path.to_owned());
        requests.spawn(async move { client.get(&path).await.map(|response| response.status) });
    }
    let (mut passed, mut refused) = (0, 0);
    while let Some(status) = requests.join_next().await {
        match status?? {
            200 => passed += 1,
            429 => refused += 1,
            other => anyhow::bail!("unexpected status {other}"),
        }
    }
    Ok((passed, refused))
}

/// Returns how often the store has executed scripts.
async fn script_calls(redis: &RedisClient) -> Result<u64> {
    let info = CustomCommand::new_static("INFO", None, false);
    let info: String = redis.custom(info, vec!["commandstats"]).await?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    let calls = line.and_then(|rest| rest.split(',').next()).unwrap_or("0");
    Ok(calls.parse()?)
}

/// Returns the commands that the gateway sent, heartbeats apart.
async fn commands(gateway: &Gateway) -> Result<u64> {
    let status = status(gateway).await?;
    status["commands"].as_u64().context("a number of commands")
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_quota_of_a_thousand_requests_at_once_passes_three_gateways() -> Result<()> {
    const ROUNDS: usize = 5;
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    for algorithm in ["fixed_window", "sliding_window", "token_bucket"] {
        let rule = format!("quota: 100, duration: 864000, algorithm: {algorithm}");
        let group = Group::start(3, &upstream, redis.address, PATIENT, &rule).await?;
        let clients = group.clients()?;
        for round in 0..ROUNDS {
            let path = format!("/{algorithm}/{round}");
            let (passed, refused) = flood(&clients, &path, 1000).await?;
            assert_eq!((passed, refused), (100, 900), "{algorithm}, round {round}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaky_bucket_is_one_queue_of_three_gateways() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    // The queue drains slower than the requests arrive.
    let rule = "quota: 10, duration: 10, algorithm: leaky_bucket, bucket_size: 4";
    let group = Group::start(3, &upstream, redis.address, PATIENT, rule).await?;
    let start = Instant::now();
    let (passed, _) = flood(&group.clients()?, "/", 60).await?;
    let elapsed = start.elapsed();
    // One leaves at once, the others one second apart; one more may enter for each second of the flood.
    assert!(elapsed >= Duration::from_millis(2900), "{elapsed:?}");
    let most = 5 + usize::try_from(elapsed.as_secs())?;
    assert!((4..=most).contains(&passed), "{passed} in {elapsed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_before_a_restart_stays_used() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    for algorithm in ["fixed_window", "sliding_window", "token_bucket"] {
        let rule = format!("quota: 100, duration: 864000, algorithm: {algorithm}");
        let mut group = Group::start(1, &upstream, redis.address, PATIENT, &rule).await?;
        let client = group.clients()?.remove(0);
        let path = format!("/{algorithm}");
        assert_eq!(
            flood(std::slice::from_ref(&client), &path, 30).await?,
            (30, 0)
        );
        assert!(group.gateways[0].process.terminate()?.success());
        let group = Group {
            source: group.source,
            ..Group::start(1, &upstream, redis.address, PATIENT, &rule).await?
        };
        let after = flood(&group.clients()?, &path, 100).await?;
        assert_eq!(after, (70, 30), "{algorithm}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_keeps_the_counts() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let rule = "quota: 100, duration: 864000";
    let mut group = Group::start(1, &upstream, redis.address, PATIENT, rule).await?;
    let client = group.clients()?.remove(0);
    assert_eq!(flood(&[client], "/", 30).await?, (30, 0));
    let gateway = &mut group.gateways[0];
    let mut second = gateway.start_second(&["run", "--upgrade"])?;
    second.wait_for_log("waiting for the sockets").await?;
    gateway.process.signal(Signal::QUIT)?;
    assert!(gateway.process.wait_for_exit()?.success());
    assert_eq!(flood(&group.clients()?, "/", 100).await?, (70, 30));
    assert!(second.terminate()?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_takes_no_more_than_its_lease_with_it() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let rule = "quota: 100, duration: 864000";
    let mut group = Group::start(2, &upstream, redis.address, PATIENT, rule).await?;
    let clients = group.clients()?;
    let (before, _) = flood(&clients[..1], "/", 30).await?;
    drop(group.gateways.remove(0));
    let (after, refused) = flood(&clients[1..], "/", 100).await?;
    assert_eq!(after + refused, 100);
    assert!(before + after <= 100, "{before} and {after}");
    assert!(after >= 40, "{after}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_gateway_spends_nothing_late() -> Result<()> {
    const WINDOW: Duration = Duration::from_secs(3);
    /// Time after which units of a lease no longer count: it lasts a window, and they count for one more and a slot.
    const FORGOTTEN: Duration = Duration::from_millis(6100);
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let rule = "quota: 40, duration: 3, algorithm: sliding_window, per: [client]";
    let group = Group::start(2, &upstream, redis.address, PATIENT, rule).await?;
    let clients = group.clients()?;
    // The first gateway is stopped while it has unused units, and continues when the store does not count them any more.
    assert_eq!(flood(&clients[..1], "/", 11).await?, (11, 0));
    let stopped = Instant::now();
    group.gateways[0].process.signal(Signal::STOP)?;
    wait::until("the store to forget the lease", async || {
        stopped.elapsed() >= FORGOTTEN
    })
    .await?;
    group.gateways[0].process.signal(Signal::CONT)?;
    let continued = Instant::now();
    let mut passed = 0;
    while passed < 40 && continued.elapsed() < WINDOW / 2 {
        passed += flood(&clients, "/", 60).await?.0;
    }
    passed += flood(&clients, "/", 60).await?.0;
    assert!(passed <= 40 || continued.elapsed() > WINDOW, "{passed}");
    assert!(passed >= 38, "{passed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_client_gets_what_another_gateway_returns_and_what_an_emptied_store_gives()
-> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    // A refusal is remembered for a tenth of the window.
    let rule = "quota: 100, duration: 50";
    let mut group = Group::start(2, &upstream, redis.address, PATIENT, rule).await?;
    let clients = group.clients()?;
    assert_eq!(flood(&clients[..1], "/", 60).await?, (60, 0));
    let (before, refused) = flood(&clients[1..], "/", 60).await?;
    assert!(before <= 40 && refused > 0, "{before}");
    assert!(group.gateways[0].process.terminate()?.success());
    let start = Instant::now();
    let mut second = before;
    while second < 39 && start.elapsed() < Duration::from_secs(20) {
        second += flood(&clients[1..], "/", 20).await?.0;
    }
    assert!((39..=40).contains(&second), "{second}");

    let connection = redis.connect().await?;
    let flush = CustomCommand::new_static("FLUSHALL", None, false);
    let _: () = connection.custom(flush, Vec::<String>::new()).await?;
    let start = Instant::now();
    let mut anew = 0;
    while anew == 0 && start.elapsed() < Duration::from_secs(20) {
        anew = flood(&clients[1..], "/", 20).await?.0;
    }
    assert!(anew > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gateway_counts_alone_while_the_store_is_away() -> Result<()> {
    let (mut redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let rule = "quota: 100, duration: 864000";
    let group = Group::start(2, &upstream, redis.address, "on_store_failure: local", rule).await?;
    let clients = group.clients()?;
    assert_eq!(flood(&clients[..1], "/", 30).await?, (30, 0));

    redis.kill();
    for gateway in &group.gateways {
        gateway
            .wait_for_metric("gateway_quota_store_up", &[], 0.0)
            .await?;
    }
    let start = Instant::now();
    // This gateway has let 30 requests through, and counts on from there. The other one begins.
    assert_eq!(flood(&clients[..1], "/", 200).await?, (70, 130));
    assert_eq!(flood(&clients[1..], "/", 200).await?, (100, 100));
    let elapsed = start.elapsed();
    for gateway in &group.gateways {
        let log = gateway.process.log();
        assert_eq!(
            log.matches("quota store is unavailable: premier").count(),
            1,
            "{log}"
        );
    }
    assert!(
        elapsed < Duration::from_secs(20),
        "400 requests took {elapsed:?}"
    );

    redis.start_again()?;
    let back = Instant::now();
    for gateway in &group.gateways {
        gateway
            .wait_for_metric("gateway_quota_store_up", &[], 1.0)
            .await?;
    }
    assert!(
        back.elapsed() < Duration::from_secs(3),
        "{:?}",
        back.elapsed()
    );
    for gateway in &group.gateways {
        gateway
            .process
            .wait_for_log("quota store is available")
            .await?;
    }
    // Nothing that was counted locally was sent to the store: what the first 30 requests left is there, except the lease
    // of the first gateway.
    let (passed, _) = flood(&clients[1..], "/", 200).await?;
    assert!((30..=70).contains(&passed), "{passed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_refused_without_a_store_if_so_configured() -> Result<()> {
    let (mut redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let rule = "quota: 100, duration: 864000";
    let settings = "on_store_failure: refuse, timeout: 2";
    let group = Group::start(1, &upstream, redis.address, settings, rule).await?;
    let client = group.clients()?.remove(0);
    assert_eq!(client.get("/").await?.status, 200);
    redis.kill();
    group.gateways[0]
        .wait_for_metric("gateway_quota_store_up", &[], 0.0)
        .await?;
    let refused = client.get("/other").await?;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), "1");
    redis.start_again()?;
    wait::until("the store to be used again", async || {
        client
            .get("/other")
            .await
            .is_ok_and(|response| response.status == 200)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_or_slow_store_delays_no_response_for_long() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let proxy = FaultProxy::start(redis.address).await?;
    let rule = "quota: 100, duration: 864000";
    let group = Group::start(1, &upstream, proxy.address, "timeout: 0.2", rule).await?;
    let (gateway, client) = (&group.gateways[0], group.clients()?.remove(0));
    assert_eq!(client.get("/first").await?.status, 200);

    proxy.blackhole_open_connections();
    let start = Instant::now();
    assert_eq!(client.get("/silent").await?.status, 200);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    // The connection is replaced: nothing tells that its peer is gone.
    wait::until("the store to be used again", async || {
        let before = commands(gateway).await.unwrap_or_default();
        let path = format!("/again/{}", start.elapsed().as_nanos());
        let _ = client.get(&path).await;
        commands(gateway).await.is_ok_and(|after| after > before)
    })
    .await?;

    proxy.set_delay(Duration::from_millis(400));
    for number in 0..5 {
        let start = Instant::now();
        assert_eq!(client.get(&format!("/slow/{number}")).await?.status, 200);
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_write_is_not_used() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let rule = "quota: 3, duration: 864000";
    let group = Group::start(1, &upstream, redis.address, PATIENT, rule).await?;
    let (gateway, client) = (&group.gateways[0], group.clients()?.remove(0));
    redis.set_config("maxmemory", "1").await?;
    gateway
        .wait_for_metric("gateway_quota_store_up", &[], 0.0)
        .await?;
    assert_eq!(
        flood(std::slice::from_ref(&client), "/full", 10).await?,
        (3, 7)
    );
    redis.set_config("maxmemory", "0").await?;
    gateway
        .wait_for_metric("gateway_quota_store_up", &[], 1.0)
        .await?;

    let connection = redis.connect().await?;
    let replicaof = CustomCommand::new_static("REPLICAOF", None, false);
    let _: () = connection
        .custom(replicaof.clone(), vec!["127.0.0.1", "1"])
        .await?;
    gateway
        .wait_for_metric("gateway_quota_store_up", &[], 0.0)
        .await?;
    assert_eq!(
        flood(std::slice::from_ref(&client), "/replica", 10).await?,
        (3, 7)
    );
    let _: () = connection.custom(replicaof, vec!["NO", "ONE"]).await?;
    gateway
        .wait_for_metric("gateway_quota_store_up", &[], 1.0)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_store_begins_anew_and_stays_shared() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let rule = "quota: 10, duration: 864000, algorithm: token_bucket";
    let group = Group::start(2, &upstream, redis.address, PATIENT, rule).await?;
    let clients = group.clients()?;
    assert_eq!(flood(&clients, "/", 20).await?, (10, 10));
    let connection = redis.connect().await?;
    let flush = CustomCommand::new_static("FLUSHALL", None, false);
    let _: () = connection.custom(flush, Vec::<String>::new()).await?;
    // Heartbeats restore the key that the gateways hash with.
    wait::until("the registry", async || {
        connection
            .exists::<i64, _>("asgi-gateway:quota-gateways")
            .await
            .is_ok_and(|count| count == 1)
    })
    .await?;
    assert_eq!(flood(&clients, "/other", 20).await?, (10, 10));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_requests_cost_the_store_nothing_until_it_is_asked_again() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let rule = "quota: 5, duration: 864000, per: [client]";
    let group = Group::start(1, &upstream, redis.address, PATIENT, rule).await?;
    let client = group.clients()?.remove(0);
    assert_eq!(
        flood(std::slice::from_ref(&client), "/", 20).await?,
        (5, 15)
    );
    let before = commands(&group.gateways[0]).await?;
    assert_eq!(flood(&[client], "/", 1000).await?, (0, 1000));
    assert_eq!(commands(&group.gateways[0]).await?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn far_from_the_limit_one_command_serves_many_requests() -> Result<()> {
    const REQUESTS: usize = 2000;
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let connection = redis.connect().await?;
    let rule = "quota: 1000000, duration: 864000, per: [client]";
    let group = Group::start(3, &upstream, redis.address, PATIENT, rule).await?;
    let clients = group.clients()?;
    flood(&clients, "/", 200).await?;
    let calls = script_calls(&connection).await?;
    let start = Instant::now();
    flood(&clients, "/", REQUESTS).await?;
    let calls = script_calls(&connection).await? - calls;
    // Each gateway sends a heartbeat every 250 ms.
    let heartbeats = 3 * (start.elapsed().as_millis() / 250 + 2);
    ensure!(
        u128::from(calls) <= heartbeats + (REQUESTS / 20) as u128,
        "{calls} commands, of which at most {heartbeats} are heartbeats"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_has_no_addresses_and_only_keys_that_expire() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let connection = redis.connect().await?;
    let rule = "quota: 5, duration: 600";
    let group = Group::start(1, &upstream, redis.address, PATIENT, rule).await?;
    let client = group.clients()?.remove(0);
    flood(&[client], "/secret-path", 3).await?;
    let all = CustomCommand::new_static("KEYS", None, false);
    let keys: Vec<String> = connection.custom(all, vec!["*"]).await?;
    let quotas: Vec<_> = keys
        .iter()
        .filter(|key| key.starts_with("asgi-gateway:quota:"))
        .collect();
    assert_eq!(quotas.len(), 1, "{keys:?}");
    for key in quotas {
        let lifetime: i64 = connection.ttl(key).await?;
        assert!((1..=601).contains(&lifetime), "{key}: {lifetime} s");
    }
    let source = group.source.to_string();
    assert!(
        keys.iter()
            .all(|key| !key.contains(&source) && !key.contains("secret")),
        "{keys:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_of_two_keyspaces_do_not_share() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let source = random_loopback();
    for keyspace in ["one", "two"] {
        let config = format!(
            "premier:
  keyspace: {keyspace}
  quotas: {{store: 'redis://{}', {PATIENT}}}
  default_features: {{rate_limit: {{quota: 5, duration: 864000}}}}
",
            redis.address
        );
        let gateway = Gateway::start(upstream.address, &config).await?;
        gateway
            .wait_for_metric("gateway_quota_store_up", &[], 1.0)
            .await?;
        let client = client_of(&gateway, source)?;
        assert_eq!(flood(&[client], "/", 10).await?, (5, 5), "{keyspace}");
    }
    Ok(())
}

/// Returns the permissions of the Redis user for gateways, as `docs/operations.md` has them.
fn documented_permissions() -> Vec<&'static str> {
    let operations = include_str!("../../docs/operations.md");
    let (_, command) = operations
        .split_once("ACL SETUSER gateway on >PASSWORD ")
        .expect("the document has the command");
    let (permissions, _) = command
        .split_once("```")
        .expect("the command is in a block");
    permissions.split_whitespace().collect()
}

#[test]
fn the_redis_of_compose_gives_gateways_the_documented_permissions() {
    let compose = include_str!("../../compose.prod.yml");
    let (_, user) = compose
        .split_once("user gateway on >$$password ")
        .expect("compose.prod.yml creates the user");
    let (user, _) = user
        .split_once("exec redis-server")
        .expect("it starts Redis");
    let words = user.replace("gateway=\"$$gateway ", " ").replace('"', " ");
    assert_eq!(
        words.split_whitespace().collect::<Vec<_>>(),
        documented_permissions()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acl_user_with_an_odd_password_needs_few_permissions() -> Result<()> {
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let connection = redis.connect().await?;
    let acl = CustomCommand::new_static("ACL", None, false);
    let permissions = documented_permissions().join(" ");
    let arguments = format!("SETUSER edge on >p@ss:w/rd#?% {permissions}");
    let _: () = connection
        .custom(acl, arguments.split_whitespace().collect::<Vec<_>>())
        .await?;
    let url = format!("redis://edge:p%40ss%3Aw%2Frd%23%3F%25@{}/0", redis.address);
    let config = format!(
        "premier:
  keyspace: edge
  quotas: {{store: '{url}', {PATIENT}}}
  paths:
    - {{pattern: /fixed, features: {{rate_limit: {{quota: 2, duration: 864000}}}}}}
    - {{pattern: /sliding, features: {{rate_limit: {{quota: 2, duration: 864000, algorithm: sliding_window}}}}}}
    - {{pattern: /token, features: {{rate_limit: {{quota: 2, duration: 864000, algorithm: token_bucket}}}}}}
"
    );
    let gateway = Gateway::start(upstream.address, &config).await?;
    gateway
        .wait_for_metric("gateway_quota_store_up", &[], 1.0)
        .await?;
    let client = client_of(&gateway, random_loopback())?;
    for path in ["/fixed", "/sliding", "/token"] {
        assert_eq!(
            flood(std::slice::from_ref(&client), path, 5).await?,
            (2, 3),
            "{path}"
        );
    }
    let local = gateway
        .metric("gateway_quota_local_decisions_total", &[])
        .await?;
    assert_eq!(local, Some(0.0));
    assert!(
        !gateway.process.log().contains("p%40ss"),
        "the log has the password"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_over_its_key_limit_has_one_shared_quota_for_the_rest() -> Result<()> {
    /// Paths that a client may have counted apart.
    const MAX_PATHS: usize = 1024;
    let (redis, upstream) = (RedisServer::start()?, MockUpstream::always_ok().await?);
    let rule = "quota: 2, duration: 864000";
    let group = Group::start(2, &upstream, redis.address, PATIENT, rule).await?;
    let clients = group.clients()?;
    for client in &clients {
        for number in 0..MAX_PATHS {
            let response = client.get(&format!("/{number}")).await?;
            assert_eq!(response.status, 200, "path {number}");
        }
    }
    let mut passed = 0;
    for number in 0..6 {
        let response = clients[number % 2].get(&format!("/new/{number}")).await?;
        passed += usize::from(response.status == 200);
    }
    assert_eq!(passed, 2);
    Ok(())
}
