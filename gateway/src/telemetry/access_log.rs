//! Line of the access log, as JSON or as text. Queries, headers and bodies are never logged.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::BufMut;
use http::{Method, StatusCode, Version};
use logging::{put_escaped, put_number, put_quoted, put_seconds};
use session_invalidation::UserId;

use crate::telemetry::request_id::RequestId;
use crate::telemetry::text;

/// End of a response, by the side that caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Termination {
    Complete,
    /// The endpoint did not complete the response.
    Truncated,
    /// The gateway ended the response.
    Aborted,
    ClientDisconnected,
}

impl Termination {
    /// Returns the value in the log, `None` for a complete response.
    fn name(self) -> Option<&'static [u8]> {
        match self {
            Self::Complete => None,
            Self::Truncated => Some(b"truncated"),
            Self::Aborted => Some(b"aborted"),
            Self::ClientDisconnected => Some(b"client_disconnected"),
        }
    }
}

/// Effect of a quota that the status does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuotaEffect {
    None,
    /// The request was over a quota that is only observed.
    WouldRefuse,
}

/// Request in the access log.
#[derive(Debug)]
pub(crate) struct AccessLogEntry<'r> {
    pub(crate) id: RequestId,
    pub(crate) client: Option<IpAddr>,
    /// `None` for an anonymous request.
    pub(crate) user: Option<UserId>,
    pub(crate) version: Version,
    pub(crate) method: &'r Method,
    pub(crate) path: &'r str,
    pub(crate) pattern: &'r str,
    /// `None` if the client disconnected before the response began.
    pub(crate) status: Option<StatusCode>,
    /// Bytes of the response body.
    pub(crate) bytes: u64,
    pub(crate) termination: Termination,
    pub(crate) quota: QuotaEffect,
    pub(crate) duration: Duration,
    /// Upstream attempts.
    pub(crate) attempts: u32,
    /// Endpoint of the last attempt.
    pub(crate) upstream: Option<SocketAddr>,
    /// Time until the response headers, of all attempts together.
    pub(crate) upstream_duration: Duration,
}

impl logging::AccessLogEntry for AccessLogEntry<'_> {
    fn put_json(&self, line: &mut Vec<u8>, timestamp: &[u8]) {
        line.put_slice(br#"{"timestamp":""#);
        line.put_slice(timestamp);
        line.put_slice(br#"","level":"INFO","target":"access","message":"request","request_id":""#);
        line.put_slice(self.id.as_str().as_bytes());
        line.put_slice(br#"","client":"#);
        match self.client {
            Some(client) => {
                line.put_u8(b'"');
                text::put_address(line, client);
                line.put_u8(b'"');
            }
            None => line.put_slice(b"null"),
        }
        if let Some(UserId(user)) = self.user {
            line.put_slice(br#","user":"#);
            line.put_slice(itoa::Buffer::new().format(user).as_bytes());
        }
        line.put_slice(br#","protocol":""#);
        line.put_slice(protocol_name(self.version));
        line.put_slice(br#"","method":""#);
        line.put_slice(self.method.as_str().as_bytes());
        line.put_slice(br#"","path":"#);
        put_quoted(line, self.path);
        line.put_slice(br#","pattern":"#);
        put_quoted(line, self.pattern);
        line.put_slice(br#","status":"#);
        match self.status {
            Some(status) => line.put_slice(status.as_str().as_bytes()),
            None => line.put_slice(b"null"),
        }
        line.put_slice(br#","bytes":"#);
        put_number(line, self.bytes);
        if let Some(termination) = self.termination.name() {
            line.put_slice(br#","termination":""#);
            line.put_slice(termination);
            line.put_u8(b'"');
        }
        if self.quota == QuotaEffect::WouldRefuse {
            line.put_slice(br#","quota":"would_refuse""#);
        }
        line.put_slice(br#","seconds":"#);
        put_seconds(line, self.duration);
        if let Some(upstream) = self.upstream {
            line.put_slice(br#","attempts":"#);
            put_number(line, self.attempts);
            line.put_slice(br#","upstream":""#);
            text::put_socket_address(line, upstream);
            line.put_slice(br#"","upstream_seconds":"#);
            put_seconds(line, self.upstream_duration);
        }
        line.put_slice(b"}\n");
    }

    fn put_text(&self, line: &mut Vec<u8>, timestamp: &[u8]) {
        line.put_slice(timestamp);
        line.put_slice(b"  INFO access: ");
        line.put_slice(self.method.as_str().as_bytes());
        line.put_u8(b' ');
        put_escaped(line, self.path);
        line.put_u8(b' ');
        match self.status {
            Some(status) => line.put_slice(status.as_str().as_bytes()),
            None => line.put_u8(b'-'),
        }
        line.put_u8(b' ');
        put_number(line, self.bytes);
        line.put_slice(b" bytes ");
        put_seconds(line, self.duration);
        line.put_u8(b's');
        if let Some(termination) = self.termination.name() {
            line.put_slice(b" termination=");
            line.put_slice(termination);
        }
        if self.quota == QuotaEffect::WouldRefuse {
            line.put_slice(b" quota=would_refuse");
        }
        if let Some(client) = self.client {
            line.put_slice(b" client=");
            text::put_address(line, client);
        }
        if let Some(UserId(user)) = self.user {
            line.put_slice(b" user=");
            line.put_slice(itoa::Buffer::new().format(user).as_bytes());
        }
        if let Some(upstream) = self.upstream {
            line.put_slice(b" upstream=");
            text::put_socket_address(line, upstream);
            line.put_u8(b' ');
            put_seconds(line, self.upstream_duration);
            line.put_u8(b's');
        }
        line.put_u8(b' ');
        line.put_slice(protocol_name(self.version));
        line.put_slice(b" request_id=");
        line.put_slice(self.id.as_str().as_bytes());
        line.put_u8(b'\n');
    }
}

fn protocol_name(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_2 => b"HTTP/2.0",
        Version::HTTP_10 => b"HTTP/1.0",
        _ => b"HTTP/1.1",
    }
}
