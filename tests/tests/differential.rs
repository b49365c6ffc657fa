//! Differential test of HTTP/1.1: several hundred malformed and borderline requests by raw bytes. Whatever the gateway
//! forwards is one request by the letter of RFC 9112, is logged, and is read by nginx with the same target, headers,
//! body and end. Pingora's own proxy, if it forwards the case too, sends the same request but for the differences that
//! are listed.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::nginx::Nginx;
use tests::pingora_proxy::PingoraProxy;
use tests::raw_connection::{RawConnection, parse_status};
use tests::recording_upstream::{RecordingUpstream, WireRequest};
use tests::{Gateway, address, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Timeouts that end the cases whose body is shorter than announced.
const CONFIG: &str =
    "premier: {health_check: null, limits: {header_timeout: 1, body_timeout: 1, idle_timeout: 1}}";
/// The request that follows each case on its connection.
const END: &str = "GET /end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// A body that ends at once if it is chunked, and then has another request.
const SMUGGLING: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// The request that follows the forwarded bytes on the connection to nginx.
const PROBE: &str = "GET /probe HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n";

/// Outcome that a case must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Responds with an error, forwards no complete request, and closes the connection.
    Rejected,
    /// Responds with an error and does not forward it. Where it ends is certain, so that the connection is kept.
    NotForwarded,
    /// Forwards it.
    Forwarded,
    /// Forwards a method that nginx rejects: it has other letters than capitals.
    RejectedByNginx,
    /// Either.
    Any,
}
use Verdict::{Any, Forwarded, NotForwarded, Rejected, RejectedByNginx};

/// Bytes of a client, before those of [`END`].
#[derive(Debug, Clone)]
struct Case {
    bytes: Vec<u8>,
    verdict: Verdict,
}

impl Case {
    fn new(bytes: impl Into<Vec<u8>>, verdict: Verdict) -> Self {
        let bytes = bytes.into();
        Self { bytes, verdict }
    }
}

/// Role of a line in the framing of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Framing,
    /// Makes the request malformed.
    Malformed,
    /// Is another header, or none at all.
    None,
}

/// Spellings of `Content-Length` with a value, as lines.
fn content_lengths(length: usize) -> Vec<(String, Role)> {
    let mut lines = vec![(String::new(), Role::None)];
    for line in [
        "Content-Length: @\r\n",
        "content-length:@\r\n",
        "CONTENT-LENGTH: \t@ \t\r\n",
        "Content-Length: 00@\r\n",
    ] {
        lines.push((line.to_owned(), Role::Framing));
    }
    for line in [
        "Content_Length: @\r\n",
        "X-Content-Length: @\r\n",
        "ContentLength: @\r\n",
        "Content.Length: @\r\n",
    ] {
        lines.push((line.to_owned(), Role::None));
    }
    for value in [
        "+@",
        "-@",
        "@,@",
        "@, @",
        "@ @",
        "0x@",
        "@.0",
        "@e0",
        "@;",
        "",
        ",",
        "@,",
        "@\u{b}",
        "\u{c}@",
        "@\0",
        "\"@\"",
        "@_0",
        "99999999999999999999",
        "18446744073709551616",
        "\u{661}",
        "@\r",
        "\r@",
        "@\r\n @",
        "\r\n @",
        "@\r\nContent-Length: @",
        "@\r\nContent-Length: 0",
        "0\r\nContent-Length: @",
        "@\r\ncontent-length: @",
    ] {
        lines.push((format!("Content-Length: {value}\r\n"), Role::Malformed));
    }
    for line in [
        "Content-Length : @\r\n",
        "Content-Length\t: @\r\n",
        "Content-Length\0: @\r\n",
        "Content-Length\u{b}: @\r\n",
        "\u{b}Content-Length: @\r\n",
        " Content-Length: @\r\n",
        "X: y\r\n Content-Length: @\r\n",
        "X: y\rContent-Length: @\r\n",
        "X: y\nContent-Length: @\r\n",
        "Content-Length: @\n",
        "Content-Length\r\n: @\r\n",
        "Content-Length @\r\n",
    ] {
        lines.push((line.to_owned(), Role::Malformed));
    }
    let length = length.to_string();
    lines
        .into_iter()
        .map(|(line, role)| (line.replace('@', &length), role))
        .collect()
}

