//! HTTP on the downstream side: messages, and servers for HTTP/1.1 and HTTP/2.
//!
//! Both versions serve through [`handler::RequestHandler`] and present each request's client as a
//! [`downstream::Downstream`]. They know neither the proxy nor the gateway's state.

pub(crate) mod adaptive_read;
pub(crate) mod downstream;
pub(crate) mod expectation;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod handler;
pub(crate) mod lingering_close;
pub(crate) mod message;
pub(crate) mod syntax;
