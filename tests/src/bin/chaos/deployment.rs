//! The deployment under test: two gateways, three replicas of auth-api, PostgreSQL with a synchronous standby, and
//! Redis with two replicas and three Sentinels, configured as `docs/operations.md` recommends.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tests::Client;
use tests::certificate::Certificate;
use tests::client::{HOST, Protocol};
use tests::clock::Clock;
use tests::command::{chown_to_unprivileged, program_path};
use tests::identity_edge::SIGNING_KEY;
use tests::postgres::{PASSWORD, USER, program, unprivileged};
use tests::process::Process;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::history::GatewayId;
use crate::network::{self, CLIENTS, Host, run};
use crate::node::{Node, NodeId, Supervision};
use crate::redis_status::{self, REDIS_PORT, SENTINEL_PORT, SERVICE};

const DATABASE: &str = "auth";
const POSTGRES_PORT: u16 = 5432;
const HTTPS_PORT: u16 = 443;
const ADMIN_PORT: u16 = 9901;
const AUTH_API_PORT: u16 = 8000;
const INTERNAL_PORT: u16 = 9902;
/// Replica of auth-api whose clock can be stepped.
const REPLICA_WITH_CLOCK: NodeId = NodeId::AuthApi(2);
/// Sizes of the disks of the stores: several times what a run needs.
const POSTGRES_DISK: &str = "size=512m";
const REDIS_DISK: &str = "size=96m";
/// Time after which a command of an operator has failed.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Longest start of the deployment.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// Settings of the quotas, which the checker knows too.
pub(crate) const WINDOW_QUOTA: u32 = 20;
pub(crate) const BUCKET_QUOTA: u32 = 15;
pub(crate) const BUCKET_SIZE: u32 = 5;
pub(crate) const QUOTA_DURATION: Duration = Duration::from_secs(10);
/// Timeout of each path. Beyond it a request may wait for the identity of its client.
pub(crate) const PATH_TIMEOUT: Duration = Duration::from_secs(10);

/// The deployment. Its processes end with the process namespace of this program.
#[derive(Debug)]
pub(crate) struct Deployment {
    nodes: Mutex<BTreeMap<NodeId, Node>>,
    /// Index of the node that is the primary of PostgreSQL.
    primary: AtomicUsize,
    pub(crate) clock: Clock,
    certificate: Certificate,
    folder: TempDir,
    /// Exits of our own programs that the nemesis has not caused.
    crashes: Mutex<Vec<String>>,
    reloads: AtomicUsize,
}