/// Spellings of `Transfer-Encoding`, as lines.
fn transfer_encodings() -> Vec<(String, Role)> {
    let mut lines = vec![(String::new(), Role::None)];
    for line in [
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding:CHUNKED\r\n",
        "TRANSFER-ENCODING: \tChunked\t \r\n",
    ] {
        lines.push((line.to_owned(), Role::Framing));
    }
    for line in [
        "Transfer_Encoding: chunked\r\n",
        "TransferEncoding: chunked\r\n",
        "X-Transfer-Encoding: chunked\r\n",
        "Transfer.Encoding: chunked\r\n",
        "TE: chunked\r\n",
    ] {
        lines.push((line.to_owned(), Role::None));
    }
    for value in [
        "chunked, identity",
        "identity, chunked",
        "gzip, chunked",
        "chunked, chunked",
        "chunked,",
        ", chunked",
        "xchunked",
        "chunkedx",
        "chunked;q=1",
        "chunked ;a=b",
        "\"chunked\"",
        "'chunked'",
        "\u{b}chunked",
        "chunked\u{b}",
        "\u{c}chunked",
        "\0chunked",
        "chunked\0",
        "\u{a0}chunked",
        "chun ked",
        "identity",
        "gzip",
        "",
        "cow",
        "\rchunked",
        "chunked\r",
        "\r\n chunked",
        "\n chunked",
        "chunked\r\nTransfer-Encoding: chunked",
        "identity\r\nTransfer-Encoding: chunked",
        "chunked\r\ntransfer-encoding: identity",
    ] {
        lines.push((format!("Transfer-Encoding: {value}\r\n"), Role::Malformed));
    }
    for line in [
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "Transfer-Encoding\0: chunked\r\n",
        "Transfer-Encoding\r\n: chunked\r\n",
        "\0Transfer-Encoding: chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "\tTransfer-Encoding: chunked\r\n",
        "X: y\r\n Transfer-Encoding: chunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "X: y\0\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\n",
        "Transfer-Encoding chunked\r\n",
    ] {
        lines.push((line.to_owned(), Role::Malformed));
    }
    lines
}

/// Every spelling of one framing alone, and with each plain spelling of the other.
fn framings() -> Vec<Case> {
    let lengths = content_lengths(SMUGGLING.len());
    let encodings = transfer_encodings();
    let mut cases = Vec::new();
    for (length_index, (length, length_role)) in lengths.iter().enumerate() {
        for (encoding_index, (encoding, encoding_role)) in encodings.iter().enumerate() {
            let roles = [*length_role, *encoding_role];
            // A malformed line is tried alone, and with the plainest spelling of the other.
            let are_plain = [length_index, encoding_index].map(|index| index < 2);
            if roles.contains(&Role::Malformed) && are_plain == [false, false] {
                continue;
            }
            let verdict = if roles.contains(&Role::Malformed) || roles == [Role::Framing; 2] {
                Rejected
            } else if roles.contains(&Role::Framing) {
                Forwarded
            } else {
                Any
            };
            let headers = format!("{length}{encoding}");
            let request =
                format!("POST /case HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n{SMUGGLING}");
            cases.push(Case::new(request, verdict));
        }
    }
    cases
}

fn request_lines() -> Vec<Case> {
    let verdicts = [
        ("GET /case HTTP/1.1", Forwarded),
        ("GET /case HTTP/1.0", Any),
        ("PATCH /case HTTP/1.1", Forwarded),
        ("M-SEARCH /case HTTP/1.1", Forwarded),
        ("get /case HTTP/1.1", RejectedByNginx),
        ("G!T /case HTTP/1.1", RejectedByNginx),
        ("GET  /case HTTP/1.1", Rejected),
        ("GET /case  HTTP/1.1", Rejected),
        ("GET\t/case HTTP/1.1", Rejected),
        ("GET /case\tHTTP/1.1", Rejected),
        ("GET /case HTTP/1.1 ", Rejected),
        ("GET /case HTTP/1.1\t", Rejected),
        (" GET /case HTTP/1.1", Rejected),
        ("GET /case HTTP/1.1\0", Rejected),
        ("GET /ca se HTTP/1.1", Rejected),
        ("GET /case HTTP/1.1 HTTP/1.1", Rejected),
        ("GET /case HTTP/0.9", Rejected),
        ("GET /case HTTP/1.2", Rejected),
        ("GET /case HTTP/2.0", Rejected),
        ("GET /case HTTP/01.1", Rejected),
        ("GET /case HTTP/1.01", Rejected),
        ("GET /case HTTP/1.1.1", Rejected),
        ("GET /case HTTP/1,1", Rejected),
        ("GET /case http/1.1", Rejected),
        ("GET /case HTTP /1.1", Rejected),
        ("GET /case HTTPS/1.1", Rejected),
        ("GET /case", Rejected),
        ("GET", Rejected),
        ("/case HTTP/1.1", Rejected),
        ("G T /case HTTP/1.1", Rejected),
        ("G@T /case HTTP/1.1", Rejected),
        ("G\u{e4}T /case HTTP/1.1", Rejected),
        ("TRACE /case HTTP/1.1", Rejected),
        ("CONNECT localhost:443 HTTP/1.1", Rejected),
        ("PRI * HTTP/2.0", Rejected),
    ];
    let case = |(line, verdict)| Case::new(format!("{line}\r\nHost: localhost\r\n\r\n"), verdict);
    verdicts.into_iter().map(case).collect()
}

