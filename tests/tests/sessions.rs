//! Sessions: refreshed, listed and ended, on any replica.

use anyhow::{Context, Result};
use fred::interfaces::{ClientLike, HashesInterface, KeysInterface};
use fred::types::CustomCommand;
use reqwest::Method;
use serde_json::{Value, json};
use tests::client::{Client, Response, send};
use tests::replicas::Replicas;
use tests::{Store, on_both_stores, wait};

on_both_stores!(
    a_refresh_token_is_replaced_by_its_successor_when_used,
    a_used_refresh_token_ends_the_session,
    a_hundred_concurrent_refreshes_get_the_same_successor,
    an_invalid_refresh_token_is_rejected,
    logout_all_ends_every_session_on_every_replica,
    a_user_lists_and_ends_only_their_own_sessions,
    a_logged_out_token_is_rejected_at_once_on_every_replica,
    a_login_beyond_the_limit_of_sessions_displaces_an_older_session,
);

/// Logs `login` in and returns its tokens, the body of the response.
async fn log_in(client: &Client, login: &str) -> Result<Value> {
    Ok(client.login(login).await?.json())
}

/// Returns a string member of a JSON object.
fn string_member<'v>(object: &'v Value, name: &str) -> &'v str {
    object[name].as_str().expect("the member is a string")
}

async fn refresh(client: &Client, tokens: &Value) -> Result<Response> {
    let body = json!({"refresh_token": tokens["refresh_token"]});
    client.post("/api/refresh", &body).await
}

async fn a_refresh_token_is_replaced_by_its_successor_when_used(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);
    first.register("alice").await?;
    let old = log_in(&first, "alice").await?;
    let new = refresh(&second, &old).await?;
    assert_eq!(new.status, 200, "{}", new.text);
    let new = new.json();
    assert_ne!(new["refresh_token"], old["refresh_token"]);
    assert_eq!(new["token_type"], "bearer");
    let profile = first
        .get_with_token(string_member(&new, "access_token"), "/api/profile")
        .await?;
    assert_eq!(profile.status, 200);
    // A client that lost the response repeats the request and gets the same successor.
    let repeated = refresh(&first, &old).await?.json();
    assert_eq!(repeated["refresh_token"], new["refresh_token"]);
    assert_eq!(refresh(&second, &new).await?.status, 200);
    Ok(())
}

async fn a_used_refresh_token_ends_the_session(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let first = log_in(&client, "alice").await?;
    let second = refresh(&client, &first).await?.json();
    let third = refresh(&client, &second).await?.json();
    let fourth = refresh(&client, &third).await?.json();
    // A token is no retry if the successor of its successor was used, also within the grace period.
    assert_eq!(refresh(&client, &first).await?.status, 401);
    for tokens in [&second, &third, &fourth] {
        assert_eq!(refresh(&client, tokens).await?.status, 401);
    }
    let token = string_member(&fourth, "access_token");
    let other = replicas.client(1)?;
    assert_eq!(
        other.get_with_token(token, "/api/profile").await?.status,
        401
    );
    replicas.wait_for_log("refresh_token_reused").await
}

async fn a_hundred_concurrent_refreshes_get_the_same_successor(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let tokens = log_in(&client, "alice").await?;
    let mut refreshes = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (client, tokens) = (replicas.client(number % 2)?, tokens.clone());
        refreshes.spawn(async move { refresh(&client, &tokens).await });
    }
    let mut successors = Vec::new();
    while let Some(response) = refreshes.join_next().await {
        let response = response??;
        assert_eq!(response.status, 200, "{}", response.text);
        successors.push(string_member(&response.json(), "refresh_token").to_owned());
    }
    successors.dedup();
    assert_eq!(successors.len(), 1, "more than one successor");
    Ok(())
}

async fn an_invalid_refresh_token_is_rejected(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let tokens = log_in(&client, "alice").await?;
    for (body, status) in [
        (json!({"refresh_token": "garbage"}), 401),
        (json!({"refresh_token": tokens["access_token"]}), 401),
        (json!({"refresh_token": 1}), 422),
        (json!({}), 422),
    ] {
        assert_eq!(
            client.post("/api/refresh", &body).await?.status,
            status,
            "{body}"
        );
    }
    assert_eq!(
        refresh(&client, &tokens).await?.status,
        200,
        "an invalid token ended the session"
    );
    Ok(())
}