impl Deployment {
    /// Creates the network and starts every program. Logs are written into the folder `logs`.
    pub(crate) async fn start(logs: &Path) -> Result<Self> {
        network::create()?;
        let folder = tempfile::Builder::new().prefix("chaos-").tempdir()?;
        // PostgreSQL's user has to reach its folders.
        run(Command::new("chmod").arg("755").arg(folder.path()))?;
        network::use_hosts_file(&folder.path().join("hosts"))?;
        let mut nodes = BTreeMap::new();
        for id in NodeId::all() {
            id.host().create()?;
            let node = Node {
                id,
                supervision: Supervision::Held,
                process: None,
                draining: Vec::new(),
                folder: folder.path().join(id.to_string()),
                log_file: logs.join(format!("{id}.log")),
            };
            fs::create_dir(&node.folder)?;
            nodes.insert(id, node);
        }
        let deployment = Self {
            nodes: Mutex::new(nodes),
            primary: AtomicUsize::new(0),
            clock: Clock::new(0)?,
            certificate: Certificate::generate(folder.path(), "cert", &[HOST])?,
            folder,
            crashes: Mutex::default(),
            reloads: AtomicUsize::new(0),
        };
        deployment.write_hosts()?;
        deployment.start_postgres().await?;
        deployment.prepare_redis()?;
        for id in NodeId::all().filter(|id| !matches!(id, NodeId::Postgres(_))) {
            if matches!(id, NodeId::Gateway(_)) {
                deployment.write_gateway_config(id, 0)?;
            }
            deployment.release(id)?;
        }
        deployment.wait_until_healthy(START_TIMEOUT).await?;
        Ok(deployment)
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Node>> {
        self.nodes.lock().expect("no holder of the lock panics")
    }

    /// Applies `function` to a node.
    pub(crate) fn with_node<T>(&self, id: NodeId, function: impl FnOnce(&mut Node) -> T) -> T {
        let mut nodes = self.nodes();
        function(nodes.get_mut(&id).expect("every node is there"))
    }

    fn folder_of(&self, id: NodeId) -> PathBuf {
        self.folder.path().join(id.to_string())
    }

    /// Kills a node and keeps it down until [`Deployment::release`].
    pub(crate) fn kill(&self, id: NodeId) {
        self.with_node(id, |node| {
            node.supervision = Supervision::Held;
            node.kill();
        });
    }

    /// Starts a node that is down, and lets it be started again whenever it exits.
    pub(crate) fn release(&self, id: NodeId) -> Result<()> {
        let mut command = self.command(id)?;
        self.with_node(id, |node| {
            node.supervision = Supervision::Restart;
            if node.process.is_none() {
                let process = Process::start(node.id.host().name, &mut command, &node.log_file)?;
                node.process = Some(process);
            }
            Ok(())
        })
    }

    pub(crate) fn signal(&self, id: NodeId, signal: Signal) -> Result<()> {
        self.with_node(id, |node| node.signal(signal))
    }

    /// Starts programs again that have exited by themselves, for ever.
    pub(crate) async fn supervise(&self) {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            for id in NodeId::all() {
                let has_exited = self.with_node(id, |node| {
                    node.draining.retain_mut(Process::is_running);
                    let is_running = node.process.as_mut().is_some_and(Process::is_running);
                    let has_exited = node.supervision == Supervision::Restart && !is_running;
                    if has_exited {
                        node.process = None;
                    }
                    has_exited
                });
                if !has_exited {
                    continue;
                }
                if id.is_ours() {
                    let mut crashes = self.crashes.lock().expect("no holder of the lock panics");
                    crashes.push(format!("{id} has exited by itself"));
                }
                // What fails to start is tried again in the next round.
                let _ = self.release(id);
            }
        }
    }

    /// Returns the exits of our own programs since the last call that the nemesis has not caused.
    pub(crate) fn take_crashes(&self) -> Vec<String> {
        std::mem::take(&mut *self.crashes.lock().expect("no holder of the lock panics"))
    }

    /// Returns a description of each panic in the logs of our programs.
    pub(crate) fn panics(&self) -> Vec<String> {
        let nodes = self.nodes();
        let ours = nodes.values().filter(|node| node.id.is_ours());
        ours.flat_map(|node| {
            let log = fs::read_to_string(&node.log_file).unwrap_or_default();
            let lines = log
                .lines()
                .filter(|line| line.contains("panicked at") || line.contains("\"panic"));
            lines
                .map(|line| format!("{}: {line}", node.id))
                .collect::<Vec<_>>()
        })
        .collect()
    }

    /// Returns a client of a gateway with connections of its own.
    pub(crate) fn client(&self, GatewayId(index): GatewayId, protocol: Protocol) -> Result<Client> {
        let address = (NodeId::Gateway(index).host().address, HTTPS_PORT).into();
        Client::new(address, &self.certificate, CLIENTS, protocol)
    }

