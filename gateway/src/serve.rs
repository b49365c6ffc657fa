//! From a configuration to a running gateway, and to its end.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{ExecutionPhase, RunArgs, Server};
use pingora::services::background::background_service;
use pingora::services::listening::Service;

use crate::admin::Admin;
use crate::admission::Admission;
use crate::config::{Config, Environment};
use crate::edge::Edge;
use crate::gateway::Gateway;
use crate::output::Output;
use crate::plain::Plain;
use crate::redirect::ToHttps;
use crate::reload::{self, Reload};
use crate::telemetry::Logs;
use crate::upstream::discovery::Discovery;

/// What requests in flight may still take at the end.
const DRAIN: Duration = Duration::from_secs(30);
/// For a client to hear that its connection is about to end, before it is closed.
const FAREWELL: Duration = Duration::from_secs(1);
/// Seconds that a new gateway waits for the sockets of the old one.
const UPGRADE_PATIENCE: usize = 60;

/// Where the listening sockets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Fresh,
    /// From the gateway that runs, by way of `GATEWAY_UPGRADE_SOCKET`.
    Upgrade,
}

/// Serves until a signal ends it.
///
/// # Errors
/// What keeps it from starting.
pub(crate) fn serve(
    file: PathBuf,
    environment: Environment,
    start: Start,
    logs: Logs,
    output: &Output,
) -> Result<()> {
    let config = Config::load(&file, &environment)?;
    reload::warn_of(&config);
    let listen = config.listen;
    if start == Start::Fresh {
        let http = listen.http.map(|address| ("http", address));
        for (key, address) in [("https", listen.https), ("admin", listen.admin)]
            .into_iter()
            .chain(http)
        {
            must_be_free(key, address)?;
        }
    }
    let gateway = Arc::new(Gateway::new(config, logs.access_log(output))?);
    gateway.metrics.tell_of(output.dropped());

    let options = Opt {
        upgrade: start == Start::Upgrade,
        ..Opt::default()
    };
    let mut server = Server::new_with_opt_and_conf(options, conf(&environment));
    if start == Start::Upgrade {
        let socket = &server.configuration.upgrade_sock;
        tracing::info!(
            socket,
            "waiting for the sockets of the gateway that runs: send it SIGQUIT"
        );
    }
    server.bootstrap();
    let admission = Admission::new(&gateway.metrics);
    let mut edge = Service::new("https".to_owned(), Edge::new(&gateway, &admission)?);
    // TLS has a buffer of its own to read into: a second one would hold 64 KiB for each connection.
    let unbuffered = L4BufferSettings::default().read(0);
    edge.add_listener(ListenerConfig::tcp(listen.https.to_string()).l4_buffer(unbuffered));
    let edge = server.add_service(edge);
    let oracle = Admin(Arc::clone(&gateway));
    let mut admin = Service::new("admin".to_owned(), Plain::for_operators(&gateway, oracle));
    admin.threads = Some(1);
    admin.add_tcp(&listen.admin.to_string());
    server.add_service(admin);
    if let Some(address) = listen.http {
        let port = listen.https.port();
        let plain = Plain::for_clients(&gateway, ToHttps { port }, &admission);
        let mut http = Service::new("http".to_owned(), plain);
        http.threads = Some(1);
        http.add_tcp(&address.to_string());
        server.add_service(http);
    }
    let mut discovery = background_service("discovery", Discovery(Arc::clone(&gateway)));
    discovery.threads = Some(1);
    edge.add_dependency(server.add_service(discovery));
    let reload = Reload {
        gateway: Arc::clone(&gateway),
        file,
        environment,
    };
    let mut reload = background_service("reload", reload);
    reload.threads = Some(1);
    server.add_service(reload);

    let https = listen.https.to_string();
    let admin = listen.admin.to_string();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        https,
        admin,
        "listening"
    );
    run(server, &gateway);
    tracing::info!("ended");
    Ok(())
}

fn conf(environment: &Environment) -> ServerConf {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let upgrade_sock = environment
        .get("GATEWAY_UPGRADE_SOCKET")
        .unwrap_or("/run/gateway-upgrade.sock");
    ServerConf {
        threads: cores,
        grace_period_seconds: Some(DRAIN.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
        upgrade_sock: upgrade_sock.to_owned(),
        upgrade_sock_connect_accept_max_retries: Some(UPGRADE_PATIENCE),
        ..ServerConf::default()
    }
}

/// Says at once what Pingora would only find out later, and not end for.
fn must_be_free(key: &str, address: SocketAddr) -> Result<()> {
    TcpListener::bind(address)
        .map(drop)
        .with_context(|| format!("premier.listen.{key}: listening on {address}"))
}

/// Runs Pingora's server until the last request is answered. Pingora itself would always wait for
/// the whole of [`DRAIN`], so it runs beside us, and we do not wait for it.
fn run(server: Server, gateway: &Gateway) {
    let mut phases = server.watch_execution_phase();
    thread::spawn(move || server.run(RunArgs::default()));
    loop {
        match phases.blocking_recv() {
            Ok(
                ExecutionPhase::GracefulTerminate | ExecutionPhase::GracefulUpgradeTransferringFds,
            ) => {
                tracing::info!("ending: requests in flight are finished first");
                gateway.end();
            }
            Ok(ExecutionPhase::ShutdownGracePeriod) => break,
            Ok(ExecutionPhase::ShutdownRuntimes | ExecutionPhase::Terminated) | Err(_) => return,
            Ok(_) => {}
        }
    }
    drain(gateway);
}

/// Waits until every connection is closed, or no request has come for [`FAREWELL`] on those that a
/// silent client keeps open.
fn drain(gateway: &Gateway) {
    const PAUSE: Duration = Duration::from_millis(5);
    let start = Instant::now();
    let mut busy = start;
    while gateway.metrics.connections.get() > 0 && busy.elapsed() < FAREWELL {
        let in_flight = gateway.metrics.in_flight.get() + gateway.unsent.get();
        if in_flight > 0 {
            busy = Instant::now();
        }
        if start.elapsed() > DRAIN {
            tracing::warn!(in_flight, "requests still in flight were cut off");
            return;
        }
        thread::sleep(PAUSE);
    }
}