fn targets() -> Vec<Case> {
    let forwarded = [
        "/",
        "/a",
        "/a?b",
        "/a?b?c",
        "/a?/../b",
        "//",
        "//a",
        "/a//b",
        "/./a",
        "/a/..",
        "/../a",
        "/%61",
        "/a%20b",
        "/a;b",
        "/a%3bb",
        "/a|b",
        "/a\"b",
        "/a{b}",
        "/a[b]",
        "/a^b",
        "/a%0d%0aX:y",
        "/a%c3%a4",
        "/a?b=%zz",
        "/a?%00",
        "/a?b\\c",
        "/a:80",
        "/http://elsewhere/",
        "/a%3fb%23c",
        "http://localhost/a",
        "https://localhost/a",
        "HTTP://LOCALHOST/a",
        "http://localhost",
        "http://localhost?a",
        "https://localhost//a/../b?c",
    ];
    let rejected = [
        "/a%2fb",
        "/a%5cb",
        "/a%00",
        "/a%zz",
        "/a%",
        "/a%4",
        "/a\\b",
        "/..;/a",
        "/a<b",
        "/a`b",
        "/a\u{7f}",
        "/\u{e4}",
        "/a\0",
        "/a\tb",
        "/a\u{b}b",
        "/a?b c",
        "/a?b\"c",
        "/a?b\0",
        "http://localhost:443/a",
        "http://elsewhere/a",
        "http://u@localhost/a",
        "http://localhost@elsewhere/",
        "ftp://localhost/a",
        "http:/localhost/a",
        "http:///a",
        "http://localhost\\a",
        "http:localhost/a",
        "*",
        "a",
        "?a",
        "#a",
        "localhost:443",
        "localhost/a",
        "../a",
        "%2fa",
    ];
    let fragments = ["/a#b", "/a?b#c", "/a#/../b", "http://localhost#a"];
    let case = |target: &str, verdict| {
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Case::new(request, verdict)
    };
    let forwarded = forwarded.map(|target| case(target, Forwarded));
    let rejected = rejected.map(|target| case(target, NotForwarded));
    let fragments = fragments.map(|target| case(target, Any));
    forwarded
        .into_iter()
        .chain(rejected)
        .chain(fragments)
        .collect()
}

