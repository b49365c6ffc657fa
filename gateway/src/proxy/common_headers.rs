//! Response headers that the gateway adds to every response, its own or an endpoint's.

use http::header::{DATE, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::protocols::http::date::get_cached_date;

use crate::proxy::context::RequestContext;
use crate::telemetry::request_id::{REQUEST_ID, RequestId};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Two years, as the HSTS preload list of browsers recommends (RFC 6797).
const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000");

/// Source of the common headers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CommonHeaders<'r> {
    /// A request that was parsed: HSTS, the request id, and the status of its quota.
    Request(&'r RequestContext),
    /// A request that could not be parsed: HSTS and the request id.
    UnparsedRequest(RequestId),
    /// A cleartext listener: only a date, since HSTS must not be sent without TLS (RFC 6797, section 7.2).
    Cleartext,
}

impl CommonHeaders<'_> {
    /// Sets the headers of a response. It gets a date if it has none (RFC 9110, section 6.6.1).
    pub(crate) fn insert_into(self, headers: &mut HeaderMap) {
        headers.entry(DATE).or_insert_with(get_cached_date);
        let context = match self {
            Self::Request(context) => context,
            Self::UnparsedRequest(id) => {
                headers.insert(STRICT_TRANSPORT_SECURITY, HSTS);
                headers.insert(REQUEST_ID, id.header_value());
                return;
            }
            Self::Cleartext => return,
        };
        headers.insert(STRICT_TRANSPORT_SECURITY, HSTS);
        headers.insert(REQUEST_ID, never_indexed(context.id.header_value()));
        if let (Some(quota), Some(status)) = (&context.route().quota, context.quota_status) {
            headers.insert(RATE_LIMIT_POLICY, quota.policy_header().clone());
            headers.insert(RATE_LIMIT, never_indexed(status.header_value()));
        }
    }
}

/// Marks a value that differs in each response as a never-indexed literal (RFC 7541, section 6.2.3), which
/// HTTP/2 does not add to the HPACK dynamic table.
fn never_indexed(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}
