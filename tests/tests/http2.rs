//! HTTP/2 frame by frame: what a client may not do, and what the back end never sees of it.

use std::ops::Range;

use anyhow::Result;
use reqwest::Method;
use rustix::process::Signal;
use tests::client::{Protocol, send};
use tests::raw::Raw;
use tests::{BackEnd, Gateway, Reply, wait};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("it is short");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A field that HPACK has no short form for (RFC 7541, section 6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("it is short");
    let mut field = vec![0, length(name)];
    field.extend(name.as_bytes());
    field.push(length(value));
    field.extend(value.as_bytes());
    field
}

/// GET of the root of localhost, and further fields.
fn request(fields: &[(&str, &str)]) -> Vec<u8> {
    request_for("/", fields)
}

/// GET of a path of localhost, and further fields.
fn request_for(path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    // From the static table: method GET, scheme https.
    let mut block = vec![0x82, 0x87];
    block.extend(literal(":path", path));
    block.extend(literal(":authority", "localhost"));
    for (name, value) in fields {
        block.extend(literal(name, value));
    }
    block
}

async fn open(gateway: &Gateway) -> Result<Raw> {
    let mut raw = Raw::connect_http2(gateway).await?;
    raw.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())
        .await?;
    Ok(raw)
}

/// GET of a path on a stream, whole.
fn get(stream: u32, path: &str) -> Vec<u8> {
    let head = request_for(path, &[]);
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &head)
}

/// That the client is not interested in the answer any more.
fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// The numbers of a client's streams.
fn streams(numbers: Range<u32>) -> impl Iterator<Item = u32> {
    numbers.map(|number| number * 2 + 1)
}

/// The kinds of frames.
fn kinds_in(bytes: &[u8]) -> Vec<u8> {
    let (mut kinds, mut rest) = (Vec::new(), bytes);
    while let [a, b, c, kind, _, _, _, _, _, after @ ..] = rest {
        kinds.push(*kind);
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        rest = after.get(length..).unwrap_or_default();
    }
    kinds
}

/// The kinds of the frames that came until the connection was closed.
async fn kinds(raw: &mut Raw) -> Result<Vec<u8>> {
    Ok(kinds_in(&raw.rest_of_bytes().await?))
}

/// Reads until a frame of a kind has come.
async fn until_a(kind: u8, raw: &mut Raw) -> Result<()> {
    let mut bytes = Vec::new();
    while !kinds_in(&bytes).contains(&kind) {
        let some = raw.some().await?;
        anyhow::ensure!(!some.is_empty(), "closed after {:?}", kinds_in(&bytes));
        bytes.extend(some);
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_of_resets_is_cut_off() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = open(&gateway).await?;
    let flood: Vec<u8> = streams(0..2000)
        .flat_map(|stream| [get(stream, "/"), reset(stream)].concat())
        .collect();
    // It may be cut off before all is sent.
    let _ = raw.send(flood).await;
    assert!(kinds(&mut raw).await?.contains(&GOAWAY));
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn resets_that_take_their_time_are_cut_off_too() -> Result<()> {
    const AT_ONCE: u32 = 20;
    let back_end = BackEnd::start(|_| Reply::Silence).await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = open(&gateway).await?;
    for round in 0..20 {
        let numbers = round * AT_ONCE..(round + 1) * AT_ONCE;
        let requests: Vec<u8> = streams(numbers.clone())
            .flat_map(|stream| get(stream, "/"))
            .collect();
        if raw.send(requests).await.is_err() {
            break;
        }
        // They are being served, so that the library does not count them.
        let wanted = usize::try_from(numbers.end)?;
        let is_over = wait::until("the requests, or the end of the connection", async || {
            let connections = gateway.metric("gateway_connections", &[]).await;
            back_end.received().len() >= wanted || connections.is_ok_and(|count| count == Some(0.0))
        });
        is_over.await?;
        let resets: Vec<u8> = streams(numbers).flat_map(reset).collect();
        let _ = raw.send(resets).await;
    }
    kinds(&mut raw).await?;
    assert!(back_end.received().len() < 200, "it was cut off");
    gateway.until_quiet().await
}

#[tokio::test]
async fn a_stream_that_is_reset_before_our_own_answer_is_over() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = open(&gateway).await?;
    for round in 0..4 {
        let burst = streams(round * 12..(round + 1) * 12);
        // The gateway itself says that there is no such thing.
        let burst = burst.flat_map(|stream| [get(stream, "/metrics"), reset(stream)].concat());
        raw.send(burst.collect::<Vec<u8>>()).await?;
        raw.send(frame(PING, 0, 0, &[0; 8])).await?;
        until_a(PING, &mut raw).await?;
    }
    gateway.until_quiet().await
}

#[tokio::test]
async fn a_flood_of_pings_is_cut_off() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = open(&gateway).await?;
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(1000);
    for _ in 0..20 {
        if raw.send(&pings).await.is_err() {
            break;
        }
    }
    // What it was told is lost where more was on its way.
    kinds(&mut raw).await?;
    Ok(())
}

