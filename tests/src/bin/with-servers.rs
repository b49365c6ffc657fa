//! Runs a command beside a private PostgreSQL server, and ends with the command's own status.
//!
//! A cluster takes a second to make, so a whole run of the tests shares one server; each test
//! has a database of its own on it.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use tests::postgres;

fn main() -> Result<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let program = words
        .next()
        .context("usage: with-servers COMMAND [ARGUMENT...]")?;
    let server = postgres::Server::start()?;
    let (name, value) = server.variable();
    // A signal for us is one for the command too: it shares our process group. It ends first, and
    // if we are killed outright the kernel ends the server.
    let status = Command::new(program)
        .args(words)
        .env(name, value)
        .status()?;
    drop(server);
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
