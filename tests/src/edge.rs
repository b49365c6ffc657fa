//! The whole thing: the gateway in front of replicas of auth-api, as an operator starts it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::certificate::Certificate;
use crate::client::{Client, HOST, Protocol, new_address};
use crate::process::{Process, bound, program};
use crate::{address, postgres, redis, wait};

/// Where users and sessions live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// PostgreSQL and Redis, the database on the server that the run shares.
    PostgresRedis,
    /// One SQLite file.
    Embedded,
}

/// The configuration that a test gets unless it brings its own.
const PATHS: &str = r#"
premier:
  paths:
    - pattern: "/api/*"
      features:
        monitoring: {log_threshold: 5.0}
"#;

/// How an [`Edge`] is to be started.
#[derive(Debug)]
pub struct Setup {
    store: Store,
    replicas: usize,
    config: String,
    environment: Vec<(String, String)>,
}

impl Setup {
    /// Replicas of auth-api instead of two.
    #[must_use]
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// A gateway.yml of the test's own. What it leaves out comes from the environment, which the
    /// harness sets: addresses, certificate and servers.
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// A further setting of both programs.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts everything and waits until it answers.
    ///
    /// # Errors
    /// When a part does not come up; the error has what it printed.
    pub async fn start(self) -> Result<Edge> {
        Edge::start(self).await
    }
}

/// A replica of auth-api.
#[derive(Debug)]
pub struct Replica {
    pub process: Process,
    /// Where the gateway reaches it.
    pub address: SocketAddr,
    /// Where its metrics are.
    pub internal: SocketAddr,
}

/// A running gateway with its replicas and stores.
#[derive(Debug)]
pub struct Edge {
    // Dropped in this order: the gateway ends before what it needs.
    pub gateway: Process,
    pub replicas: Vec<Replica>,
    pub redis: Option<redis::Server>,
    /// The database of this edge, where its store is PostgreSQL.
    pub database: Option<postgres::Database>,
    /// Where clients reach it.
    pub address: SocketAddr,
    /// The gateway's admin listener.
    pub admin: SocketAddr,
    pub certificate: Certificate,
    environment: Vec<(String, String)>,
    folder: TempDir,
}

impl Edge {
    /// An edge with two replicas on `store`, to be refined and started.
    #[must_use]
    pub fn on(store: Store) -> Setup {
        Setup {
            store,
            replicas: 2,
            config: PATHS.to_owned(),
            environment: Vec::new(),
        }
    }

    async fn start(setup: Setup) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("edge-").tempdir()?;
        let certificate = Certificate::make(folder.path(), "cert", &[HOST, "127.0.0.1"])?;
        std::fs::write(folder.path().join("gateway.yml"), &setup.config)?;

        let (redis, database) = match setup.store {
            Store::Embedded => (None, None),
            Store::PostgresRedis => {
                let database = postgres::Database::shared().await?;
                (Some(redis::Server::start()?), Some(database))
            }
        };
        let mut environment = defaults(folder.path());
        if let (Some(redis), Some(database)) = (&redis, &database) {
            environment.extend(stores(redis, database));
        }
        environment.extend(setup.environment);

        let mut replicas = Vec::new();
        for number in 1..=setup.replicas {
            replicas.push(start_replica(folder.path(), number, &environment)?);
        }
        let (address, admin) = (address::free(), address::free());
        let servers: Vec<_> = replicas
            .iter()
            .map(|r| format!("http://{}", r.address))
            .collect();
        let gateway_environment = [
            ("GATEWAY_HTTPS", address.to_string()),
            ("GATEWAY_ADMIN", admin.to_string()),
            ("GATEWAY_SERVERS", servers.join(",")),
            ("SSL_CERTFILE", certificate.cert.display().to_string()),
            ("SSL_KEYFILE", certificate.key.display().to_string()),
        ];
        environment.extend(gateway_environment.map(|(name, value)| (name.to_owned(), value)));
        let gateway = start_gateway(folder.path(), &environment)?;

