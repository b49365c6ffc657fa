//! From a configuration to a running gateway, and to its end.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{ExecutionPhase, RunArgs, Server};
use pingora::services::background::background_service;
use pingora::services::listening::Service;
use rustix::fs::{Access, access};

use crate::admin::Admin;
use crate::admission::Admission;
use crate::config::{Config, Environment, Listen};
use crate::edge::Edge;
use crate::gateway::Gateway;
use crate::open_files;
use crate::output::Output;
use crate::plain::Plain;
use crate::redirect::ToHttps;
use crate::reload::{self, Reload, Source};
use crate::signals::{self, Endings};
use crate::telemetry::Logs;
use crate::upstream::discovery::Discovery;

/// What requests in flight may still take at the end.
const DRAIN: Duration = Duration::from_secs(30);
/// For a client to hear that its connection is about to end, before it is closed.
const FAREWELL: Duration = Duration::from_secs(1);

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
    signals::survive_hangups()?;
    open_files::allow();
    let config = Config::load(&file, &environment)?;
    reload::warn_of(&config);
    let listen = config.listen;
    let upgrade_socket = upgrade_socket(&environment)?;
    match start {
        Start::Fresh => must_be_free(listen)?,
        Start::Upgrade => must_be_writable(&upgrade_socket)?,
    }
    let gateway = Arc::new(Gateway::new(config, logs.access_log(output))?);
    gateway.metrics.tell_of(output.dropped());

    let options = Opt {
        upgrade: start == Start::Upgrade,
        ..Opt::default()
    };
    let mut server = Server::new_with_opt_and_conf(options, conf(&upgrade_socket));
    if start == Start::Upgrade {
        let socket = upgrade_socket.display();
        tracing::info!(
            %socket,
            "waiting for the sockets of the gateway that runs: send it SIGQUIT within 5 seconds"
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
        let port = listen.public_port;
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
        source: Source { file, environment },
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
    run(server, Endings { upgrade_socket }, &gateway);
    tracing::info!("ended");
    Ok(())
}

fn conf(upgrade_socket: &Path) -> ServerConf {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    ServerConf {
        threads: cores,
        // We end before, and say what was cut off.
        grace_period_seconds: Some(DRAIN.as_secs() + 5),
        graceful_shutdown_timeout_seconds: Some(1),
        upgrade_sock: upgrade_socket.display().to_string(),
        ..ServerConf::default()
    }
}

const UPGRADE_SOCKET: &str = "GATEWAY_UPGRADE_SOCKET";

/// Where one gateway hands its sockets over to the next.
fn upgrade_socket(environment: &Environment) -> Result<PathBuf> {
    let socket = environment.get(UPGRADE_SOCKET);
    let socket = Path::new(socket.unwrap_or("/run/gateway-upgrade.sock"));
    // The kernel lists sockets by the path that they were bound to.
    std::path::absolute(socket).with_context(|| format!("{UPGRADE_SOCKET}: {}", socket.display()))
}

/// Says at once what Pingora would panic about.
fn must_be_writable(upgrade_socket: &Path) -> Result<()> {
    let folder = upgrade_socket.parent().unwrap_or(upgrade_socket);
    access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .with_context(|| format!("{UPGRADE_SOCKET}: writing into {}", folder.display()))
}

/// Says at once what Pingora would only find out later, and not end for.
fn must_be_free(listen: Listen) -> Result<()> {
    let listeners = [
        ("https", Some(listen.https)),
        ("admin", Some(listen.admin)),
        ("http", listen.http),
    ];
    // All are held until the last is had: two of them may want the same.
    let mut held = Vec::new();
    for (key, address) in listeners {
        let Some(address) = address else { continue };
        let listener = TcpListener::bind(address)
            .with_context(|| format!("premier.listen.{key}: listening on {address}"))?;
        held.push(listener);
    }
    Ok(())
}

/// Runs Pingora's server until the last request is answered. Pingora itself would always wait for
/// the whole of [`DRAIN`], so it runs beside us, and we do not wait for it.
fn run(server: Server, endings: Endings, gateway: &Gateway) {
    let mut phases = server.watch_execution_phase();
    let shutdown_signal = Box::new(endings);
    thread::spawn(move || server.run(RunArgs { shutdown_signal }));
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
