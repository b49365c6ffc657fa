//! Configuration from environment variables, with the names and defaults of the Python service.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use logging::LogSettings;
use redis_connection::Deployments;
use secrecy::SecretSlice;
use sqlx::postgres::PgConnectOptions;

use crate::domain::access_token::{AccessTokenPolicy, DEFAULT_ISSUER, SymmetricTokens};
use crate::domain::secret_keys::SecretKeys;
use crate::domain::session::SessionPolicy;
use crate::domain::signing_keys::{SigningKey, SigningKeys};
use crate::hashing::HashingSettings;
use crate::store::postgres::{PoolMode, PostgresSettings};
use crate::telemetry::audit::{AuditFileSettings, AuditMode, Rotation};

/// Lowest bcrypt cost that resists guessing with a stolen hash (OWASP Password Storage).
pub(crate) const MIN_SAFE_BCRYPT_COST: u32 = 12;
/// HS256 requires a key at least as long as its hash (RFC 7518, section 3.2).
const MIN_KEY_BYTES: usize = 32;
/// More threads than a machine has cores; each is a thread of the operating system.
const MAX_HASHING_THREADS: usize = 1024;
const HASHING_THREADS: &str = "a whole number from 1 to 1024";
/// Fewer different bytes show that a key is not random: 32 random hexadecimal digits have fewer with
/// a probability below 10⁻⁷.
const MIN_DISTINCT_KEY_BYTES: usize = 8;
/// Substrings of keys in examples.
const EXAMPLE_KEY_PARTS: [&str; 5] = [
    "change-me",
    "change_me",
    "changeme",
    "your-secret",
    "your_secret",
];
const BCRYPT_COST_RANGE: RangeInclusive<u32> = 4..=20;
/// Costlier hashes that an import brings along take seconds each.
const DEFAULT_MAX_BCRYPT_COST: u32 = 15;
/// Tokens have a resolution of a second, and the stores cannot represent times millennia away.
const LIFETIME_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(10 * 365 * 24);

/// Audience of tokens that are signed with a private key: this service.
const DEFAULT_AUDIENCE: &str = "auth-api";

/// Longest time in which a used refresh token may be presented again although its successor was used.
const MAX_REFRESH_GRACE: Duration = Duration::from_mins(5);

/// Smallest size at which a file of the audit log is rotated: some records.
const MIN_AUDIT_FILE_BYTES: u64 = 4096;
/// Rotation renames each file that is kept.
const MAX_AUDIT_FILES: u32 = 1000;

/// All settings, validated.
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) internal_listen: SocketAddr,
    pub(crate) store: StoreSettings,
    pub(crate) migrate: MigrateMode,
    pub(crate) secret_keys: SecretKeys,
    pub(crate) signing_keys: SigningKeys,
    pub(crate) access_tokens: AccessTokenPolicy,
    pub(crate) session_policy: SessionPolicy,
    pub(crate) hashing: HashingSettings,
    pub(crate) logging: LogSettings,
    /// `None`: the audit log is a part of the log on standard output.
    pub(crate) audit: Option<AuditFileSettings>,
}

/// Stores of users and sessions.
pub(crate) enum StoreSettings {
    Servers {
        postgres: Box<PostgresSettings>,
        redis: Box<fred::types::config::Config>,
    },
    /// Embedded store.
    File(PathBuf),
}

/// Time at which migrations are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MigrateMode {
    AtStart,
    ByCommand,
}

/// Environment variables of the process and, in development, of a `.env` file.
pub(crate) struct Environment(HashMap<OsString, OsString>);

impl Environment {
    /// Reads the variables. Those of the process override those of `.env` in the working directory.
    pub(crate) fn read() -> Result<Self> {
        let mut variables = HashMap::new();
        match dotenvy::dotenv_iter() {
            Ok(lines) => {
                for line in lines {
                    let (name, value) = line.context("reading .env")?;
                    variables.insert(name.into(), value.into());
                }
            }
            Err(error) if error.not_found() => {}
            Err(error) => return Err(error).context("reading .env"),
        }
        variables.extend(std::env::vars_os());
        Ok(Self(variables))
    }

