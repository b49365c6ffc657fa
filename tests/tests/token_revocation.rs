//! Token revocation (RFC 7009): what a registered client revokes is dead on every replica and at every gateway
//! before the response.

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::client::{Client, Response};
use tests::identity_edge::IdentityEdge;
use tests::oauth_client::{OAuthClient, REVOKE, form, post_form};
use tests::raw_connection::parse_status;
use tests::replicas::Replicas;
use tests::settings::settings;
use tests::{Store, on_both_stores, signing_key, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

on_both_stores!(
    a_revoked_token_ends_its_session_at_once_on_every_replica,
    a_used_refresh_token_ends_its_session,
    a_token_that_is_unknown_or_expired_ends_nothing,
    a_client_that_is_not_authenticated_ends_nothing,
    a_store_that_is_away_is_503_and_never_a_success,
    a_revocation_is_audited_and_counted,
    a_gateway_refuses_a_revoked_token_at_once,
);

const ALICE: &str = "alice";

fn token<'t>(tokens: &'t Value, kind: &str) -> Result<&'t str> {
    tokens[kind]
        .as_str()
        .with_context(|| format!("no {kind} in {tokens}"))
}

async fn refresh(client: &Client, token: &str) -> Result<Response> {
    let body = json!({"refresh_token": token});
    client.post("/api/refresh", &body).await
}

async fn profile_status(client: &Client, token: &str) -> Result<u16> {
    Ok(client.get_with_token(token, "/api/profile").await?.status)
}

async fn a_revoked_token_ends_its_session_at_once_on_every_replica(store: Store) -> Result<()> {
    let mut replicas = Replicas::start(store, 2).await?;
    // The third replica signs with a private key.
    replicas.set("SIGNING_KEY", &signing_key::generate()?);
    replicas.start_another()?;
    replicas.wait_until_ready(2).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let clients = (0..3).map(|index| replicas.client(index));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    clients[0].register(ALICE).await?;
    for (issuer, revoked_at) in [(0, 1), (1, 1), (2, 2)] {
        for kind in ["access_token", "refresh_token"] {
            let kept = clients[issuer].login(ALICE).await?.access_token()?;
            let tokens = clients[issuer].login(ALICE).await?.json();
            let (access, refreshing) = (
                token(&tokens, "access_token")?,
                token(&tokens, "refresh_token")?,
            );
            // The replicas that know the key have the session in their caches.
            let first = if issuer == 2 { 2 } else { 0 };
            for client in &clients[first..] {
                assert_eq!(profile_status(client, access).await?, 200);
            }
            for hint in ["access_token", "refresh_token", "unknown"] {
                // The hint is wrong in two of three cases, and the token is revoked already in two.
                let parameters = [("token", token(&tokens, kind)?), ("token_type_hint", hint)];
                let body = form(&parameters);
                let client = &clients[revoked_at];
                let response = post_form(client, REVOKE, Some(&service.basic()), &body).await?;
                assert_eq!(response.status, 200, "{kind} {hint}: {}", response.text);
                assert_eq!(response.header("content-type"), "application/json");
                assert_eq!(response.header("cache-control"), "no-store");
                for client in &clients {
                    assert_eq!(profile_status(client, access).await?, 401, "{kind}");
                    assert_eq!(refresh(client, refreshing).await?.status, 401, "{kind}");
                    let inactive = service.introspect(client, access).await?;
                    assert_eq!(inactive, json!({"active": false}));
                }
            }
            // Other sessions of the user live on.
            assert_eq!(profile_status(&clients[issuer], &kept).await?, 200);
        }
    }
    Ok(())
}

async fn a_used_refresh_token_ends_its_session(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    client.register(ALICE).await?;
    let first = client.login(ALICE).await?.json();
    let second = refresh(&client, token(&first, "refresh_token")?)
        .await?
        .json();
    let third = refresh(&client, token(&second, "refresh_token")?)
        .await?
        .json();
    service
        .revoke(&other, token(&first, "refresh_token")?)
        .await?;
    for client in [&client, &other] {
        let access = token(&third, "access_token")?;
        assert_eq!(profile_status(client, access).await?, 401);
        let refreshed = refresh(client, token(&third, "refresh_token")?).await?;
        assert_eq!(refreshed.status, 401);
    }
    Ok(())
}

async fn a_token_that_is_unknown_or_expired_ends_nothing(store: Store) -> Result<()> {
    let lifetime = settings([("ACCESS_TOKEN_TTL", "1".to_owned())]);
    let replicas = Replicas::start_with(store, 1, lifetime).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let client = replicas.client(0)?;
    client.register(ALICE).await?;
    let tokens = client.login(ALICE).await?.json();
    let (access, refreshing) = (
        token(&tokens, "access_token")?,
        token(&tokens, "refresh_token")?,
    );
    wait::until("the access token to expire", async || {
        let status = profile_status(&client, access).await;
        status.is_ok_and(|status| status == 401)
    })
    .await?;
    let forged = format!("{}AAAA", &refreshing[..refreshing.len() - 4]);
    let signature = access.rfind('.').context("a signature")?;
    let unsigned = &access[..=signature];
    let long = "x".repeat(60_000);
    for unknown in [
        access, &forged, unsigned, "x", "\0", "é", &long, ".", "..", "%", "a b+c",
    ] {
        let response = service.request(&client, REVOKE, unknown).await?;
        assert_eq!(response.status, 200, "{unknown:?}: {}", response.text);
    }
    assert_eq!(refresh(&client, refreshing).await?.status, 200);
    Ok(())
}

