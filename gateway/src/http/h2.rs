//! HTTP/2 (RFC 9113), on the `h2` crate.

mod coalescing_waker;
mod frame_guard;
mod idle;
mod rejected_streams;
mod request_headers;
pub(crate) mod server;
mod stream;
mod unread_body;
