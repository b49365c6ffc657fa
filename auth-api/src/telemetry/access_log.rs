//! Line of the access log, as JSON or as text. Queries, headers and bodies are never logged.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use bytes::BufMut;
use logging::{put_escaped, put_quoted, put_seconds};

/// Request in the access log.
#[derive(Debug)]
pub(crate) struct AccessLogEntry<'r> {
    pub(crate) request_id: &'r str,
    /// Address of the client.
    pub(crate) client: &'r str,
    pub(crate) method: &'r Method,
    pub(crate) path: &'r str,
    pub(crate) status: StatusCode,
    /// Time from the request headers to the response headers.
    pub(crate) duration: Duration,
}

impl logging::AccessLogEntry for AccessLogEntry<'_> {
    fn put_json(&self, line: &mut Vec<u8>, timestamp: &[u8]) {
        line.put_slice(br#"{"timestamp":""#);
        line.put_slice(timestamp);
        line.put_slice(br#"","level":"INFO","target":"access","message":"request","request_id":"#);
        put_quoted(line, self.request_id);
        line.put_slice(br#","client":"#);
        put_quoted(line, self.client);
        line.put_slice(br#","method":""#);
        line.put_slice(self.method.as_str().as_bytes());
        line.put_slice(br#"","path":"#);
        put_quoted(line, self.path);
        line.put_slice(br#","status":"#);
        line.put_slice(self.status.as_str().as_bytes());
        line.put_slice(br#","seconds":"#);
        put_seconds(line, self.duration);
        line.put_slice(b"}\n");
    }

    fn put_text(&self, line: &mut Vec<u8>, timestamp: &[u8]) {
        line.put_slice(timestamp);
        line.put_slice(b"  INFO access: ");
        line.put_slice(self.method.as_str().as_bytes());
        line.put_u8(b' ');
        put_escaped(line, self.path);
        line.put_u8(b' ');
        line.put_slice(self.status.as_str().as_bytes());
        line.put_u8(b' ');
        put_seconds(line, self.duration);
        line.put_slice(b"s client=");
        put_escaped(line, self.client);
        line.put_slice(b" request_id=");
        put_escaped(line, self.request_id);
        line.put_u8(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use logging::AccessLogEntry as _;
    use serde_json::{Value, json};

    use super::*;

    const TIMESTAMP: &[u8] = b"2026-11-25T08:00:00.123456Z";

    fn entry() -> AccessLogEntry<'static> {
        AccessLogEntry {
            request_id: "a\"b\n",
            client: "192.0.2.1",
            method: &Method::GET,
            path: "/api/\u{1b}[31m",
            status: StatusCode::NOT_FOUND,
            duration: Duration::from_micros(1_000_250),
        }
    }

    #[test]
    fn a_line_of_json_has_the_fields_of_other_events() {
        let mut line = Vec::new();
        entry().put_json(&mut line, TIMESTAMP);
        let line: Value = serde_json::from_slice(&line).unwrap();
        let expected = json!({
            "timestamp": "2026-11-25T08:00:00.123456Z",
            "level": "INFO",
            "target": "access",
            "message": "request",
            "request_id": "a\"b\n",
            "client": "192.0.2.1",
            "method": "GET",
            "path": "/api/\u{1b}[31m",
            "status": 404,
            "seconds": 1.00025,
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_line_of_text_contains_no_control_characters() {
        let mut line = Vec::new();
        entry().put_text(&mut line, TIMESTAMP);
        let expected = concat!(
            "2026-11-25T08:00:00.123456Z  INFO access: GET \"/api/\\u{1b}[31m\" 404 1.000250s ",
            "client=\"192.0.2.1\" request_id=\"a\\\"b\\n\"\n"
        );
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }
}