async fn a_client_that_is_not_authenticated_ends_nothing(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let client = replicas.client(0)?;
    let access = client.register_and_login(ALICE).await?;
    let bearer = format!("Bearer {access}");
    let body = form(&[("token", &access)]);
    for authorization in [None, Some(bearer.as_str())] {
        let response = post_form(&client, REVOKE, authorization, &body).await?;
        assert_eq!(response.status, 401);
        assert_eq!(response.json()["error"], "invalid_client");
    }
    let stranger = OAuthClient {
        secret: "wrong".to_owned(),
        ..service.clone()
    };
    let response = stranger.request(&client, REVOKE, &access).await?;
    assert_eq!(response.status, 401);
    let response = post_form(&client, REVOKE, Some(&service.basic()), "").await?;
    assert_eq!(response.status, 400);
    assert_eq!(response.json()["error"], "invalid_request");
    let get = client.get(&format!("{REVOKE}?token={access}")).await?;
    assert_eq!(get.status, 405);
    assert_eq!(profile_status(&client, &access).await?, 200);
    Ok(())
}

async fn a_store_that_is_away_is_503_and_never_a_success(store: Store) -> Result<()> {
    let mut replicas = Replicas::start(store, 1).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let client = replicas.client(0)?;
    client.register(ALICE).await?;
    let tokens = client.login(ALICE).await?.json();
    replicas.take_sessions_away().await?;
    for kind in ["access_token", "refresh_token"] {
        let response = service.request(&client, REVOKE, token(&tokens, kind)?);
        let response = response.await?;
        assert_eq!(response.status, 503, "{}", response.text);
        assert_eq!(response.header("retry-after"), "1");
        assert_eq!(response.json()["error"], "temporarily_unavailable");
    }
    replicas.bring_sessions_back().await?;
    let refreshing = token(&tokens, "refresh_token")?;
    wait::until("the revocation to succeed", async || {
        let response = service.request(&client, REVOKE, refreshing).await;
        response.is_ok_and(|response| response.status == 200)
    })
    .await?;
    let access = token(&tokens, "access_token")?;
    assert_eq!(profile_status(&client, access).await?, 401);
    Ok(())
}

async fn a_revocation_is_audited_and_counted(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let client = replicas.client(0)?;
    let access = client.register_and_login(ALICE).await?;
    service.revoke(&client, &access).await?;
    // Neither ends a session.
    service.revoke(&client, &access).await?;
    service.revoke(&client, "x").await?;
    replicas.wait_for_log("\"token_revoked\"").await?;
    let logs = replicas.logs();
    let mut records = logs
        .lines()
        .filter(|line| line.contains("\"token_revoked\""));
    let record: Value = serde_json::from_str(records.next().context("a record")?)?;
    assert!(records.next().is_none());
    assert_eq!(record["target"], "audit");
    assert_eq!(record["user"], 1);
    assert_eq!(record["oauth_client"], service.id);
    assert_eq!(record["oauth_client_name"], "orders");
    let ended = replicas.metric(0, "auth_api_sessions_ended_total", &[]);
    assert_eq!(ended.await?, Some(1.0));
    for secret in [&access, &service.secret] {
        assert!(!logs.contains(secret.as_str()), "a log contains a secret");
    }
    Ok(())
}

async fn a_gateway_refuses_a_revoked_token_at_once(store: Store) -> Result<()> {
    let edge = IdentityEdge::start(store, 2).await?;
    let service = OAuthClient::create(&edge.replicas, "orders")?;
    let replica = edge.replicas.client(0)?;
    replica.register(ALICE).await?;
    for kind in ["access_token", "refresh_token"] {
        let tokens = replica.login(ALICE).await?.json();
        let access = token(&tokens, "access_token")?;
        for (index, gateway) in edge.gateways.iter().enumerate() {
            let allowed = gateway.client()?;
            let allowed = allowed.get_with_token(access, "/private/x").await?;
            assert_eq!(allowed.status, 200);
            if store == Store::PostgresRedis {
                edge.wait_until_remembered(index, access).await?;
            }
        }
        service.revoke(&replica, token(&tokens, kind)?).await?;
        for gateway in &edge.gateways {
            let refused = gateway.client()?;
            let refused = refused.get_with_token(access, "/private/x").await?;
            assert_eq!(refused.status, 401, "{kind}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_replica_paused_during_a_revocation_refuses_the_token_when_it_resumes() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 2).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    client.register(ALICE).await?;
    for kind in ["access_token", "refresh_token"] {
        let tokens = client.login(ALICE).await?.json();
        let access = token(&tokens, "access_token")?;
        for _ in 0..5 {
            assert_eq!(profile_status(&other, access).await?, 200);
        }
        let paused = &replicas.instances[1];
        paused.process.signal(Signal::STOP)?;
        let revoked = service.revoke(&client, token(&tokens, kind)?).await;
        let mut connection = TcpStream::connect(paused.address).await?;
        let request = format!(
            "GET /api/profile HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {access}\r\nconnection: close\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await?;
        paused.process.signal(Signal::CONT)?;
        revoked?;
        let mut response = String::new();
        connection.read_to_string(&mut response).await?;
        assert_eq!(parse_status(&response), 401, "{kind}");
    }
    Ok(())
}
