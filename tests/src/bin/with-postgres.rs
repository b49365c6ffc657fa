//! Runs a command beside a private PostgreSQL server and exits with the command's exit code.
//!
//! Creating a cluster takes a second, so a test run shares one server; each test has a database of
//! its own on it.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use tests::postgres::PostgresServer;

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments
        .next()
        .context("usage: with-postgres COMMAND [ARGUMENT...]")?;
    let server = PostgresServer::start()?;
    let (name, value) = server.shared_server_variable();
    // The command is in our process group, so it receives the terminal's signals too and exits
    // first. If this process is killed, the kernel kills the server.
    let status = Command::new(program)
        .args(arguments)
        .env(name, value)
        .status()?;
    drop(server);
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
