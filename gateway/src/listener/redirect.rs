//! Responses of the http listener: a redirect to https.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::http::message::RequestHeaders;
use crate::http::syntax::without_port;
use crate::listener::cleartext::{Responder, StaticResponse};
use crate::tls::certificates::Certificates;

const DEFAULT_HTTPS_PORT: u16 = 443;

/// Redirects every request to https with 308, which keeps its method (RFC 9110, section 15.4.9).
#[derive(Debug)]
pub(crate) struct RedirectToHttps {
    /// Port at which clients reach the https listener.
    pub(crate) port: u16,
    /// The name of the default certificate is the host of requests without one.
    pub(crate) certificates: Arc<Certificates>,
}

impl Responder for RedirectToHttps {
    /// The local address may be one of a private network, which a redirect would disclose.
    fn default_host(&self, _local: SocketAddr) -> Option<HeaderValue> {
        self.certificates.default_host()
    }

    fn respond(&self, request: &RequestHeaders) -> StaticResponse {
        let Some(location) = self.location(request) else {
            let body = json!({"error": "The request has no host"});
            return StaticResponse::json(StatusCode::BAD_REQUEST, &body);
        };
        let body = json!({"error": "Use https"});
        let mut response = StaticResponse::json(StatusCode::PERMANENT_REDIRECT, &body);
        response.headers.insert(LOCATION, location);
        response
    }
}

impl RedirectToHttps {
    fn location(&self, request: &RequestHeaders) -> Option<HeaderValue> {
        let host = request.host()?;
        let name = without_port(host);
        let target = str::from_utf8(request.target.as_bytes()).ok()?;
        let location = match self.port {
            DEFAULT_HTTPS_PORT => format!("https://{name}{target}"),
            port => format!("https://{name}:{port}{target}"),
        };
        HeaderValue::try_from(location).ok()
    }
}
