//! The account decides what its sessions may do, whatever the store of sessions has lost.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::client::{Client, NEW_PASSWORD, PASSWORD};
use tests::clock::Clock;
use tests::replicas::Replicas;
use tests::session_backup::SessionBackup;
use tests::{Store, on_both_stores, wait};

on_both_stores!(
    ended_sessions_stay_ended_when_the_store_restores_them,
    a_password_change_ends_only_the_other_sessions_when_the_store_restores_them,
    an_operator_ends_all_sessions_after_a_backup_was_restored,
    a_login_after_its_sessions_ended_is_accepted_although_clocks_differ,
);

async fn log_in(client: &Client, login: &str) -> Result<Value> {
    Ok(client.login(login).await?.json())
}

/// Returns the statuses of requests that a session may make: profile, sessions, refresh.
async fn statuses(client: &Client, tokens: &Value) -> Result<[u16; 3]> {
    let token = tokens["access_token"].as_str().context("an access token")?;
    let body = json!({"refresh_token": tokens["refresh_token"]});
    Ok([
        client.get_with_token(token, "/api/profile").await?.status,
        client.get_with_token(token, "/api/sessions").await?.status,
        client.post("/api/refresh", &body).await?.status,
    ])
}

fn run(replicas: &Replicas, arguments: &[&str], input: &str) -> Result<String> {
    let output = replicas.user_command(arguments, input)?;
    let text = format!("{output:?}");
    anyhow::ensure!(output.status.success(), "{text}");
    Ok(text)
}

async fn ended_sessions_stay_ended_when_the_store_restores_them(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    for (login, ending) in [
        ("alice", "logout-all"),
        ("bob", "disable"),
        ("carol", "set-password"),
        ("dave", "end-sessions"),
    ] {
        client.register(login).await?;
        let tokens = log_in(&client, login).await?;
        let backup = SessionBackup::take(&replicas).await?;
        if ending == "logout-all" {
            let token = tokens["access_token"].as_str().context("an access token")?;
            let ended = client
                .post_with_token(token, "/api/logout-all", None)
                .await?;
            assert_eq!(ended.status, 200, "{}", ended.text);
        } else {
            run(&replicas, &[ending, login], NEW_PASSWORD)?;
        }
        backup.restore(&replicas).await?;
        for client in [&client, &other] {
            assert_eq!(statuses(client, &tokens).await?, [401; 3], "{ending}");
        }
        if ending == "disable" {
            run(&replicas, &["enable", login], "")?;
            assert_eq!(statuses(&client, &tokens).await?, [401; 3], "enabled again");
        }
    }
    Ok(())
}

#[tokio::test]
async fn ended_sessions_stay_ended_when_the_store_restores_them_although_clocks_differ()
-> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let clock = Clock::new(20)?;
    for (name, value) in clock.environment()? {
        replicas.set(&name, &value);
    }
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let [right, ahead] = [replicas.client(0)?, replicas.client(1)?];
    right.register("alice").await?;
    let early = log_in(&ahead, "alice").await?;
    let kept = log_in(&ahead, "alice").await?;
    // Its time is before that of the other logins.
    let last = log_in(&right, "alice").await?;
    let ended_by = async |tokens: &Value| {
        let token = tokens["access_token"].as_str().context("an access token")?;
        let ended = right
            .post_with_token(token, "/api/logout-all", None)
            .await?;
        anyhow::ensure!(ended.status == 200, "{}", ended.text);
        anyhow::Ok(())
    };
    let backup = SessionBackup::take(&replicas).await?;
    ended_by(&last).await?;
    backup.restore(&replicas).await?;
    for tokens in [&early, &kept, &last] {
        assert_eq!(statuses(&right, tokens).await?, [401; 3]);
    }

    let kept = log_in(&ahead, "alice").await?;
    let token = kept["access_token"].as_str().context("an access token")?;
    let change = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
    let changed = ahead
        .post_with_token(token, "/api/password", Some(&change))
        .await?;
    assert_eq!(changed.status, 200, "{}", changed.text);
    let backup = SessionBackup::take(&replicas).await?;
    ended_by(&kept).await?;
    backup.restore(&replicas).await?;
    assert_eq!(statuses(&right, &kept).await?, [401; 3]);
    Ok(())
}

