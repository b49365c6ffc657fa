//! Refresh tokens in real networks: lost responses, late retries, clocks that are set back, and stores
//! that lose writes, told apart from a token that two parties hold.

use anyhow::Result;
use fred::interfaces::{HashesInterface, KeysInterface};
use fred::prelude::ClientLike;
use fred::types::CustomCommand;
use serde_json::{Value, json};
use tests::client::{Client, Response};
use tests::replicas::Replicas;
use tests::session_backup::SessionBackup;
use tests::{Store, on_both_stores, wait};

on_both_stores!(
    a_token_whose_successor_was_never_used_can_be_retried_at_any_time,
    a_token_whose_successor_was_used_can_be_retried_within_the_grace_period,
    a_token_whose_successor_was_used_ends_the_session_after_the_grace_period,
    a_clock_that_is_set_back_makes_no_used_token_good,
    of_two_unused_successors_the_second_use_ends_the_session,
    a_successor_that_the_store_has_lost_is_accepted_once,
    a_session_ends_at_its_maximum_age,
);

async fn refresh(client: &Client, tokens: &Value) -> Result<Response> {
    let body = json!({"refresh_token": tokens["refresh_token"]});
    client.post("/api/refresh", &body).await
}

/// Refreshes tokens that are good.
async fn refreshed(client: &Client, tokens: &Value) -> Result<Value> {
    let response = refresh(client, tokens).await?;
    anyhow::ensure!(response.status == 200, "{}", response.text);
    Ok(response.json())
}

/// Starts a replica and logs alice in.
async fn start(store: Store) -> Result<(Replicas, Client, Value)> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let tokens = client.login("alice").await?.json();
    Ok((replicas, client, tokens))
}

/// Time of a rotation.
#[derive(Clone, Copy)]
enum RotationTime {
    LongAgo,
    /// An hour ahead, as after the clock was set back by an hour.
    Future,
}

/// Changes when the tokens before the current one were exchanged, in the only session.
async fn set_rotation_times(replicas: &Replicas, time: RotationTime) -> Result<()> {
    let Some(server) = &replicas.redis else {
        return replicas
            .execute(match time {
                RotationTime::LongAgo => {
                    "UPDATE sessions SET rotated_at = 1, grandparent_rotated_at = 1"
                }
                RotationTime::Future => {
                    "UPDATE sessions SET rotated_at = (unixepoch() + 3600) * 1000000,
                     grandparent_rotated_at = (unixepoch() + 3600) * 1000000"
                }
            })
            .await;
    };
    let redis = server.connect().await?;
    let list_keys = CustomCommand::new_static("KEYS", None, false);
    let keys: Vec<String> = redis.custom(list_keys, vec!["session:*"]).await?;
    let millis = match time {
        RotationTime::LongAgo => 1,
        RotationTime::Future => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            i64::try_from(now.as_millis())? + 3_600_000
        }
    };
    for key in keys {
        for field in ["rotated", "grandparent_rotated"] {
            let _: () = redis.hset(&key, (field, millis)).await?;
        }
        let _: bool = redis.exists(&key).await?;
    }
    Ok(())
}

async fn a_token_whose_successor_was_never_used_can_be_retried_at_any_time(
    store: Store,
) -> Result<()> {
    let (replicas, client, first) = start(store).await?;
    let lost = refreshed(&client, &first).await?;
    let within_grace = refreshed(&client, &first).await?;
    assert_eq!(within_grace["refresh_token"], lost["refresh_token"]);
    // More often than the number of unused successors that are kept.
    for _ in 0..6 {
        set_rotation_times(&replicas, RotationTime::LongAgo).await?;
        let retried = refreshed(&client, &first).await?;
        assert_ne!(retried["refresh_token"], lost["refresh_token"]);
        let repeated = refreshed(&client, &first).await?;
        assert_eq!(repeated["refresh_token"], retried["refresh_token"]);
    }
    set_rotation_times(&replicas, RotationTime::LongAgo).await?;
    let retried = refreshed(&client, &first).await?;
    set_rotation_times(&replicas, RotationTime::LongAgo).await?;
    refreshed(&client, &first).await?;
    // A response that arrives after that to a later retry.
    let next = refreshed(&client, &retried).await?;
    refreshed(&client, &next).await?;
    Ok(())
}

async fn a_token_whose_successor_was_used_can_be_retried_within_the_grace_period(
    store: Store,
) -> Result<()> {
    let (_replicas, client, first) = start(store).await?;
    let second = refreshed(&client, &first).await?;
    let third = refreshed(&client, &second).await?;
    let retried = refreshed(&client, &first).await?;
    assert_eq!(retried["refresh_token"], third["refresh_token"]);
    let fourth = refreshed(&client, &third).await?;
    // Now the successor of its successor has been used.
    assert_eq!(refresh(&client, &first).await?.status, 401);
    assert_eq!(refresh(&client, &fourth).await?.status, 401);
    Ok(())
}

