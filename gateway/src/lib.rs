//! The gateway: terminates TLS, applies the features that gateway.yml configures for each path (quota,
//! timeout, retries, circuit breaker), and forwards requests to upstream endpoints.

pub mod bench;
mod cli;
mod client;
mod config;
mod features;
#[doc(hidden)]
pub mod fuzz;
mod http;
mod identity;
mod lease_store;
mod listener;
mod path;
mod proxy;
mod runtime;
mod server;
mod telemetry;
mod tls;
mod upstream;

use std::process::ExitCode;

/// Runs the program. Returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
