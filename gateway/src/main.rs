//! The edge: terminates TLS, holds each path to its quota, timeout, retries and circuit breaker,
//! as gateway.yml says, and forwards to replicas of the back end.

mod access_log;
mod admin;
mod answer;
mod cli;
mod client;
mod config;
mod edge;
mod features;
mod forward;
mod gateway;
mod handshake;
mod head;
mod metrics;
mod moment;
mod path;
mod proxy;
mod reload;
mod request;
mod route;
mod serve;
mod telemetry;
mod tls;
mod upstream;

use std::process::ExitCode;

/// Measured: a tenth less CPU a request than the system's (see docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&error);
            ExitCode::FAILURE
        }
    }
}
