//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a condition may take before the test fails: far beyond what any should need,
/// since a busy machine must not fail a test.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// Asks `condition` again and again until it holds.
///
/// # Errors
/// When it does not within [`PATIENCE`]; the error names `what`.
pub async fn until<F>(what: &str, condition: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = bool>,
{
    let start = Instant::now();
    while !condition().await {
        if start.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} for {what}");
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
