//! One line for each request: JSON or readable text. Never a query, a header or a body.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::BufMut;
use http::{Method, StatusCode, Version};

use crate::output::Output;
use crate::request::RequestId;
use crate::telemetry::Format;
use crate::text;

/// What is told of a request.
#[derive(Debug)]
pub(crate) struct Entry<'r> {
    pub(crate) id: RequestId,
    pub(crate) client: Option<IpAddr>,
    pub(crate) version: Version,
    pub(crate) method: &'r Method,
    pub(crate) path: &'r str,
    pub(crate) pattern: &'r str,
    /// Nothing where the client went away unanswered.
    pub(crate) status: Option<StatusCode>,
    /// Of the answer's body.
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
    pub(crate) attempts: u32,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) upstream_took: Duration,
}

/// Where the lines go, and how they are written.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog(Option<(Output, Format)>);

impl AccessLog {
    pub(crate) fn to(output: Output, format: Format) -> Self {
        Self(Some((output, format)))
    }

    /// Nobody wants to know.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    pub(crate) fn record(&self, entry: &Entry<'_>) {
        let Some((output, format)) = &self.0 else {
            return;
        };
        output.add(|lines, now| match format {
            Format::Json => json(lines, now, entry),
            Format::Text => text(lines, now, entry),
        });
    }
}

fn json(line: &mut Vec<u8>, stamp: &[u8], entry: &Entry<'_>) {
    line.put_slice(br#"{"timestamp":""#);
    line.put_slice(stamp);
    line.put_slice(br#"","level":"INFO","target":"access","message":"request","request_id":""#);
    line.put_slice(entry.id.as_str().as_bytes());
    line.put_slice(br#"","client":"#);
    match entry.client {
        Some(client) => {
            line.put_u8(b'"');
            text::address(line, client);
            line.put_u8(b'"');
        }
        None => line.put_slice(b"null"),
    }
    line.put_slice(br#","protocol":""#);
    line.put_slice(protocol(entry.version));
    line.put_slice(br#"","method":""#);
    line.put_slice(entry.method.as_str().as_bytes());
    line.put_slice(br#"","path":"#);
    quoted(line, entry.path);
    line.put_slice(br#","pattern":"#);
    quoted(line, entry.pattern);
    line.put_slice(br#","status":"#);
    match entry.status {
        Some(status) => line.put_slice(status.as_str().as_bytes()),
        None => line.put_slice(b"null"),
    }
    line.put_slice(br#","bytes":"#);
    text::number(line, entry.bytes);
    line.put_slice(br#","seconds":"#);
    text::seconds(line, entry.took);
    if let Some(upstream) = entry.upstream {
        line.put_slice(br#","attempts":"#);
        text::number(line, entry.attempts);
        line.put_slice(br#","upstream":""#);
        text::socket(line, upstream);
        line.put_slice(br#"","upstream_seconds":"#);
        text::seconds(line, entry.upstream_took);
    }
    line.put_slice(b"}\n");
}

fn text(line: &mut Vec<u8>, stamp: &[u8], entry: &Entry<'_>) {
    line.put_slice(stamp);
    line.put_slice(b"  INFO access: ");
    line.put_slice(entry.method.as_str().as_bytes());
    line.put_u8(b' ');
    // Quoted as JSON, since a path may have control sequences for terminals in it.
    quoted(line, entry.path);
    line.put_u8(b' ');
    match entry.status {
        Some(status) => line.put_slice(status.as_str().as_bytes()),
        None => line.put_u8(b'-'),
    }
    line.put_u8(b' ');
    text::number(line, entry.bytes);
    line.put_slice(b" bytes ");
    text::seconds(line, entry.took);
    line.put_u8(b's');
    if let Some(client) = entry.client {
        line.put_slice(b" client=");
        text::address(line, client);
    }
    if let Some(upstream) = entry.upstream {
        line.put_slice(b" upstream=");
        text::socket(line, upstream);
        line.put_u8(b' ');
        text::seconds(line, entry.upstream_took);
        line.put_u8(b's');
    }
    line.put_u8(b' ');
    line.put_slice(protocol(entry.version));
    line.put_slice(b" request_id=");
    line.put_slice(entry.id.as_str().as_bytes());
    line.put_u8(b'\n');
}

fn quoted(line: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(line, text).expect("a Vec takes everything");
}

fn protocol(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_2 => b"HTTP/2.0",
        Version::HTTP_10 => b"HTTP/1.0",
        _ => b"HTTP/1.1",
    }
}
