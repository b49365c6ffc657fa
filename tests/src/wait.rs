//! Waiting for a condition instead of a fixed time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time after which a condition that does not hold fails the test: far more than any should need,
/// so that a busy machine fails no test.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between two checks of a condition.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Checks `condition` repeatedly until it holds.
///
/// # Errors
/// Returns an error that names `description` if the condition does not hold within [`TIMEOUT`].
pub async fn until<F>(description: &str, condition: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = bool>,
{
    let start = Instant::now();
    while !condition().await {
        if start.elapsed() > TIMEOUT {
            bail!("timed out after {TIMEOUT:?} waiting for {description}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}
