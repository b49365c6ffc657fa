//! Cross-origin resource sharing: preflights, the headers of responses, and what pages of other origins can read.

use anyhow::Result;
use reqwest::Method;
use rustix::process::Signal;
use tests::browser::Browser;
use tests::client::{Client, Protocol, Response, send};
use tests::mock_upstream::request_target;
use tests::raw_connection::{RawConnection, parse_status};
use tests::{Gateway, MockResponse, MockUpstream, address, wait};

const APP: &str = "https://app.example.org";
const PROTOCOLS: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// Configuration with an upstream group `down`, at whose address nothing listens.
fn config() -> String {
    let unused = address::unused_loopback();
    format!(
        r#"
premier:
  identity: {{verify: "http://{unused}/verify"}}
  limits: {{max_body_bytes: 1000}}
  upstreams:
    down: {{servers: ["http://{unused}"], health_check: null}}
  paths:
    - pattern: /private/*
      features:
        auth: {{required: true}}
        rate_limit: {{quota: 2, duration: 864000, per: [client]}}
        cors: &cors
          origins: [{APP}, "https://*.example.net", "http://localhost:3000"]
          methods: [GET, PUT, PATCH]
          headers: [Authorization, Content-Type]
          exposed_headers: [X-Request-Id, RateLimit]
          credentials: true
          max_age: 600
    - pattern: /limited
      features:
        rate_limit: {{quota: 2, duration: 864000, per: [client]}}
        cors: *cors
    - pattern: /slow
      features:
        timeout: {{seconds: 0.2}}
        cors: *cors
    - pattern: /down
      upstream: down
      features: {{cors: *cors}}
    - pattern: /public/*
      features:
        cors: {{origins: ["*"], methods: ["*"], headers: ["*"]}}
    - pattern: /null
      features:
        cors: {{origins: ["null"]}}
    - pattern: /plain/*
  default_features:
    cors: *cors
"#
    )
}

/// Starts an upstream whose responses depend on the path.
async fn start_upstream() -> Result<MockUpstream> {
    MockUpstream::start(|request| {
        let with_headers = |headers: &str| {
            let response = format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: 2\r\n\r\nok");
            MockResponse::Bytes(response.into_bytes())
        };
        match request_target(request) {
            "/slow" => MockResponse::Never,
            "/malformed" => MockResponse::BytesThenClose(b"HTTP/9.9 what\r\n\r\n".to_vec()),
            "/own" | "/plain/own" => with_headers(
                "Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Origin: https://evil.net\r\n\
                 Access-Control-Allow-Credentials: true\r\nAccess-Control-Allow-Methods: DELETE\r\n\
                 Access-Control-Expose-Headers: X-Secret\r\nVary: Accept-Encoding\r\nVary: Cookie\r\n",
            ),
            "/varies" => with_headers("Vary: origin, Accept\r\n"),
            "/varies-on-all" => with_headers("Vary: *\r\n"),
            _ => MockResponse::new(200, "ok"),
        }
    })
    .await
}

async fn request(
    client: &Client,
    method: Method,
    path: &str,
    origins: &[&str],
) -> Result<Response> {
    let request = client.request(method, path);
    let request = origins
        .iter()
        .fold(request, |request, origin| request.header("Origin", *origin));
    send(request).await
}

async fn preflight(client: &Client, path: &str, origins: &[&str]) -> Result<Response> {
    let request = client
        .request(Method::OPTIONS, path)
        .header("Access-Control-Request-Method", "PUT")
        .header("Access-Control-Request-Headers", "authorization,x-other");
    let request = origins
        .iter()
        .fold(request, |request, origin| request.header("Origin", *origin));
    send(request).await
}

/// Values of all `access-control-*` headers and of `vary`, as sorted lines.
fn cors_headers(response: &Response) -> Vec<String> {
    let is_of_cors = |name: &str| name.starts_with("access-control-") || name == "vary";
    let mut lines: Vec<_> = response
        .headers
        .iter()
        .filter(|(name, _)| is_of_cors(name.as_str()))
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?")))
        .collect();
    lines.sort_unstable();
    lines
}

/// Headers of a response that pages of `origin` may read.
fn readable_by(origin: &str) -> Vec<String> {
    vec![
        "access-control-allow-credentials: true".to_owned(),
        format!("access-control-allow-origin: {origin}"),
        "access-control-expose-headers: x-request-id, ratelimit".to_owned(),
        "vary: Origin".to_owned(),
    ]
}

#[tokio::test]
async fn a_preflight_needs_no_token_uses_no_quota_and_does_not_reach_the_upstream() -> Result<()> {
    let upstream = start_upstream().await?;
    let gateway = Gateway::start(upstream.address, &config()).await?;
    for protocol in PROTOCOLS {
        let client = gateway.client_with_protocol(protocol)?;
        for path in [
            "/private/a",
            "/limited",
            "/limited",
            "/limited",
            "/down",
            "/elsewhere",
        ] {
            let response = preflight(&client, path, &[APP]).await?;
            assert_eq!(
                (response.status, response.text.as_str()),
                (204, ""),
                "{path}"
            );
            assert_eq!(
                cors_headers(&response),
                [
                    "access-control-allow-credentials: true",
                    "access-control-allow-headers: authorization, content-type",
                    "access-control-allow-methods: GET, PUT, PATCH",
                    &format!("access-control-allow-origin: {APP}"),
                    "access-control-max-age: 600",
                    "vary: Origin",
                ],
                "{path}"
            );
            for absent in [
                "content-length",
                "transfer-encoding",
                "ratelimit",
                "www-authenticate",
            ] {
                assert!(!response.headers.contains_key(absent), "{absent}");
            }
            assert!(!response.header("x-request-id").is_empty());
            assert!(
                response
                    .header("strict-transport-security")
                    .contains("max-age=")
            );
        }
        let mut statuses = Vec::new();
        for _ in 0..3 {
            let response = request(&client, Method::GET, "/limited", &[APP]).await?;
            statuses.push(response.status);
        }
        assert_eq!(statuses, [200, 200, 429], "{protocol:?}");
        assert_eq!(preflight(&client, "/limited", &[APP]).await?.status, 204);
    }
    let received = upstream.received_requests();
    assert_eq!(received.len(), 4);
    assert!(
        received
            .iter()
            .all(|request| request.starts_with("GET /limited "))
    );
    Ok(())
}

#[tokio::test]
async fn only_a_preflight_is_answered_at_the_edge() -> Result<()> {
    let upstream = start_upstream().await?;
    let gateway = Gateway::start(upstream.address, &config()).await?;
    for protocol in PROTOCOLS {
        let client = gateway.client_with_protocol(protocol)?;
        let options = |path| client.request(Method::OPTIONS, path);
        let method = ("Access-Control-Request-Method", "PUT");
        // Without a requested method, without an origin, and on a path without `cors`.
        let without_method = send(options("/limited").header("Origin", APP)).await?;
        assert_eq!(without_method.text, "ok");
        assert_eq!(cors_headers(&without_method), readable_by(APP));
        let without_origin = send(options("/limited").header(method.0, method.1)).await?;
        assert_eq!(without_origin.text, "ok");
        assert_eq!(cors_headers(&without_origin), ["vary: Origin"]);
        let plain = preflight(&client, "/plain/own", &[APP]).await?;
        assert_eq!((plain.status, plain.text.as_str()), (200, "ok"));
        let private = send(options("/private/a").header("Origin", APP)).await?;
        assert_eq!(private.status, 401);
    }
    let received = upstream.received_requests();
    assert_eq!(received.len(), 6);
    assert!(
        received
            .iter()
            .all(|request| request.starts_with("OPTIONS "))
    );
    Ok(())
}

#[tokio::test]
async fn the_errors_of_the_gateway_can_be_read_by_permitted_pages() -> Result<()> {
    let upstream = start_upstream().await?;
    let gateway = Gateway::start(upstream.address, &config()).await?;
    let too_large = "a".repeat(1001);
    for protocol in PROTOCOLS {
        let client = gateway.client_with_protocol(protocol)?;
        let get = |path: &str| client.request(Method::GET, path);
        for (expected, request) in [
            (401, get("/private/a")),
            (503, get("/private/a").bearer_auth("opaque")),
            (429, get("/private/a")),
            (
                413,
                client
                    .request(Method::POST, "/elsewhere")
                    .body(too_large.clone()),
            ),
            (404, get("/metrics")),
            (400, get("/elsewhere/%2f")),
            (502, get("/malformed")),
            (503, get("/down")),
            (504, get("/slow")),
        ] {
            let response = send(request.header("Origin", APP)).await?;
            assert_eq!(response.status, expected, "{protocol:?}: {}", response.text);
            assert!(response.json()["error"].is_string());
            assert_eq!(cors_headers(&response), readable_by(APP), "{expected}");
        }
        let foreign = request(&client, Method::GET, "/private/a", &["https://evil.net"]).await?;
        assert_eq!(foreign.status, 429);
        assert_eq!(cors_headers(&foreign), ["vary: Origin"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_foreign_origin_is_permitted_in_no_spelling() -> Result<()> {
    let upstream = start_upstream().await?;
    let gateway = Gateway::start(upstream.address, &config()).await?;
    let foreign: [&[&str]; 30] = [
        &[],
        &[""],
        &["null"],
        &["*"],
        &["https://evil.net"],
        &["http://app.example.org"],
        &["https://example.org"],
        &["https://app.example.org.evil.net"],
        &["https://evilapp.example.org"],
        &["https://app.example.org."],
        &["https://app.example.org:443"],
        &["https://app.example.org:8443"],
        &["https://APP.EXAMPLE.ORG"],
        &["HTTPS://app.example.org"],
        &["https://app.example.org/"],
        &["https://app.example.org@evil.net"],
        &["https://evil@app.example.org"],
        &["https://evil.net?https://app.example.org"],
        &["https://app.example.org, https://evil.net"],
        &["https://app.example.org https://evil.net"],
        &[APP, APP],
        &[APP, "https://evil.net"],
        &["https://evil.net", APP],
        &["https://example.net"],
        &["https://evilexample.net"],
        &["https://a.b.example.net"],
        &["https://a.example.net.evil.net"],
        &["https://evil.net:.example.net"],
        &["http://localhost"],
        &["http://localhost:30000"],
    ];
    for protocol in PROTOCOLS {
        let client = gateway.client_with_protocol(protocol)?;
        for origins in foreign {
            let response = request(&client, Method::GET, "/elsewhere", origins).await?;
            assert_eq!(response.text, "ok", "{origins:?}");
            assert_eq!(cors_headers(&response), ["vary: Origin"], "{origins:?}");
            // Without an origin it is no preflight.
            if !origins.is_empty() {
                let response = preflight(&client, "/elsewhere", origins).await?;
                assert_eq!(response.status, 403, "{origins:?}");
                assert_eq!(cors_headers(&response), ["vary: Origin"], "{origins:?}");
            }
        }
        for origin in [APP, "https://a.example.net", "http://localhost:3000"] {
            let response = request(&client, Method::GET, "/elsewhere", &[origin]).await?;
            assert_eq!(cors_headers(&response), readable_by(origin));
        }
        let response = request(&client, Method::GET, "/null", &["null"]).await?;
        let expected = ["access-control-allow-origin: null", "vary: Origin"];
        assert_eq!(cors_headers(&response), expected);
    }
    let received = upstream.received_requests();
    assert!(
        received
            .iter()
            .all(|request| !request.starts_with("OPTIONS"))
    );
    Ok(())
}

#[tokio::test]
async fn every_origin_is_permitted_without_credentials_by_a_response_that_does_not_vary()
-> Result<()> {
    let upstream = start_upstream().await?;
    let gateway = Gateway::start(upstream.address, &config()).await?;
    for protocol in PROTOCOLS {
        let client = gateway.client_with_protocol(protocol)?;
        for origins in [&[][..], &[APP], &["https://evil.net"], &["null"]] {
            let response = request(&client, Method::GET, "/public/a", origins).await?;
            assert_eq!(
                cors_headers(&response),
                ["access-control-allow-origin: *"],
                "{origins:?}"
            );
        }
        assert_eq!(
            cors_headers(&preflight(&client, "/public/a", &["https://evil.net"]).await?),
            [
                "access-control-allow-headers: *",
                "access-control-allow-methods: *",
                "access-control-allow-origin: *",
            ]
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_the_upstream_says_about_origins_is_replaced_and_its_vary_is_kept() -> Result<()> {
    let upstream = start_upstream().await?;
    let gateway = Gateway::start(upstream.address, &config()).await?;
    for protocol in PROTOCOLS {
        let client = gateway.client_with_protocol(protocol)?;
        let foreign = request(&client, Method::GET, "/own", &["https://evil.net"]).await?;
        assert_eq!(
            cors_headers(&foreign),
            ["vary: Accept-Encoding, Cookie, Origin"]
        );
        let permitted = request(&client, Method::GET, "/own", &[APP]).await?;
        let mut expected = readable_by(APP);
        "vary: Accept-Encoding, Cookie, Origin".clone_into(&mut expected[3]);
        assert_eq!(cors_headers(&permitted), expected);
        for (path, vary) in [("/varies", "origin, Accept"), ("/varies-on-all", "*")] {
            let response = request(&client, Method::GET, path, &[APP]).await?;
            let vary_lines: Vec<_> = response.headers.get_all("vary").iter().collect();
            assert_eq!(vary_lines, [vary]);
        }
        // Without the feature nothing is changed.
        let plain = request(&client, Method::GET, "/plain/own", &[APP]).await?;
        assert_eq!(
            cors_headers(&plain),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-methods: DELETE",
                "access-control-allow-origin: *",
                "access-control-allow-origin: https://evil.net",
                "access-control-expose-headers: X-Secret",
                "vary: Accept-Encoding",
                "vary: Cookie",
            ]
        );
    }
    Ok(())
}

#[tokio::test]
async fn responses_without_a_body_and_interim_responses_stay_right() -> Result<()> {
    const UPSTREAM_HEADERS: &str = "Access-Control-Allow-Origin: *\r\nX-Kept: kept\r\n";
    let upstream = MockUpstream::start(|request| {
        let response = match request_target(request) {
            "/not-modified" => {
                format!("HTTP/1.1 304 Not Modified\r\n{UPSTREAM_HEADERS}ETag: \"a\"\r\n\r\n")
            }
            "/early" => format!(
                "HTTP/1.1 103 Early Hints\r\n{UPSTREAM_HEADERS}\r\n\
                 HTTP/1.1 200 OK\r\n{UPSTREAM_HEADERS}Content-Length: 2\r\n\r\nok"
            ),
            "/trailers" => format!(
                "HTTP/1.1 200 OK\r\n{UPSTREAM_HEADERS}Transfer-Encoding: chunked\r\n\r\n\
                 2\r\nok\r\n0\r\nAccess-Control-Allow-Origin: *\r\n\r\n"
            ),
            _ => format!("HTTP/1.1 200 OK\r\n{UPSTREAM_HEADERS}Content-Length: 5\r\n\r\n"),
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
            (Method::GET, "/early", 200, "ok", "2"),
            (Method::GET, "/trailers", 200, "ok", ""),
        ] {
            let response = request(&client, method, path, &[APP]).await?;
            assert_eq!(
                (response.status, response.text.as_str()),
                (status, text),
                "{path}"
            );
            assert_eq!(response.header("content-length"), length, "{path}");
            assert_eq!(cors_headers(&response), readable_by(APP), "{path}");
            assert_eq!(response.header("x-kept"), "kept");
        }
    }
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let early = RawConnection::exchange(&gateway, get("/early")).await?;
    let (interim, _) = early.split_once("\r\n\r\n").unwrap_or_default();
    assert!(
        interim.starts_with("HTTP/1.1 103 ") && interim.contains("x-kept: kept"),
        "{early}"
    );
    let trailers = RawConnection::exchange(&gateway, get("/trailers")).await?;
    assert!(trailers.ends_with("0\r\n\r\n"), "{trailers}");
    for response in [early, trailers] {
        assert!(!response.contains("access-control-"), "{response}");
    }
    Ok(())
}

#[tokio::test]
async fn a_page_of_a_foreign_origin_cannot_open_a_websocket() -> Result<()> {
    let upstream = MockUpstream::start(|_| {
        let switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello";
        MockResponse::Bytes(switching.into())
    })
    .await?;
    let gateway = Gateway::start(upstream.address, &config()).await?;
    let (host, port) = ("localhost", gateway.address.port());
    let own = format!("Origin: https://{host}:{port}\r\n");
    let another_port = format!("Origin: https://{host}:{}\r\n", port ^ 1);
    for (path, origin, expected) in [
        ("/socket", "", 101),
        ("/socket", "Origin: https://app.example.org\r\n", 101),
        ("/socket", own.as_str(), 101),
        ("/public/socket", "Origin: https://evil.net\r\n", 101),
        ("/plain/socket", "Origin: https://evil.net\r\n", 101),
        ("/socket", "Origin: https://evil.net\r\n", 403),
        ("/socket", "Origin: null\r\n", 403),
        ("/socket", another_port.as_str(), 403),
        (
            "/socket",
            "Origin: https://app.example.org\r\nOrigin: https://evil.net\r\n",
            403,
        ),
    ] {
        let before = upstream.received_requests().len();
        let mut connection = RawConnection::connect(&gateway).await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{origin}\r\n"
        );
        connection.send(request).await?;
        let response = connection.read_until("\r\n\r\n").await?;
        assert_eq!(parse_status(&response), expected, "{path} {origin}");
        let reached = upstream.received_requests().len() - before;
        assert_eq!(reached, usize::from(expected == 101), "{path} {origin}");
    }
    Ok(())
}

#[tokio::test]
async fn a_reload_changes_the_permitted_origins() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let file = |origins: &str| {
        format!("premier: {{default_features: {{cors: {{origins: [{origins}]}}}}}}")
    };
    let gateway = Gateway::start(upstream.address, "premier: {}").await?;
    for protocol in PROTOCOLS {
        let client = gateway.client_with_protocol(protocol)?;
        for (yaml, permitted) in [
            (file("'https://a.org'"), "https://a.org"),
            (file("'*'"), "*"),
            (file("'https://b.org'"), ""),
            ("premier: {}".to_owned(), ""),
        ] {
            std::fs::write(gateway.config_file(), &yaml)?;
            gateway.process.signal(Signal::HUP)?;
            wait::until("the new configuration", async || {
                let response = request(&client, Method::GET, "/", &["https://a.org"]).await;
                response.is_ok_and(|response| {
                    response.header("access-control-allow-origin") == permitted
                        && response.headers.contains_key("vary") == yaml.contains("https")
                })
            })
            .await?;
        }
    }
    Ok(())
}

/// Sends a request by `fetch` from the current page. Returns status and body as the page sees them, or `refused`.
async fn fetch(browser: &Browser, url: &str, options: &str) -> Result<String> {
    let script = format!(
        "window.seen = null;
         fetch('{url}', {options}).then(
             async response => window.seen = response.status + ' ' + await response.text(),
             () => window.seen = 'refused'
         )"
    );
    browser.execute_script(&script).await?;
    browser.wait_until("return window.seen !== null").await?;
    let seen = browser.execute_script("return window.seen").await?;
    Ok(seen.as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_browser_lets_pages_of_permitted_origins_alone_read_responses() -> Result<()> {
    if std::env::var_os("TEST_BROWSER").is_some_and(|browser| browser == "none") {
        return Ok(());
    }
    let page = MockUpstream::start(|_| {
        let html = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<!doctype html>";
        MockResponse::Bytes(html.into())
    })
    .await?;
    let upstream = MockUpstream::always_ok().await?;
    let config = format!(
        "
premier:
  identity: {{verify: 'http://{unused}/verify'}}
  paths:
    - pattern: /own/private
      features: &own
        auth: {{required: true}}
        cors:
          origins: ['http://{page}']
          methods: [PUT]
          headers: [Authorization, X-Custom]
          credentials: true
    - pattern: /own/*
      features: {{<<: *own, auth: {{required: false}}}}
    - pattern: /foreign/*
      features: {{cors: {{origins: ['https://app.example.org'], methods: [PUT], headers: [X-Custom]}}}}
",
        unused = address::unused_loopback(),
        page = page.address,
    );
    let gateway = Gateway::start(upstream.address, &config).await?;
    let browser = Browser::start().await?;
    browser
        .navigate(&format!("http://{}/", page.address))
        .await?;
    let put = "{method: 'PUT', headers: {'X-Custom': '1'}, credentials: 'include', body: 'a'}";
    let unlisted_method = "{method: 'DELETE'}";
    let unlisted_header = "{headers: {'X-Other': '1'}}";
    for (path, options, expected) in [
        ("/own/a", "{}", "200 ok"),
        ("/own/a", put, "200 ok"),
        ("/own/private", put, r#"401 {"error":"Not authenticated"}"#),
        ("/own/a", unlisted_method, "refused"),
        ("/own/a", unlisted_header, "refused"),
        ("/foreign/a", "{}", "refused"),
        ("/foreign/a", put, "refused"),
        ("/plain/a", "{}", "refused"),
    ] {
        let url = format!("https://{}{path}", gateway.address);
        assert_eq!(
            fetch(&browser, &url, options).await?,
            expected,
            "{path} {options}"
        );
    }
    let received: Vec<_> = upstream
        .received_requests()
        .iter()
        .filter_map(|request| Some(request.split_once(" HTTP/")?.0.to_owned()))
        .collect();
    // A simple request is sent and its response withheld; others are not sent.
    assert_eq!(
        received,
        ["GET /own/a", "PUT /own/a", "GET /foreign/a", "GET /plain/a"]
    );

    browser
        .execute_script(&format!(
            "window.seen = null;
             const socket = new WebSocket('wss://{}/foreign/socket');
             socket.onclose = () => window.seen = 'closed'",
            gateway.address
        ))
        .await?;
    browser
        .wait_until("return window.seen === 'closed'")
        .await?;
    assert_eq!(
        upstream.received_requests().len(),
        4,
        "the WebSocket was forwarded"
    );
    Ok(())
}
