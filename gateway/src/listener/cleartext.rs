//! Cleartext listeners, which respond to each request themselves: the redirect to https, and the admin
//! endpoints.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use prometheus::IntGauge;
use serde_json::Value;

use crate::config::Limits;
use crate::http::downstream::{Downstream, wait_until_sent};
use crate::http::h1;
use crate::http::handler::RequestHandler;
use crate::http::message::{Framing, RequestError, RequestHeaders, ResponseHeaders};
use crate::listener::connection_limit::ConnectionLimit;
use crate::proxy::common_headers::CommonHeaders;
use crate::proxy::error_response::{ErrorResponse, JSON};
use crate::proxy::state::GatewayState;
use crate::runtime::idle_timer::IdleTimer;

/// Complete response.
#[derive(Debug)]
pub(crate) struct StaticResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl StaticResponse {
    pub(crate) fn new(
        status: StatusCode,
        content_type: HeaderValue,
        body: impl Into<Bytes>,
    ) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type);
        Self {
            status,
            headers,
            body: body.into(),
        }
    }

    pub(crate) fn json(status: StatusCode, body: &Value) -> Self {
        Self::new(status, JSON, body.to_string())
    }

    pub(crate) fn empty(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// Produces the responses of a cleartext listener.
pub(crate) trait Responder: Send + Sync + 'static {
    fn respond(&self, request: &RequestHeaders) -> impl Future<Output = StaticResponse> + Send;

    /// Returns the host of a request without one, see [`RequestHandler::default_host`].
    fn default_host(&self, local: SocketAddr) -> Option<HeaderValue>;
}

/// Application of a cleartext listener.
pub(crate) struct CleartextApp<R> {
    gateway: Arc<GatewayState>,
    responder: R,
    /// `None` for operators, whose connections are not limited.
    connection_limit: Option<ConnectionLimit>,
}

impl<R: Responder> CleartextApp<R> {
    pub(crate) fn for_operators(gateway: &Arc<GatewayState>, responder: R) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            responder,
            connection_limit: None,
        }
    }

    pub(crate) fn for_clients(
        gateway: &Arc<GatewayState>,
        responder: R,
        connection_limit: &ConnectionLimit,
    ) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            responder,
            connection_limit: Some(connection_limit.clone()),
        }
    }
}

#[async_trait]
impl<R: Responder> ServerApp for CleartextApp<R> {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let _permit = match &self.connection_limit {
            Some(limit) => Some(limit.acquire(&stream, &self.gateway.current().config)?),
            None => None,
        };
        h1::server::serve(&**self, stream, shutdown).await;
        None
    }
}

impl<R: Responder> RequestHandler for CleartextApp<R> {
    fn limits(&self) -> Limits {
        self.gateway.limits()
    }

    fn default_host(&self, local: SocketAddr) -> Option<HeaderValue> {
        self.responder.default_host(local)
    }

    fn unsent_responses(&self) -> &IntGauge {
        &self.gateway.unsent_responses
    }

    async fn serve(
        &self,
        request: RequestHeaders,
        downstream: &mut impl Downstream,
        timer: &mut IdleTimer,
    ) {
        let StaticResponse {
            status,
            mut headers,
            body,
        } = self.responder.respond(&request).await;
        CommonHeaders::Cleartext.insert_into(&mut headers);
        downstream.send_headers(ResponseHeaders {
            status,
            reason: None,
            headers,
            framing: if status == StatusCode::NO_CONTENT {
                Framing::Empty
            } else {
                Framing::Length(body.len() as u64)
            },
        });
        if request.method != Method::HEAD {
            downstream.send_data(body);
        }
        downstream.finish();
        wait_until_sent(downstream, timer, self.limits().idle_timeout).await;
    }

    fn reject(
        &self,
        error: RequestError,
        method: &Method,
        _version: Version,
        downstream: &mut impl Downstream,
    ) {
        ErrorResponse::malformed_request(error).send(method, downstream, CommonHeaders::Cleartext);
    }

    fn record_malformed(&self, _version: Version) {
        // Requests to these listeners are not logged.
    }
}
