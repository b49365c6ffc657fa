//! auth-api: register, login, logout, profile and account deletion behind the gateway.

mod authentication;
mod cli;
mod config;
mod costliest_hash;
mod domain;
#[doc(hidden)]
pub mod fuzz;
mod hashing;
mod http;
mod lifecycle;
mod oauth_clients;
mod readiness;
mod router;
mod routes;
mod server;
mod sessions;
mod state;
mod store;
mod telemetry;
mod throttle;
mod users;

use std::process::ExitCode;

/// Runs the program. Returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    cli::run()
}