#[tokio::test]
async fn a_stream_that_nobody_reads_stops_no_other() -> Result<()> {
    const HELD_BACK: &str = r#"
premier:
  paths:
    - pattern: "/held-back"
      features:
        rate_limit: {quota: 1, duration: 60, algorithm: leaky_bucket, bucket_size: 99, per: []}
"#;
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(HELD_BACK)
        .start()
        .await?;
    let client = gateway.client_speaking(Protocol::Http2)?;
    assert_eq!(client.get("/held-back").await?.status, 200);
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let upload = client.request(Method::POST, "/held-back");
        uploads.spawn(send(upload.body("x".repeat(500_000))));
    }
    wait::until("the uploads", async || {
        let in_flight = gateway.metric("gateway_requests_in_flight", &[]).await;
        in_flight.is_ok_and(|count| count == Some(20.0))
    })
    .await?;
    let small = client.request(Method::POST, "/").body("y".repeat(50_000));
    assert_eq!(send(small).await?.status, 200);
    Ok(())
}

/// The settings of a client that promises to take everything at once.
fn greedy() -> Vec<u8> {
    const INITIAL_WINDOW: [u8; 2] = [0, 4];
    let most = 0x7fff_ffff_u32;
    let settings = [&INITIAL_WINDOW[..], &most.to_be_bytes()].concat();
    let window = (most - 0xffff).to_be_bytes();
    [
        frame(SETTINGS, 0, 0, &settings),
        frame(WINDOW_UPDATE, 0, 0, &window),
    ]
    .concat()
}

#[tokio::test]
async fn answers_that_are_not_taken_are_few_and_not_kept() -> Result<()> {
    let large = "x".repeat(400_000);
    let back_end = BackEnd::start(move |_| Reply::of(200, &large)).await?;
    let gateway = Gateway::before(&[back_end.address])
        .config("premier: {limits: {idle_timeout: 2}}")
        .start()
        .await?;
    let before = gateway.process.memory()?;
    let mut raw = open(&gateway).await?;
    raw.send(greedy()).await?;
    let requests = streams(0..100).flat_map(|stream| get(stream, "/"));
    raw.send(requests.collect::<Vec<u8>>()).await?;
    wait::until("the requests", async || back_end.received().len() == 100).await?;
    gateway.until_deserted().await?;
    let more = gateway.process.peak_memory()? - before;
    assert!(more < 32 << 20, "{more} bytes more");
    drop(raw);
    Ok(())
}

#[tokio::test]
async fn answers_that_wait_for_room_in_vain_are_not_kept() -> Result<()> {
    const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config("premier: {limits: {idle_timeout: 0.5}}")
        .start()
        .await?;
    let mut raw = open(&gateway).await?;
    raw.send(frame(SETTINGS, 0, 0, &NO_WINDOW)).await?;
    let requests = streams(0..10).flat_map(|stream| get(stream, "/"));
    raw.send(requests.collect::<Vec<u8>>()).await?;
    kinds(&mut raw).await?;
    Ok(())
}

#[tokio::test]
async fn long_polls_that_are_given_up_are_no_flood() -> Result<()> {
    let back_end = BackEnd::start(|request| {
        if request.starts_with("GET /poll") {
            Reply::Silence
        } else {
            Reply::of(200, "ok")
        }
    })
    .await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = open(&gateway).await?;
    for stream in streams(0..90) {
        let before = back_end.received().len();
        raw.send(get(stream, "/poll")).await?;
        wait::until("the poll", async || back_end.received().len() > before).await?;
        raw.send(reset(stream)).await?;
    }
    raw.send(get(1001, "/")).await?;
    until_a(HEADERS, &mut raw).await
}

#[tokio::test]
async fn an_answer_on_its_way_at_the_end_arrives_whole() -> Result<()> {
    // More than the kernel takes.
    const LENGTH: usize = 16 << 20;
    let large = "x".repeat(LENGTH);
    let back_end = BackEnd::start(move |_| Reply::of(200, &large)).await?;
    let mut gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = open(&gateway).await?;
    raw.send(greedy()).await?;
    raw.send(get(1, "/")).await?;
    until_a(HEADERS, &mut raw).await?;
    gateway.process.signal(Signal::TERM)?;
    wait::until("the end to begin", async || {
        let log = gateway.process.log();
        log.contains("requests in flight are finished first")
    })
    .await?;
    let rest = raw.rest_of_bytes().await?;
    assert!(rest.len() > LENGTH - (64 << 10), "{} bytes", rest.len());
    drop(raw);
    assert!(gateway.process.ended()?.success());
    Ok(())
}

#[tokio::test]
async fn what_crosses_the_farewell_is_answered() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config("premier: {limits: {idle_timeout: 0.3}}")
        .start()
        .await?;
    let mut raw = open(&gateway).await?;
    until_a(GOAWAY, &mut raw).await?;
    raw.send(get(1, "/")).await?;
    assert!(kinds(&mut raw).await?.contains(&HEADERS));
    assert_eq!(back_end.received().len(), 1);
    Ok(())
}

