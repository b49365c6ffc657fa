//! Response headers that the gateway adds to every response, its own or an endpoint's, and the changes that a path makes.

use http::header::{DATE, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::protocols::http::date::get_cached_date;

use crate::features::cors::Cors;
use crate::proxy::context::RequestContext;
use crate::telemetry::request_id::{REQUEST_ID, RequestId};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Two years, as the HSTS preload list of browsers recommends (RFC 6797).
const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000");

/// Source of the common headers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CommonHeaders<'r> {
    /// A request that was parsed: HSTS, the request id, the status of its quota, and what its path has configured by
    /// `headers` and `cors`.
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
        let route = context.route();
        if let (Some(quota), Some(status)) = (&route.quota, context.quota_status) {
            headers.insert(RATE_LIMIT_POLICY, quota.policy_header().clone());
            headers.insert(RATE_LIMIT, never_indexed(status.header_value()));
        }
        if let Some(changes) = &route.features.response_headers {
            changes.apply_to(headers);
        }
        // Last, so that `Vary` has what was set before.
        if let Some(cors) = &route.features.cors {
            cors.insert_into(headers, &context.origin);
        }
    }
}

/// Removes from an interim response what the final response of its path may not have.
pub(super) fn restrict_interim(headers: &mut HeaderMap, context: &RequestContext) {
    let route = context.route();
    if let Some(changes) = &route.features.response_headers {
        changes.remove_from(headers);
    }
    if route.features.cors.is_some() {
        Cors::remove_from(headers);
    }
}

/// Marks a value that differs in each response as a never-indexed literal (RFC 7541, section 6.2.3), which
/// HTTP/2 does not add to the HPACK dynamic table.
fn never_indexed(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}
