//! The edge as an attacker meets it: raw bytes in, and what the back end gets to see.

use std::time::Duration;

use anyhow::Result;
use tests::raw::{Raw, status};
use tests::{BackEnd, Gateway, Reply};

/// Short patience, so that tests of slow peers take a second.
const IMPATIENT: &str = r#"
premier:
  limits: {header_timeout: 0.5, idle_timeout: 0.5, max_body_bytes: 1000}
  paths:
    - pattern: "/counted/*"
      features: {rate_limit: {quota: 5, duration: 864000}}
"#;

/// Requests with more than one reading, or more of something than there may be, and the status
/// that each is answered with.
fn ambiguous() -> Vec<(String, u16)> {
    let with_fields = |method: &str, fields: &str| {
        format!("{method} / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n")
    };
    let for_target = |target: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    };
    let chunked = "Transfer-Encoding: chunked";
    let framings = [
        format!("Content-Length: 5\r\n{chunked}"),
        "Content-Length: 1\r\nContent-Length: 1".to_owned(),
        "Content-Length: 1, 1".to_owned(),
        format!("{chunked}, identity"),
        format!("{chunked}\r\n{chunked}"),
        "Transfer-Encoding:\rchunked".to_owned(),
    ];
    let fields = [
        "X: a\rb",
        "X: a\r",
        "X: a\0b",
        "X : a",
        "X: a\r\n folded: x",
        "Host: localhost",
    ];
    let heads = [
        ("GET / HTTP/1.1\nHost: localhost\n\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (
            "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            405,
        ),
        (
            "GET / HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n",
            421,
        ),
    ];
    let targets = ["http://elsewhere/", "/\u{e4}", "/a%2fb", "/a%00", "/%zz"];
    let many = "X: y\r\n".repeat(101);
    let sizes = [
        (for_target(&format!("/{}", "a".repeat(9000))), 414),
        (
            with_fields("GET", &format!("X: {}", "a".repeat(33_000))),
            431,
        ),
        (with_fields("GET", many.trim_end()), 431),
    ];
    let bad = framings
        .map(|framing| with_fields("POST", &framing) + "0\r\n\r\n")
        .into_iter()
        .chain(fields.map(|field| with_fields("GET", field)))
        .chain(targets.map(for_target))
        .map(|request| (request, 400));
    let heads = heads.map(|(head, status)| (head.to_owned(), status));
    bad.chain(heads).chain(sizes).collect()
}

