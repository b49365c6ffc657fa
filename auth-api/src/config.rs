//! The environment as types: the names and defaults of the Python service, and ours.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use secrecy::SecretSlice;
use sqlx::postgres::PgConnectOptions;
use tracing::Level;

use crate::hashing;
use crate::telemetry::{Format, Logs};
use crate::users::{PoolMode, PostgresSettings};

/// Below this a stolen hash is cheap to guess at (OWASP Password Storage).
pub(crate) const LEAST_SAFE_COST: u32 = 12;
/// HS256 wants a key as long as its hash (RFC 7518, section 3.2).
const KEY_BYTES: usize = 32;
/// What keys in examples say.
const EXAMPLES: [&str; 5] = [
    "change-me",
    "change_me",
    "changeme",
    "your-secret",
    "your_secret",
];
const COSTS: RangeInclusive<u32> = 4..=20;
/// Tokens count whole seconds, and no store has a time that is millennia away.
const LIFETIMES: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(10 * 365 * 24);

/// All settings, checked.
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) internal_listen: SocketAddr,
    pub(crate) store: Store,
    pub(crate) migrate: Migrate,
    pub(crate) secret_key: SecretSlice<u8>,
    pub(crate) previous_secret_key: Option<SecretSlice<u8>>,
    pub(crate) access_token_lifetime: Duration,
    pub(crate) session_lifetime: Duration,
    pub(crate) hashing: hashing::Settings,
    pub(crate) logs: Logs,
}

/// Where users and sessions live.
pub(crate) enum Store {
    Servers {
        postgres: Box<PostgresSettings>,
        redis: Box<fred::types::config::Config>,
    },
    File(PathBuf),
}

/// When the database's tables are brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Migrate {
    AtStart,
    ByCommand,
}

/// The variables that are set, from the process and, in development, a `.env` file.
pub(crate) struct Environment(HashMap<String, String>);

impl Environment {
    /// The process's variables; a `.env` file in the working folder fills in what they leave out.
    pub(crate) fn read() -> Result<Self> {
        let mut variables: HashMap<_, _> = match dotenvy::dotenv_iter() {
            Ok(lines) => lines.collect::<Result<_, _>>().context("reading .env")?,
            Err(error) if error.not_found() => HashMap::new(),
            Err(error) => return Err(error).context("reading .env"),
        };
        variables.extend(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }));
        Ok(Self(variables))
    }

    /// A variable's value; an empty one is none.
    fn set(&self, name: &str) -> Option<&String> {
        self.0.get(name).filter(|value| !value.is_empty())
    }

    fn has(&self, name: &str) -> bool {
        self.set(name).is_some() || self.set(&format!("{name}_FILE")).is_some()
    }

    /// A variable's value, or the contents of the file that `NAME_FILE` names (Docker secrets).
    fn get(&self, name: &str) -> Result<Option<String>> {
        let file_variable = format!("{name}_FILE");
        match (self.set(name), self.set(&file_variable)) {
            (Some(_), Some(_)) => bail!("{name} and {file_variable} are both set: set one of them"),
            (Some(value), None) => Ok(Some(value.clone())),
            (None, Some(file)) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("{file_variable}: reading {file}"))?;
                Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
            }
            (None, None) => Ok(None),
        }
    }

    fn text(&self, name: &str, default: &str) -> Result<String> {
        Ok(self.get(name)?.unwrap_or_else(|| default.to_owned()))
    }

    fn parsed<T: FromStr>(&self, name: &str, default: &str, what: &str) -> Result<T> {
        let value = self.text(name, default)?;
        value
            .parse()
            .ok()
            .with_context(|| format!("{name} is {value:?}: it must be {what}"))
    }

    fn seconds(&self, name: &str, default: &str) -> Result<Duration> {
        let seconds: f64 = self.parsed(name, default, "a number of seconds")?;
        Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|duration| !duration.is_zero())
            .with_context(|| format!("{name} is {seconds}: it must be a number of seconds above 0"))
    }

    fn lifetime(&self, name: &str, default: &str) -> Result<Duration> {
        let lifetime = self.seconds(name, default)?;
        if !LIFETIMES.contains(&lifetime) {
            let (least, most) = (LIFETIMES.start().as_secs(), LIFETIMES.end().as_secs());
            bail!("{name} must be from {least} to {most} seconds");
        }
        Ok(lifetime)
    }
}

impl Config {
    /// Reads every setting.
    ///
    /// # Errors
    /// One that names the first setting that is missing or wrong.
    pub(crate) fn read(environment: &Environment) -> Result<Self> {
        let key = secret_key(environment, "SECRET_KEY")?;
        Ok(Self {
            listen: listen(environment)?,
            internal_listen: environment.parsed(
                "AUTH_API_INTERNAL_LISTEN",
                "0.0.0.0:9902",
                ADDRESS,
            )?,
            store: store(environment)?,
            migrate: migrate(environment)?,
            secret_key: key.context(
                "SECRET_KEY is not set: it signs access tokens and must have 32 bytes at least \
                 (openssl rand -base64 48)",
            )?,
            previous_secret_key: secret_key(environment, "SECRET_KEY_PREVIOUS")?,
            access_token_lifetime: environment.lifetime("ACCESS_TOKEN_TTL", "86400")?,
            session_lifetime: environment.lifetime("REFRESH_TOKEN_TTL", "2592000")?,
            hashing: hashing(environment)?,
            logs: logs(environment)?,
        })
    }
}

