//! HTTP/2 (RFC 9113).

mod connection;
mod exchanges;
mod flood_limit;
mod flow_control;
mod frame;
mod header_block;
mod hpack;
mod idle;
mod output;
mod request_headers;
pub(crate) mod server;
mod settings;
mod socket;
mod stream;
mod streams;
