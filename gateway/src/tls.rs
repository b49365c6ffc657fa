//! TLS: certificates and handshakes.

pub(crate) mod certificates;
pub(crate) mod handshake;