const ADDRESS: &str = "an address with a port, such as 0.0.0.0:8000";

/// Where requests are answered.
pub(crate) fn listen(environment: &Environment) -> Result<SocketAddr> {
    environment.parsed("AUTH_API_LISTEN", "0.0.0.0:8000", ADDRESS)
}

/// What is logged, and how.
pub(crate) fn logs(environment: &Environment) -> Result<Logs> {
    let level = environment.text("LOG_LEVEL", "INFO")?;
    let format = environment.text("LOG_FORMAT", "")?;
    Ok(Logs {
        level: match level.to_uppercase().as_str() {
            "DEBUG" => Level::DEBUG,
            "INFO" => Level::INFO,
            "WARNING" | "WARN" => Level::WARN,
            "ERROR" | "CRITICAL" => Level::ERROR,
            _ => bail!("LOG_LEVEL is {level:?}: it must be DEBUG, INFO, WARNING or ERROR"),
        },
        format: match format.as_str() {
            "" => Format::for_this_terminal(),
            "json" => Format::Json,
            "text" => Format::Text,
            _ => bail!("LOG_FORMAT is {format:?}: it must be json or text"),
        },
    })
}

/// A server is named by any of these, as the Python service has defaults for each: by the URL, or by
/// the others.
const POSTGRES: (&str, &[&str]) = (
    "DATABASE_URL",
    &["DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_TABLE"],
);
const REDIS: (&str, &[&str]) = (
    "REDIS_URL",
    &["REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"],
);

/// Where users and sessions live: on both servers, or in a file where neither is named.
pub(crate) fn store(environment: &Environment) -> Result<Store> {
    match (named(environment, POSTGRES)?, named(environment, REDIS)?) {
        (None, None) => {
            let folder: PathBuf = environment.text("DATA_DIR", "data")?.into();
            Ok(Store::File(folder.join("auth.db")))
        }
        (Some(_), Some(_)) => Ok(Store::Servers {
            postgres: Box::new(postgres(environment)?),
            redis: Box::new(redis(environment)?),
        }),
        (Some(name), None) => bail!(
            "{name} names a database, but no REDIS_HOST, REDIS_URL or other REDIS_ setting a Redis: \
             name both for servers, or neither for the embedded store"
        ),
        (None, Some(name)) => bail!(
            "{name} names a Redis, but no DB_HOST, DATABASE_URL or other DB_ setting a database: \
             name both for servers, or neither for the embedded store"
        ),
    }
}

/// The setting that names a server, if one does.
fn named(
    environment: &Environment,
    (url, parts): (&'static str, &[&'static str]),
) -> Result<Option<&'static str>> {
    let part = parts.iter().copied().find(|name| environment.has(name));
    match (environment.has(url).then_some(url), part) {
        (Some(url), Some(part)) => {
            bail!("{url} and {part} are both set: set the one that has it all, or the others")
        }
        (url, part) => Ok(url.or(part)),
    }
}

fn postgres(environment: &Environment) -> Result<PostgresSettings> {
    let options = match environment.get("DATABASE_URL")? {
        // The parser's own message may repeat the URL with its password.
        Some(url) => url.parse().ok().context(
            "DATABASE_URL must look like postgres://user:password@host:5432/database?sslmode=require",
        )?,
        None => PgConnectOptions::new_without_pgpass()
            .host(&environment.text("DB_HOST", "localhost")?)
            .port(environment.parsed("DB_PORT", "5432", PORT)?)
            .username(&environment.text("DB_USER", "auth_user")?)
            .password(&environment.text("DB_PASSWORD", "password")?)
            .database(&environment.text("DB_TABLE", "auth")?),
    };
    let pool_mode = environment.text("DB_POOL_MODE", "session")?;
    Ok(PostgresSettings {
        // We have no floats, and PgBouncer refuses what it does not know.
        connection: options
            .application_name("auth-api")
            .extra_float_digits(None),
        pool_mode: match pool_mode.as_str() {
            "session" => PoolMode::Session,
            "transaction" => PoolMode::Transaction,
            _ => bail!(
                "DB_POOL_MODE is {pool_mode:?}: it must be session, or transaction behind a pooler \
                 such as PgBouncer with pool_mode = transaction"
            ),
        },
    })
}

const PORT: &str = "a port, 1 to 65535";

