//! Response to a preflight of a permitted origin (Fetch standard, section 4.8).

use http::{HeaderMap, StatusCode};

use crate::http::downstream::Downstream;
use crate::http::message::{Framing, ResponseHeaders};
use crate::proxy::common_headers::CommonHeaders;
use crate::proxy::context::RequestContext;

/// Sends the response to a client to which no part of a response has been sent yet.
pub(super) fn send_response(context: &RequestContext, downstream: &mut impl Downstream) {
    let mut headers = HeaderMap::with_capacity(12);
    CommonHeaders::Request(context).insert_into(&mut headers);
    if let Some(cors) = &context.route().features.cors {
        cors.insert_preflight_into(&mut headers);
    }
    downstream.send_headers(ResponseHeaders {
        status: StatusCode::NO_CONTENT,
        reason: None,
        headers,
        framing: Framing::Empty,
    });
    downstream.finish();
}
