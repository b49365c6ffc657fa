//! Classes of responses, a label of the metrics of patterns and endpoints.

use http::StatusCode;

/// Classes of responses: by status; `none` is for requests that ended without a response, `truncated` for
/// responses that the endpoint broke off, whatever their status.
pub(super) const RESPONSE_CLASSES: [&str; 7] =
    ["1xx", "2xx", "3xx", "4xx", "5xx", "none", "truncated"];
pub(super) const NO_RESPONSE: usize = 5;
pub(super) const TRUNCATED: usize = 6;

/// Returns the class of a status; an invalid one counts as 5xx (RFC 9110, section 15).
pub(super) fn status_class(status: StatusCode) -> usize {
    (usize::from(status.as_u16() / 100) - 1).min(NO_RESPONSE - 1)
}