async fn a_token_whose_successor_was_used_ends_the_session_after_the_grace_period(
    store: Store,
) -> Result<()> {
    let (replicas, client, first) = start(store).await?;
    let second = refreshed(&client, &first).await?;
    let third = refreshed(&client, &second).await?;
    set_rotation_times(&replicas, RotationTime::LongAgo).await?;
    assert_eq!(refresh(&client, &first).await?.status, 401);
    assert_eq!(refresh(&client, &third).await?.status, 401);
    replicas.wait_for_log("refresh_token_reused").await
}

async fn a_clock_that_is_set_back_makes_no_used_token_good(store: Store) -> Result<()> {
    let (replicas, client, first) = start(store).await?;
    let second = refreshed(&client, &first).await?;
    let third = refreshed(&client, &second).await?;
    set_rotation_times(&replicas, RotationTime::Future).await?;
    assert_eq!(refresh(&client, &first).await?.status, 401);
    assert_eq!(refresh(&client, &third).await?.status, 401);
    Ok(())
}

async fn of_two_unused_successors_the_second_use_ends_the_session(store: Store) -> Result<()> {
    let (replicas, client, first) = start(store).await?;
    let owner = refreshed(&client, &first).await?;
    set_rotation_times(&replicas, RotationTime::LongAgo).await?;
    let thief = refreshed(&client, &first).await?;
    assert_ne!(owner["refresh_token"], thief["refresh_token"]);
    let next = refreshed(&client, &thief).await?;
    assert_eq!(refresh(&client, &owner).await?.status, 401);
    assert_eq!(refresh(&client, &next).await?.status, 401);
    let token = next["access_token"].as_str().unwrap_or_default();
    let profile = client.get_with_token(token, "/api/profile").await?;
    assert_eq!(profile.status, 401);
    Ok(())
}

async fn a_successor_that_the_store_has_lost_is_accepted_once(store: Store) -> Result<()> {
    let (replicas, client, first) = start(store).await?;
    let before = SessionBackup::take(&replicas).await?;
    let second = refreshed(&client, &first).await?;
    let third = refreshed(&client, &second).await?;
    before.restore(&replicas).await?;
    let fourth = refreshed(&client, &third).await?;
    let retried = refreshed(&client, &third).await?;
    assert_eq!(retried["refresh_token"], fourth["refresh_token"]);
    let fifth = refreshed(&client, &fourth).await?;
    assert_eq!(refresh(&client, &second).await?.status, 401);
    assert_eq!(refresh(&client, &fifth).await?.status, 401);
    Ok(())
}

/// Returns the ids of the sessions that are listed.
async fn session_ids(client: &Client, token: &str) -> Result<Vec<String>> {
    let listed = client.get_with_token(token, "/api/sessions").await?;
    anyhow::ensure!(listed.status == 200, "{}", listed.text);
    let sessions = listed.json()["sessions"].as_array().cloned();
    let ids = sessions.unwrap_or_default();
    Ok(ids
        .iter()
        .map(|session| session["id"].to_string())
        .collect())
}

async fn a_session_ends_at_its_maximum_age(store: Store) -> Result<()> {
    let (mut replicas, client, first) = start(store).await?;
    replicas.set("SESSION_MAX_AGE", "2");
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let limited = replicas.client(1)?;
    // A session of before the setting.
    let token = first["access_token"].as_str().unwrap_or_default();
    wait::until("the old session to end", async || {
        let profile = limited.get_with_token(token, "/api/profile").await;
        profile.is_ok_and(|response| response.status == 401)
    })
    .await?;
    assert_eq!(refresh(&limited, &first).await?.status, 401);
    assert_eq!(refresh(&client, &first).await?.status, 200);
    let first = session_ids(&client, token).await?;
    wait::until("a list of sessions", async || {
        let Ok(login) = limited.login("alice").await else {
            return false;
        };
        let token = login.access_token().unwrap_or_default();
        // The new session may have ended on a busy machine.
        let Ok(listed) = session_ids(&limited, &token).await else {
            return false;
        };
        assert!(!listed.contains(&first[0]), "an ended session is listed");
        true
    })
    .await?;

    let tokens = std::cell::RefCell::new(limited.login("alice").await?.json());
    assert_ne!(tokens.borrow()["refresh_token"], Value::Null);
    wait::until("the session to end although it is refreshed", async || {
        let current = tokens.borrow().clone();
        match refresh(&limited, &current).await {
            Ok(response) if response.status == 200 => {
                *tokens.borrow_mut() = response.json();
                false
            }
            response => response.is_ok_and(|response| response.status == 401),
        }
    })
    .await?;
    let last = tokens.borrow().clone();
    let token = last["access_token"].as_str().unwrap_or_default();
    let profile = limited.get_with_token(token, "/api/profile").await?;
    assert_eq!(profile.status, 401);
    Ok(())
}