fn header_lines() -> Vec<Case> {
    let forwarded: &[&[u8]] = &[
        b"X: y",
        b"X:y",
        b"X:",
        b"X: \t",
        b"X:\t y \t",
        b"X: a\x80",
        b"X: \xff",
        b"X: \xc3\xa4",
        b"X: a\tb",
        b"X: a:b",
        b"X: \"a\\\"b\"",
        b"X_Y: z",
        b"X.Y: z",
        b"X!#$%&'*+-.^_`|~9: z",
        b"X: a\r\nX: b",
        b"X: a\r\nx: b\r\nX: c",
        b"Cookie: a=1\r\nCookie: b=2",
        b"Connection: keep-alive, X-A\r\nX-A: b",
        b"Connection: content-length, host",
        b"Connection: ,,\r\nConnection: \"x\"",
        b"TE: trailers",
        b"Trailer: x",
        b"Upgrade: h2c\r\nConnection: upgrade\r\nHTTP2-Settings: AAMAAABk",
        b"Upgrade: websocket\r\nConnection: upgrade",
        b"Expect: 100-continue",
        b"Proxy-Connection: close",
        b"Keep-Alive: timeout=1",
        b"X-Forwarded-For: 192.0.2.1",
        b"X-Request-Id: forged",
        b"X_Request_Id: forged",
        b"Via: 1.1 a",
        b"Max-Forwards: 0",
        b"Accept-Encoding: gzip",
        b"Range: bytes=0-0",
        b"Authorization: Basic YTpi",
        b"Content-Type: text/plain",
    ];
    let rejected: &[&[u8]] = &[
        b"X : y",
        b"X\t: y",
        b"X",
        b":",
        b": y",
        b" X: y",
        b"\tX: y",
        b"X: y\r\n z",
        b"X: y\r\n\tz: w",
        b"X: a\0b",
        b"X: a\x01",
        b"X: a\x1f",
        b"X: a\x7f",
        b"X: a\x0b",
        b"X: a\rb",
        b"X: a\r",
        b"X: a\nb",
        b"X: a\n",
        b"X: a\n\nGET /smuggled HTTP/1.1",
        b"X: a\r\rY: b",
        b"\rX: a",
        b"X\r: a",
        b"X\n: a",
        b"X\0: y",
        b"X\x80: y",
        b"X(: y",
        b"X@: y",
        b"X/: y",
        b"X\": y",
        b"X[: y",
        b"X{: y",
        b"Host: localhost",
        b"host: elsewhere",
        b"Host : elsewhere",
        b"Expect: x",
        b"Expect: 100-continue\r\nExpect: 100-continue",
    ];
    let case = |line: &[u8], verdict| {
        let request = [
            b"GET /case HTTP/1.1\r\nHost: localhost\r\n",
            line,
            b"\r\n\r\n",
        ];
        Case::new(request.concat(), verdict)
    };
    let forwarded = forwarded.iter().map(|line| case(line, Forwarded));
    let rejected = rejected.iter().map(|line| case(line, Rejected));
    forwarded.chain(rejected).collect()
}

fn hosts() -> Vec<Case> {
    let forwarded = [
        "Host:localhost",
        "HOST: localhost",
        "Host: localhost:443",
        "Host: localhost:",
        "Host: LOCALHOST",
        "Host: localhost.",
        "Host: \tlocalhost\t",
    ];
    let rejected = [
        "X: y",
        "Host:",
        "Host: ",
        "Host: localhost, elsewhere",
        "Host: localhost elsewhere",
        "Host: u@localhost",
        "Host: localhost/a",
        "Host: localhost?a",
        "Host: localhost#a",
        "Host: localhost:x",
        "Host: localhost:99999",
        "Host: localhost:80:80",
        "Host: \"localhost\"",
        "Host: localhost\0",
        "Host: localhost\u{b}",
        "Host: http://localhost",
        "Host: elsewhere",
        "Host: [::1]",
        "Host: [localhost",
        "Host: localhost%00",
        "Host: \u{e4}",
    ];
    let case =
        |host: &str, verdict| Case::new(format!("GET /case HTTP/1.1\r\n{host}\r\n\r\n"), verdict);
    let forwarded = forwarded.map(|host| case(host, Forwarded));
    let rejected = rejected.map(|host| case(host, NotForwarded));
    forwarded.into_iter().chain(rejected).collect()
}

/// Each line ending of a request replaced by others, and bytes before the request.
fn line_endings() -> Vec<Case> {
    let lines = [
        "POST /case HTTP/1.1",
        "Host: localhost",
        "Content-Length: 3",
        "",
    ];
    let mut cases = Vec::new();
    for ending in [
        "\n", "\r", "\n\r", "\r\r\n", "\r\n\0", " \n", "\u{b}\n", "\r \n",
    ] {
        for (replaced, replaced_line) in lines.iter().enumerate() {
            // A NUL after the empty line is part of the body.
            if ending == "\r\n\0" && replaced_line.is_empty() {
                continue;
            }
            let request: String = lines
                .iter()
                .enumerate()
                .map(|(number, line)| {
                    let ending = if number == replaced { ending } else { "\r\n" };
                    [line, ending].concat()
                })
                .collect();
            cases.push(Case::new(format!("{request}abc"), Rejected));
        }
    }
    let request = format!("{}abc", lines.join("\r\n") + "\r\n");
    for (before, verdict) in [
        ("", Forwarded),
        ("\r\n", Forwarded),
        ("\r\n\r\n", Forwarded),
        ("\n", Rejected),
        ("\r", Rejected),
        (" ", Rejected),
        (" \r\n", Rejected),
        ("\0", Rejected),
        ("\u{feff}", Rejected),
    ] {
        cases.push(Case::new(format!("{before}{request}"), verdict));
    }
    cases
}

