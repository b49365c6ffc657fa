//! auth-api: register, login, logout, profile and account deletion behind the gateway.

mod accounts;
mod app;
mod audit;
mod authenticate;
mod body;
mod cli;
mod config;
mod credentials;
mod docs;
mod domain;
mod error;
mod hashing;
mod lifecycle;
mod log_buffer;
mod metrics;
mod migrations;
mod openapi;
mod redis;
mod routes;
mod server;
mod sessions;
mod sqlite;
mod telemetry;
mod throttle;
mod tokens;
mod unavailable;
mod users;
mod visit;

use std::process::ExitCode;

// Half the allocator's time of the system's own, under many small JSON requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