async fn a_password_change_ends_only_the_other_sessions_when_the_store_restores_them(
    store: Store,
) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    client.register("alice").await?;
    let ended = log_in(&client, "alice").await?;
    let kept = log_in(&client, "alice").await?;
    let backup = SessionBackup::take(&replicas).await?;
    let token = kept["access_token"].as_str().context("an access token")?;
    let change = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
    let changed = client
        .post_with_token(token, "/api/password", Some(&change))
        .await?;
    assert_eq!(changed.status, 200, "{}", changed.text);
    for client in [&client, &other] {
        assert_eq!(statuses(client, &kept).await?, [200; 3]);
        assert_eq!(statuses(client, &ended).await?, [401; 3]);
    }
    backup.restore(&replicas).await?;
    wait::until("the other replica to drop its cached session", async || {
        statuses(&other, &ended)
            .await
            .is_ok_and(|statuses| statuses == [401; 3])
    })
    .await
}

async fn an_operator_ends_all_sessions_after_a_backup_was_restored(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    let mut all_tokens = Vec::new();
    for login in ["alice", "bob"] {
        client.register(login).await?;
        all_tokens.push(log_in(&client, login).await?);
    }
    run(&replicas, &["end-all-sessions"], "")?;
    for tokens in &all_tokens {
        assert_eq!(statuses(&client, tokens).await?, [401; 3]);
    }
    let tokens = log_in(&client, "alice").await?;
    assert_eq!(statuses(&client, &tokens).await?, [200; 3]);
    Ok(())
}

async fn a_login_after_its_sessions_ended_is_accepted_although_clocks_differ(
    store: Store,
) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let old = log_in(&client, "alice").await?;
    // A replica whose clock is a day ahead has ended her sessions.
    replicas
        .execute(match store {
            Store::PostgresRedis => {
                "UPDATE users SET sessions_valid_after = now() + interval '1 day'"
            }
            Store::Embedded => {
                "UPDATE users SET sessions_valid_after = (unixepoch() + 86400) * 1000000"
            }
        })
        .await?;
    assert_eq!(statuses(&client, &old).await?, [401; 3]);
    let new = log_in(&client, "alice").await?;
    assert_eq!(statuses(&client, &new).await?, [200; 3]);
    let token = new["access_token"].as_str().context("an access token")?;
    let ended = client
        .post_with_token(token, "/api/logout-all", None)
        .await?;
    assert_eq!(ended.status, 200, "{}", ended.text);
    assert_eq!(statuses(&client, &new).await?, [401; 3]);
    Ok(())
}

#[tokio::test]
async fn a_disabled_account_is_refused_although_its_sessions_could_not_be_ended() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let tokens = log_in(&client, "alice").await?;
    assert_eq!(statuses(&client, &tokens).await?, [200; 3]);
    replicas.redis.as_mut().context("a Redis server")?.kill();
    let output = run(&replicas, &["disable", "alice"], "")?;
    assert!(output.contains("session store is unavailable"), "{output}");
    replicas
        .redis
        .as_mut()
        .context("a Redis server")?
        .start_again()?;
    wait::until("Redis to be used again", async || {
        statuses(&client, &tokens)
            .await
            .is_ok_and(|statuses| !statuses.contains(&503))
    })
    .await?;
    assert_eq!(statuses(&client, &tokens).await?, [401; 3]);
    Ok(())
}

#[tokio::test]
async fn a_cutoff_at_infinity_ends_every_session_and_affects_no_other_account() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    for login in ["alice", "bob"] {
        client.register(login).await?;
    }
    let (alice, bob) = (
        log_in(&client, "alice").await?,
        log_in(&client, "bob").await?,
    );
    replicas
        .execute("UPDATE users SET sessions_valid_after = 'infinity' WHERE login = 'alice'")
        .await?;
    assert_eq!(statuses(&client, &alice).await?, [401; 3]);
    assert_eq!(client.login("alice").await?.status, 401);
    assert_eq!(statuses(&client, &bob).await?, [200; 3]);
    Ok(())
}
