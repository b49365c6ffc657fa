//! `/api/verify`, by itself and as nginx and Caddy ask it with the configurations of docs/forward-auth.md.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use reqwest::Method;
use reqwest::header::AUTHORIZATION;
use tests::client::{Client, PASSWORD, Response, credentials, send};
use tests::command::bound_command;
use tests::nginx::Nginx;
use tests::process::Process;
use tests::replicas::Replicas;
use tests::{MockUpstream, Store, address, on_both_stores};

on_both_stores!(
    a_token_is_verified_until_its_session_ends,
    other_requests_are_no_identity,
);

const DOCUMENT: &str = include_str!("../../docs/forward-auth.md");

const LOGIN: &str = "Jürgen Meier";
const ENCODED_LOGIN: &str = "J%C3%BCrgen%20Meier";

fn assert_identity(response: &Response) {
    assert_eq!(response.status, 200, "{}", response.text);
    assert_eq!(response.text, "");
    assert_eq!(response.header("x-user-id"), "1");
    assert_eq!(response.header("x-user-login"), ENCODED_LOGIN);
    assert_eq!(response.header("x-session-id").len(), 32);
    assert_eq!(response.header("cache-control"), "no-store");
}

fn assert_unauthorized(response: &Response) {
    assert_eq!(response.status, 401, "{}", response.text);
    assert!(response.header("www-authenticate").starts_with("Bearer"));
    assert_eq!(response.header("x-user-id"), "");
    assert_eq!(response.header("cache-control"), "no-store");
}

async fn a_token_is_verified_until_its_session_ends(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (client, other) = (replicas.client(0)?, replicas.client(1)?);
    let token = client.register_and_login(LOGIN).await?;
    for (method, path) in [
        (Method::GET, "/api/verify"),
        (Method::HEAD, "/api/verify"),
        (Method::POST, "/api/verify"),
        (Method::DELETE, "/api/verify/orders/7?all=true"),
        (Method::from_bytes(b"PROPFIND")?, "/api/verify/"),
    ] {
        let request = client.request(method.clone(), path).bearer_auth(&token);
        let response = send(request).await?;
        assert_eq!(response.status, 200, "{method} {path}: {}", response.text);
    }
    assert_identity(&other.get_with_token(&token, "/api/verify").await?);

    client.post_with_token(&token, "/api/logout", None).await?;
    assert_unauthorized(&other.get_with_token(&token, "/api/verify").await?);
    let token = client.login(LOGIN).await?.access_token()?;
    assert_identity(&other.get_with_token(&token, "/api/verify").await?);
    assert!(
        replicas
            .user_command(&["disable", LOGIN], "")?
            .status
            .success()
    );
    assert_unauthorized(&other.get_with_token(&token, "/api/verify").await?);
    assert!(
        replicas
            .user_command(&["enable", LOGIN], "")?
            .status
            .success()
    );
    let token = client.login(LOGIN).await?.access_token()?;
    let body = credentials(LOGIN, PASSWORD);
    assert_eq!(client.post("/api/delete", &body).await?.status, 200);
    assert_unauthorized(&other.get_with_token(&token, "/api/verify").await?);

    // A row that is gone although the session is not.
    client.register("bob").await?;
    let token = client.login("bob").await?.access_token()?;
    replicas
        .execute("DELETE FROM users WHERE login = 'bob'")
        .await?;
    assert_unauthorized(&other.get_with_token(&token, "/api/verify").await?);
    Ok(())
}

async fn other_requests_are_no_identity(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login(LOGIN).await?;
    assert_unauthorized(&client.get("/api/verify").await?);
    for value in ["Basic YTpi", "Bearer x", "Bearer "] {
        let request = client.request(Method::GET, "/api/verify");
        assert_unauthorized(&send(request.header(AUTHORIZATION, value)).await?);
    }
    let twice = client.request(Method::GET, "/api/verify");
    let twice = twice.bearer_auth(&token).header(AUTHORIZATION, "Bearer x");
    assert_eq!(send(twice).await?.status, 400);
    let in_query = format!("/api/verify?access_token={token}");
    assert_unauthorized(&client.get(&in_query).await?);
    Ok(())
}

/// Returns the code block of the document in `language`, with addresses in place of the names in it.
fn example(
    language: &str,
    listen: SocketAddr,
    auth_api: SocketAddr,
    service: SocketAddr,
) -> Result<String> {
    let (_, block) = DOCUMENT
        .split_once(&format!("```{language}\n"))
        .with_context(|| format!("the document has an example for {language}"))?;
    let (block, _) = block.split_once("```").context("the block ends")?;
    for name in ["auth-api:8000", "service:8080", "80"] {
        assert!(block.contains(name), "{language}: {name}");
    }
    Ok(block
        .replace("auth-api:8000", &auth_api.to_string())
        .replace("service:8080", &service.to_string())
        .replace("listen 80;", &format!("listen {listen};"))
        .replace(":80 {", &format!("http://{listen} {{")))
}

