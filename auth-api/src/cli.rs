//! Command line.

mod client;
mod healthcheck;
mod output;
mod password_prompt;
mod serve;
mod stores;
mod user;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{self, Environment};
use crate::router;

/// Register, login, logout, profile and account deletion. Settings come from the environment.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Subcommand)]
enum Command {
    /// Serve requests (the default)
    Serve,
    /// Apply the database migrations and exit
    Migrate,
    /// List, inspect and change accounts
    #[command(subcommand)]
    User(user::UserCommand),
    /// Register services that may introspect and revoke tokens
    #[command(subcommand)]
    Client(client::ClientCommand),
    /// Print the OpenAPI document of the endpoints
    Openapi,
    /// Check that the running program is alive, for containers without a shell
    Healthcheck {
        /// Check that its stores can be used, too
        #[arg(long)]
        ready: bool,
    },
}

/// Runs the command that the arguments name. A failure is one line on standard error.
pub(crate) fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(arguments.command.unwrap_or(Command::Serve)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "auth-api: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    install_crypto_provider();
    let environment = Environment::read()?;
    match command {
        Command::Openapi => print_openapi_document(),
        Command::Healthcheck { ready } => {
            let path = if ready { "/ready" } else { "/health" };
            healthcheck::run(config::listen(&environment)?, path)
        }
        Command::Migrate => runtime()?.block_on(stores::migrate(&environment)),
        Command::User(command) => runtime()?.block_on(user::run(&environment, command)),
        Command::Client(command) => runtime()?.block_on(client::run(&environment, command)),
        Command::Serve => runtime()?.block_on(serve::run(&environment)),
    }
}

/// Installs the process-wide cryptography provider for TLS to Redis. Without one, rustls panics if
/// dependencies compile several in.
fn install_crypto_provider() {
    // Fails only if a provider is installed already, which is then this one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Starts a runtime with worker threads for half of the cores. The rest is for hashing and the stores,
/// and two threads that wake each other for every request are slower than one that stays busy
/// (`make bench WHAT=auth-api`).
fn runtime() -> Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).max(1))
        .enable_all()
        .build()
        .context("starting the worker threads")?;
    let _context = runtime.enter();
    // Handled once, the signal never ends the process again: a write beyond the limit of a file's size
    // (ulimit -f) fails like one to a full disk.
    let file_size_signal = SignalKind::from_raw(Signal::XFSZ.as_raw());
    drop(signal(file_size_signal).context("handling SIGXFSZ")?);
    Ok(runtime)
}

fn print_openapi_document() -> Result<()> {
    let document = serde_json::to_string_pretty(&router::openapi_document())?;
    writeln!(std::io::stdout(), "{document}").context("printing the document")
}
