//! The server: listeners and background tasks, from a configuration to the end of the process.

pub(crate) mod discovery;
mod identity;
mod listening_sockets;
mod private_socket;
mod quota_hand_over;
mod quota_leases;
pub(crate) mod reload;
mod shutdown;
mod shutdown_signals;
mod start_checks;
mod upgrade;
mod upgrade_acknowledgement;
mod upgrade_lock;
mod upgrade_service;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use logging::AccessLog;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::server::Server;
use pingora::server::configuration::{Opt, ServerConf};
use pingora::services::ServiceHandle;
use pingora::services::background::background_service;
use pingora::services::listening::Service;
use prometheus::IntCounter;
use supervision::Supervisor;

use crate::config::{Config, Environment, ListenAddresses};
use crate::lease_store::LeaseStore;
use crate::listener::admin::Admin;
use crate::listener::cleartext::CleartextApp;
use crate::listener::connection_limit::ConnectionLimit;
use crate::listener::https::HttpsApp;
use crate::listener::redirect::RedirectToHttps;
use crate::proxy::state::GatewayState;
use crate::runtime::fd_limit;
use crate::runtime::signals;
use crate::server::discovery::Discovery;
use crate::server::identity::IdentityTasks;
use crate::server::quota_hand_over::CounterSocket;
use crate::server::quota_leases::QuotaLeases;
use crate::server::reload::{ConfigSource, FixedSettings, Reload};
use crate::server::shutdown::DRAIN_TIMEOUT;
use crate::server::shutdown_signals::ShutdownSignals;
use crate::server::start_checks::TakeOver;
use crate::server::upgrade::HandedOverSockets;
use crate::server::upgrade_acknowledgement::AcknowledgementSocket;
use crate::server::upgrade_service::UpgradeService;

/// Source of the listening sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// They are created.
    Fresh,
    /// They are handed over by the running gateway, through `GATEWAY_UPGRADE_SOCKET`, or created if none
    /// is running, as at the boot of a machine.
    Upgrade,
}

/// Telemetry that is started before the configuration is read.
#[derive(Debug)]
pub(crate) struct Telemetry {
    pub(crate) access_log: AccessLog,
    pub(crate) dropped_log_lines: IntCounter,
    pub(crate) supervisor: Supervisor,
}

/// Serves until a signal ends the process.
///
/// # Errors
/// Returns an error if the configuration is invalid, a listener cannot be bound, or the server panics.
pub(crate) fn serve(
    file: PathBuf,
    environment: Environment,
    start: Start,
    telemetry: Telemetry,
) -> Result<()> {
    signals::ignore_sighup()?;
    fd_limit::raise()?;
    let config = Config::load(&file, &environment)?;
    reload::log_warnings(&config);
    let listen = config.listen;
    let upgrade_socket = start_checks::upgrade_socket(&environment)?;
    // Whatever can fail without the sockets comes first: the running gateway ends once it has sent them.
    let gateway = Arc::new(GatewayState::new(config, telemetry.access_log)?);
    let mut acknowledgement = None;
    let handed_over = match start {
        Start::Fresh => None,
        Start::Upgrade => match start_checks::prepare_take_over(listen)? {
            None => {
                tracing::info!("no gateway is running: nothing to take over");
                None
            }
            Some(TakeOver { bound, in_use }) => {
                start_checks::check_writable(&upgrade_socket)?;
                // The running gateway connects to these when it sends its sockets.
                let socket = AcknowledgementSocket::bind(&upgrade_socket)
                    .with_context(|| format!("waiting at {}", upgrade_socket.display()))?;
                acknowledgement = Some(socket);
                let counters = CounterSocket::bind(&upgrade_socket);
                let sockets = HandedOverSockets::receive(&upgrade_socket, listen);
                let mut sockets = sockets.with_context(|| format!("{in_use:#}"))?;
                sockets.add(bound)?;
                if let Some(counters) = counters {
                    counters.receive(&gateway);
                }
                Some(sockets)
            }
        },
    };
    start_checks::check_addresses_free(listen, handed_over.as_ref())?;
    let supervisor = telemetry.supervisor;
    gateway
        .metrics
        .register(Box::new(telemetry.dropped_log_lines));
    for metric in supervisor.metrics() {
        gateway.metrics.register(metric);
    }

    let mut server = bootstrap(handed_over, &upgrade_socket)?;
    let source = ConfigSource { file, environment };
    let https = add_services(&mut server, listen, &gateway, source, supervisor)?;
    let (listeners, not_replaced) = (Arc::default(), Arc::default());
    let upgrade = server.add_service(UpgradeService {
        listeners: Arc::clone(&listeners),
        acknowledgement,
        not_replaced: Arc::clone(&not_replaced),
    });
    upgrade.add_dependency(https);
    let (https, admin) = (listen.https.to_string(), listen.admin.to_string());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        https,
        admin,
        "listening"
    );
    let signals = ShutdownSignals {
        upgrade_socket,
        gateway: Arc::clone(&gateway),
        listeners,
        not_replaced,
    };
    shutdown::run(server, signals, &gateway)?;
    tracing::info!("shut down");
    Ok(())
}

