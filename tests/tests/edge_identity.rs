//! Identity at the edge: which requests reach an upstream, and as whom. The ends of sessions are in
//! `edge_revocation.rs`.

use anyhow::{Context, Result};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::client::{Protocol, Response, send};
use tests::http2_frames;
use tests::identity_edge::{IdentityEdge, Signer};
use tests::raw_connection::{RawConnection, parse_status};
use tests::redis::RedisServer;
use tests::{Gateway, MockResponse, MockUpstream, Store, on_both_stores};
use tokio::task::JoinSet;

/// Headers of the identity in a received request, as `name: value` lines in lower case.
fn identity_headers(request: &str) -> Vec<String> {
    let lines = request.lines().map(str::to_lowercase);
    let is_identity = |line: &String| {
        let name = line.split(':').next().unwrap_or_default();
        let name = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        ["x-user-id", "x-user-login", "x-session-id"].contains(&name.as_str())
    };
    lines.filter(is_identity).collect()
}

on_both_stores!(
    a_valid_token_reaches_the_upstream_with_its_identity,
    a_path_may_permit_anonymous_requests,
);

async fn a_valid_token_reaches_the_upstream_with_its_identity(store: Store) -> Result<()> {
    let edge = IdentityEdge::start(store, 1).await?;
    let auth_api = edge.replicas.client(0)?;
    let login = "Jürgen, the 1st";
    let registered = auth_api.register(login).await?.json();
    let user = registered["id"].as_i64().context("a user id")?;
    let token = auth_api.login(login).await?.access_token()?;
    let sessions = auth_api.get_with_token(&token, "/api/sessions").await?;
    let session = sessions.json()["sessions"][0]["id"].clone();
    let expected = [
        format!("x-user-id: {user}"),
        "x-user-login: j%c3%bcrgen%2c%20the%201st".to_owned(),
        format!(
            "x-session-id: {}",
            session.as_str().context("a session id")?
        ),
    ];
    let client = edge.gateways[0].client()?;
    for path in ["/private/a", "/private/a", "/open/a", "/of-user/a"] {
        let response = client.get_with_token(&token, path).await?;
        assert_eq!(response.status, 200, "{path}: {}", response.text);
        let received = edge.last_request();
        assert_eq!(identity_headers(&received), expected, "{path}");
        assert!(received.contains(&format!("Bearer {token}")), "{received}");
    }
    client.get_with_token(&token, "/public").await?;
    assert_eq!(identity_headers(&edge.last_request()), [""; 0]);
    let process = &edge.gateways[0].process;
    process.wait_for_log(&format!(r#""user":{user},"#)).await?;
    let log = process.log();
    assert!(!log.contains(&token) && !log.contains("rgen,"), "{log}");
    Ok(())
}

async fn a_path_may_permit_anonymous_requests(store: Store) -> Result<()> {
    let edge = IdentityEdge::start(store, 1).await?;
    let client = edge.gateways[0].client()?;
    assert_eq!(client.get("/open/a").await?.status, 200);
    assert_eq!(identity_headers(&edge.last_request()), [""; 0]);
    // Credentials of another scheme are for the upstream.
    let basic = client
        .request(Method::GET, "/open/b")
        .basic_auth("a", Some("b"));
    assert_eq!(send(basic).await?.status, 200);
    let bad = client.get_with_token("a.bad.token", "/open/c").await?;
    assert_eq!(bad.status, 401, "{}", bad.text);
    assert_eq!(edge.upstream.received_requests().len(), 2);
    Ok(())
}

/// Tokens that are not valid, made of a valid one and one whose session has ended.
fn invalid_tokens(token: &str, ended: String) -> Result<Vec<(&'static str, String)>> {
    let (signer, foreign) = (Signer::of_replicas(), Signer::foreign());
    let claims = Signer::claims_of(token)?;
    let with = |name: &str, value: Value| {
        let mut changed = claims.clone();
        changed[name] = value;
        changed
    };
    let header = signer.header();
    let of_kid = |kid: &str| json!({"alg": "EdDSA", "typ": "at+jwt", "kid": kid});
    let without_type = json!({"alg": "EdDSA", "kid": header["kid"]});
    let mut critical = header.clone();
    critical["crit"] = json!(["exp"]);
    let (text, signature) = token.rsplit_once('.').context("a signed token")?;
    let (other_text, _) = ended.rsplit_once('.').context("a signed token")?;
    let (none, none_as_jwt) = (
        json!({"alg": "none"}),
        json!({"alg": "None", "typ": "at+jwt"}),
    );
    Ok(vec![
        ("no JWT", "garbage".to_owned()),
        ("no claims", "e30.e30.e30".to_owned()),
        ("no signature", format!("{text}.")),
        (
            "signature of another token",
            format!("{other_text}.{signature}"),
        ),
        ("alg none", Signer::unsigned(&none, &claims)),
        ("alg None", Signer::unsigned(&none_as_jwt, &claims)),
        (
            "HS256 with the public key",
            signer.sign_with_public_key(&claims),
        ),
        (
            "another key under the known kid",
            foreign.sign(&header, &claims),
        ),
        ("another key", foreign.sign(&foreign.header(), &claims)),
        ("unknown kid", signer.sign(&of_kid("unknown"), &claims)),
        (
            "kid of a file",
            signer.sign(&of_kid("../../dev/null"), &claims),
        ),
        ("no type", signer.sign(&without_type, &claims)),
        ("critical extension", signer.sign(&critical, &claims)),
        (
            "another issuer",
            signer.sign(&header, &with("iss", json!("other"))),
        ),
        (
            "expired",
            signer.sign(&header, &with("exp", json!(1_700_000_000))),
        ),
        ("no expiry", signer.sign(&header, &with("exp", json!(null)))),
        (
            "unknown session",
            signer.sign(&header, &with("sid", json!("0".repeat(32)))),
        ),
        (
            "session of another user",
            signer.sign(&header, &with("user_id", json!(999))),
        ),
        ("too long", format!("{token}{}", "A".repeat(9000))),
        ("ended session", ended),
    ])
}

#[tokio::test]
async fn a_request_without_a_valid_token_does_not_reach_the_upstream() -> Result<()> {
    let edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let auth_api = edge.replicas.client(0)?;
    let token = auth_api.register_and_login("alice").await?;
    let ended = auth_api.login("alice").await?.access_token()?;
    let logout = auth_api
        .post_with_token(&ended, "/api/logout", None)
        .await?;
    assert_eq!(logout.status, 200, "{}", logout.text);

    let client = edge.gateways[0].client()?;
    for (case, token) in invalid_tokens(&token, ended)? {
        for path in ["/private/a", "/open/a", "/of-user/a"] {
            let response = client.get_with_token(&token, path).await?;
            assert_eq!(response.status, 401, "{case}: {}", response.text);
            let challenge = response.header("www-authenticate");
            assert_eq!(challenge, r#"Bearer error="invalid_token""#, "{case}");
            assert!(response.json()["error"].is_string(), "{case}");
        }
    }
    for path in ["/private/a", "/of-user/a"] {
        let response = client.get(path).await?;
        let challenge = response.header("www-authenticate");
        assert_eq!((response.status, challenge), (401, "Bearer"));
        assert_eq!(response.json(), json!({"error": "Not authenticated"}));
        let basic = client.request(Method::GET, path).basic_auth("a", Some("b"));
        assert_eq!(send(basic).await?.status, 401);
    }
    let two = client
        .request(Method::GET, "/private/a")
        .header("authorization", format!("Bearer {token}"))
        .header("authorization", "Basic YTpi");
    let two = send(two).await?;
    assert_eq!(two.status, 400, "{}", two.text);
    assert_eq!(edge.upstream.received_requests(), [""; 0]);
    // The token itself is valid.
    let valid = client.get_with_token(&token, "/private/a").await?;
    assert_eq!(valid.status, 200, "{}", valid.text);
    Ok(())
}

#[tokio::test]
async fn a_forged_or_expired_token_costs_auth_api_nothing() -> Result<()> {
    let edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let token = edge.replicas.client(0)?.register_and_login("alice").await?;
    edge.wait_for_keys().await?;
    let signer = Signer::of_replicas();
    let mut claims = Signer::claims_of(&token)?;
    let forged = Signer::foreign().sign(&signer.header(), &claims);
    claims["exp"] = json!(1_700_000_000);
    let expired = signer.sign(&signer.header(), &claims);
    let client = edge.gateways[0].client()?;
    let before = edge.verify_requests().await?;
    for token in [forged, expired] {
        assert_eq!(
            client.get_with_token(&token, "/private/a").await?.status,
            401
        );
    }
    assert_eq!(edge.verify_requests().await?, before);
    Ok(())
}

/// Spellings of one name that a server could take for it. `-` is another separator in each.
fn spellings(name: &str) -> Vec<String> {
    let separators = [
        "-", "_", ".", "!", "~", "*", "+", "^", "|", "`", "'", "#", "$", "%", "&",
    ];
    let mut all: Vec<_> = separators
        .iter()
        .map(|separator| name.replace('-', separator))
        .collect();
    all.push(name.to_uppercase());
    all.push(name.to_uppercase().replace('-', "_"));
    all.push(name.replacen('-', "_", 1));
    all.push(name.replacen('-', ".", 1));
    all
}

#[tokio::test]
async fn a_client_cannot_set_the_headers_of_an_identity() -> Result<()> {
    let edge = IdentityEdge::start(Store::Embedded, 1).await?;
    let gateway = &edge.gateways[0];
    let names = ["x-user-id", "x-user-login", "x-session-id"];
    let spellings: Vec<_> = names.iter().flat_map(|name| spellings(name)).collect();
    for path in ["/public", "/open/a"] {
        for names in spellings.chunks(8) {
            let lines = names.iter().map(|name| format!("{name}: forged\r\n"));
            let headers: String = lines.collect();
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
            );
            let response = RawConnection::exchange(gateway, request).await?;
            assert_eq!(parse_status(&response), 200, "{names:?}: {response}");
            let lower: Vec<_> = names.iter().map(|name| name.to_lowercase()).collect();
            let forged: Vec<_> = lower.iter().map(|name| (name.as_str(), "forged")).collect();
            let mut connection = http2_frames::connect(gateway).await?;
            let block = http2_frames::header_block_for(path, &forged);
            connection.send(http2_frames::request(1, &block)).await?;
            http2_frames::read_until_frame(http2_frames::HEADERS, &mut connection).await?;
        }
        for trailer in ["X-User-Id", "X_User_Id"] {
            let request = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTrailer: {trailer}\r\n\
                 Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{trailer}: forged\r\n\r\n"
            );
            let response = RawConnection::exchange(gateway, request).await?;
            assert_eq!(parse_status(&response), 200, "{trailer}: {response}");
        }
    }
    let received = edge.upstream.received_requests();
    assert_eq!(received.len(), 2 * (2 * spellings.len().div_ceil(8) + 2));
    for request in received {
        assert!(!request.contains("forged"), "{request}");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_cannot_replace_its_identity() -> Result<()> {
    let edge = IdentityEdge::start(Store::Embedded, 1).await?;
    let token = edge.replicas.client(0)?.register_and_login("alice").await?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let client = edge.gateways[0].client_with_protocol(protocol)?;
        let request = client
            .request(Method::GET, "/private/a")
            .bearer_auth(&token)
            .header("X-User-Id", "1000")
            .header("X_User_Id", "1000")
            .header("X-User-Login", "root")
            .header("X-Session-Id", "none")
            .header("Connection", "close, x-user-id, x-user-login");
        // HTTP/2 has no connection options.
        let request = match protocol {
            Protocol::Http1 => request,
            _ => client
                .request(Method::GET, "/private/a")
                .bearer_auth(&token)
                .header("x-user-id", "1000")
                .header("x.user.id", "1000"),
        };
        assert_eq!(send(request).await?.status, 200);
        let headers = identity_headers(&edge.last_request());
        assert_eq!(headers.len(), 3, "{headers:?}");
        assert_eq!(headers[..2], ["x-user-id: 1", "x-user-login: alice"]);
    }
    Ok(())
}

#[tokio::test]
async fn the_headers_of_a_trusted_proxy_do_not_give_an_identity_either() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let yaml = "premier: {trusted_proxies: [127.0.0.0/8]}";
    let gateway = Gateway::start(upstream.address, yaml).await?;
    let request = gateway
        .client()?
        .request(Method::GET, "/a")
        .header("x-user-id", "1");
    assert_eq!(send(request).await?.status, 200);
    assert_eq!(identity_headers(&upstream.received_requests()[0]), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_quota_for_users_counts_a_user_on_all_clients_and_a_client_without_identity() -> Result<()>
{
    let edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let auth_api = edge.replicas.client(0)?;
    let alice = auth_api.register_and_login("alice").await?;
    let again = auth_api.login("alice").await?.access_token()?;
    let bob = auth_api.register_and_login("bob-the-second").await?;
    let (one, two) = (edge.gateways[0].client()?, edge.gateways[0].client()?);
    let get = async |client: &tests::Client, token: Option<&str>| -> Result<Response> {
        match token {
            Some(token) => client.get_with_token(token, "/few-of-user/a").await,
            None => client.get("/few-of-user/a").await,
        }
    };
    for (client, token, expected) in [
        (&one, Some(&*alice), 200),
        (&two, Some(&*again), 200),
        (&one, Some(&*alice), 429),
        (&two, Some(&*again), 429),
        (&one, Some(&*bob), 200),
        (&one, None, 200),
        (&one, Some("bad.e30.e30"), 401),
        // The invalid token was counted for its client, without any identity.
        (&one, None, 429),
        (&one, Some("bad.e30.e30"), 429),
        (&two, None, 200),
    ] {
        let response = get(client, token).await?;
        assert_eq!(response.status, expected, "{token:?}: {}", response.text);
    }
    Ok(())
}

#[tokio::test]
async fn a_user_has_one_quota_over_all_gateways_that_share_it() -> Result<()> {
    let edge = IdentityEdge::start_sharing_quotas(2).await?;
    let auth_api = edge.replicas.client(0)?;
    let alice = auth_api.register_and_login("alice").await?;
    let again = auth_api.login("alice").await?.access_token()?;
    let bob = auth_api.register_and_login("bob-the-second").await?;
    let (one, two) = (edge.gateways[0].client()?, edge.gateways[1].client()?);
    for (client, token, expected) in [
        (&one, Some(&*alice), 200),
        (&two, Some(&*again), 200),
        (&one, Some(&*alice), 429),
        (&two, Some(&*again), 429),
        (&two, Some(&*bob), 200),
        (&one, Some(&*bob), 200),
        (&one, Some(&*bob), 429),
        // Requests without identity count for their client, which has another address at each gateway.
        (&one, None, 200),
        (&two, None, 200),
    ] {
        let response = match token {
            Some(token) => client.get_with_token(token, "/few-of-user/a").await?,
            None => client.get("/few-of-user/a").await?,
        };
        assert_eq!(response.status, expected, "{token:?}: {}", response.text);
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_sends_many_invalid_tokens_harms_only_itself() -> Result<()> {
    let edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let token = edge.replicas.client(0)?.register_and_login("alice").await?;
    let (attacker, other) = (edge.gateways[0].client()?, edge.gateways[0].client()?);
    let mut requests = JoinSet::new();
    for _ in 0..16 {
        let attacker = attacker.clone();
        requests.spawn(async move {
            for _ in 0..1000 {
                let response = attacker.get_with_token("e30.e30.e30", "/private/a").await?;
                if response.status != 401 {
                    return Ok(Some(response));
                }
            }
            anyhow::Ok(None)
        });
    }
    let mut limited = None;
    while let Some(response) = requests.join_next().await {
        limited = response??.or(limited);
    }
    let limited = limited.context("a response other than 401")?;
    assert_eq!(limited.status, 429, "{}", limited.text);
    assert!(!limited.header("retry-after").is_empty());
    assert_eq!(
        other.get_with_token(&token, "/private/a").await?.status,
        200
    );
    edge.wait_until_remembered(0, &token).await?;
    assert_eq!(
        attacker.get_with_token(&token, "/private/a").await?.status,
        200
    );
    Ok(())
}

#[tokio::test]
async fn without_auth_api_an_unknown_token_is_rejected_with_503() -> Result<()> {
    let mut edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let auth_api = edge.replicas.client(0)?;
    let known = auth_api.register_and_login("alice").await?;
    let unknown = auth_api.login("alice").await?.access_token()?;
    edge.wait_until_remembered(0, &known).await?;
    edge.replicas.instances.clear();
    let client = edge.gateways[0].client()?;
    for path in ["/private/a", "/open/a", "/of-user/a"] {
        let response = client.get_with_token(&unknown, path).await?;
        assert_eq!(response.status, 503, "{path}: {}", response.text);
        assert_eq!(response.header("retry-after"), "1");
        assert_eq!(client.get_with_token(&known, path).await?.status, 200);
    }
    assert_eq!(client.get("/open/a").await?.status, 200);
    assert_eq!(client.get("/private/a").await?.status, 401);
    Ok(())
}

#[tokio::test]
async fn the_log_has_the_response_of_an_auth_api_that_waits_for_its_store() -> Result<()> {
    let edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let token = edge.replicas.client(0)?.register_and_login("alice").await?;
    let redis = edge.replicas.redis.as_ref().and_then(RedisServer::process);
    let redis = redis.context("Redis is running")?;
    redis.signal(Signal::STOP)?;
    let gateway = &edge.gateways[0];
    let response = gateway.client()?.get_with_token(&token, "/private/a").await;
    redis.signal(Signal::CONT)?;
    assert_eq!(response?.status, 503);
    let replica = edge.replicas.instances[0].address;
    let reason = format!("{replica} returned 503 Service Unavailable");
    gateway.process.wait_for_log(&reason).await?;
    Ok(())
}

#[tokio::test]
async fn what_is_no_answer_of_a_verify_endpoint_gives_no_identity() -> Result<()> {
    const SESSION: &str = "X-Session-Id: 11111111111111111111111111111111\r\n";
    let response = |status: &str, headers: &str| {
        MockResponse::Bytes(
            format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n{headers}\r\n").into_bytes(),
        )
    };
    let script = move |request: &String| {
        let complete = format!("X-User-Id: 7\r\nX-User-Login: a\r\n{SESSION}");
        let token = request
            .lines()
            .find_map(|line| line.strip_prefix("authorization: Bearer "));
        match token.unwrap_or_default() {
            "good" => response("200 OK", &complete),
            "no-headers" => response("200 OK", ""),
            "no-session" => response("200 OK", "X-User-Id: 7\r\nX-User-Login: a\r\n"),
            "two-users" => response("200 OK", &format!("X-User-Id: 8\r\n{complete}")),
            "bad-user" => response("200 OK", &complete.replace(": 7", ": seven")),
            "redirect" => response("302 Found", "Location: /login\r\n"),
            "created" => response("201 Created", &complete),
            "missing" => response("404 Not Found", ""),
            "error" => response("500 Internal Server Error", ""),
            "forbidden" => response("403 Forbidden", ""),
            "never" => MockResponse::Never,
            "cut" => MockResponse::BytesThenClose(b"HTTP/1.1 200 OK\r\nX-User".to_vec()),
            _ => response("401 Unauthorized", ""),
        }
    };
    let (verify, upstream) = (
        MockUpstream::start(script).await?,
        MockUpstream::always_ok().await?,
    );
    let yaml = format!(
        "premier: {{identity: {{verify: 'http://{}/check'}}, default_features: {{auth: {{}}}}}}",
        verify.address
    );
    let gateway = Gateway::start(upstream.address, &yaml).await?;
    let client = gateway.client()?;
    for (token, expected) in [
        ("good", 200),
        ("no-headers", 503),
        ("no-session", 503),
        ("two-users", 503),
        ("bad-user", 503),
        ("redirect", 503),
        ("created", 503),
        ("missing", 503),
        ("error", 503),
        ("cut", 503),
        ("never", 503),
        ("forbidden", 401),
        ("other", 401),
        ("good", 200),
    ] {
        let response = client.get_with_token(token, "/a").await?;
        assert_eq!(response.status, expected, "{token}: {}", response.text);
    }
    assert_eq!(upstream.received_requests().len(), 2);
    // There is no other address that a request without a response could be sent to as well.
    let requests = verify.received_requests();
    let without_response = requests.iter().filter(|request| request.contains("never"));
    assert_eq!(without_response.count(), 1);
    Ok(())
}

#[tokio::test]
async fn a_reload_keeps_the_remembered_tokens_of_an_unchanged_identity() -> Result<()> {
    let edge = IdentityEdge::start(Store::PostgresRedis, 1).await?;
    let token = edge.replicas.client(0)?.register_and_login("alice").await?;
    edge.wait_until_remembered(0, &token).await?;
    let gateway = &edge.gateways[0];
    let yaml = std::fs::read_to_string(gateway.config_file())?;
    let before = edge.verify_requests().await?;
    std::fs::write(gateway.config_file(), format!("{yaml}  x-changed: 1\n"))?;
    gateway
        .wait_for_metric("gateway_reloads_total", &["success"], 1.0)
        .await?;
    let client = gateway.client()?;
    assert_eq!(
        client.get_with_token(&token, "/private/a").await?.status,
        200
    );
    assert_eq!(edge.verify_requests().await?, before);
    // Other settings: nothing is remembered, and tokens of this issuer are none of ours.
    let other = yaml.replace("issuer: auth-api", "issuer: other");
    assert_ne!(other, yaml);
    std::fs::write(gateway.config_file(), other)?;
    gateway
        .wait_for_metric("gateway_reloads_total", &["success"], 2.0)
        .await?;
    gateway
        .wait_for_metric("gateway_identity_key_fetches_total", &["success"], 2.0)
        .await?;
    assert_eq!(
        client.get_with_token(&token, "/private/a").await?.status,
        401
    );
    Ok(())
}
