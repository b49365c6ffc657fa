//! What auth-api reads of a request, and refuses: header lines that occur twice, bodies that are not
//! declared as JSON, paths that are no text.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use tests::client::{PASSWORD, credentials, send};
use tests::raw_connection::parse_status;
use tests::replicas::Replicas;
use tests::settings::settings;
use tests::{Store, on_both_stores, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

on_both_stores!(
    a_login_without_an_account_is_not_audited_in_clear,
    two_authorization_headers_are_rejected,
);

/// Sends the bytes of a request on a new connection and returns the whole response.
async fn exchange(address: SocketAddr, request: &[u8]) -> Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(request).await?;
    let mut response = Vec::new();
    let read = connection.read_to_end(&mut response);
    tokio::time::timeout(wait::TIMEOUT, read).await??;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

/// Returns a POST of `body` as a message, with `headers` (whole lines).
fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
}

/// Returns the audit records of `event` in the logs, at least one.
async fn audit_records(replicas: &Replicas, event: &str) -> Result<Vec<Value>> {
    let field = format!("\"event\":\"{event}\"");
    replicas.wait_for_log(&field).await?;
    let logs = replicas.logs();
    let records = logs.lines().filter(|line| line.contains(&field));
    Ok(records
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?)
}

#[tokio::test]
async fn the_address_that_the_gateway_appended_is_audited() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let login = credentials("alice", PASSWORD).to_string();
    for lines in [
        "x-forwarded-for: 6.6.6.6\r\nx-forwarded-for: 192.0.2.1\r\n",
        "x-forwarded-for: 6.6.6.6, 192.0.2.1\r\nx-forwarded-for: ,\r\n",
    ] {
        let headers = format!("content-type: application/json\r\n{lines}");
        let request = post("/api/login", &headers, &login);
        let response = exchange(replicas.instances[0].address, request.as_bytes()).await?;
        assert_eq!(parse_status(&response), 401, "{response}");
    }
    wait::until("both audit events", async || {
        replicas.logs().matches("\"login_failed\"").count() == 2
    })
    .await?;
    for record in audit_records(&replicas, "login_failed").await? {
        assert_eq!(record["client"], "192.0.2.1");
    }
    assert!(!replicas.logs().contains("6.6.6.6"), "a forged address");
    Ok(())
}

#[tokio::test]
async fn what_clients_send_is_escaped_in_text_logs() -> Result<()> {
    // CSI, right-to-left override, next line.
    const HOSTILE: &str = "\u{9b}2J\u{202e}\u{85}";
    const ESCAPED: &str = r"\u{9b}2J\u{202e}\u{85}";
    let text = settings([("LOG_FORMAT", "text".to_owned())]);
    let replicas = Replicas::start_with(Store::Embedded, 1, text).await?;
    let address = replicas.instances[0].address;
    let headers = format!(
        "content-type: application/json\r\nuser-agent: agent{HOSTILE}\r\nx-request-id: id{HOSTILE}\r\n\
         x-forwarded-for: client{HOSTILE}\r\n"
    );
    let login = credentials("alice\n\u{1b}[2J", PASSWORD).to_string();
    let login = post("/api/login", &headers, &login);
    let path = format!("GET /path{HOSTILE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    for (request, status) in [(login, 401), (path, 404)] {
        let response = exchange(address, request.as_bytes()).await?;
        assert_eq!(parse_status(&response), status, "{response}");
    }
    for value in ["agent", "id", "client", "/path"] {
        replicas
            .wait_for_log(&format!("\"{value}{ESCAPED}\""))
            .await?;
    }
    let logs = replicas.logs();
    let is_safe = |character: char| !character.is_control() && character != '\u{202e}';
    assert!(
        logs.lines().all(|line| line.chars().all(is_safe)),
        "{logs:?}"
    );
    Ok(())
}

async fn a_login_without_an_account_is_not_audited_in_clear(store: Store) -> Result<()> {
    const MISPLACED: &str = "correct horse battery staple";
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    // Until the login is locked.
    for _ in 0..11 {
        client
            .post("/api/login", &credentials(MISPLACED, "anything"))
            .await?;
        client
            .post("/api/delete", &credentials("alice", "wrong password"))
            .await?;
    }
    for event in ["login_failed", "locked_out"] {
        wait::until("records of both accounts", async || {
            let logs = replicas.logs();
            let has = |field: &str| {
                logs.lines()
                    .any(|line| line.contains(event) && line.contains(field))
            };
            has("\"login\":\"alice\"") && has("unknown_login")
        })
        .await?;
        let records = audit_records(&replicas, event).await?;
        let known = records.iter().filter(|record| record["login"] == "alice");
        assert!(known.clone().all(|record| record["user"].is_number()));
        assert!(known.count() > 0, "{event}");
        let mut unknown = records
            .iter()
            .filter_map(|record| record["unknown_login"].as_str());
        let first = unknown.next().context("a record without an account")?;
        assert_eq!(first.len(), 32);
        assert!(unknown.all(|login| login == first), "{event}");
    }
    assert!(!replicas.logs().contains(MISPLACED));
    Ok(())
}

