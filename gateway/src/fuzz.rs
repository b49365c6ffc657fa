//! Access to parsers and state machines for the fuzz targets of `fuzz/`, in plain types. It decides nothing
//! itself: what holds for a result is checked there, by other implementations.

mod client;
mod config;
mod http1;
mod http2;
mod identity;
mod path;
mod pattern;
mod quota;

pub use client::{Client, identify_client, parse_authority};
pub use config::{ConfigOutcome, load_config};
pub use http1::{
    Body, BodyFraming, ChunkedReader, EndpointBehaviour, Header, Reading, Request, Response,
    read_chunked, read_request, read_response,
};
pub use http2::{ClientReading, ClientStep, Http2Connection, ServedRequest, serve_http2};
pub use identity::{ScreenedToken, TokenScreening};
pub use path::{Target, normalise_path, read_target};
pub use pattern::Patterns;
pub use quota::{Decision, QuotaAlgorithm, QuotaUnderTest};