fn bodies() -> Vec<Case> {
    let forwarded = [
        "0\r\n\r\n",
        "3\r\nabc\r\n0\r\n\r\n",
        "03\r\nabc\r\n000\r\n\r\n",
        "A\r\n0123456789\r\n0\r\n\r\n",
        "a\r\n0\r\n\r\nGET /\r\n0\r\n\r\n",
        "3;a\r\nabc\r\n0\r\n\r\n",
        "3;a=b;c=\"d;\\\" e\"\r\nabc\r\n0;f\r\n\r\n",
        "3\r\nabc\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n",
        "1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n",
    ];
    let rejected = [
        "x\r\n",
        "-1\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\t\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "3\r\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabc\r\n0\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "3\r\nabc\r\n0\r\nX\r\n\r\n",
        "3\r\nabc\r\n0\r\nX : y\r\n\r\n",
        "3\r\nabc\r\n0\r\n X: y\r\n\r\n",
        "3\r\nabc\r\n0\r\nX: y\n\r\n",
        "3\r\nabc\r\n0\r\nX: a\0\r\n\r\n",
        "3;\nabc\r\n0\r\n\r\n",
        "3;a\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3;a=\"\r\n\"\r\nabc\r\n0\r\n\r\n",
        "3;\0\r\nabc\r\n0\r\n\r\n",
        "3;\r\nabc\r\n0\r\n\r\n",
        "3,3\r\nabc\r\n0\r\n\r\n",
        "\r\n3\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffff1\r\nabc\r\n0\r\n\r\n",
        "00000000000000003\r\nabc\r\n0\r\n\r\n",
    ];
    let case = |body: &str, verdict| {
        let headers = "POST /case HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked";
        Case::new(format!("{headers}\r\n\r\n{body}"), verdict)
    };
    let with_length = |length: usize, body: &str, verdict| {
        let headers = format!("POST /case HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}");
        Case::new(format!("{headers}\r\n\r\n{body}"), verdict)
    };
    let binary: String = (1..=127_u8).map(char::from).collect();
    let forwarded = forwarded.map(|body| case(body, Forwarded));
    let rejected = rejected.map(|body| case(body, Rejected));
    let mut cases: Vec<_> = forwarded.into_iter().chain(rejected).collect();
    cases.extend([
        with_length(0, "", Forwarded),
        with_length(3, "abc", Forwarded),
        with_length(3, "abc\r\n", Forwarded),
        with_length(3, "abc\r\n\r\n", Forwarded),
        with_length(binary.len(), &binary, Forwarded),
        with_length(SMUGGLING.len(), SMUGGLING, Forwarded),
        // The next request becomes part of the body.
        with_length(END.len(), "", Any),
        with_length(1000, "abc", Any),
        with_length(2_000_000, "abc", Rejected),
        Case::new("GET /case HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", Forwarded),
        Case::new("HEAD /case HTTP/1.1\r\nHost: localhost\r\n\r\n", Forwarded),
        Case::new(
            "DELETE /case HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            Forwarded,
        ),
        Case::new(
            "POST /case HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
            Forwarded,
        ),
        Case::new(
            format!("POST /case HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{SMUGGLING}"),
            Rejected,
        ),
        Case::new("POST /case HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc", Forwarded),
    ]);
    cases
}

/// nginx in front of a server that records what nginx has understood.
struct Reference {
    address: SocketAddr,
    behind: RecordingUpstream,
    _nginx: Nginx,
}

impl Reference {
    async fn start() -> Result<Self> {
        let behind = RecordingUpstream::start().await?;
        let address = address::unused_loopback();
        let http = format!(
            "underscores_in_headers on;\nignore_invalid_headers off;\n\
             server {{\nlisten {address};\nlocation / {{\nproxy_pass http://{};\n\
             proxy_http_version 1.1;\nproxy_set_header Host $http_host;\n}}\n}}",
            behind.address
        );
        let nginx = Nginx::start(&http, address)?;
        Ok(Self {
            address,
            behind,
            _nginx: nginx,
        })
    }

