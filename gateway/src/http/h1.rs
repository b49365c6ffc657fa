//! HTTP/1.1 (RFC 9112).

pub(crate) mod encode;
pub(crate) mod framing;
pub(crate) mod hop_by_hop;
pub(crate) mod io;
pub(crate) mod request_headers;
pub(crate) mod server;