#[tokio::test]
async fn a_body_without_exactly_one_json_content_type_is_rejected() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let address = replicas.instances[0].address;
    let body = credentials("alice", PASSWORD).to_string();
    let json = "content-type: application/json\r\n";
    for (headers, status) in [
        (json, 201),
        ("content-type: application/json; charset=utf-8\r\n", 409),
        ("", 422),
        ("content-type:\r\n", 422),
        ("content-type: text/plain\r\n", 422),
        ("content-type: application/json, text/plain\r\n", 422),
        (&[json, json].concat(), 422),
        (&[json, "content-type: text/plain\r\n"].concat(), 422),
        (&["content-type: text/plain\r\n", json].concat(), 422),
    ] {
        let request = post("/api/register", headers, &body);
        let response = exchange(address, request.as_bytes()).await?;
        assert_eq!(parse_status(&response), status, "{headers}: {response}");
        if status == 422 {
            assert!(response.contains("model_attributes_type"), "{response}");
        }
    }
    // Every endpoint with a body reads it in the same way.
    let client = replicas.client(0)?;
    let token = client.login("alice").await?.access_token()?;
    for path in [
        "/api/register",
        "/api/login",
        "/api/refresh",
        "/api/delete",
        "/api/password",
    ] {
        let request = client.request(Method::POST, path).bearer_auth(&token);
        let response = send(request.body("{}")).await?;
        assert_eq!(response.status, 422, "{path}");
        assert!(response.text.contains("model_attributes_type"), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn every_error_response_is_json() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let replica = &replicas.instances[0];
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    for (address, request_line, status) in [
        (replica.address, "DELETE /api/sessions/%ff HTTP/1.1", 404),
        (replica.address, "DELETE /api/sessions/%00 HTTP/1.1", 404),
        (replica.address, "DELETE /api/sessions/a%2fb HTTP/1.1", 404),
        (replica.address, "DELETE /api/sessions/ HTTP/1.1", 404),
        (replica.address, "GET /api/sessions/%ff HTTP/1.1", 405),
        (replica.address, "GET /%ff HTTP/1.1", 404),
        (replica.address, "GET /api/profile/ HTTP/1.1", 404),
        (replica.address, "OPTIONS * HTTP/1.1", 404),
        (replica.address, "CONNECT x:1 HTTP/1.1", 404),
        (replica.address, "NEW /api/profile HTTP/1.1", 405),
        (replica.address, "POST /docs HTTP/1.1", 405),
        (replica.address, "POST /ready HTTP/1.1", 405),
        (replica.address, "POST /api/login HTTP/1.1", 422),
        (replica.address, "POST /api/password?%ff=%ff HTTP/1.1", 422),
        (replica.internal_address, "POST /metrics HTTP/1.1", 405),
        (replica.internal_address, "GET /%ff HTTP/1.1", 404),
    ] {
        let request = format!(
            "{request_line}\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        let response = exchange(address, request.as_bytes()).await?;
        assert_eq!(
            parse_status(&response),
            status,
            "{request_line}: {response}"
        );
        let headers = response.to_lowercase();
        let is_json = headers.contains("content-type: application/json\r\n");
        assert!(is_json, "{request_line}: {response}");
        let (_, body) = response.split_once("\r\n\r\n").context("a body")?;
        let body: Value = serde_json::from_str(body).context(request_line)?;
        assert!(!body["detail"].is_null(), "{request_line}: {body}");
    }
    let unknown = client.request(Method::DELETE, "/api/sessions/%ff");
    let response = send(unknown.bearer_auth(&token)).await?;
    assert_eq!(response.json()["detail"], "Session not found");
    assert_eq!(response.headers[CONTENT_TYPE], "application/json");
    Ok(())
}

async fn two_authorization_headers_are_rejected(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let valid = format!("authorization: Bearer {token}\r\n");
    for second in [
        valid.as_str(),
        "authorization: Basic eDp5\r\n",
        "authorization:\r\n",
    ] {
        for headers in [[&valid, second].concat(), [second, &valid].concat()] {
            let without_body = |request_line| {
                format!("{request_line} HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\r\n")
            };
            // The token is optional there.
            let delete = post(
                "/api/delete",
                &format!("content-type: application/json\r\n{headers}"),
                &credentials("alice", PASSWORD).to_string(),
            );
            for request in [
                without_body("GET /api/profile"),
                without_body("POST /api/logout"),
                without_body("DELETE /api/sessions/x"),
                delete,
            ] {
                let address = replicas.instances[0].address;
                let response = exchange(address, request.as_bytes()).await?;
                assert_eq!(parse_status(&response), 400, "{request}: {response}");
                assert!(response.contains("More than one Authorization header"));
            }
        }
    }
    let profile = client.get_with_token(&token, "/api/profile").await?;
    assert_eq!(profile.status, 200, "the session is still active");
    Ok(())
}
