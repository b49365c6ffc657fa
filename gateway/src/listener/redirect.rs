//! Responses of the http listener: ACME challenges, and a redirect to https for everything else.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::http::message::RequestHeaders;
use crate::http::syntax::without_port;
use crate::listener::acme_challenges;
use crate::listener::cleartext::{Responder, StaticResponse};
use crate::proxy::state::GatewayState;

const DEFAULT_HTTPS_PORT: u16 = 443;

/// Redirects every other request than those for challenges to https with 308, which keeps its method (RFC 9110, section 15.4.9).
#[derive(Debug)]
pub(crate) struct RedirectToHttps {
    /// Port at which clients reach the https listener.
    pub(crate) port: u16,
    /// Its default certificate has the host of requests without one.
    pub(crate) gateway: Arc<GatewayState>,
}

impl Responder for RedirectToHttps {
    /// The local address may be one of a private network, which a redirect would disclose.
    fn default_host(&self, _local: SocketAddr) -> Option<HeaderValue> {
        self.gateway.certificates.default_host()
    }

    async fn respond(&self, request: &RequestHeaders) -> StaticResponse {
        let folder = self.gateway.current().config.acme_challenges.clone();
        if let Some(folder) = folder
            && let Some(response) = acme_challenges::respond(&folder, request).await
        {
            return response;
        }
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