    /// Returns the value of a variable. An empty one counts as unset.
    ///
    /// # Errors
    /// Returns an error if the value is not UTF-8. Variables that are no settings may be.
    fn variable(&self, name: &str) -> Result<Option<&str>> {
        let Some(value) = self.0.get(OsStr::new(name)) else {
            return Ok(None);
        };
        let text = value
            .to_str()
            .with_context(|| format!("{name} is not UTF-8"))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn is_set(&self, name: &str) -> Result<bool> {
        let file_variable = format!("{name}_FILE");
        Ok(self.variable(name)?.is_some() || self.variable(&file_variable)?.is_some())
    }

    /// Returns the value of a variable, or the contents of the file that `NAME_FILE` names (Docker secrets).
    fn get(&self, name: &str) -> Result<Option<String>> {
        let file_variable = format!("{name}_FILE");
        match (self.variable(name)?, self.variable(&file_variable)?) {
            (Some(_), Some(_)) => {
                bail!("{name} and {file_variable} are both set: set only one of them")
            }
            (Some(value), None) => Ok(Some(value.to_owned())),
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

    fn parsed<T: FromStr>(&self, name: &str, default: &str, expected: &str) -> Result<T> {
        let value = self.text(name, default)?;
        value
            .parse()
            .ok()
            .with_context(|| format!("{name} is {value:?}: it must be {expected}"))
    }

    fn port(&self, name: &str, default: &str) -> Result<u16> {
        let port: NonZeroU16 = self.parsed(name, default, "a port, 1 to 65535")?;
        Ok(port.get())
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
        if !LIFETIME_RANGE.contains(&lifetime) {
            let (min, max) = (
                LIFETIME_RANGE.start().as_secs(),
                LIFETIME_RANGE.end().as_secs(),
            );
            bail!("{name} must be from {min} to {max} seconds");
        }
        Ok(lifetime)
    }
}

impl Config {
    /// Reads every setting.
    ///
    /// # Errors
    /// Returns an error that names the first setting that is missing or invalid.
    pub(crate) fn read(environment: &Environment) -> Result<Self> {
        Ok(Self {
            listen: listen(environment)?,
            internal_listen: environment.parsed(
                "AUTH_API_INTERNAL_LISTEN",
                "0.0.0.0:9902",
                ADDRESS,
            )?,
            store: store(environment)?,
            migrate: migrate(environment)?,
            secret_keys: secret_keys(environment)?,
            signing_keys: signing_keys(environment)?,
            access_tokens: access_tokens(environment)?,
            session_policy: session_policy(environment)?,
            hashing: hashing(environment)?,
            logging: logging(environment)?,
            audit: audit(environment)?,
        })
    }
}

const ADDRESS: &str = "an address with a port, such as 0.0.0.0:8000";

/// Returns the address of the public listener.
pub(crate) fn listen(environment: &Environment) -> Result<SocketAddr> {
    environment.parsed("AUTH_API_LISTEN", "0.0.0.0:8000", ADDRESS)
}

/// Returns the logging settings.
pub(crate) fn logging(environment: &Environment) -> Result<LogSettings> {
    let level = environment.get("LOG_LEVEL")?;
    let format = environment.get("LOG_FORMAT")?;
    Ok(LogSettings::parse(level.as_deref(), format.as_deref())?)
}

/// Returns the settings of the audit log if it has a file of its own.
pub(crate) fn audit(environment: &Environment) -> Result<Option<AuditFileSettings>> {
    let mode = environment.text("AUDIT_LOG_MODE", "best-effort")?;
    let mode = match mode.as_str() {
        "best-effort" => AuditMode::BestEffort,
        "required" => AuditMode::Required,
        _ => bail!("AUDIT_LOG_MODE is {mode:?}: it must be best-effort or required"),
    };
    let max_bytes: u64 = environment.parsed(
        "AUDIT_LOG_MAX_BYTES",
        "104857600",
        "a whole number of bytes",
    )?;
    if max_bytes < MIN_AUDIT_FILE_BYTES {
        bail!("AUDIT_LOG_MAX_BYTES is {max_bytes}: it must be at least {MIN_AUDIT_FILE_BYTES}");
    }
    let kept_files: u32 = environment.parsed("AUDIT_LOG_FILES", "20", "a whole number")?;
    if kept_files > MAX_AUDIT_FILES {
        bail!("AUDIT_LOG_FILES is {kept_files}: it must be at most {MAX_AUDIT_FILES}");
    }
    let Some(path) = environment.variable("AUDIT_LOG")? else {
        if mode == AuditMode::Required {
            bail!("AUDIT_LOG_MODE is required, but AUDIT_LOG names no file");
        }
        return Ok(None);
    };
    Ok(Some(AuditFileSettings {
        path: path.into(),
        rotation: match kept_files {
            0 => Rotation::External,
            _ => Rotation::BySize {
                max_bytes,
                kept_files,
            },
        },
        mode,
    }))
}

/// Settings of PostgreSQL: the URL, or any of the others, for which the Python service has defaults.
const POSTGRES: (&str, &[&str]) = (
    "DATABASE_URL",
    &["DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_TABLE"],
);
/// Settings of Redis, likewise.
const REDIS: (&str, &[&str]) = (
    "REDIS_URL",
    &["REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"],
);

/// Returns the stores: both servers, or the embedded one if neither server is configured.
pub(crate) fn store(environment: &Environment) -> Result<StoreSettings> {
    match (
        configured_by(environment, POSTGRES)?,
        configured_by(environment, REDIS)?,
    ) {
        (None, None) => {
            let directory: PathBuf = environment.text("DATA_DIR", "data")?.into();
            Ok(StoreSettings::File(directory.join("auth.db")))
        }
        (Some(_), Some(_)) => Ok(StoreSettings::Servers {
            postgres: Box::new(postgres(environment)?),
            redis: Box::new(redis(environment)?),
        }),
        (Some(name), None) => bail!(
            "{name} configures PostgreSQL, but no REDIS_HOST, REDIS_URL or other REDIS_ setting configures Redis: \
             configure both servers, or neither for the embedded store"
        ),
        (None, Some(name)) => bail!(
            "{name} configures Redis, but no DB_HOST, DATABASE_URL or other DB_ setting configures PostgreSQL: \
             configure both servers, or neither for the embedded store"
        ),
    }
}

/// Returns a setting that configures the server, or `None` if there is none.
fn configured_by(
    environment: &Environment,
    (url, others): (&'static str, &[&'static str]),
) -> Result<Option<&'static str>> {
    let mut other = None;
    for name in others {
        if other.is_none() && environment.is_set(name)? {
            other = Some(*name);
        }
    }
    match (environment.is_set(url)?.then_some(url), other) {
        (Some(url), Some(other)) => {
            bail!("{url} and {other} are both set: set either the URL or the individual settings")
        }
        (url, other) => Ok(url.or(other)),
    }
}

fn postgres(environment: &Environment) -> Result<PostgresSettings> {
    let options = match environment.get("DATABASE_URL")? {
        // The parser's error may contain the URL with its password.
        Some(url) => Some(&url)
            .filter(|url| has_scheme(url, ["postgres", "postgresql"]))
            .and_then(|url| url.parse().ok())
            .context(
                "DATABASE_URL must look like postgres://user:password@host:5432/database?sslmode=require",
            )?,
        None => PgConnectOptions::new_without_pgpass()
            .host(&environment.text("DB_HOST", "localhost")?)
            .port(environment.port("DB_PORT", "5432")?)
            .username(&environment.text("DB_USER", "auth_user")?)
            .password(&environment.text("DB_PASSWORD", "password")?)
            .database(&environment.text("DB_TABLE", "auth")?),
    };
    let pool_mode = environment.text("DB_POOL_MODE", "session")?;
    Ok(PostgresSettings {
        // PgBouncer rejects a startup parameter that it does not know. No column is a float.
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

fn redis(environment: &Environment) -> Result<fred::types::config::Config> {
    use fred::types::config::{Config, ServerConfig};
    if let Some(url) = environment.get("REDIS_URL")? {
        return redis_connection::parse_redis_url(&url, Deployments::Primary)
            .map_err(|error| anyhow!("REDIS_URL {error}"));
    }
    Ok(Config {
        server: ServerConfig::new_centralized(
            environment.text("REDIS_HOST", "localhost")?,
            environment.port("REDIS_PORT", "6379")?,
        ),
        password: environment.get("REDIS_PASSWORD")?,
        database: Some(environment.parsed("REDIS_DB", "0", "a database number, 0 to 255")?),
        ..Config::default()
    })
}

/// Returns whether the URL has one of `schemes`. The parsers of the libraries accept any.
fn has_scheme(url: &str, schemes: [&str; 2]) -> bool {
    url.split_once("://").is_some_and(|(scheme, _)| {
        schemes
            .iter()
            .any(|known| scheme.eq_ignore_ascii_case(known))
    })
}

fn migrate(environment: &Environment) -> Result<MigrateMode> {
    let migrate = environment.text("MIGRATE", "start")?;
    match migrate.as_str() {
        "start" => Ok(MigrateMode::AtStart),
        "command" => Ok(MigrateMode::ByCommand),
        _ => bail!(
            "MIGRATE is {migrate:?}: it must be start, or command to apply migrations only with `auth-api migrate`"
        ),
    }
}

/// Returns the durations that bound a session.
pub(crate) fn session_policy(environment: &Environment) -> Result<SessionPolicy> {
    let max_age = environment
        .is_set("SESSION_MAX_AGE")?
        .then(|| environment.lifetime("SESSION_MAX_AGE", ""))
        .transpose()?;
    let grace: f64 = environment.parsed("REFRESH_TOKEN_GRACE", "10", "a number of seconds")?;
    let refresh_grace = Duration::try_from_secs_f64(grace)
        .ok()
        .filter(|grace| *grace <= MAX_REFRESH_GRACE)
        .with_context(|| {
            let max = MAX_REFRESH_GRACE.as_secs();
            format!("REFRESH_TOKEN_GRACE is {grace}: it must be from 0 to {max} seconds")
        })?;
    Ok(SessionPolicy {
        lifetime: environment.lifetime("REFRESH_TOKEN_TTL", "2592000")?,
        max_age,
        refresh_grace,
    })
}

/// Returns the key that signs tokens, with those that verify them too while a key is rotated.
fn secret_keys(environment: &Environment) -> Result<SecretKeys> {
    let current = environment.get("SECRET_KEY")?.context(
        "SECRET_KEY is not set: it signs access tokens and must have at least 32 bytes \
         (openssl rand -base64 48)",
    )?;
    let current = secret_key("SECRET_KEY", &current)?;
    let mut verifying_only = Vec::new();
    for name in ["SECRET_KEY_PREVIOUS", "SECRET_KEY_NEXT"] {
        let keys = environment.get(name)?.unwrap_or_default();
        verifying_only.extend(verifying_keys(name, &keys)?);
    }
    Ok(SecretKeys::new(current, verifying_only))
}

/// Returns the keys in `text`, which white space separates. `SECRET_KEY` may contain white space
/// itself, so such a text is also a key as a whole.
fn verifying_keys(name: &str, text: &str) -> Result<Vec<SecretSlice<u8>>> {
    let words: Vec<_> = text.split_whitespace().collect();
    let is_phrase = words.iter().all(|word| word.len() < MIN_KEY_BYTES);
    let keys = match words[..] {
        [] => return Ok(Vec::new()),
        _ if is_phrase => vec![text],
        [word] if word == text => vec![word],
        _ => [&words[..], &[text]].concat(),
    };
    keys.into_iter().map(|key| secret_key(name, key)).collect()
}

fn secret_key(name: &str, key: &str) -> Result<SecretSlice<u8>> {
    if key.len() < MIN_KEY_BYTES {
        bail!(
            "{name} has {} bytes: it must have at least {MIN_KEY_BYTES} (openssl rand -base64 48)",
            key.len()
        );
    }
    if key.bytes().collect::<HashSet<_>>().len() < MIN_DISTINCT_KEY_BYTES {
        bail!(
            "{name} repeats a few characters and could be guessed: generate one (openssl rand -base64 48)"
        );
    }
    let lower = key.to_lowercase();
    if EXAMPLE_KEY_PARTS
        .iter()
        .any(|example| lower.contains(example))
    {
        bail!("{name} is a key from an example: generate your own (openssl rand -base64 48)");
    }
    Ok(key.as_bytes().to_vec().into())
}

/// Returns the private keys that sign access tokens, with those that verify them too while a key is rotated.
fn signing_keys(environment: &Environment) -> Result<SigningKeys> {
    let mut current = private_keys(environment, "SIGNING_KEY")?;
    if current.len() > 1 {
        bail!(
            "SIGNING_KEY holds {} keys: put the one that signs into it, and the others into SIGNING_KEY_PREVIOUS \
             or SIGNING_KEY_NEXT",
            current.len()
        );
    }
    let mut verifying_only = Vec::new();
    for name in ["SIGNING_KEY_NEXT", "SIGNING_KEY_PREVIOUS"] {
        verifying_only.extend(private_keys(environment, name)?);
    }
    Ok(SigningKeys::new(current.pop(), &verifying_only))
}

fn private_keys(environment: &Environment, name: &str) -> Result<Vec<SigningKey>> {
    let text = environment.get(name)?.unwrap_or_default();
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    SigningKey::from_pem(&text).map_err(|error| {
        anyhow!("{name} has {error}: create one with `openssl genpkey -algorithm ed25519`")
    })
}

fn access_tokens(environment: &Environment) -> Result<AccessTokenPolicy> {
    let symmetric_tokens = environment.text("HS256_TOKENS", "accept")?;
    let symmetric_tokens = match symmetric_tokens.as_str() {
        "accept" => SymmetricTokens::Accept,
        "reject" if private_keys(environment, "SIGNING_KEY")?.is_empty() => bail!(
            "HS256_TOKENS is reject, but there is no SIGNING_KEY: tokens would be signed with SECRET_KEY and rejected"
        ),
        "reject" => SymmetricTokens::Reject,
        _ => bail!("HS256_TOKENS is {symmetric_tokens:?}: it must be accept or reject"),
    };
    let audiences = environment.text("TOKEN_AUDIENCE", DEFAULT_AUDIENCE)?;
    let audiences: Vec<_> = audiences
        .split([',', ' '])
        .filter(|audience| !audience.is_empty())
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        bail!("TOKEN_AUDIENCE names no audience: it must be names that commas or spaces separate");
    }
    Ok(AccessTokenPolicy {
        lifetime: environment.lifetime("ACCESS_TOKEN_TTL", "86400")?,
        issuer: environment.text("TOKEN_ISSUER", DEFAULT_ISSUER)?,
        audiences,
        symmetric_tokens,
    })
}

/// Returns the hashing settings.
pub(crate) fn hashing(environment: &Environment) -> Result<HashingSettings> {
    let cost = environment.parsed("BCRYPT_COST", "12", "a whole number")?;
    if !BCRYPT_COST_RANGE.contains(&cost) {
        bail!(
            "BCRYPT_COST is {cost}: it must be from {} to {}",
            BCRYPT_COST_RANGE.start(),
            BCRYPT_COST_RANGE.end()
        );
    }
    let default_max_cost = DEFAULT_MAX_BCRYPT_COST.max(cost).to_string();
    let max_cost = environment.parsed("BCRYPT_MAX_COST", &default_max_cost, "a whole number")?;
    if !(cost..=*BCRYPT_COST_RANGE.end()).contains(&max_cost) {
        bail!(
            "BCRYPT_MAX_COST is {max_cost}: it must be from BCRYPT_COST, {cost}, to {}",
            BCRYPT_COST_RANGE.end()
        );
    }
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    Ok(HashingSettings {
        cost,
        max_cost,
        threads: environment
            .parsed("HASHING_THREADS", &cores.to_string(), HASHING_THREADS)
            .and_then(|threads: NonZeroUsize| match threads.get() {
                ..=MAX_HASHING_THREADS => Ok(threads),
                _ => bail!("HASHING_THREADS is {threads}: it must be {HASHING_THREADS}"),
            })?,
        max_wait: environment.seconds("HASHING_MAX_WAIT", "2")?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::domain::signing_keys::tests::{KEY, OTHER_KEY};

    fn read(variables: &[(&str, &str)]) -> Result<Config> {
        let key = ("SECRET_KEY", "0123456789abcdef0123456789abcdef");
        let all = std::iter::once(&key).chain(variables);
        let set = all.map(|(name, value)| (name.into(), value.into()));
        Config::read(&Environment(set.collect()))
    }

    #[test]
    fn an_error_names_the_invalid_setting() {
        for (variable, value) in [
            ("SECRET_KEY", ""),
            ("SECRET_KEY", "short"),
            ("SECRET_KEY", "change-me-please-change-me-please-change-me"),
            ("SECRET_KEY_PREVIOUS", "short"),
            ("SECRET_KEY_NEXT", "0123456789abcdef0123456789abcdef short"),
            ("SECRET_KEY", &"a".repeat(64)),
            ("SECRET_KEY", &"abcdefg".repeat(8)),
            ("SECRET_KEY_PREVIOUS", &"0".repeat(32)),
            ("SIGNING_KEY", "0123456789abcdef0123456789abcdef"),
            ("SIGNING_KEY", &format!("{KEY}{OTHER_KEY}")),
            ("SIGNING_KEY_PREVIOUS", &KEY[..60]),
            ("SIGNING_KEY_NEXT", "-----BEGIN PUBLIC KEY-----"),
            ("HS256_TOKENS", "never"),
            ("HS256_TOKENS", "reject"),
            ("TOKEN_AUDIENCE", ", "),
            ("DB_HOST", "localhost"),
            ("REDIS_HOST", "localhost"),
            ("BCRYPT_COST", "3"),
            ("BCRYPT_COST", "many"),
            ("BCRYPT_MAX_COST", "11"),
            ("BCRYPT_MAX_COST", "21"),
            ("BCRYPT_MAX_COST", "many"),
            ("LOG_LEVEL", "LOUD"),
            ("ACCESS_TOKEN_TTL", "-1"),
            ("ACCESS_TOKEN_TTL", "0.5"),
            ("REFRESH_TOKEN_TTL", "1e13"),
            ("SESSION_MAX_AGE", "0"),
            ("REFRESH_TOKEN_GRACE", "301"),
            ("REFRESH_TOKEN_GRACE", "-1"),
            ("AUTH_API_LISTEN", "8000"),
            ("HASHING_THREADS", "0"),
            ("HASHING_THREADS", "1025"),
            ("MIGRATE", "never"),
            ("AUDIT_LOG_MODE", "strict"),
            ("AUDIT_LOG_MODE", "required"),
            ("AUDIT_LOG_MAX_BYTES", "100"),
            ("AUDIT_LOG_FILES", "-1"),
            ("AUDIT_LOG_FILES", "1001"),
        ] {
            let error = read(&[(variable, value)])
                .err()
                .expect(variable)
                .to_string();
            assert!(error.contains(variable), "{variable}={value}: {error}");
        }
        let url = ("DATABASE_URL", "postgres://db/auth");
        let twice = [url, ("DB_TABLE", "auth"), ("REDIS_HOST", "redis")];
        let error = read(&twice).err().expect("both are set").to_string();
        assert!(error.contains("DATABASE_URL and DB_TABLE"), "{error}");
        let servers = [("DB_HOST", "db"), ("REDIS_HOST", "redis")];
        for (variable, value) in [
            ("DB_PORT", "0"),
            ("REDIS_PORT", "65536"),
            ("DATABASE_URL", "mysql://db/auth"),
            ("REDIS_URL", "http://redis:6379"),
        ] {
            let servers = match variable {
                "DB_PORT" | "DATABASE_URL" => [("REDIS_HOST", "redis"), (variable, value)],
                _ => [("DB_HOST", "db"), (variable, value)],
            };
            let error = read(&servers).err().expect(variable).to_string();
            assert!(error.contains(variable), "{variable}={value}: {error}");
        }
        let invalid_mode = [servers[0], servers[1], ("DB_POOL_MODE", "statement")];
        let error = read(&invalid_mode).err().expect("no such mode").to_string();
        assert!(error.contains("DB_POOL_MODE"), "{error}");
    }

    #[test]
    fn previous_and_next_keys_are_separated_by_white_space() {
        use secrecy::ExposeSecret;
        let verifying = |variables: &[(&str, &str)]| -> Vec<String> {
            let keys = read(variables).unwrap().secret_keys;
            let text = |key: &SecretSlice<u8>| key.expose_secret().to_vec();
            keys.verifying()
                .skip(1)
                .map(|key| String::from_utf8(text(key)).unwrap())
                .collect()
        };
        let [one, two, three] =
            [1, 2, 3].map(|number| format!("0123456789abcdef-0123456789abcdef-{number}"));
        let previous = format!("{one}\n{two}\n");
        let set = [
            ("SECRET_KEY_PREVIOUS", previous.as_str()),
            ("SECRET_KEY_NEXT", three.as_str()),
        ];
        let keys = verifying(&set);
        for key in [&one, &two, &three] {
            assert!(keys.contains(key), "{key}");
        }
        assert!(verifying(&[("SECRET_KEY_NEXT", " \n")]).is_empty());
        let phrase = "a passphrase of more than thirty-two bytes";
        assert_eq!(verifying(&[("SECRET_KEY_PREVIOUS", phrase)]), [phrase]);
    }

    #[test]
    fn blank_signing_keys_are_unset_and_previous_ones_may_be_several() {
        let config = read(&[("SIGNING_KEY", "\n"), ("SIGNING_KEY_NEXT", " ")]).unwrap();
        assert!(config.signing_keys.current().is_none());
        let previous = format!("{KEY}{OTHER_KEY}");
        let set = [
            ("SIGNING_KEY_PREVIOUS", previous.as_str()),
            ("TOKEN_AUDIENCE", "auth-api, orders"),
        ];
        let config = read(&set).unwrap();
        assert!(config.signing_keys.current().is_none());
        assert_eq!(config.access_tokens.audiences, ["auth-api", "orders"]);
        let rejecting = [("SIGNING_KEY", KEY), ("HS256_TOKENS", "reject")];
        let config = read(&rejecting).unwrap();
        assert!(config.signing_keys.current().is_some());
        assert_eq!(
            config.access_tokens.symmetric_tokens,
            SymmetricTokens::Reject
        );
    }

    #[test]
    fn a_redis_without_one_primary_is_rejected() {
        for (scheme, deployment) in [
            ("redis-cluster", "Cluster"),
            ("rediss-cluster", "Cluster"),
            ("valkey-cluster", "Cluster"),
            ("redis+unix", "Unix socket"),
        ] {
            let url = format!("{scheme}://:a-password@redis:6379/0?sentinelServiceName=main");
            let servers = [("DB_HOST", "db"), ("REDIS_URL", url.as_str())];
            let error = read(&servers).err().expect(scheme).to_string();
            assert!(
                error.contains("REDIS_URL") && error.contains(deployment),
                "{error}"
            );
            assert!(!error.contains("a-password"), "{error}");
        }
        let sentinels = |url| read(&[("DB_HOST", "db"), ("REDIS_URL", url)]);
        assert!(sentinels("Redis-Sentinel://:a-password@redis/0?sentinelServiceName=main").is_ok());
        let error = sentinels("redis-sentinel://:a-password@redis/0");
        let error = error.err().expect("it has no service").to_string();
        assert!(error.contains("sentinelServiceName"), "{error}");
        assert!(!error.contains("a-password"), "{error}");
    }

    #[test]
    fn a_setting_that_is_not_utf8_is_an_error_and_another_variable_is_not() {
        let not_utf8 = OsString::from_vec(b"\xff".to_vec());
        let key = (
            "SECRET_KEY".into(),
            "0123456789abcdef0123456789abcdef".into(),
        );
        for name in ["LOG_LEVEL", "DB_HOST", "SECRET_KEY_FILE", "REDIS_URL"] {
            let variables = [key.clone(), (name.into(), not_utf8.clone())];
            let error = Config::read(&Environment(variables.into())).err();
            let error = error.expect(name).to_string();
            assert_eq!(error, format!("{name} is not UTF-8"));
        }
        let variables = [key, ("LS_COLORS".into(), not_utf8)];
        assert!(Config::read(&Environment(variables.into())).is_ok());
    }

    #[test]
    fn the_maximum_cost_of_stored_hashes_is_at_least_that_of_new_ones() {
        for (variables, expected) in [
            (&[][..], 15),
            (&[("BCRYPT_COST", "16")], 16),
            (&[("BCRYPT_MAX_COST", "12")], 12),
        ] {
            assert_eq!(read(variables).unwrap().hashing.max_cost, expected);
        }
    }

    #[test]
    fn without_a_server_the_embedded_store_is_used() {
        let config = read(&[("DATA_DIR", "here")]).unwrap();
        assert!(
            matches!(config.store, StoreSettings::File(file) if file.ends_with("here/auth.db"))
        );
    }

    #[test]
    fn any_setting_of_a_server_configures_it_and_the_others_have_defaults() {
        for both in [
            [("DB_HOST", "db"), ("REDIS_HOST", "redis")],
            [("DB_USER", "someone"), ("REDIS_DB", "3")],
            [("DB_PASSWORD", "secret"), ("REDIS_URL", "redis://redis")],
            [
                ("DATABASE_URL", "postgres://db/auth"),
                ("REDIS_PORT", "6380"),
            ],
        ] {
            let StoreSettings::Servers { postgres, .. } = read(&both).unwrap().store else {
                panic!("{both:?}");
            };
            assert!(!format!("{postgres:?}").contains("secret"));
        }
        for one in ["DB_PORT", "REDIS_DB"] {
            let error = read(&[(one, "1")]).err().expect(one).to_string();
            assert!(error.contains(one), "{error}");
        }
    }
}
