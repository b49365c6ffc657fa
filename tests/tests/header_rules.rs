//! Changes of the headers of requests and responses by the feature `headers`.

use anyhow::Result;
use reqwest::Method;
use rustix::process::Signal;
use tests::client::{Protocol, Response, send};
use tests::command::{bound_command, program_path};
use tests::mock_upstream::request_target;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Gateway, MockResponse, MockUpstream, address, wait};

const PROTOCOLS: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// Configuration with an upstream group `down`, at whose address nothing listens.
fn config() -> String {
    format!(
        r#"
premier:
  limits: {{max_body_bytes: 1000}}
  upstreams:
    down: {{servers: ["http://{}"], health_check: null}}
  paths:
    - pattern: /plain
    - pattern: /cookies
      features: {{headers: {{request: {{set: {{Cookie: theme=dark}}}}}}}}
    - pattern: /down
      upstream: down
      features: &features
        cors: {{origins: ["*"]}}
        rate_limit: {{quota: 2, duration: 864000, per: [client]}}
        headers:
          request:
            remove: [Cookie, X-Gone]
            set: {{x-tenant: shop, Authorization: "Basic YTpi", User-Agent: edge}}
            add: {{X-More: "2", X-Tenant: second}}
          response:
            remove: [X-Debug, Link]
            set:
              Strict-Transport-Security: max-age=63072000; includeSubDomains
              X-Frame-Options: DENY
              Cache-Control: private
            add: {{Vary: Accept-Language, X-More: "2"}}
    - pattern: /limited
      features: *features
  default_features:
    <<: *features
    rate_limit: {{quota: 1000, duration: 60}}
"#,
        address::unused_loopback()
    )
}

/// Lines of a received request whose name, in any spelling, is `name`.
fn lines<'r>(request: &'r str, name: &str) -> Vec<&'r str> {
    let is_named = |line: &&str| {
        let own = line.split(':').next().unwrap_or_default();
        own.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-")
            .eq_ignore_ascii_case(name)
    };
    request.lines().filter(is_named).collect()
}

fn last_request(upstream: &MockUpstream) -> String {
    upstream.received_requests().pop().unwrap_or_default()
}

fn values<'r>(response: &'r Response, name: &str) -> Vec<&'r str> {
    let values = response.headers.get_all(name).iter();
    values.filter_map(|value| value.to_str().ok()).collect()
}

/// Asserts what the rules say about every response.
fn assert_changed(response: &Response) {
    let hsts = "max-age=63072000; includeSubDomains";
    assert_eq!(values(response, "strict-transport-security"), [hsts]);
    assert_eq!(values(response, "x-frame-options"), ["DENY"]);
    assert_eq!(values(response, "cache-control"), ["private"]);
    for removed in ["x-debug", "link"] {
        assert!(values(response, removed).is_empty(), "{removed}");
    }
    assert!(values(response, "vary").contains(&"Accept-Language"));
    assert!(values(response, "x-more").contains(&"2"));
    assert_eq!(values(response, "x-request-id").len(), 1);
    assert_eq!(values(response, "access-control-allow-origin"), ["*"]);
}

#[tokio::test]
async fn requests_arrive_with_the_configured_headers_whatever_the_client_sends() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, &config()).await?;
    for protocol in PROTOCOLS {
        let client = gateway.client_with_protocol(protocol)?;
        let with_headers = |path: &str| {
            client
                .request(Method::GET, path)
                .header("Cookie", "a=b")
                .header("Authorization", "Bearer forged")
                .header("X-Tenant", "forged")
                .header("X_Tenant", "forged")
                .header("x.tenant", "forged")
                .header("X-Gone", "forged")
                .header("X_GONE", "forged")
                .header("X-More", "1")
                .header("X-Other", "o")
        };
        assert_eq!(send(with_headers("/a")).await?.status, 200);
        let received = last_request(&upstream);
        for (name, expected) in [
            ("x-tenant", &["x-tenant: shop", "x-tenant: second"][..]),
            ("x-more", &["x-more: 1", "x-more: 2"]),
            ("authorization", &["authorization: Basic YTpi"]),
            ("user-agent", &["user-agent: edge"]),
            ("x-other", &["x-other: o"]),
            ("x-gone", &[]),
            ("cookie", &[]),
        ] {
            assert_eq!(lines(&received, name), expected, "{received}");
        }
        assert!(!received.contains("forged"), "{received}");

        send(with_headers("/cookies")).await?;
        assert_eq!(
            lines(&last_request(&upstream), "cookie"),
            ["cookie: theme=dark"]
        );
        send(with_headers("/plain")).await?;
        let received = last_request(&upstream);
        assert_eq!(lines(&received, "x-tenant").len(), 3, "{received}");
        assert_eq!(lines(&received, "cookie"), ["cookie: a=b"]);
    }
    let trailer = "POST /a HTTP/1.1\r\nHost: localhost\r\nConnection: close, x-tenant\r\nTrailer: X-Gone\r\n\
                   Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Gone: forged\r\nX-Tenant: forged\r\n\r\n";
    let response = RawConnection::exchange(&gateway, trailer).await?;
    assert_eq!(parse_status(&response), 200);
    let received = last_request(&upstream);
    assert!(!received.contains("forged"), "{received}");
    assert_eq!(lines(&received, "x-tenant").len(), 2, "{received}");
    Ok(())
}

