//! Accounts that replicas cache with the sessions that are active: what a client or an operator changes is seen at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::client::Client;
use tests::replicas::Replicas;
use tests::{Store, wait};

/// Lifetime of a cached account.
const LIFETIME: Duration = Duration::from_secs(3);
const STORE_OPERATIONS: &str = "auth_api_store_duration_seconds_count";

async fn last_login(client: &Client, token: &str) -> Result<String> {
    let profile = client.get_with_token(token, "/api/profile").await?;
    ensure!(profile.status == 200, "{}", profile.text);
    let time = profile.json()["last_login"].clone();
    Ok(time.as_str().context("a time")?.to_owned())
}

/// Returns how many operations a replica has requested of PostgreSQL.
async fn postgres_operations(replicas: &Replicas, index: usize) -> Result<f64> {
    let count = replicas.metric(index, STORE_OPERATIONS, &[r#"store="postgres""#]);
    count.await?.context("a metric")
}

/// Waits until a replica serves a profile without a request to PostgreSQL.
async fn wait_until_cached(replicas: &Replicas, index: usize, token: &str) -> Result<()> {
    let client = replicas.client(index)?;
    wait::until("the replica to cache the account", async || {
        let before = postgres_operations(replicas, index).await.ok();
        let profile = last_login(&client, token).await;
        profile.is_ok() && before == postgres_operations(replicas, index).await.ok()
    })
    .await
}

#[tokio::test]
async fn profiles_show_a_login_elsewhere_before_the_cached_account_expires() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 2).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    let token = client.register_and_login("alice").await?;
    wait_until_cached(&replicas, 0, &token).await?;
    wait_until_cached(&replicas, 1, &token).await?;
    let cached_at = Instant::now();

    let new_token = client.login("alice").await?.access_token()?;
    let latest = last_login(&client, &new_token).await?;
    assert_eq!(last_login(&client, &token).await?, latest);
    wait::until("the other replica to read the account again", async || {
        last_login(&other, &token).await.ok().as_ref() == Some(&latest)
    })
    .await?;
    assert!(cached_at.elapsed() < LIFETIME, "{:?}", cached_at.elapsed());
    Ok(())
}

#[tokio::test]
async fn changes_of_accounts_by_sql_are_seen_when_the_cached_account_expires() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    wait_until_cached(&replicas, 0, &token).await?;
    replicas
        .execute("DELETE FROM users WHERE login = 'alice'")
        .await?;
    wait::until("the deleted account to be refused", async || {
        let profile = client.get_with_token(&token, "/api/profile").await;
        profile.is_ok_and(|response| response.status == 404)
    })
    .await
}

#[tokio::test]
async fn an_operator_ends_the_sessions_of_cached_accounts_on_every_replica() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 2).await?;
    let clients = [replicas.client(0)?, replicas.client(1)?];
    for command in ["disable", "end-sessions", "end-all-sessions", "delete"] {
        let login = format!("user of {command}");
        let token = clients[0].register_and_login(&login).await?;
        wait_until_cached(&replicas, 0, &token).await?;
        wait_until_cached(&replicas, 1, &token).await?;
        let arguments: &[&str] = match command {
            "end-all-sessions" => &[command],
            _ => &[command, &login],
        };
        let output = replicas.user_command(arguments, "")?;
        assert!(output.status.success(), "{command}: {output:?}");
        for client in &clients {
            let profile = client.get_with_token(&token, "/api/profile").await?;
            assert!(
                [401, 404].contains(&profile.status),
                "{command}: {profile:?}"
            );
        }
    }
    Ok(())
}
