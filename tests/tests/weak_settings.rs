//! Settings of auth-api that would make passwords or tokens easy to guess.

use anyhow::Result;
use tests::command::{bound_command, program_path};
use tests::replicas::Replicas;
use tests::settings::settings;
use tests::{Store, wait};

/// Keys that anyone could find, each with a part of the reason.
const WEAK_KEYS: [(&str, &str); 4] = [
    ("", "SECRET_KEY is not set"),
    (
        "0123456789abcdef0123456789abcde",
        "31 bytes: it must have at least 32",
    ),
    (
        "change-me-please-change-me-please-change-me",
        "from an example",
    ),
    ("abababababababababababababababababababab", "SECRET_KEY"),
];

#[test]
fn a_key_that_can_be_guessed_stops_the_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (key, reason) in WEAK_KEYS {
        let mut command = bound_command(program_path("auth-api"));
        command
            .env_clear()
            .env("SECRET_KEY", key)
            .env("DATA_DIR", folder.path())
            .current_dir(folder.path());
        let output = command.output()?;
        assert!(!output.status.success(), "{key}");
        let error = String::from_utf8(output.stderr)?;
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(reason), "{error}");
        assert!(key.is_empty() || !error.contains(key), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn a_hash_cost_under_twelve_is_a_warning() -> Result<()> {
    const WARNING: &str = "BCRYPT_COST is too low for production";
    let start = async |cost: &str| {
        let settings = settings([("BCRYPT_COST", cost.to_owned())]);
        Replicas::start_with(Store::Embedded, 1, settings).await
    };
    let low = start("11").await?;
    let log = || low.instances[0].process.log();
    wait::until("the warning", async || log().contains(WARNING)).await?;
    let sufficient = start("12").await?;
    let log = sufficient.instances[0].process.log();
    assert!(!log.contains(WARNING), "{log}");
    Ok(())
}
