//! Stores that are stopped, hang or are out of memory: responses of 503 in time, never a wrong 200
//! or 401, no acknowledged change lost, and recovery without a restart.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use fred::interfaces::{ClientLike, HashesInterface};
use fred::types::CustomCommand;
use rustix::process::Signal;
use serde_json::json;
use sqlx::Connection;
use tests::client::{Client, NEW_PASSWORD, PASSWORD, credentials};
use tests::fault_proxy::FaultProxy;
use tests::pgbouncer::PgBouncer;
use tests::postgres::{Database, PostgresServer, lock_user_row};
use tests::process::signal_with_children;
use tests::redis::RedisServer;
use tests::replicas::Replicas;
use tests::settings::{Settings, postgres_settings, redis_settings, settings};
use tests::{Store, wait};
use tokio::task::JoinSet;

/// Longest duration of a request while a store is unavailable: three seconds, and a margin for a
/// busy machine.
const MAX_RESPONSE_TIME: Duration = Duration::from_secs(5);
/// Longest time until a store that is available again is used: one second, and a margin for a
/// busy machine.
const MAX_RECOVERY_TIME: Duration = Duration::from_secs(5);

async fn assert_503_in_time(client: &Client, token: &str, path: &str) -> Result<()> {
    let start = Instant::now();
    let response = client.get_with_token(token, path).await?;
    assert_eq!(response.status, 503, "{}", response.text);
    assert!(!response.header("retry-after").is_empty());
    assert!(start.elapsed() < MAX_RESPONSE_TIME, "{:?}", start.elapsed());
    Ok(())
}

async fn assert_recovers_in_time(client: &Client, token: &str) -> Result<()> {
    let start = Instant::now();
    wait::until("the store to be used again", async || {
        client
            .get_with_token(token, "/api/profile")
            .await
            .is_ok_and(|response| response.status == 200)
    })
    .await?;
    assert!(start.elapsed() < MAX_RECOVERY_TIME, "{:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn requests_fail_with_503_until_a_stopped_redis_is_back() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    replicas.redis.as_mut().expect("the store has Redis").kill();
    client
        .wait_for_response("/ready", |response| response.status == 503)
        .await?;
    for path in ["/api/profile", "/api/sessions"] {
        assert_503_in_time(&client, &token, path).await?;
    }
    assert_eq!(client.login("alice").await?.status, 503);
    assert_eq!(client.get("/health").await?.status, 200);
    replicas
        .redis
        .as_mut()
        .expect("the store has Redis")
        .start_again()?;
    assert_recovers_in_time(&client, &token).await
}

#[tokio::test]
async fn requests_fail_with_503_while_redis_hangs() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let redis = replicas
        .redis
        .as_ref()
        .and_then(|redis| redis.process())
        .expect("Redis runs");
    redis.signal(Signal::STOP)?;
    assert_503_in_time(&client, &token, "/api/sessions").await?;
    let start = Instant::now();
    assert_eq!(client.login("alice").await?.status, 503);
    assert!(start.elapsed() < MAX_RESPONSE_TIME);
    redis.signal(Signal::CONT)?;
    assert_recovers_in_time(&client, &token).await
}

#[tokio::test]
async fn requests_fail_with_503_while_postgres_hangs_or_is_stopped() -> Result<()> {
    let mut server = PostgresServer::start()?;
    let database = server.create_database().await?;
    let settings = postgres_settings(server.address, &database.name);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    assert_eq!(
        client.get_with_token(&token, "/api/profile").await?.status,
        200
    );

    let process = server.process().expect("PostgreSQL runs");
    signal_with_children(process.id(), Signal::STOP)?;
    assert_503_in_time(&client, &token, "/api/profile").await?;
    signal_with_children(process.id(), Signal::CONT)?;
    assert_recovers_in_time(&client, &token).await?;

    server.stop_immediately()?;
    assert_503_in_time(&client, &token, "/api/profile").await?;
    assert_eq!(client.register("bob").await?.status, 503);
    assert_eq!(client.get("/health").await?.status, 200);
    server.start_again()?;
    assert_recovers_in_time(&client, &token).await?;
    assert_eq!(client.register("carol").await?.status, 201);
    assert_eq!(
        client.login("alice").await?.status,
        200,
        "an acknowledged account is lost"
    );
    Ok(())
}

/// Most connections that a replica opens to PostgreSQL.
const MAX_POOL_SIZE: u32 = 10;