    /// Sends bytes, and another request after them. Returns the requests that nginx has understood, and the
    /// status of its first response.
    async fn read(&self, bytes: &[u8]) -> Result<(Vec<WireRequest>, u16)> {
        let before = self.behind.recordings().await?.len();
        let mut stream = TcpStream::connect(self.address).await?;
        stream
            .write_all(&[bytes, PROBE.as_bytes()].concat())
            .await?;
        let mut response = Vec::new();
        // A reset also ends the response.
        let _ = tokio::time::timeout(wait::TIMEOUT, stream.read_to_end(&mut response)).await?;
        let status = parse_status(&String::from_utf8_lossy(&response));
        let recordings = self.behind.recordings().await?;
        let requests = recordings[before..].iter().map(|bytes| {
            let (request, _) = WireRequest::parse(bytes)?.context("an incomplete request")?;
            anyhow::Ok(request)
        });
        Ok((requests.collect::<Result<_>>()?, status))
    }
}

/// Compares what nginx has understood of forwarded bytes with the request that they are.
async fn compare_with_nginx(
    nginx: &Reference,
    bytes: &[u8],
    request: &WireRequest,
    case: &str,
    verdict: Verdict,
) -> Result<()> {
    let (understood, status) = nginx.read(bytes).await?;
    if verdict == RejectedByNginx {
        assert_eq!(status, 400, "{case}");
        assert!(understood.is_empty(), "{case}");
        return Ok(());
    }
    let [first, probe] = &understood[..] else {
        anyhow::bail!(
            "nginx reads {} requests in {case}: {understood:?}",
            understood.len()
        );
    };
    assert_eq!(first.method, request.method, "{case}");
    assert_eq!(first.target, request.target, "{case}");
    // nginx answers an expectation itself.
    let mut headers = request.end_to_end_headers();
    headers.retain(|(name, _)| !["expect", "upgrade"].contains(&name.as_str()));
    assert_eq!(first.end_to_end_headers(), headers, "{case}");
    assert_eq!(first.body, request.body, "{case}");
    assert_eq!(probe.target, "/probe", "{case}");
    Ok(())
}

/// Targets that the gateway normalises, with what it forwards. Pingora's own proxy sends them as they are.
const NORMALISED_TARGETS: [(&str, &str); 17] = [
    ("//", "/"),
    ("//a", "/a"),
    ("/a//b", "/a/b"),
    ("/./a", "/a"),
    ("/a/..", "/"),
    ("/../a", "/a"),
    ("/%61", "/a"),
    ("/a%3bb", "/a%3Bb"),
    ("/a|b", "/a%7Cb"),
    ("/a\"b", "/a%22b"),
    ("/a{b}", "/a%7Bb%7D"),
    ("/a[b]", "/a%5Bb%5D"),
    ("/a^b", "/a%5Eb"),
    ("/a%0d%0aX:y", "/a%0D%0AX:y"),
    ("/a%c3%a4", "/a%C3%A4"),
    ("/http://elsewhere/", "/http:/elsewhere/"),
    ("/a%3fb%23c", "/a%3Fb%23c"),
];
/// Headers that another server might take for those that frame a body or that the gateway sets. It removes them.
const LOOK_ALIKES: [&str; 5] = [
    "content_length",
    "content.length",
    "transfer_encoding",
    "transfer.encoding",
    "x_request_id",
];
/// Headers that the gateway sets, or answers itself.
const GATEWAY_HEADERS: [&str; 6] = [
    "expect",
    "traceparent",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];
/// Parts of cases that the gateway alone forwards, in a form that RFC 9112 permits.
const NOT_FORWARDED_BY_PINGORA: [&str; 5] = [
    // HTTP/1.0 without `Host`: Pingora sends HTTP/1.1 without one, the gateway with the name of its certificate.
    "HTTP/1.0\r\nConnection: keep-alive",
    // Absolute form: forwarded as it is, or rejected with the scheme in capitals.
    "GET http",
    "GET HTTP",
    // An option that names a header for all recipients, which Pingora rejects. The gateway does not obey it.
    "Connection: content-length, host",
    // An option that is no name of a header, which Pingora rejects. The gateway forwards no option.
    "Connection: ,,",
];

