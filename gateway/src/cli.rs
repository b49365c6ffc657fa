//! What the program can be told to do.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Environment, SCHEMA, admin_address};
use crate::gateway::unix_seconds;
use crate::output::Output;
use crate::serve::{self, Start};
use crate::telemetry::Logs;
use crate::tls;

/// An auth edge: TLS, quotas, timeouts, retries and circuit breakers by path pattern.
#[derive(Debug, Parser)]
#[command(name = "gateway", version)]
struct Cli {
    /// The configuration; its keys are explained in gateway.yml. Left out, it is the file that
    /// `GATEWAY_CONFIG` names, or gateway.yml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM; the default.
    Run(Run),
    /// Say everything that is wrong with a configuration, and do nothing else.
    Check { file: Option<PathBuf> },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Succeed where a gateway with this configuration is alive.
    Healthcheck,
}

#[derive(Debug, Default, Args)]
struct Run {
    /// Take the listening sockets over from the gateway that runs; send that one SIGQUIT next.
    #[arg(long)]
    upgrade: bool,
}

/// Does what the arguments say.
///
/// # Errors
/// What went wrong, for the person who started it.
pub(crate) fn run() -> Result<()> {
    let cli = Cli::parse();
    tls::install_cryptography();
    let environment = Environment::of_process();
    // Not by `env` of the parser, for which a variable that is empty is set.
    let file = cli.config.unwrap_or_else(|| {
        let file = environment.get("GATEWAY_CONFIG");
        file.unwrap_or("gateway.yml").into()
    });
    match cli.command.unwrap_or(Command::Run(Run::default())) {
        Command::Run(run) => {
            let (logs, output) = (Logs::of(&environment)?, Output::start());
            logs.start(output.clone());
            let start = if run.upgrade {
                Start::Upgrade
            } else {
                Start::Fresh
            };
            let ended = serve::serve(file, environment, start, logs, &output);
            output.flush();
            ended
        }
        Command::Check { file: another } => check(&another.unwrap_or(file), &environment),
        Command::Schema => say(SCHEMA),
        Command::Healthcheck => healthcheck(admin_address(&file, &environment)),
    }
}

/// One line on standard error, or one for each mistake of a configuration.
pub(crate) fn complain(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "{error:#}");
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{}", text.trim_end()).context("standard output")
}

fn check(file: &std::path::Path, environment: &Environment) -> Result<()> {
    let config = Config::load(file, environment)?;
    let now = unix_seconds(SystemTime::now());
    let untimely = config.certificates.iter().filter_map(|certificate| {
        let untimely = certificate.untimely(now)?;
        Some(format!("{}: {untimely}", certificate.files.cert.display()))
    });
    for warning in config.warnings.iter().cloned().chain(untimely) {
        say(&format!("{}: warning: {warning}", file.display()))?;
    }
    say(&format!(
        "{}: good: {} paths, {} servers",
        file.display(),
        config.paths.len(),
        config.servers.len()
    ))
}

fn healthcheck(mut address: SocketAddr) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(3);
    if address.ip().is_unspecified() {
        address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port());
    }
    let mut answer = String::new();
    let mut ask = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
        stream.read_to_string(&mut answer).map(|_| ())
    };
    ask().with_context(|| format!("the gateway's admin listener at {address}"))?;
    if !answer.starts_with("HTTP/1.1 200 ") {
        bail!(
            "the gateway at {address} is not healthy: {}",
            answer.lines().next().unwrap_or("")
        );
    }
    Ok(())
}