/// Logs alice in more often at once than the pool has connections, and returns the statuses.
async fn concurrent_logins(client: &Client) -> Result<Vec<u16>> {
    let mut logins = JoinSet::new();
    for _ in 0..MAX_POOL_SIZE + 2 {
        let client = client.clone();
        logins.spawn(async move { client.login("alice").await });
    }
    let responses: Vec<_> = logins.join_all().await.into_iter().collect::<Result<_>>()?;
    Ok(responses.iter().map(|response| response.status).collect())
}

#[tokio::test]
async fn dead_postgres_connections_are_replaced() -> Result<()> {
    let database = Database::create_on_shared_server().await?;
    let proxy = FaultProxy::start(database.server).await?;
    let settings = postgres_settings(proxy.address, &database.name);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    // The delay makes the replica open every connection of the pool and keep all of them in use.
    proxy.set_delay(Duration::from_millis(100));
    wait::until("the pool to fill", async || {
        let _ = concurrent_logins(&client).await;
        let mut pool_size = 0.0;
        for state in ["busy", "idle"] {
            let connections = replicas
                .metric(0, "auth_api_pool_connections", &[state])
                .await;
            pool_size += connections.ok().flatten().unwrap_or_default();
        }
        pool_size >= f64::from(MAX_POOL_SIZE)
    })
    .await?;
    proxy.set_delay(Duration::ZERO);

    proxy.blackhole_open_connections();
    let start = Instant::now();
    wait::until("all logins to succeed", async || {
        concurrent_logins(&client)
            .await
            .is_ok_and(|statuses| statuses.iter().all(|status| *status == 200))
    })
    .await?;
    assert_recovers_in_time(&client, &token).await?;
    assert!(
        start.elapsed() < 2 * MAX_RECOVERY_TIME,
        "{:?}",
        start.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn a_dead_redis_connection_is_replaced_under_load() -> Result<()> {
    let redis = RedisServer::start()?;
    let proxy = FaultProxy::start(redis.address).await?;
    let settings = redis_settings(proxy.address);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let load = tokio::spawn({
        let (client, token) = (client.clone(), token.clone());
        async move {
            loop {
                let request = client.get_with_token(&token, "/api/sessions");
                let _ = tokio::time::timeout(MAX_RECOVERY_TIME / 20, request).await;
            }
        }
    });
    proxy.blackhole_open_connections();
    assert_503_in_time(&client, &token, "/api/sessions").await?;
    assert_recovers_in_time(&client, &token).await?;
    load.abort();
    Ok(())
}

#[tokio::test]
async fn a_locked_row_delays_no_other_user() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    client.register("bob").await?;
    let database = replicas
        .database
        .as_ref()
        .expect("the store has a database");
    let mut lock_holder = database.connect().await?;
    let lock = lock_user_row(&mut lock_holder, "alice").await?;

    let blocked_logins = tokio::spawn({
        let client = client.clone();
        async move { concurrent_logins(&client).await }
    });
    let mut observer = database.connect().await?;
    database.wait_for_lock_wait(&mut observer).await?;
    let start = Instant::now();
    assert_eq!(client.login("bob").await?.status, 200);
    let statuses = blocked_logins.await??;
    assert!(statuses.iter().all(|status| *status == 503), "{statuses:?}");
    assert!(start.elapsed() < MAX_RESPONSE_TIME, "{:?}", start.elapsed());
    assert_eq!(database.lock_wait_count(&mut observer).await?, 0);
    lock.rollback().await?;
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

/// Changes the password of alice while her row is locked, which is rejected with 503, and asserts
/// that the change is not applied once the lock is released.
async fn assert_change_rejected_with_503_is_not_applied_later(
    database: &Database,
    settings: Settings,
) -> Result<()> {
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let mut lock_holder = database.connect().await?;
    let lock = lock_user_row(&mut lock_holder, "alice").await?;

    let change = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
    let response = client
        .post_with_token(&token, "/api/password", Some(&change))
        .await?;
    assert_eq!(response.status, 503, "{}", response.text);
    let mut observer = database.connect().await?;
    assert_eq!(database.lock_wait_count(&mut observer).await?, 0);
    lock.rollback().await?;
    let new_credentials = credentials("alice", NEW_PASSWORD);
    let rejected = client.post("/api/login", &new_credentials).await?;
    assert_eq!(rejected.status, 401);
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_change_rejected_with_503_is_not_applied_later() -> Result<()> {
    let database = Database::create_on_shared_server().await?;
    let direct = postgres_settings(database.server, &database.name);
    assert_change_rejected_with_503_is_not_applied_later(&database, direct).await
}

#[tokio::test]
async fn a_change_rejected_with_503_is_not_applied_later_behind_a_pooler() -> Result<()> {
    let database = Database::create_on_shared_server().await?;
    let pooler = PgBouncer::start(&database)?;
    assert_change_rejected_with_503_is_not_applied_later(&database, pooler.settings()).await
}

#[tokio::test]
async fn a_redis_out_of_memory_still_checks_and_ends_sessions() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 2).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    let token = client.register_and_login("alice").await?;
    let listed = client.get_with_token(&token, "/api/sessions").await?.json();
    let id = listed["sessions"][0]["id"]
        .as_str()
        .expect("the session has an id");
    let redis = replicas.redis.as_ref().expect("the store has Redis");
    // A replica stores the last use of a session once a minute: the next use is stored again.
    let records = redis.connect().await?;
    let _: () = records.hset(format!("session:{id}"), ("used", 0)).await?;
    redis.set_config("maxmemory", "1").await?;

    assert_eq!(
        other.get_with_token(&token, "/api/profile").await?.status,
        200
    );
    assert_eq!(client.login("alice").await?.status, 503);
    let logout = client.post_with_token(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 200, "{}", logout.text);
    assert_eq!(
        other.get_with_token(&token, "/api/profile").await?.status,
        401
    );
    Ok(())
}

#[tokio::test]
async fn the_reason_redis_cannot_be_connected_to_is_logged_once() -> Result<()> {
    for (name, value, expected) in [
        ("REDIS_PASSWORD", "a wrong password", "WRONGPASS"),
        ("REDIS_PASSWORD", "", "NOAUTH"),
        ("REDIS_DB", "200", "index is out of range"),
        ("REDIS_HOST", "redis.invalid", "lookup address"),
    ] {
        let settings = settings([(name, value.to_owned())]);
        let mut replicas = Replicas::start_with(Store::PostgresRedis, 0, settings).await?;
        if name == "REDIS_PASSWORD" {
            let redis = replicas.redis.as_ref().expect("the store has Redis");
            redis.set_config("requirepass", "the password").await?;
        }
        replicas.start_another()?;
        replicas.wait_for_log(expected).await?;
        replicas.wait_for_log("store is not usable").await?;
        let log = replicas.logs();
        let reasons = log
            .lines()
            .filter(|line| line.contains("store connection failed") && line.contains(expected));
        assert_eq!(reasons.count(), 1, "{expected}: {log}");
        assert!(!log.contains("a wrong password"), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_password_change_that_redis_has_no_memory_for_changes_nothing() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let other_token = client.login("alice").await?.json()["access_token"].clone();
    let other_token = other_token.as_str().expect("the response has a token");
    let redis = replicas.redis.as_ref().expect("the store has Redis");
    redis.set_config("maxmemory", "1").await?;
    let change = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
    let response = client
        .post_with_token(&token, "/api/password", Some(&change))
        .await?;
    assert_eq!(response.status, 503, "{}", response.text);

    redis.set_config("maxmemory", "0").await?;
    for token in [&token, other_token] {
        let profile = client.get_with_token(token, "/api/profile").await?;
        assert_eq!(profile.status, 200, "{}", profile.text);
    }
    assert_eq!(client.login("alice").await?.status, 200);
    let response = client
        .post_with_token(&token, "/api/password", Some(&change))
        .await?;
    assert_eq!(response.status, 200, "{}", response.text);
    let statuses = [
        client.get_with_token(&token, "/api/profile").await?.status,
        client
            .get_with_token(other_token, "/api/profile")
            .await?
            .status,
    ];
    assert_eq!(statuses, [200, 401]);
    Ok(())
}

async fn wait_for_login(client: &Client) -> Result<()> {
    wait::until("a login to succeed", async || {
        let response = client.login("alice").await;
        response.is_ok_and(|response| response.status == 200)
    })
    .await
}

#[tokio::test]
async fn the_embedded_store_works_again_after_its_disk_was_full() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let process = &replicas.instances[0].process;
    process.limit_file_size(Some(1))?;
    for _ in 0..2 {
        assert_eq!(client.login("alice").await?.status, 503);
    }
    let profile = client.get_with_token(&token, "/api/profile").await?;
    assert_eq!(profile.status, 200, "reads need no space: {}", profile.text);
    client
        .wait_for_response("/ready", |response| response.status == 503)
        .await?;

    process.limit_file_size(None)?;
    wait_for_login(&client).await?;
    assert_eq!(client.register("bob").await?.status, 201);
    assert_eq!(client.login("bob").await?.status, 200);
    client
        .wait_for_response("/ready", |response| response.status == 200)
        .await
}

#[tokio::test]
async fn the_embedded_store_acknowledges_no_change_that_a_full_disk_loses() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let client = replicas.client(0)?;
    let mut tokens = Vec::new();
    for login in ["alice", "bob", "carol", "david"] {
        tokens.push(client.register_and_login(login).await?);
    }
    let [alice, bob, carol, _] = &tokens[..] else {
        anyhow::bail!("each user has a token");
    };
    let process = &replicas.instances[0].process;
    process.limit_file_size(Some(1))?;
    let change = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
    let responses = [
        client.register("erin").await?,
        client
            .post_with_token(alice, "/api/password", Some(&change))
            .await?,
        client.post_with_token(bob, "/api/logout", None).await?,
        client
            .post_with_token(carol, "/api/logout-all", None)
            .await?,
        client
            .post("/api/delete", &credentials("david", PASSWORD))
            .await?,
    ];
    let statuses = responses.map(|response| response.status);

    process.limit_file_size(None)?;
    wait_for_login(&client).await?;
    assert_eq!(client.login("erin").await?.status, 401, "{statuses:?}");
    assert_eq!(statuses, [503; 5]);
    assert_eq!(client.login("david").await?.status, 200);
    for token in &tokens {
        let profile = client.get_with_token(token, "/api/profile").await?;
        assert_eq!(profile.status, 200, "{}", profile.text);
    }
    Ok(())
}

#[tokio::test]
async fn user_commands_acknowledge_no_change_that_a_full_disk_loses() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    for command in [
        "create bob",
        "set-password alice",
        "disable alice",
        "delete alice",
        "end-sessions alice",
        "end-all-sessions",
    ] {
        let script = format!("echo '{NEW_PASSWORD}' | (ulimit -f 0; auth-api user {command})");
        let output = replicas.shell(&script).output()?;
        assert!(!output.status.success(), "{command}: {output:?}");
    }
    assert_eq!(
        client.get_with_token(&token, "/api/profile").await?.status,
        200
    );
    assert_eq!(client.login("bob").await?.status, 401);
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn the_embedded_store_acknowledges_nothing_while_its_file_is_deleted() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let (file, aside) = (
        replicas.sqlite_file(),
        replicas.sqlite_file().with_extension("aside"),
    );
    fs::rename(&file, &aside)?;
    assert_503_in_time(&client, &token, "/api/profile").await?;
    assert_eq!(client.register("bob").await?.status, 503);
    client
        .wait_for_response("/ready", |response| response.status == 503)
        .await?;

    fs::rename(&aside, &file)?;
    assert_recovers_in_time(&client, &token).await?;
    assert_eq!(client.register("bob").await?.status, 201);
    client
        .wait_for_response("/ready", |response| response.status == 200)
        .await
}

