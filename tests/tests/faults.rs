//! A store that is away, silent or back: 503 in time, never a wrong 200 or 401, nothing lost.

use std::time::{Duration, Instant};

use anyhow::Result;
use fred::interfaces::{ClientLike, HashesInterface};
use fred::types::CustomCommand;
use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use tests::client::{Client, PASSWORD, credentials};
use tests::pgbouncer::PgBouncer;
use tests::postgres;
use tests::process::signal_family;
use tests::replica::{self, Environment, Replicas, settings};
use tests::slow::SlowWay;
use tests::{Store, wait};

/// What a request may take at the most while a store is away: three seconds, and slack for a busy machine.
const DEADLINE: Duration = Duration::from_secs(5);
/// Until a store that is back is used again: one second, and slack.
const RETURN: Duration = Duration::from_secs(5);

async fn is_503_in_time(client: &Client, token: &str, path: &str) -> Result<()> {
    let start = Instant::now();
    let answer = client.get_as(token, path).await?;
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert!(!answer.header("retry-after").is_empty());
    assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
    Ok(())
}

async fn is_back_soon(client: &Client, token: &str) -> Result<()> {
    let start = Instant::now();
    wait::until("the store to be used again", async || {
        client
            .get_as(token, "/api/profile")
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await?;
    assert!(start.elapsed() < RETURN, "{:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn redis_stops_and_comes_back() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let token = client.token("alice").await?;
    replicas.redis.as_mut().expect("it has one").stop();
    wait::until("the outage to show", async || {
        client
            .get("/ready")
            .await
            .is_ok_and(|answer| answer.status == 503)
    })
    .await?;
    for path in ["/api/profile", "/api/sessions"] {
        is_503_in_time(&client, &token, path).await?;
    }
    assert_eq!(client.login("alice").await?.status, 503);
    assert_eq!(client.get("/health").await?.status, 200);
    replicas.redis.as_mut().expect("it has one").resume()?;
    is_back_soon(&client, &token).await
}

#[tokio::test]
async fn redis_is_silent_for_a_while() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let token = client.token("alice").await?;
    let redis = replicas
        .redis
        .as_ref()
        .and_then(|redis| redis.process())
        .expect("it runs");
    redis.signal(Signal::STOP)?;
    is_503_in_time(&client, &token, "/api/sessions").await?;
    let start = Instant::now();
    assert_eq!(client.login("alice").await?.status, 503);
    assert!(start.elapsed() < DEADLINE);
    redis.signal(Signal::CONT)?;
    is_back_soon(&client, &token).await
}

#[tokio::test]
async fn postgres_stops_is_silent_and_comes_back() -> Result<()> {
    let mut server = postgres::Server::start()?;
    let database = server.database().await?;
    let settings = replica::database(server.address, &database.name);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let client = replicas.client(0)?;
    let token = client.token("alice").await?;
    assert_eq!(client.get_as(&token, "/api/profile").await?.status, 200);

    let process = server.process().expect("it runs");
    signal_family(process.id(), Signal::STOP)?;
    is_503_in_time(&client, &token, "/api/profile").await?;
    signal_family(process.id(), Signal::CONT)?;
    is_back_soon(&client, &token).await?;

    server.stop()?;
    is_503_in_time(&client, &token, "/api/profile").await?;
    assert_eq!(client.register("bob").await?.status, 503);
    assert_eq!(client.get("/health").await?.status, 200);
    server.resume()?;
    is_back_soon(&client, &token).await?;
    assert_eq!(client.register("carol").await?.status, 201);
    assert_eq!(
        client.login("alice").await?.status,
        200,
        "what was acknowledged is there"
    );
    Ok(())
}

/// The connections that a replica has to PostgreSQL at the most.
const POOL: u32 = 10;

/// As many logins at once as would fill the pool; their statuses.
async fn logins_at_once(client: &Client) -> Result<Vec<u16>> {
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..POOL + 2 {
        let client = client.clone();
        all.spawn(async move { client.login("alice").await });
    }
    let answers: Vec<_> = all.join_all().await.into_iter().collect::<Result<_>>()?;
    Ok(answers.iter().map(|answer| answer.status).collect())
}

#[tokio::test]
async fn connections_that_fall_silent_are_replaced() -> Result<()> {
    let database = postgres::Database::shared().await?;
    let way = SlowWay::to(database.server).await?;
    let settings = replica::database(way.address, &database.name);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let client = replicas.client(0)?;
    let token = client.token("alice").await?;
    // Every connection of the pool is made, and none is idle for long.
    way.delay(Duration::from_millis(100));
    wait::until("the pool to fill", async || {
        let _ = logins_at_once(&client).await;
        let mut connections = 0.0;
        for state in ["busy", "idle"] {
            let count = replicas
                .metric(0, "auth_api_pool_connections", &[state])
                .await;
            connections += count.ok().flatten().unwrap_or_default();
        }
        connections >= f64::from(POOL)
    })
    .await?;
    way.delay(Duration::ZERO);

    way.silence();
    let start = Instant::now();
    wait::until("all logins to work", async || {
        logins_at_once(&client)
            .await
            .is_ok_and(|statuses| statuses.iter().all(|status| *status == 200))
    })
    .await?;
    is_back_soon(&client, &token).await?;
    assert!(start.elapsed() < 2 * RETURN, "{:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_line_to_redis_that_falls_silent_is_replaced_although_much_is_asked() -> Result<()> {
    let redis = tests::redis::Server::start()?;
    let way = SlowWay::to(redis.address).await?;
    let settings = replica::redis(way.address);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let client = replicas.client(0)?;
    let token = client.token("alice").await?;
    let busy = tokio::spawn({
        let (client, token) = (client.clone(), token.clone());
        async move {
            loop {
                let asked = client.get_as(&token, "/api/sessions");
                let _ = tokio::time::timeout(RETURN / 20, asked).await;
            }
        }
    });
    way.silence();
    is_503_in_time(&client, &token, "/api/sessions").await?;
    is_back_soon(&client, &token).await?;
    busy.abort();
    Ok(())
}

/// How many statements wait for a row that somebody else holds.
async fn waiting_for_locks(database: &postgres::Database, look: &mut PgConnection) -> Result<i64> {
    let count =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'";
    Ok(sqlx::query_scalar(count)
        .bind(&database.name)
        .fetch_one(look)
        .await?)
}

#[tokio::test]
async fn a_row_that_somebody_holds_keeps_nobody_else_waiting() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    client.register("bob").await?;
    let database = replicas.database.as_ref().expect("it has one");
    let mut holder = database.connect().await?;
    let mut held = holder.begin().await?;
    held.execute("SELECT 1 FROM users WHERE login = 'alice' FOR UPDATE")
        .await?;

    let of_alice = tokio::spawn({
        let client = client.clone();
        async move { logins_at_once(&client).await }
    });
    let mut look = database.connect().await?;
    while waiting_for_locks(database, &mut look).await? == 0 {
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    assert_eq!(client.login("bob").await?.status, 200);
    let statuses = of_alice.await??;
    assert!(statuses.iter().all(|status| *status == 503), "{statuses:?}");
    assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
    assert_eq!(waiting_for_locks(database, &mut look).await?, 0);
    held.rollback().await?;
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

/// A change of password that was answered 503 since its row was held.
async fn what_was_answered_503_is_not_done_later(
    database: &postgres::Database,
    settings: Environment,
) -> Result<()> {
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let client = replicas.client(0)?;
    let token = client.token("alice").await?;
    let mut holder = database.connect().await?;
    let mut held = holder.begin().await?;
    held.execute("SELECT 1 FROM users WHERE login = 'alice' FOR UPDATE")
        .await?;

    let change = json!({"current_password": PASSWORD, "new_password": "another one 1"});
    let answer = client
        .post_as(&token, "/api/password", Some(&change))
        .await?;
    assert_eq!(answer.status, 503, "{}", answer.text);
    let mut look = database.connect().await?;
    assert_eq!(waiting_for_locks(database, &mut look).await?, 0);
    held.rollback().await?;
    let new = credentials("alice", "another one 1");
    assert_eq!(client.post("/api/login", &new).await?.status, 401);
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn what_was_answered_503_is_not_done_later_by_the_server() -> Result<()> {
    let database = postgres::Database::shared().await?;
    let direct = replica::database(database.server, &database.name);
    what_was_answered_503_is_not_done_later(&database, direct).await
}

#[tokio::test]
async fn what_was_answered_503_is_not_done_later_behind_a_pooler() -> Result<()> {
    let database = postgres::Database::shared().await?;
    let pooler = PgBouncer::before(&database)?;
    let through = [
        replica::database(pooler.address, &database.name),
        settings([("DB_POOL_MODE", "transaction".to_owned())]),
    ]
    .concat();
    what_was_answered_503_is_not_done_later(&database, through).await
}

#[tokio::test]
async fn a_full_redis_still_knows_who_is_logged_in() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 2).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    let token = client.token("alice").await?;
    let listed = client.get_as(&token, "/api/sessions").await?.json();
    let id = listed["sessions"][0]["id"].as_str().expect("an id");
    let redis = replicas.redis.as_ref().expect("it has one");
    let redis = redis.connect().await?;
    // Uses are noted once a minute: the next one is.
    let _: () = redis.hset(format!("session:{id}"), ("used", 0)).await?;
    let config = CustomCommand::new_static("CONFIG", None, false);
    let _: () = redis.custom(config, vec!["SET", "maxmemory", "1"]).await?;

    assert_eq!(other.get_as(&token, "/api/profile").await?.status, 200);
    assert_eq!(client.login("alice").await?.status, 503);
    let logout = client.post_as(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 200, "{}", logout.text);
    assert_eq!(other.get_as(&token, "/api/profile").await?.status, 401);
    Ok(())
}
