//! SIGHUP, which must not end the process.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Installs a handler for SIGHUP, whose default action would terminate the process before the reload
/// task listens for it.
///
/// # Errors
/// Returns an error if signal handlers cannot be installed.
pub(crate) fn ignore_sighup() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("installing a handler for SIGHUP")?;
    let _entered = runtime.enter();
    // The handler stays installed when the stream is dropped.
    signal(SignalKind::hangup())
        .map(drop)
        .context("installing a handler for SIGHUP")
}
