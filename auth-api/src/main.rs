//! auth-api: register, login, logout, profile and account deletion behind the gateway.

mod authentication;
mod cli;
mod config;
mod costliest_hash;
mod domain;
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

// Takes half the CPU time of the system allocator with many small JSON requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
