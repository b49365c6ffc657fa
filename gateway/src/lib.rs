//! The edge: terminates TLS, holds each path to its quota, timeout, retries and circuit breaker,
//! as gateway.yml says, and forwards to replicas of the back end.

mod access_log;
mod admin;
mod admission;
mod answer;
mod bell;
mod cli;
mod client;
mod config;
mod downstream;
mod edge;
mod exchange;
mod features;
mod forward;
mod framing;
mod gateway;
mod handshake;
mod head;
mod hop;
mod http1;
mod http2;
mod linger;
pub mod measure;
mod metrics;
mod moment;
mod open_files;
mod output;
mod path;
mod patience;
mod plain;
mod proxy;
mod redirect;
mod reload;
mod request;
mod route;
mod serve;
mod signals;
mod telemetry;
mod text;
mod tls;
mod upstream;
mod wire;

use std::process::ExitCode;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&error);
            ExitCode::FAILURE
        }
    }
}
