//! Waiting for a condition that takes longer than those of the tests: for minutes, not seconds.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Checks `condition` repeatedly until it holds.
///
/// # Errors
/// Returns an error of the condition, or one that names `description` after `limit`.
pub(crate) fn until(
    description: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        ensure!(
            start.elapsed() < limit,
            "timed out after {limit:?} waiting for {description}"
        );
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