#[tokio::test]
async fn what_is_refused_is_told_as_ever() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let client = gateway.client_speaking(Protocol::Http2)?;
    let large = client
        .request(Method::GET, "/")
        .header("x", "y".repeat(33_000));
    let answer = send(large).await?;
    assert_eq!(answer.status, 431);
    assert!(!answer.json()["error"].is_null());
    assert!(!answer.header("x-request-id").is_empty());
    let long = format!("/{}", "a".repeat(9000));
    let head = send(client.request(Method::HEAD, &long)).await?;
    assert_eq!((head.status, head.text.as_str()), (414, ""));
    Ok(())
}

#[tokio::test]
async fn a_header_without_end_is_cut_off() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = open(&gateway).await?;
    raw.send(frame(HEADERS, END_STREAM, 1, &request(&[])))
        .await?;
    let more = literal("x", &"y".repeat(100)).repeat(100);
    for _ in 0..200 {
        if raw.send(frame(CONTINUATION, 0, 1, &more)).await.is_err() {
            break;
        }
    }
    assert!(kinds(&mut raw).await?.contains(&GOAWAY));
    assert_eq!(back_end.received(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn http2_adds_no_reading() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for fields in [
        &[("transfer-encoding", "chunked")][..],
        &[("connection", "close")],
        &[("host", "elsewhere")],
        &[("x", "a\r\nb: c")],
        &[("x", "a\0b")],
        &[("x\r\ny", "a")],
        &[("X", "upper")],
        &[(":method", "POST")],
        &[(":path", "/other")],
        &[("x", "y"), (":scheme", "http")],
        &[("content-length", "5")],
        &[("content-length", "0"), ("content-length", "0")],
        &[("te", "gzip")],
        &[("x", " y")],
        &[("x", "y\t")],
    ] {
        let mut raw = open(&gateway).await?;
        let head = frame(HEADERS, END_STREAM | END_HEADERS, 1, &request(fields));
        raw.send(head).await?;
        // What is well-formed would be answered and the connection kept.
        raw.send(frame(GOAWAY, 0, 0, &[0; 8])).await?;
        kinds(&mut raw).await?;
        assert_eq!(back_end.received(), Vec::<String>::new(), "{fields:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_path_names_no_other_host() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for path in ["http://elsewhere/", "https://localhost/", "*", "elsewhere/"] {
        let mut raw = open(&gateway).await?;
        let head = request_for(path, &[]);
        raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &head))
            .await?;
        raw.send(frame(GOAWAY, 0, 0, &[0; 8])).await?;
        kinds(&mut raw).await?;
        assert_eq!(back_end.received(), Vec::<String>::new(), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_of_a_lost_connection_are_counted() -> Result<()> {
    let back_end = BackEnd::start(|_| Reply::Silence).await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = open(&gateway).await?;
    for stream in [1, 3] {
        let head = frame(HEADERS, END_STREAM | END_HEADERS, stream, &request(&[]));
        raw.send(head).await?;
    }
    wait::until("the requests", async || back_end.received().len() == 2).await?;
    drop(raw);
    wait::until("them to be counted", async || {
        let labels = ["status=\"none\""];
        let gone = gateway.metric("gateway_requests_total", &labels).await;
        gone.is_ok_and(|count| count == Some(2.0))
    })
    .await
}

#[tokio::test]
async fn crumbs_of_a_cookie_are_joined() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = open(&gateway).await?;
    let mut fields = vec![("cookie", "a=1"), ("cookie", "b=2")];
    fields.extend([("cookie", "c=3")].repeat(110));
    fields.extend([("te", "trailers"), ("trailer", "x")]);
    let head = frame(HEADERS, END_STREAM | END_HEADERS, 1, &request(&fields));
    raw.send([head, frame(GOAWAY, 0, 0, &[0; 8])].concat())
        .await?;
    kinds(&mut raw).await?;
    let received = back_end.received().concat().to_lowercase();
    assert!(
        received.contains("cookie: a=1; b=2; c=3; c=3"),
        "{received}"
    );
    assert!(!received.contains("trailer"), "{received}");
    assert_eq!(received.matches("cookie:").count(), 1, "{received}");
    Ok(())
}

#[tokio::test]
async fn silent_peers_are_closed() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config("premier: {limits: {header_timeout: 0.5, idle_timeout: 0.5}}")
        .start()
        .await?;
    let mut silent = open(&gateway).await?;
    kinds(&mut silent).await?;
    Ok(())
}

#[tokio::test]
async fn a_header_that_does_not_come_is_not_waited_for() -> Result<()> {
    let back_end = BackEnd::start(|_| Reply::Silence).await?;
    let gateway = Gateway::before(&[back_end.address])
        .config("premier: {limits: {header_timeout: 0.5, idle_timeout: 600}}")
        .start()
        .await?;
    for begin in [
        frame(HEADERS, END_STREAM, 3, &request(&[])),
        get(3, "/")[..20].to_vec(),
    ] {
        let mut unfinished = open(&gateway).await?;
        // Another stream is no reason to wait.
        unfinished.send([get(1, "/"), begin].concat()).await?;
        kinds(&mut unfinished).await?;
    }
    Ok(())
}
