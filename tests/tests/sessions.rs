//! Sessions: refreshed, listed, ended, on whichever replica.

use anyhow::{Context, Result};
use fred::interfaces::{HashesInterface, KeysInterface};
use reqwest::Method;
use serde_json::{Value, json};
use tests::client::{Answer, Client, send};
use tests::replica::Replicas;
use tests::{Store, on_both_stores, wait};

on_both_stores!(
    a_refresh_token_is_good_once_and_its_successor_goes_on,
    a_used_refresh_token_ends_the_session_after_the_grace,
    of_a_hundred_uses_at_once_all_get_the_same_successor,
    what_is_no_refresh_token_is_refused,
    logout_all_ends_every_session_on_every_replica,
    a_user_sees_and_ends_sessions_and_nobody_elses,
    a_token_that_is_logged_out_is_refused_everywhere_at_once,
);

async fn login(client: &Client, login: &str) -> Result<Value> {
    Ok(client.login(login).await?.json())
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().expect("a text")
}

async fn refresh(client: &Client, tokens: &Value) -> Result<Answer> {
    let body = json!({"refresh_token": tokens["refresh_token"]});
    client.post("/api/refresh", &body).await
}

async fn a_refresh_token_is_good_once_and_its_successor_goes_on(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);
    first.register("alice").await?;
    let old = login(&first, "alice").await?;
    let new = refresh(&second, &old).await?;
    assert_eq!(new.status, 200, "{}", new.text);
    let new = new.json();
    assert_ne!(new["refresh_token"], old["refresh_token"]);
    assert_eq!(new["token_type"], "bearer");
    let profile = first
        .get_as(text(&new, "access_token"), "/api/profile")
        .await?;
    assert_eq!(profile.status, 200);
    // A client that lost the answer asks again and is told the same.
    let again = refresh(&first, &old).await?.json();
    assert_eq!(again["refresh_token"], new["refresh_token"]);
    assert_eq!(refresh(&second, &new).await?.status, 200);
    Ok(())
}

async fn a_used_refresh_token_ends_the_session_after_the_grace(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let first = login(&client, "alice").await?;
    let second = refresh(&client, &first).await?.json();
    let third = refresh(&client, &second).await?.json();
    // Two uses ago is no retry, however soon.
    assert_eq!(refresh(&client, &first).await?.status, 401);
    for tokens in [&second, &third] {
        assert_eq!(refresh(&client, tokens).await?.status, 401);
    }
    let token = text(&third, "access_token");
    let other = replicas.client(1)?;
    assert_eq!(other.get_as(token, "/api/profile").await?.status, 401);
    wait::until("the audit", async || {
        replicas.logs().contains("refresh_token_reused")
    })
    .await
}

async fn of_a_hundred_uses_at_once_all_get_the_same_successor(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let tokens = login(&client, "alice").await?;
    let mut uses = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (client, tokens) = (replicas.client(number % 2)?, tokens.clone());
        uses.spawn(async move { refresh(&client, &tokens).await });
    }
    let mut successors = Vec::new();
    while let Some(answer) = uses.join_next().await {
        let answer = answer??;
        assert_eq!(answer.status, 200, "{}", answer.text);
        successors.push(text(&answer.json(), "refresh_token").to_owned());
    }
    successors.dedup();
    assert_eq!(successors.len(), 1, "one family");
    Ok(())
}

async fn what_is_no_refresh_token_is_refused(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let tokens = login(&client, "alice").await?;
    for (body, status) in [
        (json!({"refresh_token": "rubbish"}), 401),
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
        "noise ends nothing"
    );
    Ok(())
}

async fn logout_all_ends_every_session_on_every_replica(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);
    first.register("alice").await?;
    let (one, two) = (
        login(&first, "alice").await?,
        login(&second, "alice").await?,
    );
    first.register("bob").await?;
    let other = login(&first, "bob").await?;
    let ended = first
        .post_as(text(&one, "access_token"), "/api/logout-all", None)
        .await?;
    assert_eq!((ended.status, &ended.json()["ended"]), (200, &json!(2)));
    for tokens in [&one, &two] {
        assert_eq!(refresh(&first, tokens).await?.status, 401);
        let token = text(tokens, "access_token");
        assert_eq!(second.get_as(token, "/api/profile").await?.status, 401);
    }
    let profile = second
        .get_as(text(&other, "access_token"), "/api/profile")
        .await?;
    assert_eq!(profile.status, 200);
    Ok(())
}

