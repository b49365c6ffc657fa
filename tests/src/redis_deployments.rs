//! Redis deployments of several processes: a primary with a replica and Sentinel, and a Redis Cluster.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ServerConfig};
use fred::types::{Builder, CustomCommand, Value};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::address;
use crate::command::bound_command;
use crate::process::Process;
use crate::redis::RedisServer;
use crate::wait;

/// Longest duration of a command on a connection that may have been closed.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
/// Name of the primary at Sentinel.
pub const SENTINEL_SERVICE: &str = "main";

/// A primary, its replica, and a Sentinel that promotes the replica when the primary is gone.
#[derive(Debug)]
pub struct SentinelGroup {
    // Fields drop in this order: Sentinel notices no failure at the end.
    _sentinel: Process,
    folder: TempDir,
    pub primary: RedisServer,
    pub replica: RedisServer,
    address: SocketAddr,
}

impl SentinelGroup {
    /// Starts the processes, and waits until Sentinel knows the replica.
    ///
    /// # Errors
    /// Returns an error if Redis is not installed or does not start.
    pub async fn start() -> Result<Self> {
        let primary = RedisServer::start()?;
        let primary_address = primary.address;
        let (host, port) = (primary_address.ip().to_string(), primary_address.port());
        let replica = {
            let (address, port) = (address::unused_loopback(), port.to_string());
            let ip = address.ip().to_string();
            let arguments = ["--replicaof", &host, &port, "--replica-announce-ip", &ip];
            RedisServer::start_with(address, &arguments)?
        };
        let connection = primary.connect().await?;
        wait::until("the replica", async || {
            let info: Result<String, _> = command(&connection, "INFO", &["replication"]).await;
            info.is_ok_and(|info| info.contains("state=online"))
        })
        .await?;

        let folder = tempfile::Builder::new().prefix("sentinel-").tempdir()?;
        let address = address::unused_loopback();
        let config = format!(
            "port {}
bind {}
dir {}
sentinel monitor {SENTINEL_SERVICE} {host} {port} 1
sentinel down-after-milliseconds {SENTINEL_SERVICE} 500
sentinel failover-timeout {SENTINEL_SERVICE} 5000
",
            address.port(),
            address.ip(),
            folder.path().display()
        );
        let config_file = folder.path().join("sentinel.conf");
        std::fs::write(&config_file, config)?;
        let mut process = bound_command("redis-server");
        process.arg(&config_file).arg("--sentinel");
        let mut sentinel = Process::start("sentinel", &mut process, &folder.path().join("log"))?;
        sentinel.wait_until_listening(address)?;
        let connection = connect(address).await?;
        wait::until("Sentinel to know the replica", async || {
            let arguments = ["replicas", SENTINEL_SERVICE];
            let replicas: Result<Value, _> = command(&connection, "SENTINEL", &arguments).await;
            replicas.is_ok_and(|replicas| replicas.array_len().is_some_and(|count| count > 0))
        })
        .await?;
        Ok(Self {
            _sentinel: sentinel,
            folder,
            primary,
            replica,
            address,
        })
    }

    /// Returns the URL of database 0 of the current primary.
    #[must_use]
    pub fn url(&self) -> String {
        format!(
            "redis-sentinel://{}/0?sentinelServiceName={SENTINEL_SERVICE}",
            self.address
        )
    }

    /// Kills the primary once the replica has all that it acknowledged, and waits until the replica is the primary.
    ///
    /// # Errors
    /// Returns an error if that does not happen in time.
    pub async fn fail_over(&mut self) -> Result<()> {
        let connection = self.primary.connect().await?;
        let acknowledged: i64 = command(&connection, "WAIT", &["1", "5000"]).await?;
        ensure!(acknowledged == 1, "the replica does not follow");
        self.primary.kill();
        wait::until("the replica to be promoted", async || {
            // The promotion closes connections.
            let Ok(connection) = self.replica.connect().await else {
                return false;
            };
            let info = command(&connection, "INFO", &["replication"]);
            let info: Result<Result<String, _>, _> = timeout(COMMAND_TIMEOUT, info).await;
            matches!(info, Ok(Ok(info)) if info.contains("role:master"))
        })
        .await
    }

    /// Returns what Sentinel has logged.
    ///
    /// # Errors
    /// Returns an error if the log cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.path().join("log"))?)
    }
}

/// A Redis Cluster without replicas.
#[derive(Debug)]
pub struct RedisCluster {
    pub masters: Vec<RedisServer>,
}

impl RedisCluster {
    /// Number of slots of every cluster.
    const SLOTS: usize = 16_384;

    /// Starts a cluster of `count` masters, and waits until each knows all.
    ///
    /// # Errors
    /// Returns an error if Redis is not installed or does not start.
    pub async fn start(count: usize) -> Result<Self> {
        let mut masters = Vec::new();
        let mut bus_ports = Vec::new();
        for _ in 0..count {
            // The port of the cluster's bus would be beyond 65,535 by default.
            let bus_port = address::unused_loopback().port().to_string();
            let address = address::unused_loopback();
            let ip = address.ip().to_string();
            let mut arguments = vec!["--cluster-enabled", "yes", "--cluster-port", &bus_port];
            arguments.extend(["--cluster-announce-ip", &ip]);
            masters.push(RedisServer::start_with(address, &arguments)?);
            bus_ports.push(bus_port);
        }
        let mut connections = Vec::new();
        for (number, master) in masters.iter().enumerate() {
            let connection = connect(master.address).await?;
            let first = (Self::SLOTS * number / count).to_string();
            let last = (Self::SLOTS * (number + 1) / count - 1).to_string();
            let _: () = command(&connection, "CLUSTER", &["ADDSLOTSRANGE", &first, &last]).await?;
            let epoch = (number + 1).to_string();
            let _: () = command(&connection, "CLUSTER", &["SET-CONFIG-EPOCH", &epoch]).await?;
            connections.push(connection);
        }
        for (master, bus_port) in masters.iter().zip(&bus_ports).skip(1) {
            let (ip, port) = (master.address.ip(), master.address.port());
            let arguments = ["MEET", &ip.to_string(), &port.to_string(), bus_port];
            let _: () = command(&connections[0], "CLUSTER", &arguments).await?;
        }
        for connection in &connections {
            wait::until("the cluster", async || {
                let info: Result<String, _> = command(connection, "CLUSTER", &["INFO"]).await;
                let known = format!("cluster_known_nodes:{count}");
                info.is_ok_and(|info| info.contains("cluster_state:ok") && info.contains(&known))
            })
            .await?;
        }
        Ok(Self { masters })
    }

    /// Returns the URL by one of the masters.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis-cluster://{}", self.masters[0].address)
    }
}

async fn connect(address: SocketAddr) -> Result<Client> {
    let config = Config {
        server: ServerConfig::new_centralized(address.ip().to_string(), address.port()),
        ..Config::default()
    };
    let client = Builder::from_config(config).build()?;
    client.init().await?;
    Ok(client)
}

async fn command<T: fred::types::FromValue>(
    client: &Client,
    name: &'static str,
    arguments: &[&str],
) -> Result<T, fred::error::Error> {
    let command = CustomCommand::new_static(name, None, false);
    let arguments: Vec<String> = arguments.iter().copied().map(str::to_owned).collect();
    client.custom(command, arguments).await
}