#[tokio::test]
async fn the_embedded_store_writes_to_the_file_that_replaced_its_own() -> Result<()> {
    let mut replicas = Replicas::start(Store::Embedded, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    replicas.execute("PRAGMA wal_checkpoint(TRUNCATE)").await?;
    let (file, backup) = (
        replicas.sqlite_file(),
        replicas.sqlite_file().with_extension("backup"),
    );
    fs::copy(&file, &backup)?;
    fs::rename(&backup, &file)?;
    assert_eq!(client.register("bob").await?.status, 201);
    replicas.instances[0].process.terminate()?;
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let other = replicas.client(1)?;
    for login in ["alice", "bob"] {
        assert_eq!(other.login(login).await?.status, 200, "{login}");
    }
    Ok(())
}

#[tokio::test]
async fn redis_is_connected_to_anew_when_its_server_has_become_a_replica() -> Result<()> {
    let (old_primary, new_primary) = (RedisServer::start()?, RedisServer::start()?);
    let address = FaultProxy::start(old_primary.address).await?;
    let settings = redis_settings(address.address);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let client = replicas.client(0)?;
    client.register_and_login("alice").await?;
    address.lead_to(new_primary.address).await;
    let replica_of = CustomCommand::new_static("REPLICAOF", None, false);
    let (host, port) = (
        new_primary.address.ip().to_string(),
        new_primary.address.port().to_string(),
    );
    let _: () = old_primary
        .connect()
        .await?
        .custom(replica_of, vec![host, port])
        .await?;
    let start = Instant::now();
    wait_for_login(&client).await?;
    assert!(start.elapsed() < MAX_RECOVERY_TIME, "{:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_login_that_fails_since_postgres_is_read_only_leaves_no_session() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let database = replicas
        .database
        .as_ref()
        .expect("the store has a database");
    let name = &database.name;
    // Simulates a failover for open connections: their server has become a standby.
    database
        .execute(format!(
            "ALTER DATABASE {name} SET default_transaction_read_only = on;
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        ))
        .await?;
    for _ in 0..3 {
        assert_eq!(client.login("alice").await?.status, 503);
    }
    client
        .wait_for_response("/ready", |response| {
            response.status == 503 && response.json()["users"]["problem"] != json!(null)
        })
        .await?;
    let listed = client.get_with_token(&token, "/api/sessions").await?.json();
    let sessions = listed["sessions"].as_array().map(Vec::len);
    assert_eq!(sessions, Some(1), "{listed}");

    // Fills the pool with connections that are read-only for as long as they are open.
    assert!(
        concurrent_logins(&client)
            .await?
            .iter()
            .all(|status| *status == 503)
    );
    let reset = format!(
        "BEGIN READ WRITE;
         ALTER DATABASE {name} RESET default_transaction_read_only;
         COMMIT"
    );
    database.execute(reset).await?;
    wait_for_login(&client).await?;
    assert!(
        concurrent_logins(&client)
            .await?
            .iter()
            .all(|status| *status == 200)
    );
    client
        .wait_for_response("/ready", |response| response.status == 200)
        .await
}

/// Connections in the pool of a replica.
const POOLED_CONNECTIONS: usize = 10;

/// Has a replica open every connection of its pool, by logins that wait for a lock.
async fn fill_pool(client: &Client, database: &Database) -> Result<()> {
    let mut locking = database.connect().await?;
    let mut observer = database.connect().await?;
    loop {
        let mut transaction = locking.begin().await?;
        sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            .execute(&mut *transaction)
            .await?;
        let mut logins = JoinSet::new();
        for number in 0..POOLED_CONNECTIONS {
            let client = client.clone();
            logins.spawn(async move { client.login(&format!("unknown {number}")).await });
        }
        let mut waiting = 0;
        // A statement waits for a lock for half a second.
        while waiting < POOLED_CONNECTIONS && logins.try_join_next().is_none() {
            waiting = usize::try_from(database.lock_wait_count(&mut observer).await?)?;
        }
        transaction.rollback().await?;
        logins.join_all().await;
        if waiting == POOLED_CONNECTIONS {
            return Ok(());
        }
    }
}

/// Ends every connection of auth-api to the database as a restart of the server does.
async fn end_connections(database: &Database) -> Result<i64> {
    let end = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
               WHERE datname = $1 AND application_name = 'auth-api'";
    Ok(sqlx::query_scalar(end)
        .bind(&database.name)
        .fetch_one(&mut database.connect().await?)
        .await?)
}

#[tokio::test]
async fn broken_postgres_connections_fail_no_request() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let database = replicas.database.as_ref().expect("the store has one");
    let pooled = i64::try_from(POOLED_CONNECTIONS)?;

    fill_pool(&client, database).await?;
    assert!(end_connections(database).await? >= pooled);
    for _ in 0..POOLED_CONNECTIONS {
        let profile = client.get_with_token(&token, "/api/profile").await?;
        assert_eq!(profile.status, 200, "{}", profile.text);
        let login = client.login("alice").await?;
        assert_eq!(login.status, 200, "{}", login.text);
    }

    // Logins and profiles that arrive together, each on a broken connection.
    fill_pool(&client, database).await?;
    assert!(end_connections(database).await? >= pooled);
    let mut requests = JoinSet::new();
    for _ in 0..POOLED_CONNECTIONS {
        let (profile, login, token) = (client.clone(), client.clone(), token.clone());
        requests.spawn(async move { profile.get_with_token(&token, "/api/profile").await });
        requests.spawn(async move { login.login("alice").await });
    }
    for response in requests.join_all().await {
        let response = response?;
        assert_eq!(response.status, 200, "{}", response.text);
    }

    // Statements that must not be repeated.
    for number in 0..3 {
        fill_pool(&client, database).await?;
        end_connections(database).await?;
        let registered = client.register(&format!("user {number}")).await?;
        assert_eq!(registered.status, 201, "{}", registered.text);
    }
    Ok(())
}
