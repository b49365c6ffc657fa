//! Trait through which both versions of HTTP have their requests served.

use std::net::SocketAddr;

use http::{HeaderValue, Method, Version};
use prometheus::IntGauge;

use crate::config::Limits;
use crate::http::downstream::Downstream;
use crate::http::message::{RequestError, RequestHeaders};
use crate::runtime::idle_timer::IdleTimer;

/// Serves the requests of a connection.
pub(crate) trait RequestHandler {
    /// Returns the limits for the next request. They change when the configuration is reloaded.
    fn limits(&self) -> Limits;

    /// Returns the host of a request of HTTP/1.0 that names none, on a connection to the address `local`: a
    /// default that fits the context of the connection (RFC 9112, section 3.3).
    fn default_host(&self, local: SocketAddr) -> Option<HeaderValue>;

    /// Returns the gauge of HTTP/2 connections whose exchanges are over and whose responses are not
    /// yet sent. Shutdown waits for them.
    fn unsent_responses(&self) -> &IntGauge;

    /// Serves a request whose headers have been read.
    async fn serve(
        &self,
        request: RequestHeaders,
        downstream: &mut impl Downstream,
        timer: &mut IdleTimer,
    );

    /// Sends the error response to a request that was rejected before it could be served.
    fn reject(
        &self,
        error: RequestError,
        method: &Method,
        version: Version,
        downstream: &mut impl Downstream,
    );

    /// Records a request that was rejected as malformed and whose client got no response but a reset.
    fn record_malformed(&self, version: Version);
}
