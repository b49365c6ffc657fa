//! The signals that end a gateway, and the one that must not.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// How long SIGQUIT may come before the gateway that takes over is there.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// From now on SIGHUP ends nobody, as it would until somebody waits for it.
///
/// # Errors
/// When signals cannot be watched.
pub(crate) fn survive_hangups() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("watching for SIGHUP")?;
    let _inside = runtime.enter();
    // The process keeps what this installs.
    signal(SignalKind::hangup())
        .map(drop)
        .context("watching for SIGHUP")
}

/// SIGTERM ends the gateway, SIGINT at once; SIGQUIT hands its sockets over, if there is somebody to
/// take them.
#[derive(Debug)]
pub(crate) struct Endings {
    /// Where a gateway that takes over waits.
    pub(crate) upgrade_socket: PathBuf,
}

#[async_trait]
impl ShutdownSignalWatch for Endings {
    async fn recv(&self) -> ShutdownSignal {
        let (mut quit, mut terminate, mut interrupt) = (
            watch(SignalKind::quit()),
            watch(SignalKind::terminate()),
            watch(SignalKind::interrupt()),
        );
        let handed_over = async {
            loop {
                quit.recv().await;
                if self.is_awaited().await {
                    return;
                }
                let socket = self.upgrade_socket.display();
                tracing::error!(
                    %socket,
                    "SIGQUIT without a gateway that takes over: start one with `gateway run --upgrade` first; this one goes on"
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

impl Endings {
    /// Whether a gateway waits for our sockets, or does soon.
    async fn is_awaited(&self) -> bool {
        let end = Instant::now() + PATIENCE;
        while !self.is_listened_at() {
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
        true
    }

    /// As the kernel lists it, since to connect would be to begin.
    fn is_listened_at(&self) -> bool {
        /// `__SO_ACCEPTCON`, as proc(5) has it for /proc/net/unix.
        const LISTENING: &str = "00010000";
        let Ok(sockets) = std::fs::read_to_string("/proc/net/unix") else {
            return true;
        };
        let path = self.upgrade_socket.to_string_lossy();
        sockets.lines().any(|line| {
            let mut fields = line.split_ascii_whitespace();
            fields.nth(3) == Some(LISTENING) && fields.last() == Some(&path)
        })
    }
}

fn watch(kind: SignalKind) -> Signal {
    signal(kind).expect("a process can watch for the signals that end it")
}