    /// Waits until every gateway and replica is ready, and both stores have their replicas.
    pub(crate) async fn wait_until_healthy(&self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while let Err(problem) = self.check_health().await {
            if start.elapsed() > limit {
                return Err(problem.context(format!("not healthy within {limit:?}")));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    async fn check_health(&self) -> Result<()> {
        for id in NodeId::all() {
            let port = match id {
                NodeId::Gateway(_) => ADMIN_PORT,
                NodeId::AuthApi(_) => INTERNAL_PORT,
                _ => continue,
            };
            let client = Client::cleartext((id.host().address, port).into())?;
            let response = timeout(PROBE_TIMEOUT, client.get("/ready")).await;
            let response = response
                .with_context(|| format!("{id} does not respond"))?
                .with_context(|| format!("{id} is down"))?;
            ensure!(response.status == 200, "{id}: {}", response.text);
        }
        redis_status::settled_primary()
            .await
            .context("Redis has no primary with replicas on which all Sentinels agree")?;
        ensure!(
            self.standby_is_synchronous().await,
            "PostgreSQL has no synchronous standby"
        );
        Ok(())
    }

    fn command(&self, id: NodeId) -> Result<Command> {
        let (host, folder) = (id.host(), self.folder_of(id));
        match id {
            NodeId::Gateway(_) => Ok(self.gateway_command(id, &["run"])),
            NodeId::AuthApi(_) => self.auth_api_command(id),
            NodeId::Postgres(_) => {
                let mut command = postgres_command(host, "postgres")?;
                command
                    .arg("-D")
                    .arg(folder.join("disk/data"))
                    .arg("-k")
                    .arg(&folder)
                    .args(["-h", &host.address.to_string()]);
                Ok(command)
            }
            NodeId::Redis(_) => {
                let mut command = host.command("redis-server");
                command.arg(folder.join("redis.conf"));
                Ok(command)
            }
            NodeId::Sentinel(_) => {
                let mut command = host.command("redis-server");
                command.arg(folder.join("sentinel.conf")).arg("--sentinel");
                Ok(command)
            }
        }
    }

    fn auth_api_command(&self, id: NodeId) -> Result<Command> {
        let host = id.host();
        let listen = |port| SocketAddr::from((host.address, port)).to_string();
        let mut command = host.command(program_path("auth-api"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("SECRET_KEY", "a key for chaos alone, of more than 32 bytes")
            .env("SIGNING_KEY", SIGNING_KEY)
            // Hashes of the production cost would take all of the machine.
            .env("BCRYPT_COST", "4")
            .env("LOG_LEVEL", "INFO")
            .env("LOG_FORMAT", "json")
            .env("DB_HOST", "postgres")
            .env("DB_PORT", POSTGRES_PORT.to_string())
            .env("DB_USER", USER)
            .env("DB_PASSWORD", PASSWORD)
            .env("DB_TABLE", DATABASE)
            .env("REDIS_URL", redis_url())
            .env("AUTH_API_LISTEN", listen(AUTH_API_PORT))
            .env("AUTH_API_INTERNAL_LISTEN", listen(INTERNAL_PORT))
            .current_dir(self.folder_of(id));
        if id == REPLICA_WITH_CLOCK {
            command.envs(self.clock.environment()?);
        }
        Ok(command)
    }

    fn gateway_command(&self, id: NodeId, arguments: &[&str]) -> Command {
        let folder = self.folder_of(id);
        let mut command = id.host().command(program_path("gateway"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LOG_LEVEL", "INFO")
            .env("LOG_FORMAT", "json")
            .env("SSL_CERTFILE", &self.certificate.cert_file)
            .env("SSL_KEYFILE", &self.certificate.key_file)
            .env("GATEWAY_UPGRADE_SOCKET", folder.join("upgrade.sock"))
            .current_dir(folder);
        command
    }

    /// Writes `gateway.yml` of a gateway by a rename. `version` makes it differ without an effect.
    fn write_gateway_config(&self, id: NodeId, version: usize) -> Result<()> {
        let address = id.host().address;
        let (redis, timeout) = (redis_url(), PATH_TIMEOUT.as_secs());
        let duration = QUOTA_DURATION.as_secs();
        let breaker = "circuit_breaker: {failure_threshold: 5, recovery_timeout: 5}";
        let retry = "retry: {max_attempts: 3, wait: [0.1, 0.2]}";
        let config = format!(
            "# {version}
premier:
  keyspace: chaos
  listen: {{https: '{address}:{HTTPS_PORT}', admin: '{address}:{ADMIN_PORT}'}}
  servers: ['http://auth-api:{AUTH_API_PORT}']
  health_check: {{path: /ready, interval: 1, timeout: 1}}
  identity:
    keys: http://auth-api:{AUTH_API_PORT}/.well-known/jwks.json
    sessions: '{redis}'
  quotas: {{store: '{redis}', on_store_failure: refuse}}
  paths:
    - pattern: /edge/*
      strip_prefix: /edge
      features: {{auth: {{required: true}}, timeout: {{seconds: {timeout}}}, {breaker}, {retry}}}
    - pattern: /window/*
      strip_prefix: /window
      features:
        rate_limit: {{quota: {WINDOW_QUOTA}, duration: {duration}, algorithm: sliding_window, per: ['header:X-Key']}}
        timeout: {{seconds: {timeout}}}
    - pattern: /bucket/*
      strip_prefix: /bucket
      features:
        rate_limit: {{quota: {BUCKET_QUOTA}, duration: {duration}, algorithm: token_bucket, bucket_size: {BUCKET_SIZE}, per: ['header:X-Key']}}
        timeout: {{seconds: {timeout}}}
    - pattern: /api/*
      features: {{timeout: {{seconds: {timeout}}}, {breaker}, {retry}}}
"
        );
        let folder = self.folder_of(id);
        fs::write(folder.join("new.yml"), config)?;
        Ok(fs::rename(
            folder.join("new.yml"),
            folder.join("gateway.yml"),
        )?)
    }

    /// Reloads a gateway with a changed file.
    pub(crate) fn reload_gateway(&self, id: NodeId) -> Result<()> {
        let version = self.reloads.fetch_add(1, Ordering::Relaxed) + 1;
        self.write_gateway_config(id, version)?;
        self.with_node(id, |node| {
            let process = node.process.as_ref();
            let process = process.with_context(|| format!("{id} does not run"))?;
            process.signal(Signal::HUP)
        })
    }

    /// Replaces a gateway by a new process that takes over its sockets, as `docs/operations.md` says.
    pub(crate) async fn upgrade_gateway(&self, id: NodeId) -> Result<()> {
        let mut command = self.gateway_command(id, &["run", "--upgrade"]);
        let log_file = self.with_node(id, |node| node.log_file.clone());
        let log_length = fs::read_to_string(&log_file).map_or(0, |log| log.len());
        let mut new = Process::start(id.host().name, &mut command, &log_file)?;
        let start = Instant::now();
        loop {
            new.ensure_running()?;
            let log = fs::read_to_string(&log_file)?;
            if log[log_length..].contains("waiting for the sockets") {
                break;
            }
            ensure!(start.elapsed() < COMMAND_TIMEOUT, "{id}: no upgrade");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.with_node(id, |node| {
            let old = node.process.replace(new);
            let old = old.with_context(|| format!("{id} does not run"))?;
            old.signal(Signal::QUIT)?;
            node.draining.push(old);
            Ok(())
        })
    }

    /// Waits until a gateway accepts connections of clients.
    pub(crate) async fn wait_until_listening(&self, id: NodeId) -> Result<()> {
        let address = SocketAddr::from((id.host().address, HTTPS_PORT));
        let start = Instant::now();
        while !matches!(
            timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await,
            Ok(Ok(_))
        ) {
            ensure!(start.elapsed() < COMMAND_TIMEOUT, "{id} does not listen");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Stops a replica of auth-api gracefully and starts it again.
    pub(crate) async fn restart_gracefully(&self, id: NodeId) -> Result<()> {
        let process = self.with_node(id, |node| {
            node.supervision = Supervision::Held;
            node.process.take()
        });
        let mut process = process.with_context(|| format!("{id} does not run"))?;
        process.signal(Signal::TERM)?;
        let start = Instant::now();
        while process.is_running() {
            ensure!(
                start.elapsed() < 2 * COMMAND_TIMEOUT,
                "{id} does not end after SIGTERM"
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.release(id)?;
        let client = Client::cleartext((id.host().address, INTERNAL_PORT).into())?;
        while !matches!(
            timeout(PROBE_TIMEOUT, client.get("/ready")).await,
            Ok(Ok(response)) if response.status == 200
        ) {
            ensure!(
                start.elapsed() < 3 * COMMAND_TIMEOUT,
                "{id} is not ready again"
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    fn prepare_redis(&self) -> Result<()> {
        let primary = NodeId::Redis(0).host().address;
        for id in redis_status::SERVERS {
            let folder = self.folder_of(id);
            let disk = mount_disk(&folder, REDIS_DISK)?;
            let mut config = format!(
                "bind {}
port {REDIS_PORT}
protected-mode no
dir {}
save \"\"
appendonly yes
appendfsync always
maxmemory-policy noeviction
auto-aof-rewrite-min-size 4mb
repl-ping-replica-period 1
repl-timeout 5
repl-diskless-sync-delay 0
min-replicas-to-write 1
min-replicas-max-lag 3
",
                id.host().address,
                disk.display()
            );
            if id != NodeId::Redis(0) {
                writeln!(config, "replicaof {primary} {REDIS_PORT}")?;
            }
            fs::write(folder.join("redis.conf"), config)?;
        }
        for index in 0..3 {
            let id = NodeId::Sentinel(index);
            let folder = self.folder_of(id);
            let config = format!(
                "bind {}
port {SENTINEL_PORT}
protected-mode no
dir {}
sentinel monitor {SERVICE} {primary} {REDIS_PORT} 2
sentinel down-after-milliseconds {SERVICE} 8000
sentinel failover-timeout {SERVICE} 10000
",
                id.host().address,
                folder.display()
            );
            fs::write(folder.join("sentinel.conf"), config)?;
        }
        Ok(())
    }

    pub(crate) fn disk_of(&self, id: NodeId) -> PathBuf {
        self.folder_of(id).join("disk")
    }

    pub(crate) fn postgres_primary(&self) -> NodeId {
        NodeId::Postgres(self.primary.load(Ordering::SeqCst))
    }

    pub(crate) fn postgres_standby(&self) -> NodeId {
        NodeId::Postgres(1 - self.primary.load(Ordering::SeqCst))
    }

    /// Writes the names that the programs resolve: all replicas, and the primary of PostgreSQL.
    fn write_hosts(&self) -> Result<()> {
        let mut hosts = String::from("127.0.0.1 localhost\n");
        for index in 0..3 {
            let address = NodeId::AuthApi(index).host().address;
            writeln!(hosts, "{address} auth-api")?;
        }
        let primary = self.postgres_primary().host().address;
        writeln!(hosts, "{primary} postgres")?;
        // Written in place, since it is mounted on another file.
        Ok(fs::write(self.folder.path().join("hosts"), hosts)?)
    }

    async fn start_postgres(&self) -> Result<()> {
        for id in [NodeId::Postgres(0), NodeId::Postgres(1)] {
            mount_disk(&self.folder_of(id), POSTGRES_DISK)?;
            chown_to_unprivileged(&self.folder_of(id))?;
        }
        let primary = self.postgres_primary();
        let data = self.disk_of(primary).join("data");
        let password_file = self.folder_of(primary).join("password");
        fs::write(&password_file, PASSWORD)?;
        chown_to_unprivileged(&password_file)?;
        let mut initdb = postgres_command(primary.host(), "initdb")?;
        initdb
            .args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
            .arg("--no-sync")
            .arg(format!("--username={USER}"))
            .arg(format!("--pwfile={}", password_file.display()))
            .arg(format!("--pgdata={}", data.display()));
        output(initdb).await?;
        let mut config = fs::read_to_string(data.join("postgresql.conf"))?;
        // Small, for the small disk. The timeouts are shorter than the faults, as on a link that is watched closely.
        config.push_str(
            "
shared_buffers = 32MB
max_connections = 100
min_wal_size = 32MB
max_wal_size = 96MB
wal_keep_size = 96MB
wal_sender_timeout = 5s
wal_receiver_timeout = 5s
tcp_keepalives_idle = 5
tcp_keepalives_interval = 2
tcp_keepalives_count = 3
",
        );
        fs::write(data.join("postgresql.conf"), config)?;
        fs::write(
            data.join("pg_hba.conf"),
            "host all all 0.0.0.0/0 scram-sha-256\nhost replication all 0.0.0.0/0 scram-sha-256\n",
        )?;
        chown_to_unprivileged(&data)?;
        self.release(primary)?;
        let start = Instant::now();
        while self.sql(primary, "SELECT 1").await.is_err() {
            ensure!(start.elapsed() < START_TIMEOUT, "PostgreSQL does not start");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.sql(primary, &format!("CREATE DATABASE {DATABASE}"))
            .await?;
        self.make_standby().await
    }

    /// Runs a statement on a server.
    pub(crate) async fn sql(&self, id: NodeId, statement: &str) -> Result<String> {
        let mut psql = Command::new(program("psql")?);
        psql.args(["--no-psqlrc", "--tuples-only", "--no-align"])
            .arg("--set=ON_ERROR_STOP=1")
            .arg(format!("--host={}", id.host().address))
            .arg(format!("--username={USER}"))
            .arg("--dbname=postgres")
            .arg(format!("--command={statement}"))
            .env("PGPASSWORD", PASSWORD)
            .env("PGCONNECT_TIMEOUT", "2");
        Ok(output(psql).await?.trim().to_owned())
    }

    async fn standby_is_synchronous(&self) -> bool {
        let query = "SELECT count(*) FROM pg_stat_replication
            WHERE state = 'streaming' AND sync_state = 'sync'";
        let count = timeout(PROBE_TIMEOUT, self.sql(self.postgres_primary(), query)).await;
        matches!(count, Ok(Ok(count)) if count == "1")
    }

    /// Makes the server that is not the primary a new standby, and commits wait for it from then on.
    async fn make_standby(&self) -> Result<()> {
        let (primary, standby) = (self.postgres_primary(), self.postgres_standby());
        self.kill(standby);
        let data = self.disk_of(standby).join("data");
        if data.exists() {
            fs::remove_dir_all(&data)?;
        }
        let mut backup = postgres_command(standby.host(), "pg_basebackup")?;
        backup
            .arg(format!("--pgdata={}", data.display()))
            .args(["--checkpoint=fast", "--wal-method=stream"])
            .arg("--write-recovery-conf")
            .arg(format!("--host={}", primary.host().address))
            .arg(format!("--username={USER}"))
            .env("PGPASSWORD", PASSWORD);
        output(backup).await?;
        self.release(standby)?;
        let start = Instant::now();
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        while self.sql(primary, streaming).await? != "1" {
            ensure!(
                start.elapsed() < START_TIMEOUT,
                "the standby does not stream"
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.set_synchronous_standby(primary, "*").await
    }

    async fn set_synchronous_standby(&self, primary: NodeId, names: &str) -> Result<()> {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
        self.sql(primary, &set).await?;
        self.sql(primary, "SELECT pg_reload_conf()").await?;
        Ok(())
    }

    /// Promotes the standby as `docs/runbooks/lost-postgres.md` says: fences the primary, promotes, changes the name,
    /// and makes the old primary a new standby.
    pub(crate) async fn fail_over_postgres(&self, outage: Duration) -> Result<()> {
        ensure!(
            self.standby_is_synchronous().await,
            "the standby may lack what was acknowledged"
        );
        let standby = self.postgres_standby();
        self.kill(self.postgres_primary());
        tokio::time::sleep(outage).await;
        self.sql(standby, "SELECT pg_promote(wait => true)").await?;
        // It has no standby of its own yet.
        self.set_synchronous_standby(standby, "").await?;
        let old = self.primary.load(Ordering::SeqCst);
        self.primary.store(1 - old, Ordering::SeqCst);
        self.write_hosts()?;
        self.make_standby().await
    }
}

fn redis_url() -> String {
    let [first, second, third] =
        [0, 1, 2].map(|index| NodeId::Sentinel(index).host().address.to_string());
    format!(
        "redis-sentinel://{first}:{SENTINEL_PORT}/0?sentinelServiceName={SERVICE}&node={second}:{SENTINEL_PORT}&node={third}:{SENTINEL_PORT}"
    )
}

/// Mounts a disk of its own in the folder of a node.
fn mount_disk(folder: &Path, options: &str) -> Result<PathBuf> {
    let disk = folder.join("disk");
    fs::create_dir(&disk)?;
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs"])
        .arg(&disk))?;
    Ok(disk)
}

/// Returns a command that runs one of PostgreSQL's programs on a host as a user without privileges.
fn postgres_command(host: Host, name: &str) -> Result<Command> {
    let unprivileged = unprivileged(name)?;
    let mut command = host.command(unprivileged.get_program());
    command.args(unprivileged.get_args());
    Ok(command)
}

/// Runs a command of an operator to its end and returns its standard output.
async fn output(command: Command) -> Result<String> {
    let description = command.get_program().display().to_string();
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let output = timeout(COMMAND_TIMEOUT, command.output())
        .await
        .with_context(|| format!("{description} takes too long"))??;
    ensure!(
        output.status.success(),
        "{description}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