/// Pingora's own proxy in front of a server that records what it has sent.
struct PlainPingora {
    proxy: PingoraProxy,
    behind: RecordingUpstream,
    /// Rows of the lists of differences that a case has needed.
    used: HashSet<&'static str>,
    compared: usize,
}

impl PlainPingora {
    async fn start() -> Result<Self> {
        let behind = RecordingUpstream::start().await?;
        let proxy = PingoraProxy::start(behind.address).await?;
        Ok(Self {
            proxy,
            behind,
            used: HashSet::new(),
            compared: 0,
        })
    }

    /// Sends a case. Returns the complete requests that are forwarded before [`END`], up to the first that is not one
    /// by the letter of RFC 9112.
    async fn forward(&self, case: &[u8]) -> Result<Vec<WireRequest>> {
        let before = self.behind.recordings().await?.len();
        let mut stream = TcpStream::connect(self.proxy.address).await?;
        // A body may contain the first of them. The connection may be closed before everything is sent.
        let bytes = [case, END.as_bytes(), END.as_bytes()].concat();
        let _ = stream.write_all(&bytes).await;
        let mut response = Vec::new();
        let _ = tokio::time::timeout(wait::TIMEOUT, stream.read_to_end(&mut response)).await?;
        let recordings = self.behind.recordings().await?;
        let requests = recordings[before..]
            .iter()
            .map_while(|bytes| WireRequest::parse(bytes).ok())
            .filter_map(|request| request.map(|(request, _)| request));
        Ok(requests
            .take_while(|request| request.target != "/end")
            .collect())
    }

    /// Compares the requests that the gateway has forwarded of a case with what Pingora makes of it, as far as it
    /// forwards them.
    async fn compare(&mut self, case: &Case, ours: &[WireRequest]) -> Result<()> {
        let text = String::from_utf8_lossy(&case.bytes);
        let theirs = self.forward(&case.bytes).await?;
        let exception = NOT_FORWARDED_BY_PINGORA
            .iter()
            .find(|part| text.contains(**part));
        if !ours.is_empty() && theirs.is_empty() {
            let exception = exception.with_context(|| format!("{text:?} is not forwarded"))?;
            self.used.insert(exception);
        }
        for (ours, theirs) in ours.iter().zip(theirs) {
            let theirs = self.as_the_gateway_forwards(theirs);
            assert_eq!(ours.method, theirs.method, "{text:?}");
            assert_eq!(ours.target, theirs.target, "{text:?}");
            let headers = headers_of_client(ours);
            assert_eq!(headers, headers_of_client(&theirs), "{text:?}");
            assert_eq!(ours.body, theirs.body, "{text:?}");
            self.compared += 1;
        }
        Ok(())
    }

    /// Makes the changes to a request that the gateway makes.
    fn as_the_gateway_forwards(&mut self, mut request: WireRequest) -> WireRequest {
        let mut targets = NORMALISED_TARGETS.into_iter();
        if let Some((sent, normalised)) = targets.find(|(sent, _)| *sent == request.target) {
            self.used.insert(sent);
            normalised.clone_into(&mut request.target);
        }
        for name in LOOK_ALIKES {
            let before = request.headers.len();
            request.headers.retain(|(header, _)| header != name);
            if request.headers.len() < before {
                self.used.insert(name);
            }
        }
        // RFC 9113 section 8.2.3, for either version.
        let is_cookie = |(name, _): &(String, Vec<u8>)| name == "cookie";
        let (cookies, mut headers): (Vec<_>, Vec<_>) =
            request.headers.into_iter().partition(is_cookie);
        if !cookies.is_empty() {
            let values: Vec<_> = cookies.into_iter().map(|(_, value)| value).collect();
            headers.push(("cookie".to_owned(), values.join(&b"; "[..])));
        }
        request.headers = headers;
        request
    }

    /// Asserts that every listed difference was needed, and that a fair part of the cases was compared.
    fn assert_all_differences_are_used(&self) {
        let targets = NORMALISED_TARGETS.iter().map(|(sent, _)| *sent);
        let listed: HashSet<_> = targets
            .chain(LOOK_ALIKES)
            .chain(NOT_FORWARDED_BY_PINGORA)
            .collect();
        assert_eq!(self.used, listed);
        assert!(self.compared > 150, "{} requests", self.compared);
    }
}

