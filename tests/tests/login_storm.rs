//! The shipped `gateway.yml` under a storm of logins, with stores that work, are slow or fail: only the
//! clients that cause the storm are refused, and every other path stays available.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::client::{Client, Response};
use tests::fault_proxy::FaultProxy;
use tests::postgres::Database;
use tests::settings::postgres_settings;
use tests::{Edge, Store, on_both_stores, wait};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const SHIPPED_CONFIG: &str = include_str!("../../gateway.yml");
/// Requests of a client that does not take part in the storm.
const PROBES: usize = 20;

/// Starts an edge that can hash few passwords at once.
async fn start_edge(store: Store, settings: tests::settings::Settings) -> Result<Edge> {
    let mut builder = Edge::builder(store)
        .config(SHIPPED_CONFIG)
        .set("BCRYPT_COST", "10")
        .set("HASHING_THREADS", "1")
        .set("HASHING_MAX_WAIT", "0.3");
    for (name, value) in settings {
        builder = builder.set(&name, &value);
    }
    builder.start().await
}

/// Clients that log in again and again.
struct Storm {
    tasks: JoinSet<()>,
    responses: mpsc::UnboundedReceiver<Response>,
}

impl Storm {
    /// Starts a storm in which each of `clients` has one login in progress.
    fn start(clients: impl IntoIterator<Item = Client>) -> Self {
        let (sender, responses) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for (task, client) in clients.into_iter().enumerate() {
            let sender = sender.clone();
            tasks.spawn(async move {
                // A name that fails ten times is locked, and then costs no hash.
                for attempt in 0_u64.. {
                    let login = format!("mallory-{task}-{attempt}");
                    // A connection that the gateway closes is opened anew.
                    if let Ok(response) = client.login(&login).await {
                        let _ = sender.send(response);
                    }
                }
            });
        }
        Self { tasks, responses }
    }

    /// Waits until the storm has received a response of this status.
    async fn wait_for_status(&mut self, status: u16) -> Result<()> {
        let wait = async {
            loop {
                let response = self.responses.recv().await.context("the storm ended")?;
                check_refusal(&response)?;
                if response.status == status {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(wait::TIMEOUT, wait)
            .await
            .with_context(|| format!("no response of status {status}"))?
    }

    /// Ends the storm and returns the statuses that it received.
    async fn end(mut self) -> Result<BTreeSet<u16>> {
        self.tasks.shutdown().await;
        let mut statuses = BTreeSet::new();
        while let Ok(response) = self.responses.try_recv() {
            check_refusal(&response)?;
            statuses.insert(response.status);
        }
        Ok(statuses)
    }
}

/// Checks that a login failed for its credentials, or was refused with the time of the next attempt.
fn check_refusal(response: &Response) -> Result<()> {
    let is_refusal = matches!(response.status, 429 | 503);
    ensure!(
        response.status == 401 || is_refusal && !response.header("retry-after").is_empty(),
        "{response:?}"
    );
    Ok(())
}

/// Asserts that paths without hashing work for a client with a session.
async fn assert_available(client: &Client, token: &str) -> Result<()> {
    for number in 0..PROBES {
        let profile = client.get_with_token(token, "/api/profile").await?;
        assert_eq!(profile.status, 200, "{number}: {}", profile.text);
        assert_eq!(client.get("/health").await?.status, 200);
    }
    Ok(())
}

/// Asserts that no circuit breaker has opened.
async fn assert_breakers_closed(edge: &Edge) -> Result<()> {
    let metrics = edge.gateway.admin_client()?.get("/metrics").await?.text;
    let states: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("gateway_circuit_breaker_state{"))
        .collect();
    assert!(!states.is_empty());
    assert!(states.iter().all(|line| line.ends_with(" 0")), "{states:?}");
    Ok(())
}

async fn a_storm_of_one_client_refuses_only_that_client(store: Store) -> Result<()> {
    let edge = start_edge(store, Vec::new()).await?;
    let client = edge.client()?;
    let token = client.register_and_login("alice").await?;
    let attacker = edge.client()?;
    let mut attack = Storm::start(std::iter::repeat_n(attacker, 40));
    attack.wait_for_status(429).await?;
    assert_available(&client, &token).await?;
    for number in 0..5 {
        let response = edge.client()?.login("alice").await?;
        assert_eq!(response.status, 200, "{number}: {}", response.text);
    }
    assert_breakers_closed(&edge).await?;
    attack.end().await?;
    Ok(())
}

async fn a_storm_of_many_clients_leaves_other_paths_available(store: Store) -> Result<()> {
    let edge = start_edge(store, Vec::new()).await?;
    let client = edge.client()?;
    let token = client.register_and_login("alice").await?;
    let attackers: Vec<_> = (0..60).map(|_| edge.client()).collect::<Result<_>>()?;
    let mut attack = Storm::start(attackers);
    attack.wait_for_status(503).await?;
    assert_available(&client, &token).await?;
    assert_breakers_closed(&edge).await?;
    let statuses = attack.end().await?;
    assert!(!statuses.contains(&500), "{statuses:?}");
    Ok(())
}

on_both_stores!(
    a_storm_of_one_client_refuses_only_that_client,
    a_storm_of_many_clients_leaves_other_paths_available,
);

#[tokio::test]
async fn a_storm_with_a_slow_database_refuses_only_its_client() -> Result<()> {
    let database = Database::create_on_shared_server().await?;
    let proxy = FaultProxy::start(database.server).await?;
    let settings = postgres_settings(proxy.address, &database.name);
    let edge = start_edge(Store::PostgresRedis, settings).await?;
    let client = edge.client()?;
    let token = client.register_and_login("alice").await?;
    proxy.set_delay(Duration::from_millis(20));
    let attacker = edge.client()?;
    let mut attack = Storm::start(std::iter::repeat_n(attacker, 40));
    attack.wait_for_status(429).await?;
    assert_available(&client, &token).await?;
    assert_eq!(edge.client()?.login("alice").await?.status, 200);
    assert_breakers_closed(&edge).await?;
    attack.end().await?;
    Ok(())
}

#[tokio::test]
async fn after_a_storm_with_a_failing_store_every_path_is_available_at_once() -> Result<()> {
    let mut edge = start_edge(Store::PostgresRedis, Vec::new()).await?;
    let client = edge.client()?;
    let token = client.register_and_login("alice").await?;
    let redis = edge
        .replicas
        .redis
        .as_mut()
        .context("the store has Redis")?;
    redis.kill();
    let attacker = edge.client()?;
    let mut attack = Storm::start(std::iter::repeat_n(attacker, 40));
    attack.wait_for_status(429).await?;
    assert_eq!(edge.client()?.login("alice").await?.status, 503);
    for _ in 0..PROBES {
        let profile = client.get_with_token(&token, "/api/profile").await?;
        assert_eq!(profile.status, 503, "{}", profile.text);
        assert!(!profile.header("retry-after").is_empty());
    }
    assert_breakers_closed(&edge).await?;
    let redis = edge
        .replicas
        .redis
        .as_mut()
        .context("the store has Redis")?;
    redis.start_again()?;
    client
        .wait_for_response("/health", |response| response.status == 200)
        .await?;
    wait::until("the profile", async || {
        let profile = client.get_with_token(&token, "/api/profile").await;
        profile.is_ok_and(|response| response.status == 200)
    })
    .await?;
    assert_available(&client, &token).await?;
    attack.end().await?;
    Ok(())
}
