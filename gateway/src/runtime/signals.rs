//! Signals: SIGTERM, SIGINT and SIGQUIT end the process, SIGHUP must not.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use rustix::process::geteuid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// Longest time between SIGQUIT and the start of the new gateway.
const NEW_GATEWAY_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

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

/// Shutdown signals: SIGTERM drains, SIGINT ends at once, and SIGQUIT hands the listening sockets over
/// to a new gateway and then drains. SIGQUIT is ignored if no new gateway waits for the sockets.
#[derive(Debug)]
pub(crate) struct ShutdownSignals {
    /// Unix socket at which the new gateway waits.
    pub(crate) upgrade_socket: PathBuf,
}

#[async_trait]
impl ShutdownSignalWatch for ShutdownSignals {
    async fn recv(&self) -> ShutdownSignal {
        let (mut quit, mut terminate, mut interrupt) = (
            signal_stream(SignalKind::quit()),
            signal_stream(SignalKind::terminate()),
            signal_stream(SignalKind::interrupt()),
        );
        let handed_over = async {
            loop {
                quit.recv().await;
                if self.new_gateway_waits().await {
                    return;
                }
                let socket = self.upgrade_socket.display();
                tracing::error!(
                    %socket,
                    "SIGQUIT ignored: no new gateway waits for the sockets; start it with `gateway run --upgrade` first"
                );
            }
        };
        tokio::select! {
            () = handed_over => ShutdownSignal::GracefulUpgrade,
            _ = terminate.recv() => ShutdownSignal::GracefulTerminate,
            _ = interrupt.recv() => ShutdownSignal::FastShutdown,
        }
    }
}

impl ShutdownSignals {
    /// Returns whether a new gateway waits for the sockets within [`NEW_GATEWAY_TIMEOUT`].
    async fn new_gateway_waits(&self) -> bool {
        let deadline = Instant::now() + NEW_GATEWAY_TIMEOUT;
        while !self.has_listener() {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        true
    }

    /// Returns whether a process of this user listens at the socket, by the owner of the file and
    /// the kernel's list: connecting would start the transfer.
    fn has_listener(&self) -> bool {
        /// `__SO_ACCEPTCON`, as proc(5) has it for /proc/net/unix.
        const SO_ACCEPTCON_FLAG: &str = "00010000";
        // The new gateway takes sockets from its own user, and another user's socket would take ours.
        let owner = std::fs::symlink_metadata(&self.upgrade_socket).map(|metadata| metadata.uid());
        if !owner.is_ok_and(|uid| uid == geteuid().as_raw()) {
            return false;
        }
        let Ok(sockets) = std::fs::read_to_string("/proc/net/unix") else {
            return true;
        };
        let path = self.upgrade_socket.to_string_lossy();
        sockets.lines().any(|line| {
            let mut fields = line.split_ascii_whitespace();
            fields.nth(3) == Some(SO_ACCEPTCON_FLAG) && fields.last() == Some(&path)
        })
    }
}

fn signal_stream(kind: SignalKind) -> Signal {
    signal(kind).expect("the process can install a handler for this signal")
}
