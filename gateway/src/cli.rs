//! Command line of the program.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ::logging::{AccessLog, LogSettings, LogWriter};
use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use supervision::Supervisor;

use crate::config::{
    Config, Environment, HealthCheckMethod, HealthCheckSettings, SCHEMA, admin_address,
};
use crate::runtime::clock::unix_seconds;
use crate::server;
use crate::server::{Start, Telemetry};
use crate::telemetry::logging;
use crate::tls::certificates;

/// Auth edge: TLS, quotas, timeouts, retries and circuit breakers by path pattern.
#[derive(Debug, Parser)]
#[command(name = "gateway", version)]
struct Cli {
    /// Configuration file; gateway.yml documents its keys. Default: the file that `GATEWAY_CONFIG`
    /// names, or gateway.yml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM. The default command.
    Run(Run),
    /// Report all errors and warnings of a configuration.
    Check { file: Option<PathBuf> },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Exit with 0 if the gateway with this configuration is running and healthy.
    Healthcheck(Healthcheck),
}

#[derive(Debug, Args)]
struct Healthcheck {
    /// Ask whether it can serve requests, which needs a healthy endpoint.
    #[arg(long)]
    ready: bool,
}

#[derive(Debug, Default, Args)]
struct Run {
    /// Take over the listening sockets of the running gateway; then send SIGQUIT to that one. If none is
    /// running, serve at once.
    #[arg(long)]
    upgrade: bool,
}

/// Runs the command that the arguments name.
///
/// # Errors
/// Returns the error of the command, for the operator.
pub(crate) fn run() -> Result<()> {
    let cli = Cli::parse();
    certificates::install_crypto_provider();
    let environment = Environment::of_process();
    // Not by `env` of clap, for which an empty variable is set.
    let file = cli.config.unwrap_or_else(|| {
        let file = environment.get("GATEWAY_CONFIG");
        file.unwrap_or("gateway.yml").into()
    });
    match cli.command.unwrap_or(Command::Run(Run::default())) {
        Command::Run(run) => {
            let settings =
                LogSettings::parse(environment.get("LOG_LEVEL"), environment.get("LOG_FORMAT"))?;
            let supervisor = Supervisor::new();
            let (writer, _flush) = LogWriter::start(&supervisor);
            logging::start(settings, writer.clone());
            supervisor.install_panic_hook();
            let start = if run.upgrade {
                Start::Upgrade
            } else {
                Start::Fresh
            };
            let telemetry = Telemetry {
                access_log: AccessLog::new(settings, &writer),
                dropped_log_lines: writer.dropped().clone(),
                supervisor,
            };
            server::serve(file, environment, start, telemetry)
        }
        Command::Check { file: argument } => check(&argument.unwrap_or(file), &environment),
        Command::Schema => print(SCHEMA),
        Command::Healthcheck(arguments) => {
            let path = if arguments.ready { "/ready" } else { "/health" };
            healthcheck(admin_address(&file, &environment), path)
        }
    }
}

/// Prints an error to standard error: one line, or several for the errors of a configuration.
pub(crate) fn print_error(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "{error:#}");
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{}", text.trim_end()).context("cannot write to standard output")
}

fn check(file: &std::path::Path, environment: &Environment) -> Result<()> {
    let config = Config::load(file, environment)?;
    let now = unix_seconds(SystemTime::now());
    let certificates = config.certificates.iter();
    let certificates = certificates.chain(config.client_certificates());
    let certificate_warnings = certificates.filter_map(|certificate| {
        let error = certificate.validity_error(now)?;
        Some(format!("{}: {error}", certificate.files.cert.display()))
    });
    let warnings = config.warnings.iter().cloned();
    for warning in warnings.chain(certificate_warnings) {
        print(&format!("{}: warning: {warning}", file.display()))?;
    }
    print(&format!(
        "{}: valid: {} paths, {} servers",
        file.display(),
        config.paths.len(),
        config.servers.len()
    ))?;
    print(&format!(
        "{}: {}",
        file.display(),
        describe_health_check(&config.health_check)
    ))?;
    for upstream in &config.upstreams {
        print(&format!(
            "{}: upstreams.{}: {} servers; {}",
            file.display(),
            upstream.name,
            upstream.servers.len(),
            describe_health_check(&upstream.health_check)
        ))?;
    }
    Ok(())
}

/// Returns the condition under which an endpoint receives requests, for the operator.
fn describe_health_check(settings: &HealthCheckSettings) -> String {
    let interval = settings.interval.as_secs_f64();
    match &settings.method {
        HealthCheckMethod::Http { path } => format!(
            "health_check: an endpoint receives requests while it responds to GET {path} with 2xx"
        ),
        HealthCheckMethod::TcpConnect => {
            "health_check is not set: an endpoint receives requests while it accepts TCP \
             connections; set health_check.path if the servers have a path that tells whether they \
             are ready"
                .to_owned()
        }
        HealthCheckMethod::None => format!(
            "health_check is null: endpoints are not checked; one that does not accept a connection \
             receives no requests for up to {interval} s"
        ),
    }
}

/// Requests `path` of the admin listener.
fn healthcheck(mut address: SocketAddr, path: &str) -> Result<()> {
    const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);
    if address.ip().is_unspecified() {
        address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port());
    }
    let mut response = String::new();
    let mut exchange = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, HEALTHCHECK_TIMEOUT)?;
        stream.set_read_timeout(Some(HEALTHCHECK_TIMEOUT))?;
        stream.set_write_timeout(Some(HEALTHCHECK_TIMEOUT))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        stream.read_to_string(&mut response).map(|_| ())
    };
    exchange()
        .with_context(|| format!("cannot reach the gateway's admin listener at {address}"))?;
    if !response.starts_with("HTTP/1.1 200 ") {
        bail!(
            "{path} of the gateway at {address} responded: {}",
            response.lines().next().unwrap_or("nothing")
        );
    }
    Ok(())
}