fn redis(environment: &Environment) -> Result<fred::types::config::Config> {
    use fred::types::config::{Config, ServerConfig};
    if let Some(url) = environment.get("REDIS_URL")? {
        return Config::from_url(&url).ok().context(
            "REDIS_URL must look like redis://user:password@host:6379/0 (rediss:// for TLS)",
        );
    }
    Ok(Config {
        server: ServerConfig::new_centralized(
            environment.text("REDIS_HOST", "localhost")?,
            environment.parsed("REDIS_PORT", "6379", PORT)?,
        ),
        password: environment.get("REDIS_PASSWORD")?,
        database: Some(environment.parsed("REDIS_DB", "0", "a database's number, 0 to 255")?),
        ..Config::default()
    })
}

fn migrate(environment: &Environment) -> Result<Migrate> {
    let migrate = environment.text("MIGRATE", "start")?;
    match migrate.as_str() {
        "start" => Ok(Migrate::AtStart),
        "command" => Ok(Migrate::ByCommand),
        _ => bail!(
            "MIGRATE is {migrate:?}: it must be start, or command for `auth-api migrate` alone"
        ),
    }
}

fn secret_key(environment: &Environment, name: &str) -> Result<Option<SecretSlice<u8>>> {
    let Some(key) = environment.get(name)? else {
        return Ok(None);
    };
    if key.len() < KEY_BYTES {
        bail!(
            "{name} has {} bytes: it must have {KEY_BYTES} at least (openssl rand -base64 48)",
            key.len()
        );
    }
    let lower = key.to_lowercase();
    if EXAMPLES.iter().any(|example| lower.contains(example)) {
        bail!("{name} is one from an example: make one of your own (openssl rand -base64 48)");
    }
    Ok(Some(key.into_bytes().into()))
}

/// How passwords are hashed.
pub(crate) fn hashing(environment: &Environment) -> Result<hashing::Settings> {
    let cost = environment.parsed("BCRYPT_COST", "12", "a whole number")?;
    if !COSTS.contains(&cost) {
        bail!(
            "BCRYPT_COST is {cost}: it must be from {} to {}",
            COSTS.start(),
            COSTS.end()
        );
    }
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    Ok(hashing::Settings {
        cost,
        threads: environment.parsed(
            "HASHING_THREADS",
            &cores.to_string(),
            "a whole number above 0",
        )?,
        longest_wait: environment.seconds("HASHING_MAX_WAIT", "2")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config> {
        let key = ("SECRET_KEY", "0123456789abcdef0123456789abcdef");
        let all = std::iter::once(&key).chain(variables);
        let set = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::read(&Environment(set.collect()))
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (variable, value) in [
            ("SECRET_KEY", ""),
            ("SECRET_KEY", "short"),
            ("SECRET_KEY", "change-me-please-change-me-please-change-me"),
            ("DB_HOST", "localhost"),
            ("REDIS_HOST", "localhost"),
            ("BCRYPT_COST", "3"),
            ("BCRYPT_COST", "many"),
            ("LOG_LEVEL", "LOUD"),
            ("ACCESS_TOKEN_TTL", "-1"),
            ("ACCESS_TOKEN_TTL", "0.5"),
            ("REFRESH_TOKEN_TTL", "1e13"),
            ("AUTH_API_LISTEN", "8000"),
            ("HASHING_THREADS", "0"),
            ("MIGRATE", "never"),
        ] {
            let error = read(&[(variable, value)])
                .err()
                .expect(variable)
                .to_string();
            assert!(error.contains(variable), "{variable}={value}: {error}");
        }
        let url = ("DATABASE_URL", "postgres://db/auth");
        let twice = [url, ("DB_TABLE", "auth"), ("REDIS_HOST", "redis")];
        let error = read(&twice).err().expect("which one?").to_string();
        assert!(error.contains("DATABASE_URL and DB_TABLE"), "{error}");
        let servers = [("DB_HOST", "db"), ("REDIS_HOST", "redis")];
        let mistaken = [servers[0], servers[1], ("DB_POOL_MODE", "statement")];
        let error = read(&mistaken).err().expect("no such mode").to_string();
        assert!(error.contains("DB_POOL_MODE"), "{error}");
    }

    #[test]
    fn naming_no_server_means_the_file() {
        let config = read(&[("DATA_DIR", "here")]).unwrap();
        assert!(matches!(config.store, Store::File(file) if file.ends_with("here/auth.db")));
    }

    #[test]
    fn any_setting_of_a_server_names_it_and_the_rest_has_defaults() {
        for both in [
            [("DB_HOST", "db"), ("REDIS_HOST", "redis")],
            [("DB_USER", "somebody"), ("REDIS_DB", "3")],
            [("DB_PASSWORD", "secret"), ("REDIS_URL", "redis://redis")],
            [
                ("DATABASE_URL", "postgres://db/auth"),
                ("REDIS_PORT", "6380"),
            ],
        ] {
            let store = read(&both).unwrap().store;
            assert!(matches!(store, Store::Servers { .. }), "{both:?}");
        }
        for one in ["DB_PORT", "REDIS_DB"] {
            let error = read(&[(one, "1")]).err().expect(one).to_string();
            assert!(error.contains(one), "{error}");
        }
    }
}