/// Returns the headers that both proxies forward as the client sent them.
fn headers_of_client(request: &WireRequest) -> Vec<(String, Vec<u8>)> {
    let mut headers = request.end_to_end_headers();
    headers.retain(|(name, _)| !GATEWAY_HEADERS.contains(&name.as_str()));
    headers
}

/// Decodes the percent-encoding of a path, for which the log and the request line may have different spellings.
fn decoded(target: &str) -> Vec<u8> {
    let path = target.split('?').next().unwrap_or_default();
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).expect("the encoding is valid"));
        bytes.extend(rest.as_bytes());
    }
    bytes
}

#[tokio::test]
async fn what_is_forwarded_is_one_request_and_nginx_and_pingora_read_the_same() -> Result<()> {
    let upstream = RecordingUpstream::start().await?;
    let gateway = Gateway::start(upstream.address, CONFIG).await?;
    let nginx = Reference::start().await?;
    let mut pingora = PlainPingora::start().await?;
    let cases = [
        framings(),
        request_lines(),
        targets(),
        header_lines(),
        hosts(),
        line_endings(),
        bodies(),
    ]
    .concat();
    let mut forwarded = HashMap::new();
    for tested @ Case { bytes, verdict } in &cases {
        let case = format!("{:?}", String::from_utf8_lossy(bytes));
        let before = upstream.recordings().await?.len();
        let mut connection = RawConnection::connect(&gateway).await?;
        // The gateway may close the connection before everything is sent.
        let _ = connection.send([&bytes[..], END.as_bytes()].concat()).await;
        let responses = connection.read_to_string().await?;
        let recordings = upstream.recordings().await?.split_off(before);
        let (mut complete, mut is_forwarded) = (Vec::new(), false);
        for recording in &recordings {
            let parsed = WireRequest::parse(recording)
                .with_context(|| format!("{case} is forwarded as {recording:?}"))?;
            // A request whose body was rejected is never complete.
            let Some((request, rest)) = parsed else {
                continue;
            };
            assert_eq!(rest, b"", "{case}");
            let is_case = complete.is_empty() && request.target != "/end";
            is_forwarded |= is_case;
            let verdict = if is_case { *verdict } else { Any };
            compare_with_nginx(&nginx, recording, &request, &case, verdict).await?;
            let id = request.header("x-request-id");
            let previous = forwarded.insert(id, request.target.clone());
            assert_eq!(previous, None, "{case}: two requests of one id");
            complete.push(request);
        }
        let final_responses =
            responses.matches("HTTP/1.1 ").count() - responses.matches("HTTP/1.1 100 ").count();
        let status = parse_status(&responses);
        match verdict {
            Rejected => {
                assert!((400..600).contains(&status), "{case}: {responses}");
                assert_eq!(final_responses, 1, "{case}: {responses}");
                assert!(complete.is_empty(), "{case}");
            }
            NotForwarded => {
                assert!((400..600).contains(&status), "{case}: {responses}");
                assert!(!is_forwarded, "{case}");
            }
            Forwarded | RejectedByNginx => {
                assert!([100, 200].contains(&status), "{case}: {responses}");
                assert!(is_forwarded, "{case}");
            }
            Any => assert_ne!(status, 0, "{case}"),
        }
        complete.retain(|request| request.target != "/end");
        pingora.compare(tested, &complete).await?;
    }
    pingora.assert_all_differences_are_used();
    assert!(cases.len() > 500, "{} cases", cases.len());
    assert_each_is_logged_once(&gateway, &forwarded).await
}

/// Asserts that the access log has a line with the path of each forwarded request, and none of another.
async fn assert_each_is_logged_once(
    gateway: &Gateway,
    forwarded: &HashMap<String, String>,
) -> Result<()> {
    let logged = || -> Vec<Value> {
        let log = gateway.process.log();
        let lines = log.lines().map(|line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        });
        let is_forwarded = |line: &Value| line["target"] == "access" && line["status"] == 200;
        lines.filter(is_forwarded).collect()
    };
    wait::until("a log line of each request", async || {
        logged().len() >= forwarded.len()
    })
    .await?;
    let lines = logged();
    assert_eq!(lines.len(), forwarded.len());
    for line in lines {
        let id = line["request_id"].as_str().context("an id")?;
        let target = forwarded.get(id).with_context(|| format!("{line}"))?;
        let path = line["path"].as_str().context("a path")?;
        assert_eq!(decoded(path), decoded(target), "{line}");
    }
    Ok(())
}
