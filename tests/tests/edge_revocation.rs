//! Revocation at the edge: after the end of a session was acknowledged, no request that begins with one of its
//! tokens reaches an upstream through any gateway, whatever happens to gateways, replicas and Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::json;
use tests::client::{NEW_PASSWORD, PASSWORD, Response, credentials};
use tests::fault_proxy::FaultProxy;
use tests::identity_edge::IdentityEdge;
use tests::oauth_client::OAuthClient;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Client, Gateway, Store, wait};
use tokio::task::JoinSet;

/// Requests with one token that run until they are stopped, to find one that is accepted too late.
struct Traffic {
    stop: Arc<AtomicBool>,
    is_accepted: Arc<AtomicBool>,
    requests: JoinSet<Result<Vec<Instant>>>,
}

impl Traffic {
    /// Sends requests through each gateway, one after another.
    fn start(gateways: &[Gateway], token: &str) -> Result<Self> {
        let (stop, is_accepted) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let mut requests = JoinSet::new();
        for gateway in gateways {
            let (client, token) = (gateway.client()?, token.to_owned());
            let (stop, is_accepted) = (Arc::clone(&stop), Arc::clone(&is_accepted));
            requests.spawn(async move {
                let mut accepted = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    // A gateway that is stopped or restarted may not respond.
                    let response = client.get_with_token(&token, "/private/traffic").await;
                    if response.is_ok_and(|response| response.status == 200) {
                        accepted.push(began);
                        is_accepted.store(true, Ordering::Relaxed);
                    }
                }
                Ok(accepted)
            });
        }
        Ok(Self {
            stop,
            is_accepted,
            requests,
        })
    }

    /// Waits until a request was accepted.
    async fn wait_until_accepted(&self) -> Result<()> {
        wait::until("a request to be accepted", async || {
            self.is_accepted.load(Ordering::Relaxed)
        })
        .await
    }

    /// Stops the requests. Returns the number of those that were accepted although they began after `end`.
    async fn accepted_after(mut self, end: Instant) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let mut late = 0;
        while let Some(accepted) = self.requests.join_next().await {
            late += accepted??.iter().filter(|began| **began > end).count();
        }
        Ok(late)
    }
}

async fn status_of(gateway: &Gateway, token: &str) -> Result<u16> {
    let response = gateway
        .client()?
        .get_with_token(token, "/private/after")
        .await?;
    Ok(response.status)
}

async fn log_out(replica: &Client, token: &str) -> Result<()> {
    let logout = replica.post_with_token(token, "/api/logout", None).await?;
    ensure!(logout.status == 200, "{}", logout.text);
    Ok(())
}

/// Waits until every gateway remembers `token`.
async fn warm(edge: &IdentityEdge, token: &str) -> Result<()> {
    for index in 0..edge.gateways.len() {
        edge.wait_until_remembered(index, token).await?;
    }
    Ok(())
}

fn ensure_not_received(edge: &IdentityEdge, path: &str) {
    let received = edge.upstream.received_requests();
    let late: Vec<_> = received
        .iter()
        .filter(|request| request.contains(path))
        .collect();
    assert!(late.is_empty(), "{late:?}");
}