async fn logout_all_ends_every_session_on_every_replica(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);
    first.register("alice").await?;
    let (first_session, second_session) = (
        log_in(&first, "alice").await?,
        log_in(&second, "alice").await?,
    );
    first.register("bob").await?;
    let other_user = log_in(&first, "bob").await?;
    let token = string_member(&first_session, "access_token");
    let ended = first
        .post_with_token(token, "/api/logout-all", None)
        .await?;
    assert_eq!((ended.status, &ended.json()["ended"]), (200, &json!(2)));
    for tokens in [&first_session, &second_session] {
        assert_eq!(refresh(&first, tokens).await?.status, 401);
        let token = string_member(tokens, "access_token");
        assert_eq!(
            second.get_with_token(token, "/api/profile").await?.status,
            401
        );
    }
    let profile = second
        .get_with_token(string_member(&other_user, "access_token"), "/api/profile")
        .await?;
    assert_eq!(profile.status, 200);
    Ok(())
}

async fn a_user_lists_and_ends_only_their_own_sessions(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let (first, second) = (
        log_in(&client, "alice").await?,
        log_in(&client, "alice").await?,
    );
    let first_token = string_member(&first, "access_token");
    let second_token = string_member(&second, "access_token");
    client.register("bob").await?;
    let other_user = log_in(&client, "bob").await?;
    let other_user_token = string_member(&other_user, "access_token");

    let listed = client.get_with_token(first_token, "/api/sessions").await?;
    assert_eq!(listed.header("cache-control"), "no-store");
    let listed = listed.json();
    let sessions = listed["sessions"]
        .as_array()
        .expect("the sessions are a list");
    assert_eq!(sessions.len(), 2);
    let current = sessions
        .iter()
        .find(|session| session["current"] == true)
        .expect("the session of the request is listed");
    let other = sessions
        .iter()
        .find(|session| session["current"] == false)
        .expect("the other session is listed");
    let path = |session: &Value| format!("/api/sessions/{}", string_member(session, "id"));

    let end = async |token: &str, path: &str| {
        send(client.request(Method::DELETE, path).bearer_auth(token)).await
    };
    assert_eq!(end(other_user_token, &path(current)).await?.status, 404);
    assert_eq!(end(first_token, &path(other)).await?.status, 200);
    assert_eq!(end(first_token, &path(other)).await?.status, 404);
    assert_eq!(end(first_token, "/api/sessions/garbage").await?.status, 404);
    assert_eq!(
        client
            .get_with_token(second_token, "/api/profile")
            .await?
            .status,
        401
    );
    assert_eq!(
        client
            .get_with_token(first_token, "/api/profile")
            .await?
            .status,
        200
    );
    Ok(())
}

async fn a_logged_out_token_is_rejected_at_once_on_every_replica(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);
    first.register("alice").await?;
    for _ in 0..20 {
        let tokens = log_in(&first, "alice").await?;
        let token = string_member(&tokens, "access_token");
        for client in [&first, &second] {
            assert_eq!(
                client.get_with_token(token, "/api/profile").await?.status,
                200
            );
        }
        assert_eq!(
            first
                .post_with_token(token, "/api/logout", None)
                .await?
                .status,
            200
        );
        assert_eq!(
            first.get_with_token(token, "/api/profile").await?.status,
            401
        );
        assert_eq!(
            second.get_with_token(token, "/api/profile").await?.status,
            401
        );
    }
    Ok(())
}

async fn logout_all(client: &Client, tokens: &Value) -> Result<Value> {
    let token = string_member(tokens, "access_token");
    Ok(client
        .post_with_token(token, "/api/logout-all", None)
        .await?
        .json())
}

