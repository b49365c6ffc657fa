//! Settings of the programs under test, which are environment variables.

use std::net::SocketAddr;
use std::path::Path;

use crate::postgres;

/// Environment variables by name. A later entry overrides an earlier one of the same name.
pub type Settings = Vec<(String, String)>;

/// Returns settings from pairs of name and value.
#[must_use]
pub fn settings<const N: usize>(pairs: [(&str, String); N]) -> Settings {
    pairs.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Returns auth-api's settings for the database `name` of a PostgreSQL server of the harness.
#[must_use]
pub fn postgres_settings(server: SocketAddr, name: &str) -> Settings {
    settings([
        ("DB_HOST", server.ip().to_string()),
        ("DB_PORT", server.port().to_string()),
        ("DB_USER", postgres::USER.to_owned()),
        ("DB_PASSWORD", postgres::PASSWORD.to_owned()),
        ("DB_TABLE", name.to_owned()),
    ])
}

/// Returns auth-api's settings for a Redis server.
#[must_use]
pub fn redis_settings(server: SocketAddr) -> Settings {
    settings([
        ("REDIS_HOST", server.ip().to_string()),
        ("REDIS_PORT", server.port().to_string()),
    ])
}

/// Returns the settings of every replica whose files are in `folder`.
pub(crate) fn replica_defaults(folder: &Path) -> Settings {
    settings([
        (
            "SECRET_KEY",
            "a key for tests alone, of more than 32 bytes".to_owned(),
        ),
        ("DATA_DIR", folder.join("data").display().to_string()),
        // Hashes of the production cost would take most of a test's time.
        ("BCRYPT_COST", "4".to_owned()),
        ("LOG_LEVEL", "DEBUG".to_owned()),
        ("LOG_FORMAT", "json".to_owned()),
    ])
}

/// Returns true if `settings` has an entry of the name `name`.
pub(crate) fn is_set(settings: &Settings, name: &str) -> bool {
    settings.iter().any(|(setting, _)| setting == name)
}