#[tokio::test]
async fn responses_of_the_upstream_and_of_the_gateway_are_changed_alike() -> Result<()> {
    let upstream = MockUpstream::start(|request| match request_target(request) {
        "/malformed" => MockResponse::BytesThenClose(b"HTTP/9.9 what\r\n\r\n".to_vec()),
        _ => MockResponse::Bytes(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Debug: 1\r\nX-Debug: 2\r\nLink: </a>\r\n\
              Strict-Transport-Security: max-age=0\r\nX-Frame-Options: ALLOWALL\r\nX-Frame-Options: b\r\n\
              Cache-Control: public\r\nVary: Cookie\r\nX-More: 1\r\n\r\nok"
                .to_vec(),
        ),
    })
    .await?;
    let gateway = Gateway::start(upstream.address, &config()).await?;
    for protocol in PROTOCOLS {
        let client = gateway.client_with_protocol(protocol)?;
        let get = |path: &str| client.request(Method::GET, path);
        let response = send(get("/a")).await?;
        assert_eq!((response.status, response.text.as_str()), (200, "ok"));
        assert_changed(&response);
        assert_eq!(values(&response, "x-more"), ["1", "2"]);
        assert_eq!(values(&response, "vary"), ["Cookie", "Accept-Language"]);
        let large = "a".repeat(1001);
        for (expected, request) in [
            (502, get("/malformed")),
            (503, get("/down")),
            (404, get("/ready")),
            (413, client.request(Method::POST, "/a").body(large)),
            (200, get("/limited")),
            (200, get("/limited")),
            (429, get("/limited")),
        ] {
            let response = send(request).await?;
            assert_eq!(response.status, expected);
            assert_changed(&response);
        }
        let preflight = client
            .request(Method::OPTIONS, "/a")
            .header("Origin", "https://a.org")
            .header("Access-Control-Request-Method", "PUT");
        let preflight = send(preflight).await?;
        assert_eq!(preflight.status, 204);
        assert_changed(&preflight);

        let plain = send(get("/plain")).await?;
        assert_eq!(values(&plain, "x-debug"), ["1", "2"]);
        assert_eq!(
            values(&plain, "strict-transport-security"),
            ["max-age=63072000"]
        );
    }
    Ok(())
}