async fn a_user_sees_and_ends_sessions_and_nobody_elses(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let (one, two) = (
        login(&client, "alice").await?,
        login(&client, "alice").await?,
    );
    let (one, two) = (text(&one, "access_token"), text(&two, "access_token"));
    client.register("bob").await?;
    let bob = login(&client, "bob").await?;
    let bob = text(&bob, "access_token");

    let listed = client.get_as(one, "/api/sessions").await?;
    assert_eq!(listed.header("cache-control"), "no-store");
    let listed = listed.json();
    let sessions = listed["sessions"].as_array().expect("a list");
    assert_eq!(sessions.len(), 2);
    let mine = sessions
        .iter()
        .find(|session| session["current"] == true)
        .expect("mine");
    let other = sessions
        .iter()
        .find(|session| session["current"] == false)
        .expect("other");
    let path = |session: &Value| format!("/api/sessions/{}", text(session, "id"));

    let end = async |token: &str, path: &str| {
        send(client.request(Method::DELETE, path).bearer_auth(token)).await
    };
    assert_eq!(end(bob, &path(mine)).await?.status, 404);
    assert_eq!(end(one, &path(other)).await?.status, 200);
    assert_eq!(end(one, &path(other)).await?.status, 404);
    assert_eq!(end(one, "/api/sessions/rubbish").await?.status, 404);
    assert_eq!(client.get_as(two, "/api/profile").await?.status, 401);
    assert_eq!(client.get_as(one, "/api/profile").await?.status, 200);
    Ok(())
}

async fn a_token_that_is_logged_out_is_refused_everywhere_at_once(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);
    first.register("alice").await?;
    for _ in 0..20 {
        let tokens = login(&first, "alice").await?;
        let token = text(&tokens, "access_token");
        for client in [&first, &second] {
            assert_eq!(client.get_as(token, "/api/profile").await?.status, 200);
        }
        assert_eq!(first.post_as(token, "/api/logout", None).await?.status, 200);
        assert_eq!(first.get_as(token, "/api/profile").await?.status, 401);
        assert_eq!(second.get_as(token, "/api/profile").await?.status, 401);
    }
    Ok(())
}

async fn logout_all(client: &Client, tokens: &Value) -> Result<Value> {
    let token = text(tokens, "access_token");
    Ok(client.post_as(token, "/api/logout-all", None).await?.json())
}

#[tokio::test]
async fn a_session_that_ends_sooner_than_others_leaves_them_to_be_ended() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let (one, two) = (
        login(&client, "alice").await?,
        login(&client, "alice").await?,
    );
    replicas.set("REFRESH_TOKEN_TTL", "1");
    replicas.add()?;
    replicas.ready(1).await?;
    let shorter = login(&replicas.client(1)?, "alice").await?;
    wait::until("the last session to expire", async || {
        let profile = client.get_as(text(&shorter, "access_token"), "/api/sessions");
        profile.await.is_ok_and(|answer| answer.status == 401)
    })
    .await?;
    assert_eq!(logout_all(&client, &one).await?["ended"], 2);
    let other = client.get_as(text(&two, "access_token"), "/api/profile");
    assert_eq!(other.await?.status, 401);
    Ok(())
}

#[tokio::test]
async fn a_session_that_the_index_forgot_is_noted_again_when_it_is_used() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 2).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    let user = client.register("alice").await?.json()["id"].clone();
    let tokens = login(&client, "alice").await?;
    let token = text(&tokens, "access_token");
    let sessions = client.get_as(token, "/api/sessions").await?.json();
    let session = format!("session:{}", text(&sessions["sessions"][0], "id"));
    let redis = replicas.redis.as_ref().context("it has one")?;
    let redis = redis.connect().await?;
    let _: () = redis.del(format!("sessions:{user}")).await?;
    // Uses are noted once a minute.
    let _: () = redis.hset(session, ("used", 0)).await?;

    assert_eq!(other.get_as(token, "/api/profile").await?.status, 200);
    assert_eq!(logout_all(&client, &tokens).await?["ended"], 1);
    assert_eq!(other.get_as(token, "/api/profile").await?.status, 401);
    Ok(())
}