/// Creates Pingora's server, which listens on the sockets of the running gateway if it has handed them over.
fn bootstrap(handed_over: Option<HandedOverSockets>, upgrade_socket: &Path) -> Result<Server> {
    let options = Opt {
        upgrade: handed_over.is_some(),
        ..Opt::default()
    };
    let start = |socket: &Path| {
        let mut server = Server::new_with_opt_and_conf(options, server_conf(socket));
        server.bootstrap();
        server
    };
    let Some(sockets) = handed_over else {
        return Ok(start(upgrade_socket));
    };
    let mut server = sockets.pass_on(upgrade_socket, start)?;
    // The next gateway waits at the public one.
    server.configuration = Arc::new(server_conf(upgrade_socket));
    Ok(server)
}

fn server_conf(upgrade_socket: &Path) -> ServerConf {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    ServerConf {
        threads: cores,
        // Longer than our own drain, which logs the requests that it aborts.
        grace_period_seconds: Some(DRAIN_TIMEOUT.as_secs() + 5),
        graceful_shutdown_timeout_seconds: Some(1),
        upgrade_sock: upgrade_socket.display().to_string(),
        ..ServerConf::default()
    }
}

/// Adds the listeners and the background tasks. Returns the listener of HTTPS.
fn add_services(
    server: &mut Server,
    listen: ListenAddresses,
    gateway: &Arc<GatewayState>,
    source: ConfigSource,
    supervisor: Supervisor,
) -> Result<ServiceHandle> {
    let connection_limit = ConnectionLimit::new(&gateway.metrics);
    let app = HttpsApp::new(gateway, &connection_limit)?;
    let mut https = Service::new("https".to_owned(), app);
    // TLS has a read buffer of its own: a second one would hold 64 KiB for each connection.
    let unbuffered = L4BufferSettings::default().read(0);
    https.add_listener(ListenerConfig::tcp(listen.https.to_string()).l4_buffer(unbuffered));
    let https = server.add_service(https);

    let app = CleartextApp::for_operators(gateway, Admin(Arc::clone(gateway)));
    let mut admin = Service::new("admin".to_owned(), app);
    admin.threads = Some(1);
    admin.add_tcp(&listen.admin.to_string());
    server.add_service(admin);

    if let Some(address) = listen.http {
        let redirect = RedirectToHttps {
            port: listen.public_port,
            gateway: Arc::clone(gateway),
        };
        let app = CleartextApp::for_clients(gateway, redirect, &connection_limit);
        let mut http = Service::new("http".to_owned(), app);
        http.threads = Some(1);
        http.add_tcp(&address.to_string());
        server.add_service(http);
    }

    let discovery = Discovery {
        gateway: Arc::clone(gateway),
        supervisor: supervisor.clone(),
    };
    let mut discovery = background_service("discovery", discovery);
    discovery.threads = Some(1);
    https.add_dependency(server.add_service(discovery));

    let identity = IdentityTasks {
        gateway: Arc::clone(gateway),
        supervisor: supervisor.clone(),
    };
    let mut identity = background_service("identity", identity);
    identity.threads = Some(1);
    server.add_service(identity);

    let active = gateway.snapshot();
    if let (Some(quotas), Some(url)) = (&gateway.shared_quotas, &active.config.quotas.store) {
        let leases = QuotaLeases {
            store: LeaseStore {
                quotas: Arc::clone(quotas),
                url: url.clone(),
                keyspace: active.config.keyspace.clone(),
            },
            supervisor: supervisor.clone(),
        };
        let mut leases = background_service("quota_leases", leases);
        leases.threads = Some(1);
        https.add_dependency(server.add_service(leases));
    }

    let reload = Reload {
        gateway: Arc::clone(gateway),
        source,
        fixed: FixedSettings::of(&active.config),
        supervisor,
    };
    let mut reload = background_service("reload", reload);
    reload.threads = Some(1);
    server.add_service(reload);
    Ok(https)
}
