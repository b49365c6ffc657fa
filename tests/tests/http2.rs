//! HTTP/2 frame by frame: what a client may not do, and what the back end never sees of it.

use anyhow::Result;
use tests::raw::Raw;
use tests::{BackEnd, Gateway, Reply, wait};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
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

/// The kinds of the frames that came until the connection was closed.
async fn kinds(raw: &mut Raw) -> Result<Vec<u8>> {
    let bytes = raw.rest_of_bytes().await?;
    let (mut kinds, mut rest) = (Vec::new(), &bytes[..]);
    while let [a, b, c, kind, _, _, _, _, _, after @ ..] = rest {
        kinds.push(*kind);
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        rest = after.get(length..).unwrap_or_default();
    }
    Ok(kinds)
}

#[tokio::test]
async fn a_flood_of_resets_is_cut_off() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut raw = open(&gateway).await?;
    let block = request(&[]);
    let flood: Vec<u8> = (0..2000_u32)
        .flat_map(|number| {
            let stream = number * 2 + 1;
            let begin = frame(HEADERS, END_STREAM | END_HEADERS, stream, &block);
            [begin, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        })
        .collect();
    // It may be cut off before all is sent.
    let _ = raw.send(flood).await;
    assert!(kinds(&mut raw).await?.contains(&GOAWAY));
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
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
    let fields = [("cookie", "a=1"), ("cookie", "b=2")];
    let head = frame(HEADERS, END_STREAM | END_HEADERS, 1, &request(&fields));
    raw.send([head, frame(GOAWAY, 0, 0, &[0; 8])].concat())
        .await?;
    kinds(&mut raw).await?;
    let received = back_end.received().concat().to_lowercase();
    assert!(received.contains("cookie: a=1; b=2\r\n"), "{received}");
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
    let mut unfinished = open(&gateway).await?;
    unfinished
        .send(frame(HEADERS, END_STREAM, 1, &request(&[])))
        .await?;
    kinds(&mut unfinished).await?;
    Ok(())
}