#[tokio::test]
async fn no_request_is_accepted_after_a_logout_was_acknowledged() -> Result<()> {
    const ROUNDS: usize = 40;
    let edge = IdentityEdge::start(Store::PostgresRedis, 2).await?;
    let replicas = [edge.replicas.client(0)?, edge.replicas.client(1)?];
    replicas[0].register("alice").await?;
    for round in 0..ROUNDS {
        let token = replicas[round % 2].login("alice").await?.access_token()?;
        // Some sessions end while gateways see their tokens for the first time.
        let is_remembered = round % 3 > 0;
        if is_remembered {
            warm(&edge, &token).await?;
        }
        let traffic = Traffic::start(&edge.gateways, &token)?;
        if is_remembered {
            traffic.wait_until_accepted().await?;
        }
        tokio::time::sleep(Duration::from_millis(round as u64 % 7)).await;
        log_out(&replicas[round / 2 % 2], &token).await?;
        let end = Instant::now();
        for gateway in &edge.gateways {
            assert_eq!(status_of(gateway, &token).await?, 401, "round {round}");
        }
        assert_eq!(traffic.accepted_after(end).await?, 0, "round {round}");
    }
    ensure_not_received(&edge, "/private/after");
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_is_stopped_during_a_logout_rejects_the_token_when_it_resumes() -> Result<()>
{
    let edge = IdentityEdge::start(Store::PostgresRedis, 2).await?;
    let replica = edge.replicas.client(0)?;
    replica.register("alice").await?;
    for _ in 0..5 {
        let token = replica.login("alice").await?.access_token()?;
        warm(&edge, &token).await?;
        let stopped = &edge.gateways[1];
        let mut connection = RawConnection::connect(stopped).await?;
        stopped.process.signal(Signal::STOP)?;
        log_out(&replica, &token).await?;
        assert_eq!(status_of(&edge.gateways[0], &token).await?, 401);
        let request = format!(
            "GET /private/after HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        );
        connection.send(request).await?;
        stopped.process.signal(Signal::CONT)?;
        let response = connection.read_to_string().await?;
        assert_eq!(parse_status(&response), 401, "{response}");
    }
    ensure_not_received(&edge, "/private/after");
    Ok(())
}

#[tokio::test]
async fn a_replica_that_learns_of_a_logout_late_does_not_mislead_a_gateway() -> Result<()> {
    let edge = IdentityEdge::start(Store::PostgresRedis, 2).await?;
    let (first, second) = (edge.replicas.client(0)?, edge.replicas.client(1)?);
    first.register("alice").await?;
    let asked_by_second_gateway = &edge.replicas.instances[1].process;
    for round in 0..10_u64 {
        let token = first.login("alice").await?.access_token()?;
        // The replica has the session in its cache, the gateways do not know the token.
        assert_eq!(
            second.get_with_token(&token, "/api/profile").await?.status,
            200
        );
        let traffic = Traffic::start(&edge.gateways, &token)?;
        asked_by_second_gateway.signal(Signal::STOP)?;
        let logout = tokio::spawn({
            let (first, token) = (first.clone(), token.clone());
            async move { log_out(&first, &token).await.map(|()| Instant::now()) }
        });
        tokio::time::sleep(Duration::from_millis(100 * round)).await;
        asked_by_second_gateway.signal(Signal::CONT)?;
        let end = logout.await??;
        for gateway in &edge.gateways {
            assert_eq!(status_of(gateway, &token).await?, 401, "round {round}");
        }
        assert_eq!(traffic.accepted_after(end).await?, 0, "round {round}");
    }
    ensure_not_received(&edge, "/private/after");
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_is_cut_off_from_redis_asks_auth_api() -> Result<()> {
    let mut edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let server = edge.replicas.redis.as_ref().context("a Redis server")?;
    let proxy = FaultProxy::start(server.address).await?;
    edge.start_gateway(Some(proxy.address)).await?;
    let replica = edge.replicas.client(0)?;
    replica.register("alice").await?;
    for round in 0..3 {
        let token = replica.login("alice").await?.access_token()?;
        let other = replica.login("alice").await?.access_token()?;
        warm(&edge, &token).await?;
        let traffic = Traffic::start(&edge.gateways, &token)?;
        if round == 0 {
            proxy.set_delay(Duration::from_millis(300));
        }
        proxy.blackhole_open_connections();
        log_out(&replica, &token).await?;
        let end = Instant::now();
        for gateway in &edge.gateways {
            assert_eq!(status_of(gateway, &token).await?, 401, "round {round}");
        }
        assert_eq!(traffic.accepted_after(end).await?, 0, "round {round}");
        // It reconnects by itself.
        proxy.set_delay(Duration::ZERO);
        warm(&edge, &other).await?;
    }
    ensure_not_received(&edge, "/private/after");
    Ok(())
}

#[tokio::test]
async fn no_request_is_accepted_too_late_while_redis_restarts() -> Result<()> {
    let mut edge = IdentityEdge::start(Store::PostgresRedis, 2).await?;
    let replica = edge.replicas.client(0)?;
    replica.register("alice").await?;
    for round in 0..3 {
        let token = replica.login("alice").await?.access_token()?;
        warm(&edge, &token).await?;
        let traffic = Traffic::start(&edge.gateways, &token)?;
        let redis = edge.replicas.redis.as_mut().context("a Redis server")?;
        redis.kill();
        redis.start_again()?;
        // While replicas reconnect, a logout is refused.
        wait::until("a logout to succeed", async || {
            let logout = replica.post_with_token(&token, "/api/logout", None).await;
            logout.is_ok_and(|logout| matches!(logout.status, 200 | 400))
        })
        .await?;
        let end = Instant::now();
        for gateway in &edge.gateways {
            assert_eq!(status_of(gateway, &token).await?, 401, "round {round}");
        }
        assert_eq!(traffic.accepted_after(end).await?, 0, "round {round}");
    }
    Ok(())
}

#[tokio::test]
async fn a_gateway_without_redis_and_auth_api_rejects_even_what_it_knew_with_503() -> Result<()> {
    let mut edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let token = edge.replicas.client(0)?.register_and_login("alice").await?;
    warm(&edge, &token).await?;
    edge.replicas
        .redis
        .as_mut()
        .context("a Redis server")?
        .kill();
    edge.replicas.instances.clear();
    let (gateway, accepted) = (&edge.gateways[0], AtomicU32::new(0));
    let lease_end = Instant::now() + Duration::from_secs(1);
    wait::until("the gateway to reject the token", async || {
        let began = Instant::now();
        let status = status_of(gateway, &token).await.unwrap_or_default();
        if status == 200 && began > lease_end {
            accepted.fetch_add(1, Ordering::Relaxed);
        }
        status == 503
    })
    .await?;
    assert_eq!(
        accepted.load(Ordering::Relaxed),
        0,
        "accepted without a lease"
    );
    let open = gateway.client()?.get_with_token(&token, "/open/a").await?;
    assert_eq!(open.status, 503, "{}", open.text);
    Ok(())
}

#[tokio::test]
async fn the_embedded_store_is_asked_for_each_request() -> Result<()> {
    let edge = IdentityEdge::start(Store::Embedded, 2).await?;
    let replica = edge.replicas.client(0)?;
    replica.register("alice").await?;
    for _ in 0..10 {
        let token = replica.login("alice").await?.access_token()?;
        let before = edge.verify_requests().await?;
        for gateway in &edge.gateways {
            for _ in 0..3 {
                let response = gateway
                    .client()?
                    .get_with_token(&token, "/private/a")
                    .await?;
                assert_eq!(response.status, 200, "{}", response.text);
            }
        }
        let asked = edge.verify_requests().await? - before;
        assert_eq!(asked, 6);
        log_out(&replica, &token).await?;
        for gateway in &edge.gateways {
            assert_eq!(status_of(gateway, &token).await?, 401);
        }
    }
    ensure_not_received(&edge, "/private/after");
    Ok(())
}

/// Ways to end a session that was begun by a login of `login`.
#[derive(Debug, Clone, Copy)]
enum End {
    Logout,
    LogoutAll,
    OneSession,
    PasswordChange,
    Deletion,
    Disabling,
    RefreshReuse,
    /// Of the refresh token, by a registered client.
    Revocation,
    OfAllAccounts,
}

fn ensure_status(response: Result<Response>, expected: u16) -> Result<()> {
    let response = response?;
    ensure!(
        response.status == expected,
        "{}: {}",
        response.status,
        response.text
    );
    Ok(())
}

async fn end(how: End, edge: &IdentityEdge, login: &str, response: &Response) -> Result<()> {
    let replica = edge.replicas.client(1)?;
    let token = response.access_token()?;
    let command = |arguments: &[&str]| -> Result<()> {
        let output = edge.replicas.user_command(arguments, "")?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    match how {
        End::Logout => log_out(&replica, &token).await,
        End::LogoutAll => ensure_status(
            replica
                .post_with_token(&token, "/api/logout-all", None)
                .await,
            200,
        ),
        End::OneSession => {
            let other = replica.login(login).await?.access_token()?;
            let sessions = replica
                .get_with_token(&other, "/api/sessions")
                .await?
                .json();
            let sessions = sessions["sessions"].as_array().context("sessions")?;
            // The newest one comes first and is that of the second login.
            let oldest = sessions.last().and_then(|session| session["id"].as_str());
            let path = format!("/api/sessions/{}", oldest.context("a session id")?);
            let request = replica
                .request(reqwest::Method::DELETE, &path)
                .bearer_auth(&other);
            ensure_status(tests::client::send(request).await, 200)
        }
        End::PasswordChange => {
            let other = replica.login(login).await?.access_token()?;
            let body = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
            ensure_status(
                replica
                    .post_with_token(&other, "/api/password", Some(&body))
                    .await,
                200,
            )
        }
        End::Deletion => {
            let body = credentials(login, PASSWORD);
            ensure_status(replica.post("/api/delete", &body).await, 200)
        }
        End::Disabling => command(&["disable", login]),
        End::RefreshReuse => {
            let first = response.json()["refresh_token"].clone();
            let second = replica
                .post("/api/refresh", &json!({"refresh_token": first}))
                .await?;
            let second = second.json()["refresh_token"].clone();
            let third = replica
                .post("/api/refresh", &json!({"refresh_token": second}))
                .await?;
            let third = third.json()["refresh_token"].clone();
            ensure_status(
                replica
                    .post("/api/refresh", &json!({"refresh_token": third}))
                    .await,
                200,
            )?;
            ensure_status(
                replica
                    .post("/api/refresh", &json!({"refresh_token": first}))
                    .await,
                401,
            )
        }
        End::Revocation => {
            let service = OAuthClient::create(&edge.replicas, "shop")?;
            let refresh_token = response.json()["refresh_token"].clone();
            let refresh_token = refresh_token.as_str().context("a refresh token")?;
            service.revoke(&replica, refresh_token).await
        }
        End::OfAllAccounts => command(&["end-all-sessions"]),
    }
}

#[tokio::test]
async fn every_way_to_end_a_session_takes_effect_at_every_gateway() -> Result<()> {
    let edge = IdentityEdge::start(Store::PostgresRedis, 2).await?;
    let replica = edge.replicas.client(0)?;
    for how in [
        End::Logout,
        End::LogoutAll,
        End::OneSession,
        End::PasswordChange,
        End::Deletion,
        End::Disabling,
        End::RefreshReuse,
        End::Revocation,
        End::OfAllAccounts,
    ] {
        let login = format!("user-of-{how:?}");
        replica.register(&login).await?;
        let response = replica.login(&login).await?;
        let token = response.access_token()?;
        warm(&edge, &token).await?;
        let traffic = Traffic::start(&edge.gateways, &token)?;
        if let Err(error) = end(how, &edge, &login, &response).await {
            bail!("{how:?}: {error:#}");
        }
        let ended = Instant::now();
        for gateway in &edge.gateways {
            assert_eq!(status_of(gateway, &token).await?, 401, "{how:?}");
        }
        assert_eq!(traffic.accepted_after(ended).await?, 0, "{how:?}");
    }
    ensure_not_received(&edge, "/private/after");
    Ok(())
}

// An end of all sessions that was interrupted after the account's row has changed, and is repeated.
#[tokio::test]
async fn gateways_forget_a_session_that_its_account_has_ended_once_a_replica_refuses_it()
-> Result<()> {
    let edge = IdentityEdge::start(Store::PostgresRedis, 2).await?;
    let replica = edge.replicas.client(0)?;
    for (login, statement, refusal) in [
        (
            "alice",
            "UPDATE users SET sessions_valid_after = now() WHERE login = 'alice'",
            401,
        ),
        ("bob", "DELETE FROM users WHERE login = 'bob'", 404),
    ] {
        let token = replica.register_and_login(login).await?;
        warm(&edge, &token).await?;
        edge.replicas.execute(statement).await?;
        let response = replica
            .post_with_token(&token, "/api/logout-all", None)
            .await?;
        assert_eq!(response.status, refusal, "{}", response.text);
        for gateway in &edge.gateways {
            assert_eq!(status_of(gateway, &token).await?, 401, "{login}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn gateways_forget_sessions_although_a_command_cannot_be_recorded() -> Result<()> {
    let mut edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let replica = edge.replicas.client(0)?;
    // The replicas run already: only commands get it.
    edge.replicas.set("AUDIT_LOG", "/dev/full");
    for command in ["disable", "set-password", "end-all-sessions"] {
        let login = format!("user of {command}");
        let token = replica.register_and_login(&login).await?;
        warm(&edge, &token).await?;
        let arguments: &[&str] = match command {
            "end-all-sessions" => &[command],
            _ => &[command, &login],
        };
        let output = edge.replicas.user_command(arguments, NEW_PASSWORD)?;
        assert!(!output.status.success(), "{command}: {output:?}");
        for gateway in &edge.gateways {
            assert_eq!(status_of(gateway, &token).await?, 401, "{command}");
        }
    }
    Ok(())
}