#[tokio::test]
async fn what_is_ambiguous_is_refused_and_never_forwarded() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for (request, expected) in ambiguous() {
        let mut raw = Raw::connect(&gateway).await?;
        raw.send(&request).await?;
        let answer = raw.rest().await?;
        assert_eq!(status(&answer), expected, "{request:?}: {answer}");
        assert!(answer.contains(r#"{"error":""#), "{request:?}: {answer}");
        assert!(answer.to_lowercase().contains("x-request-id:"), "{answer}");
    }
    assert_eq!(back_end.received(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_malformed_chunk_never_ends_a_request() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunks in [
        "x\r\n",
        "-1\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\na\n0\n\n",
        "1 \r\na\r\n0\r\n\r\n",
        "1;\0\r\na\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n",
    ] {
        let mut raw = Raw::connect(&gateway).await?;
        raw.send(format!("{head}{chunks}")).await?;
        let answer = raw.rest().await?;
        assert_eq!(status(&answer), 400, "{chunks:?}: {answer}");
        assert!(answer.contains(r#"{"error":""#), "{chunks:?}: {answer}");
    }
    assert_eq!(back_end.received(), Vec::<String>::new(), "none was whole");
    Ok(())
}

#[tokio::test]
async fn a_path_has_one_spelling_for_quota_and_back_end() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(IMPATIENT)
        .start()
        .await?;
    let mut statuses = Vec::new();
    for spelling in [
        "/counted/a",
        "/counted//a",
        "//counted/./a",
        "/%63ounted/a",
        "/x/../counted/a?b=c",
        "https://localhost/counted/a",
    ] {
        let mut raw = Raw::connect(&gateway).await?;
        raw.send(format!(
            "GET {spelling} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ))
        .await?;
        statuses.push(status(&raw.rest().await?));
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429]);
    for request in back_end.received() {
        assert!(request.starts_with("GET /counted/a"), "{request}");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_cannot_speak_for_another() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = Raw::connect(&gateway).await?;
    raw.send(
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: gopher\r\n\
         X-Forwarded-Host: evil\r\nX-Forwarded-Anything: evil\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
         X-Request-Id: evil\r\ntraceparent: 00-11111111111111111111111111111111-1111111111111111-01\r\n\
         tracestate: evil=1\r\nX_Forwarded_For: 6.6.6.6\r\nX-Real_IP: 6.6.6.6\r\nX_Request_Id: evil\r\n\
         Keep-Alive: evil\r\nConnection: close\r\n\r\n",
    )
    .await?;
    assert_eq!(status(&raw.rest().await?), 200);
    let received = back_end.received().concat().to_lowercase();
    for claim in ["6.6.6.6", "evil", "gopher", "1111111111111111"] {
        assert!(!received.contains(claim), "{claim}: {received}");
    }
    assert!(
        received.contains("x-forwarded-for: 127.0.0.1\r\n"),
        "{received}"
    );
    assert!(
        received.contains("x-forwarded-proto: https\r\n"),
        "{received}"
    );
    assert!(
        received.contains("x-forwarded-host: localhost\r\n"),
        "{received}"
    );
    assert!(received.contains("traceparent: 00-"), "{received}");
    Ok(())
}

#[tokio::test]
async fn what_we_add_cannot_be_struck_out() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for nominated in ["x-forwarded-for", "x-request-id", "host"] {
        let mut raw = Raw::connect(&gateway).await?;
        raw.send(format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close, {nominated}\r\n\r\n"
        ))
        .await?;
        let answer = raw.rest().await?;
        assert!(
            matches!(status(&answer), 200 | 400),
            "{nominated}: {answer}"
        );
    }
    for request in back_end.received() {
        let request = request.to_lowercase();
        assert!(request.contains("x-forwarded-for: 127.0.0.1"), "{request}");
        assert!(request.contains("x-request-id: "), "{request}");
        assert!(request.contains("host: localhost"), "{request}");
    }
    Ok(())
}

#[tokio::test]
async fn slow_peers_are_closed() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(IMPATIENT)
        .start()
        .await?;
    let soon = Duration::from_secs(10);

    let mut unfinished = Raw::connect(&gateway).await?;
    unfinished.send("GET / HTTP/1.1\r\nHost: loc").await?;
    assert_eq!(status(&unfinished.rest_within(soon).await?), 408);

    let mut silent = Raw::connect(&gateway).await?;
    assert_eq!(silent.rest_within(soon).await?, "");

    let mut idle = Raw::connect(&gateway).await?;
    idle.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    assert_eq!(status(&idle.rest_within(soon).await?), 200);

    let mut body = Raw::connect(&gateway).await?;
    body.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc")
        .await?;
    assert_eq!(status(&body.rest_within(soon).await?), 408);

    let mut handshake = tokio::net::TcpStream::connect(gateway.address).await?;
    let mut nothing = [0; 1];
    let closed = tokio::io::AsyncReadExt::read(&mut handshake, &mut nothing);
    assert_eq!(tokio::time::timeout(soon, closed).await??, 0);
    Ok(())
}

#[tokio::test]
async fn bodies_are_bounded() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(IMPATIENT)
        .start()
        .await?;
    let mut announced = Raw::connect(&gateway).await?;
    announced
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n")
        .await?;
    assert_eq!(status(&announced.rest().await?), 413);

    let mut chunked = Raw::connect(&gateway).await?;
    let chunk = format!("1f4\r\n{}\r\n", "a".repeat(500));
    chunked
        .send(format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n"
        ))
        .await?;
    assert_eq!(status(&chunked.rest().await?), 413);
    assert_eq!(back_end.received(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_replica_that_lies_harms_only_its_own_request() -> Result<()> {
    let back_end = BackEnd::start(|request| {
        let path = request.split(' ').nth(1).unwrap_or("");
        match path {
            "/both" => Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabc".to_vec()),
            "/short" => Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc".to_vec()),
            "/rubbish" => Reply::Last(b"rubbish\r\n\r\n".to_vec()),
            "/bare" => Reply::Bytes(b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc".to_vec()),
            "/hints" => Reply::Bytes([b"HTTP/1.1 103 Early Hints\r\nLink: ".to_vec(), vec![b'a'; 20 << 10], b"\r\n\r\n".to_vec()].concat().repeat(4)),
            "/inside" => Reply::Bytes(b"HTTP/1.1 200 OK\r\nServer: evil/1\r\nVia: 1.1 evil\r\nX-Powered-By: evil\r\nContent-Length: 2\r\n\r\nok".to_vec()),
            "/endless" => Reply::Last([b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'a'; 2 << 20]].concat()),
            "/close" => Reply::Last(Vec::new()),
            "/long" => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil!".to_vec()),
            _ => Reply::of(200, "ok"),
        }
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for path in [
        "/both", "/short", "/rubbish", "/bare", "/hints", "/inside", "/endless", "/close", "/long",
    ] {
        let mut raw = Raw::connect(&gateway).await?;
        raw.send(format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ))
        .await?;
        let answer = raw.rest().await?;
        assert!(!answer.contains("evil"), "{path}: {answer}");
        assert!(
            !answer.contains(&back_end.address.to_string()),
            "{path}: {answer}"
        );
        for _ in 0..3 {
            let good = gateway.client()?.get("/good").await?;
            assert_eq!(
                (good.status, good.text.as_str()),
                (200, "ok"),
                "after {path}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_trusted_proxy_may_speak_for_a_client() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let config = r"
premier:
  trusted_proxies: [127.0.0.0/8]
  default_features: {rate_limit: {quota: 2, duration: 864000}}
";
    let gateway = Gateway::before(&[back_end.address])
        .config(config)
        .start()
        .await?;
    let trace = "00-11111111111111111111111111111111-2222222222222222-01";
    let mut statuses = Vec::new();
    for client in ["192.0.2.1", "192.0.2.1", "6.6.6.6, 192.0.2.1", "192.0.2.2"] {
        let mut raw = Raw::connect(&gateway).await?;
        raw.send(format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {client}\r\ntraceparent: {trace}\r\nConnection: close\r\n\r\n"
        ))
        .await?;
        statuses.push(status(&raw.rest().await?));
    }
    assert_eq!(statuses, [200, 200, 429, 200]);
    let received = back_end.received().concat().to_lowercase();
    assert!(
        received.contains("x-forwarded-for: 192.0.2.1, 127.0.0.1\r\n"),
        "{received}"
    );
    assert!(
        received.contains(&format!("traceparent: {trace}\r\n")),
        "{received}"
    );
    Ok(())
}