#[tokio::test]
async fn an_expired_session_hides_no_other_session_from_logout_all() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let (first, second) = (
        log_in(&client, "alice").await?,
        log_in(&client, "alice").await?,
    );
    replicas.set("REFRESH_TOKEN_TTL", "1");
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let short_lived = log_in(&replicas.client(1)?, "alice").await?;
    wait::until("the last session to expire", async || {
        let token = string_member(&short_lived, "access_token");
        let sessions = client.get_with_token(token, "/api/sessions").await;
        sessions.is_ok_and(|response| response.status == 401)
    })
    .await?;
    assert_eq!(logout_all(&client, &first).await?["ended"], 2);
    let second_token = string_member(&second, "access_token");
    let profile = client.get_with_token(second_token, "/api/profile").await?;
    assert_eq!(profile.status, 401);
    Ok(())
}

#[tokio::test]
async fn a_session_missing_from_the_index_is_added_again_when_used() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 2).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    let user_id = client.register("alice").await?.json()["id"].clone();
    let tokens = log_in(&client, "alice").await?;
    let token = string_member(&tokens, "access_token");
    let sessions = client.get_with_token(token, "/api/sessions").await?.json();
    let session_key = format!("session:{}", string_member(&sessions["sessions"][0], "id"));
    let server = replicas.redis.as_ref().context("a Redis server")?;
    let redis = server.connect().await?;
    let _: () = redis.del(format!("sessions:{user_id}")).await?;
    // A replica stores the last use of a session once a minute: the next use is stored again.
    let _: () = redis.hset(session_key, ("used", 0)).await?;

    assert_eq!(
        other.get_with_token(token, "/api/profile").await?.status,
        200
    );
    assert_eq!(logout_all(&client, &tokens).await?["ended"], 1);
    assert_eq!(
        other.get_with_token(token, "/api/profile").await?.status,
        401
    );
    Ok(())
}

#[tokio::test]
async fn logout_all_counts_no_session_that_has_expired() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    log_in(&client, "alice").await?;
    log_in(&client, "alice").await?;
    let token = client.login("alice").await?.access_token()?;
    let expire_one = "UPDATE sessions SET expires_at = 1 WHERE created_at = (SELECT min(created_at) FROM sessions)";
    replicas.execute(expire_one).await?;
    let ended = client
        .post_with_token(&token, "/api/logout-all", None)
        .await?;
    assert_eq!(ended.json()["ended"], 2);
    Ok(())
}

/// Adds 1,000 sessions to the user with the id 1. Their times are in the year 2100.
async fn add_long_lived_sessions(replicas: &Replicas) -> Result<()> {
    let Some(redis) = &replicas.redis else {
        let insert = "INSERT INTO sessions (id, user_id, refresh_hash, created_at, last_used, expires_at, address, user_agent)
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
             SELECT printf('%032x', i), 1, x'00', 4102444800000000, 4102444800000000, 4102444800000000 + i, '', '' FROM n";
        return replicas.execute(insert).await;
    };
    let add = "for i = 1, 1000 do
         local id = string.format('%032x', i)
         redis.call('HSET', 'session:' .. id, 'user', 1, 'created', 4102444800000, 'used', 4102444800000, 'address', '', 'agent', '')
         redis.call('ZADD', 'sessions:1', 4102444800000 + i, id)
     end
     redis.call('PEXPIREAT', 'sessions:1', 4102444801000)";
    let eval = CustomCommand::new_static("EVAL", None, false);
    Ok(redis.connect().await?.custom(eval, vec![add, "0"]).await?)
}

/// Sessions live longer than a new one if the operator has shortened their lifetime since.
async fn a_login_beyond_the_limit_of_sessions_displaces_an_older_session(
    store: Store,
) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    assert_eq!(client.register("alice").await?.json()["id"], 1);
    add_long_lived_sessions(&replicas).await?;
    let token = client.login("alice").await?.access_token()?;
    let sessions = client.get_with_token(&token, "/api/sessions").await?;
    assert_eq!(sessions.status, 200, "{}", sessions.text);
    let sessions = sessions.json();
    let sessions = sessions["sessions"].as_array().context("a list")?;
    assert_eq!(sessions.len(), 1000);
    assert!(sessions.iter().any(|session| session["current"] == true));
    let displaced = format!("{:032x}", 1);
    assert!(sessions.iter().all(|session| session["id"] != displaced));
    Ok(())
}