/// Sends requests through another proxy and checks what the service behind it receives.
async fn assert_only_verified_identities_reach(
    proxy: SocketAddr,
    replicas: &mut Replicas,
    service: &MockUpstream,
) -> Result<()> {
    let (client, direct) = (Client::cleartext(proxy)?, replicas.client(0)?);
    let token = direct.register_and_login(LOGIN).await?;
    let spoofed = |request: reqwest::RequestBuilder| {
        request
            .header("X-User-Id", "999")
            .header("x-user-login", "admin")
            .header("X-Session-Id", "spoofed")
            .header("X_User_Id", "999")
            .header("X_User_Login", "admin")
            .header("x_session_id", "spoofed")
    };
    for method in [Method::GET, Method::POST, Method::DELETE] {
        let request = spoofed(client.request(method, "/orders/7?q=1"));
        let request = request.bearer_auth(&token).body("a body");
        assert_eq!(send(request).await?.text, "ok");
    }
    let received = service.received_requests();
    assert_eq!(received.len(), 3);
    for (request, method) in received.iter().zip(["GET", "POST", "DELETE"]) {
        let line = format!("{method} /orders/7?q=1 ");
        assert!(request.starts_with(&line), "{request}");
        assert!(request.ends_with("a body"), "{request}");
        let request = request.to_lowercase();
        let values = |name: &str| -> Vec<&str> {
            let lines = request.lines();
            let lines = lines.filter_map(|line| line.split_once(": "));
            lines
                .filter(|(header, _)| header.replace('_', "-") == name)
                .map(|(_, value)| value)
                .collect()
        };
        assert_eq!(values("x-user-id"), ["1"], "{request}");
        assert_eq!(
            values("x-user-login"),
            [ENCODED_LOGIN.to_lowercase()],
            "{request}"
        );
        assert_eq!(values("x-session-id").len(), 1, "{request}");
        assert!(!request.contains("spoofed"), "{request}");
    }

    let anonymous = spoofed(client.request(Method::GET, "/orders"));
    let anonymous = send(anonymous).await?;
    assert_eq!(anonymous.status, 401);
    assert_eq!(anonymous.header("www-authenticate"), "Bearer");
    direct.post_with_token(&token, "/api/logout", None).await?;
    let logged_out = client.get_with_token(&token, "/orders").await?;
    assert_eq!(logged_out.status, 401);
    assert_eq!(
        logged_out.header("www-authenticate"),
        "Bearer error=\"invalid_token\""
    );
    // Redis is away.
    let token = direct.login(LOGIN).await?.access_token()?;
    replicas
        .redis
        .as_mut()
        .context("the store has Redis")?
        .kill();
    direct
        .wait_for_response("/ready", |response| response.status == 503)
        .await?;
    let unavailable = client.get_with_token(&token, "/orders").await?;
    assert_eq!(unavailable.status, 503);
    assert_eq!(unavailable.header("retry-after"), "1");
    assert_eq!(service.received_requests().len(), 3);
    Ok(())
}

#[tokio::test]
async fn nginx_passes_on_verified_identities_only() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let service = MockUpstream::always_ok().await?;
    let listen = address::unused_loopback();
    let block = example(
        "nginx",
        listen,
        replicas.instances[0].address,
        service.address,
    )?;
    let _proxy = Nginx::start(&block, listen)?;
    assert_only_verified_identities_reach(listen, &mut replicas, &service).await
}

#[tokio::test]
async fn caddy_passes_on_verified_identities_only() -> Result<()> {
    // Set by `scripts/test` where the system has no Caddy.
    if std::env::var_os("TEST_CADDY").is_some_and(|value| value == "none") {
        return Ok(());
    }
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let service = MockUpstream::always_ok().await?;
    let listen = address::unused_loopback();
    let block = example(
        "caddyfile",
        listen,
        replicas.instances[0].address,
        service.address,
    )?;
    let folder = tempfile::Builder::new().prefix("caddy-").tempdir()?;
    let config_file = folder.path().join("Caddyfile");
    fs::write(&config_file, format!("{{\n\tadmin off\n}}\n{block}"))?;
    let mut command = bound_command("caddy");
    command
        .args(["run", "--config"])
        .arg(&config_file)
        .env("HOME", folder.path())
        .env("XDG_DATA_HOME", folder.path())
        .env("XDG_CONFIG_HOME", folder.path());
    let log_file = folder.path().join("log");
    let mut proxy = Process::start("caddy", &mut command, &log_file)?;
    proxy.wait_until_listening(listen)?;
    assert_only_verified_identities_reach(listen, &mut replicas, &service).await
}
