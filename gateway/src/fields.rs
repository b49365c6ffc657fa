//! Changing header fields under one spelling of their names.
//!
//! Pingora keeps each name a second time, as its sender spelled it, and makes every change twice.
//! Case means nothing in a name (RFC 9110, section 5.1), so here it is let go.

use std::mem;

use http::{HeaderMap, request, response};
use pingora::http::{RequestHeader, ResponseHeader};

/// Changes a request's fields. Its target must be in origin form, as it is once it was normalised.
pub(crate) fn of_request(header: &mut RequestHeader, change: impl FnOnce(&mut HeaderMap)) {
    let (nothing, ()) = http::Request::new(()).into_parts();
    let mut parts = request::Parts::from(mem::replace(header, nothing.into()));
    change(&mut parts.headers);
    *header = parts.into();
}

/// Has a request's fields copied and changed at half the cost from now on.
pub(crate) fn forget_spelling(header: &mut RequestHeader) {
    of_request(header, |_| ());
}

/// Changes an answer's fields.
pub(crate) fn of_answer(header: &mut ResponseHeader, change: impl FnOnce(&mut HeaderMap)) {
    let (nothing, ()) = http::Response::new(()).into_parts();
    let usual = header.status.canonical_reason();
    let reason = header
        .get_reason_phrase()
        .filter(|_| header.get_reason_phrase() != usual);
    let reason = reason.map(str::to_owned);
    let mut parts = response::Parts::from(mem::replace(header, nothing.into()));
    change(&mut parts.headers);
    *header = parts.into();
    if reason.is_some() {
        header
            .set_reason_phrase(reason.as_deref())
            .expect("every phrase is taken");
    }
}