        let mut edge = Self {
            gateway,
            replicas,
            redis,
            database,
            address,
            admin,
            certificate,
            environment,
            folder,
        };
        edge.answers().await?;
        Ok(edge)
    }

    /// Waits until every replica is ready and the gateway reaches them.
    async fn answers(&mut self) -> Result<()> {
        for number in 0..self.replicas.len() {
            let client = Client::plain(self.replicas[number].address)?;
            self.wait_for(&format!("replica {number}"), &client, "/ready")
                .await?;
        }
        let client = self.client()?;
        self.wait_for("the gateway", &client, "/health").await
    }

    async fn wait_for(&mut self, what: &str, client: &Client, path: &str) -> Result<()> {
        let start = std::time::Instant::now();
        loop {
            let last = client.get(path).await;
            if last.as_ref().is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            self.gateway.must_run()?;
            for replica in &mut self.replicas {
                replica.process.must_run()?;
            }
            if start.elapsed() > wait::PATIENCE {
                bail!("{what} does not answer: {last:?}\n{}", self.logs());
            }
            tokio::time::sleep(wait::PAUSE).await;
        }
    }

    /// A client that nobody has seen before.
    ///
    /// # Errors
    /// When the client library cannot start.
    pub fn client(&self) -> Result<Client> {
        self.client_speaking(Protocol::Negotiated)
    }

    /// A client that nobody has seen before, that speaks `protocol`.
    ///
    /// # Errors
    /// When the client library cannot start.
    pub fn client_speaking(&self, protocol: Protocol) -> Result<Client> {
        Client::new(self.address, &self.certificate, new_address(), protocol)
    }

    /// A client of one replica itself, past the gateway.
    ///
    /// # Errors
    /// When the client library cannot start.
    pub fn replica_client(&self, number: usize) -> Result<Client> {
        Client::plain(self.replicas[number].address)
    }

    /// The gateway's configuration file, to be edited by a test.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("gateway.yml")
    }

    /// Starts a further replica. The gateway does not know of it unless its configuration says so.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn add_replica(&mut self) -> Result<&mut Replica> {
        let number = self.replicas.len() + 1;
        let replica = start_replica(self.folder.path(), number, &self.environment)?;
        self.replicas.push(replica);
        self.replicas.last_mut().context("it was just added")
    }

    /// One of the project's programs with this edge's environment, to be run to its end.
    #[must_use]
    pub fn command(&self, name: &str) -> std::process::Command {
        let mut command = bound(program(name));
        prepare(&mut command, self.folder.path(), &self.environment);
        command
    }

    /// Everything that the gateway and the replicas have printed.
    #[must_use]
    pub fn logs(&self) -> String {
        let replicas = self.replicas.iter().map(|replica| replica.process.log());
        std::iter::once(self.gateway.log())
            .chain(replicas)
            .collect()
    }
}

fn defaults(folder: &Path) -> Vec<(String, String)> {
    [
        (
            "SECRET_KEY",
            "a key for tests alone, of more than 32 bytes".to_owned(),
        ),
        ("DATA_DIR", folder.join("data").display().to_string()),
        // Hashes at the cost that production asks for would take most of a test's time.
        ("BCRYPT_COST", "4".to_owned()),
        ("LOG_LEVEL", "DEBUG".to_owned()),
        ("LOG_FORMAT", "json".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn stores(redis: &redis::Server, database: &postgres::Database) -> [(String, String); 7] {
    [
        ("DB_HOST", database.server.ip().to_string()),
        ("DB_PORT", database.server.port().to_string()),
        ("DB_USER", postgres::USER.to_owned()),
        ("DB_PASSWORD", postgres::PASSWORD.to_owned()),
        ("DB_TABLE", database.name.clone()),
        ("REDIS_HOST", redis.address.ip().to_string()),
        ("REDIS_PORT", redis.address.port().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
}

fn start_replica(
    folder: &Path,
    number: usize,
    environment: &[(String, String)],
) -> Result<Replica> {
    let (address, internal) = (address::free(), address::free());
    let mut command = bound(program("auth-api"));
    prepare(&mut command, folder, environment);
    command
        .env("AUTH_API_LISTEN", address.to_string())
        .env("AUTH_API_INTERNAL_LISTEN", internal.to_string());
    let log = folder.join(format!("auth-api-{number}.log"));
    let process = Process::start(&format!("auth-api {number}"), &mut command, &log)?;
    Ok(Replica {
        process,
        address,
        internal,
    })
}

fn start_gateway(folder: &Path, environment: &[(String, String)]) -> Result<Process> {
    let mut command = bound(program("gateway"));
    prepare(&mut command, folder, environment);
    Process::start("gateway", &mut command, &folder.join("gateway.log"))
}

/// Nothing of the developer's own environment or `.env` file reaches a program under test.
fn prepare(command: &mut std::process::Command, folder: &Path, environment: &[(String, String)]) {
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(folder);
}
