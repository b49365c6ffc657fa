//! What passes between a client and a replica: bodies, answers before the answer, other protocols,
//! and the end that either side can make of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use reqwest::Method;
use tests::client::{Protocol, send};
use tests::raw::{Raw, status};
use tests::{BackEnd, Gateway, Reply, address, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const IMPATIENT: &str = r#"
premier:
  limits: {idle_timeout: 0.5, header_timeout: 0.5}
  paths:
    - pattern: "/retried"
      features: {retry: {max_attempts: 3, wait: 0.01}}
"#;

/// Bytes that no compression and no repetition hides anything of.
fn noise(length: u32) -> String {
    (0..length)
        .map(|number| char::from(b'a' + (number.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
        .collect()
}

fn path(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or("")
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() -> Result<()> {
    let back_end = BackEnd::start(|request| Reply::of(200, path(request))).await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = Raw::connect(&gateway).await?;
    raw.send(
        "POST /1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc\
         POST /2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nt: u\r\n\r\n\
         GET /3 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    .await?;
    let answers = raw.rest().await?;
    let bodies: Vec<_> = answers
        .split("\r\n\r\n")
        .skip(1)
        .map(|body| &body[..2])
        .collect();
    assert_eq!(bodies, ["/1", "/2", "/3"], "{answers}");
    let received = back_end.received();
    assert!(
        received[1].ends_with("\r\n3\r\nabc\r\n0\r\n\r\n"),
        "{}",
        received[1]
    );
    Ok(())
}

#[tokio::test]
async fn a_connection_goes_on_after_answers_without_a_body() -> Result<()> {
    let back_end = BackEnd::start(|request| match path(request) {
        "/none" => Reply::Bytes(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        "/same" => Reply::Bytes(
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nETag: \"x\"\r\n\r\n".to_vec(),
        ),
        "/head" => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n".to_vec()),
        _ => Reply::of(200, "end"),
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = Raw::connect(&gateway).await?;
    for request in ["GET /none", "GET /same", "HEAD /head"] {
        raw.send(format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await?;
    }
    raw.send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let answers = raw.rest().await?;
    let statuses: Vec<_> = answers.matches("HTTP/1.1 ").collect();
    assert_eq!(statuses.len(), 4, "{answers}");
    assert!(answers.contains("content-length: 7\r\n"), "{answers}");
    assert!(answers.ends_with("\r\n\r\nend"), "{answers}");

    let client = gateway.client_speaking(Protocol::Http2)?;
    assert_eq!(client.get("/none").await?.status, 204);
    assert_eq!(client.get("/same").await?.header("content-length"), "9");
    let head = send(client.request(Method::HEAD, "/head")).await?;
    assert_eq!((head.status, head.header("content-length")), (200, "7"));
    Ok(())
}

#[tokio::test]
async fn connections_to_a_replica_are_used_again() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let client = gateway.client_speaking(protocol)?;
        for _ in 0..50 {
            assert_eq!(client.get("/").await?.status, 200);
        }
    }
    assert_eq!(back_end.received().len(), 100);
    assert!(back_end.connections() <= 2, "one for each thread at most");
    Ok(())
}

#[tokio::test]
async fn a_body_is_framed_as_its_reader_can_read_it() -> Result<()> {
    let back_end = BackEnd::start(|request| match path(request) {
        "/chunked" => Reply::Bytes(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nt: u\r\n\r\n".to_vec(),
        ),
        _ => Reply::Last(b"HTTP/1.1 200 OK\r\n\r\nabc".to_vec()),
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for path in ["/chunked", "/until-close"] {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let answer = gateway.client_speaking(protocol)?.get(path).await?;
            assert_eq!(answer.text, "abc", "{path}");
        }
        let mut old = Raw::connect(&gateway).await?;
        old.send(format!(
            "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n"
        ))
        .await?;
        let answer = old.rest().await?;
        assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(!answer.contains("transfer-encoding"), "{answer}");

        let mut kept = Raw::connect(&gateway).await?;
        kept.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await?;
        let answer = kept.until("0\r\n\r\n").await?;
        assert!(answer.contains("transfer-encoding: chunked"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn bytes_that_come_in_chunks_of_their_own_go_on_together() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = Raw::connect(&gateway).await?;
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = "1\r\ny\r\n".repeat(10_000);
    raw.send(format!("{head}{chunks}0\r\n\r\n")).await?;
    assert_eq!(status(&raw.until("ok").await?), 200);
    let received = back_end.received().concat();
    let (_, body) = received.split_once("\r\n\r\n").unwrap_or_default();
    let chunks = body.split("\r\n").filter(|line| line.starts_with('y'));
    assert_eq!(chunks.clone().map(str::len).sum::<usize>(), 10_000);
    assert!(chunks.count() < 1000, "{body}");
    Ok(())
}

#[tokio::test]
async fn large_bodies_pass_whole_both_ways() -> Result<()> {
    let large = noise(4_000_000);
    let answer = large.clone();
    let back_end = BackEnd::start(move |_| Reply::of(200, &answer)).await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let upload = noise(1_000_000);
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let client = gateway.client_speaking(protocol)?;
        let answer = send(client.request(Method::POST, "/").body(upload.clone())).await?;
        assert_eq!(answer.status, 200);
        assert!(
            answer.text == large,
            "{protocol:?}: {} bytes came",
            answer.text.len()
        );
    }
    for request in back_end.received() {
        assert!(request.ends_with(&upload), "{} bytes came", request.len());
    }
    Ok(())
}

#[tokio::test]
async fn what_is_said_before_the_answer_is_passed_on() -> Result<()> {
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let back_end = BackEnd::start(move |request| {
        let hints = match path(request) {
            "/hints" => hint.repeat(2),
            "/game" => hint.repeat(100),
            _ => String::new(),
        };
        let end = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        Reply::Bytes((hints + end).into_bytes())
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = Raw::connect(&gateway).await?;
    raw.send("GET /hints HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    let answer = raw.until("\r\n\r\nok").await?;
    assert_eq!(answer.matches("HTTP/1.1 103").count(), 2, "{answer}");

    raw.send(
        "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    )
    .await?;
    let answer = raw.until("\r\n\r\n").await?;
    assert!(answer.starts_with("HTTP/1.1 100"), "{answer}");
    raw.send("hi").await?;
    assert_eq!(status(&raw.until("\r\n\r\nok").await?), 200);
    assert!(back_end.received()[1].ends_with("\r\n\r\nhi"));

    raw.send("GET /game HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let answer = raw.rest().await?;
    assert!(answer.contains("HTTP/1.1 502"), "{answer}");
    let http2 = gateway.client_speaking(Protocol::Http2)?;
    assert_eq!(http2.get("/hints").await?.text, "ok");
    Ok(())
}

/// A replica that does by hand what no [`BackEnd`] does. It ends with all of its connections when it
/// is dropped.
struct ByHand {
    address: SocketAddr,
    _listener: JoinSet<()>,
}

impl ByHand {
    async fn start<F>(serve: fn(TcpStream) -> F) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address::free()).await?;
        let address = listener.local_addr()?;
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream));
            }
        });
        Ok(Self {
            address,
            _listener: accepting,
        })
    }
}

/// Answers the first request of a connection, and closes on the second without a word.
async fn answer_once(mut stream: TcpStream) {
    let mut head = [0; 4096];
    if let Ok(1..) = stream.read(&mut head).await {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.read(&mut head).await;
    }
}

#[tokio::test]
async fn a_connection_that_ends_as_it_is_used_again_costs_no_request() -> Result<()> {
    let replica = ByHand::start(answer_once).await?;
    let gateway = Gateway::before(&[replica.address])
        .config("premier: {default_features: {circuit_breaker: {failure_threshold: 1}}}")
        .start()
        .await?;
    let client = gateway.client()?;
    for _ in 0..10 {
        let put = client.request(Method::PUT, "/").body("some");
        assert_eq!(send(put).await?.status, 200);
        assert_eq!(client.get("/").await?.status, 200);
    }
    // It may have been done: that is for the client to repeat.
    let posted = send(client.request(Method::POST, "/").body("some")).await?;
    assert_eq!(posted.status, 502);
    Ok(())
}

/// Answers every POST before its body has come, after a hint.
async fn answer_early(mut stream: TcpStream) {
    let mut head = [0; 4096];
    while let Ok(1..) = stream.read(&mut head).await {
        let hint = if head.starts_with(b"POST") {
            "HTTP/1.1 103 Early Hints\r\n\r\n"
        } else {
            ""
        };
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let both = [hint, answer].concat();
        if stream.write_all(both.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_client_that_was_not_told_to_go_on_is_not_waited_for() -> Result<()> {
    let replica = ByHand::start(answer_early).await?;
    let gateway = Gateway::before(&[replica.address]).start().await?;
    let mut raw = Raw::connect(&gateway).await?;
    raw.send(
        "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    )
    .await?;
    let answer = raw.rest().await?;
    assert!(answer.starts_with("HTTP/1.1 103"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn after_an_upgrade_both_sides_say_what_they_like() -> Result<()> {
    let back_end = BackEnd::start(|request| {
        if request.starts_with("GET /socket") {
            let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\nhello";
            return Reply::Bytes(switch.into());
        }
        Reply::Bytes(format!("<{request}>").into_bytes())
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = Raw::connect(&gateway).await?;
    let upgrade = "GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    raw.send(upgrade).await?;
    let answer = raw.until("hello").await?;
    assert!(answer.contains("upgrade: websocket\r\n"), "{answer}");
    for word in ["\0one\r\n\r\n", "\u{7f}two\r\n\r\n"] {
        raw.send(word).await?;
        assert_eq!(raw.until(">").await?, format!("<{word}>"));
    }
    let uninvited = Raw::connect(&gateway).await;
    let mut uninvited = uninvited?;
    uninvited
        .send("GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    assert_eq!(
        status(&uninvited.rest().await?),
        502,
        "nobody asked for that"
    );
    Ok(())
}

#[tokio::test]
async fn nobody_is_let_through_to_another_protocol_than_websocket() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c",
        "Upgrade: websocket",
    ] {
        let mut raw = Raw::connect(&gateway).await?;
        raw.send(format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n"
        ))
        .await?;
        assert_eq!(status(&raw.until("ok").await?), 200, "{fields}");
    }
    let received = back_end.received().concat().to_lowercase();
    for trace in ["upgrade", "http2-settings", "websocket"] {
        assert!(!received.contains(trace), "{received}");
    }
    Ok(())
}

#[tokio::test]
async fn a_body_is_sent_again_with_its_request() -> Result<()> {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let back_end = BackEnd::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::Last(Vec::new()),
        1 => Reply::of(503, "not yet"),
        _ => Reply::of(200, "at last"),
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(IMPATIENT)
        .start()
        .await?;
    let body = noise(50_000);
    let client = gateway.client()?;
    let answer = send(client.request(Method::PUT, "/retried").body(body.clone())).await?;
    assert_eq!((answer.status, answer.text.as_str()), (200, "at last"));
    let received = back_end.received();
    assert_eq!(received.len(), 3);
    assert!(received.iter().all(|request| request.ends_with(&body)));
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_request() -> Result<()> {
    let back_end = BackEnd::start(|_| Reply::Silence).await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let before = back_end.received().len();
        let client = gateway.client_speaking(protocol)?;
        let request = tokio::spawn(async move { client.get("/").await });
        wait::until("the request", async || back_end.received().len() > before).await?;
        request.abort();
        gateway.until_quiet().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_request_that_is_held_back_ends_with_its_client() -> Result<()> {
    const HELD_BACK: &str = r"
premier:
  default_features:
    rate_limit: {quota: 1, duration: 60, algorithm: leaky_bucket, bucket_size: 9, per: []}
";
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(HELD_BACK)
        .start()
        .await?;
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for body in [0, 10_000] {
            let client = gateway.client_speaking(protocol)?;
            let request = client.request(Method::POST, "/").body(noise(body));
            let request = tokio::spawn(send(request));
            wait::until("the request", async || {
                let in_flight = gateway.metric("gateway_requests_in_flight", &[]).await;
                in_flight.is_ok_and(|count| count == Some(1.0))
            })
            .await?;
            request.abort();
            drop(client);
            gateway.until_quiet().await?;
        }
    }
    assert_eq!(back_end.received().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_closed() -> Result<()> {
    let large = "x".repeat(16 << 20);
    let back_end = BackEnd::start(move |_| Reply::of(200, &large)).await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(IMPATIENT)
        .start()
        .await?;
    let mut raw = Raw::connect(&gateway).await?;
    raw.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    wait::until("the request", async || !back_end.received().is_empty()).await?;
    gateway.until_quiet().await?;
    let answer = raw.rest().await?;
    assert_eq!(status(&answer), 200);
    assert!(answer.len() < 16 << 20, "it was cut off");
    Ok(())
}

/// Answers at once, and with more than anybody's buffers take.
async fn answer_at_length(mut stream: TcpStream) {
    let mut head = [0; 4096];
    if let Ok(1..) = stream.read(&mut head).await {
        let length = if head.starts_with(b"POST") {
            32 << 20
        } else {
            0
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&vec![b'x'; length]).await;
    }
}

#[tokio::test]
async fn who_goes_on_sending_has_to_read_all_the_same() -> Result<()> {
    let replica = ByHand::start(answer_at_length).await?;
    let gateway = Gateway::before(&[replica.address])
        .config(IMPATIENT)
        .start()
        .await?;
    let mut raw = Raw::connect(&gateway).await?;
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    raw.send(head).await?;
    let start = std::time::Instant::now();
    // A byte now and then, for as long as it is taken.
    while raw.send("1\r\ny\r\n").await.is_ok() {
        let in_flight = gateway.metric("gateway_requests_in_flight", &[]).await?;
        if in_flight == Some(0.0) {
            break;
        }
        anyhow::ensure!(start.elapsed() < wait::PATIENCE, "it is still served");
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() -> Result<()> {
    let back_end = BackEnd::start(|request| {
        let framing = match path(request) {
            "/chunked" => "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            _ => "Content-Length: 10\r\n\r\nabc",
        };
        Reply::Last(format!("HTTP/1.1 200 OK\r\n{framing}").into_bytes())
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for path in ["/chunked", "/length"] {
            let answer = gateway.client_speaking(protocol)?.get(path).await;
            assert!(answer.is_err(), "{protocol:?} {path}: {answer:?}");
        }
    }
    Ok(())
}