#[tokio::test]
async fn responses_without_a_body_interim_responses_and_upgrades_stay_right() -> Result<()> {
    const HEADERS: &str = "Link: </a>\r\nX-Kept: kept\r\n";
    let upstream = MockUpstream::start(|request| {
        let response = match request_target(request) {
            "/not-modified" => format!("HTTP/1.1 304 Not Modified\r\n{HEADERS}ETag: \"a\"\r\n\r\n"),
            "/no-content" => format!("HTTP/1.1 204 No Content\r\n{HEADERS}\r\n"),
            "/early" => format!(
                "HTTP/1.1 103 Early Hints\r\n{HEADERS}\r\nHTTP/1.1 200 OK\r\n{HEADERS}Content-Length: 2\r\n\r\nok"
            ),
            "/trailers" => format!(
                "HTTP/1.1 200 OK\r\n{HEADERS}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Debug: 1\r\n\r\n"
            ),
            "/socket" => format!(
                "HTTP/1.1 101 Switching Protocols\r\n{HEADERS}Upgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello"
            ),
            _ => format!("HTTP/1.1 200 OK\r\n{HEADERS}Content-Length: 5\r\n\r\n"),
        };
        MockResponse::Bytes(response.into_bytes())
    })
    .await?;
    let gateway = Gateway::start(upstream.address, &config()).await?;
    for protocol in PROTOCOLS {
        let client = gateway.client_with_protocol(protocol)?;
        for (method, path, status, text, length) in [
            (Method::HEAD, "/head", 200, "", "5"),
            (Method::GET, "/not-modified", 304, "", ""),
            (Method::GET, "/no-content", 204, "", ""),
            (Method::GET, "/early", 200, "ok", "2"),
            (Method::GET, "/trailers", 200, "ok", ""),
        ] {
            let response = send(client.request(method, path)).await?;
            assert_eq!(
                (response.status, response.text.as_str()),
                (status, text),
                "{path}"
            );
            assert_eq!(response.header("content-length"), length, "{path}");
            assert_eq!(values(&response, "x-kept"), ["kept"]);
            assert_changed(&response);
        }
    }
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let early = RawConnection::exchange(&gateway, get("/early")).await?;
    let (interim, _) = early.split_once("\r\n\r\n").unwrap_or_default();
    assert!(
        interim.starts_with("HTTP/1.1 103 ") && interim.ends_with("x-kept: kept"),
        "{early}"
    );
    assert!(!early.contains("link:"), "{early}");
    let trailers = RawConnection::exchange(&gateway, get("/trailers")).await?;
    assert!(
        trailers.ends_with("0\r\n\r\n") && !trailers.contains("debug"),
        "{trailers}"
    );
    let mut socket = RawConnection::connect(&gateway).await?;
    let upgrade = "GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.send(upgrade).await?;
    let response = socket.read_until("hello").await?;
    for line in [
        "upgrade: websocket",
        "connection: upgrade",
        "x-frame-options: DENY",
    ] {
        assert!(response.contains(&format!("\r\n{line}\r\n")), "{response}");
    }
    assert_eq!(
        response.to_lowercase().matches("\r\nupgrade:").count(),
        1,
        "{response}"
    );
    assert!(!response.contains("link:"), "{response}");
    Ok(())
}

#[test]
fn no_value_can_begin_another_header() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("gateway.yml");
    for (name, value) in [
        ("X-A", "${TENANT}"),
        ("X-A", r"a\r\nX-User-Id: 1"),
        ("X-A", r"a\nX-User-Id: 1"),
        ("X-A", r"a\rX-User-Id: 1"),
        ("X-A", r"a\0"),
        (r"X-A: a\r\nX-User-Id", "1"),
        (r"X-A\n", "1"),
    ] {
        for message in ["request", "response"] {
            let rules = format!("{message}: {{set: {{\"{name}\": \"{value}\"}}}}");
            let yaml = format!("premier:\n  default_features:\n    headers:\n      {rules}\n");
            std::fs::write(&file, yaml)?;
            let mut check = bound_command(program_path("gateway"));
            let check = check
                .arg("check")
                .arg(&file)
                .env("TENANT", "a\r\nX-User-Id: 1");
            let output = check.current_dir(folder.path()).output()?;
            assert!(!output.status.success(), "{rules}");
            let text =
                String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
            let is_about_the_rule = |line: &&str| {
                line.contains(":4:") && line.contains(&format!("headers.{message}.set.X-A"))
            };
            let error = text.lines().find(is_about_the_rule).unwrap_or_default();
            assert!(
                error.contains("has the control character U+00")
                    || error.contains("is not a header name"),
                "{rules}: {text}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_reload_changes_the_rules_and_an_invalid_one_changes_nothing() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let file = |value: &str| {
        let set = format!("{{set: {{X-Version: \"{value}\"}}}}");
        format!("premier: {{default_features: {{headers: {{request: {set}, response: {set}}}}}}}")
    };
    let gateway = Gateway::start(upstream.address, &file("1")).await?;
    let client = gateway.client()?;
    let is_seen = async |value: &str| {
        let response = client.get("/").await;
        let received = last_request(&upstream);
        response.is_ok_and(|response| response.header("x-version") == value)
            && lines(&received, "x-version") == [format!("x-version: {value}")]
    };
    assert!(is_seen("1").await);
    std::fs::write(gateway.config_file(), file("2"))?;
    gateway.process.signal(Signal::HUP)?;
    wait::until("the new value", async || is_seen("2").await).await?;
    std::fs::write(gateway.config_file(), file(r"3\r\nX-User-Id: 1"))?;
    gateway.process.signal(Signal::HUP)?;
    gateway
        .wait_for_metric("gateway_last_reload_success", &[], 0.0)
        .await?;
    assert!(is_seen("2").await);
    std::fs::write(gateway.config_file(), "premier: {}")?;
    gateway.process.signal(Signal::HUP)?;
    wait::until("the end of the rules", async || {
        let response = client.get("/").await;
        let is_unchanged =
            response.is_ok_and(|response| !response.headers.contains_key("x-version"));
        is_unchanged && lines(&last_request(&upstream), "x-version").is_empty()
    })
    .await
}
