//! Signals that end the process: SIGTERM, SIGINT, and SIGQUIT, which hands over to a new gateway first.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ListenFds, ShutdownSignal, ShutdownSignalWatch};
use rustix::process::geteuid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::SetOnce;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::proxy::state::GatewayState;
use crate::server::quota_hand_over::hand_over;
use crate::server::upgrade_acknowledgement::NewGateway;

/// Longest time between SIGQUIT and the start of the new gateway.
const NEW_GATEWAY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a new gateway of a version without acknowledgement gets until it accepts connections.
const UNACKNOWLEDGED_START_TIME: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Shutdown signals: SIGTERM drains, SIGINT ends at once, and SIGQUIT hands the listening sockets over to a new gateway
/// and then drains. SIGQUIT is ignored if no new gateway waits for the sockets, or if it does not
/// accept connections then.
pub(super) struct ShutdownSignals {
    /// Unix socket at which the new gateway waits.
    pub(super) upgrade_socket: PathBuf,
    pub(super) gateway: Arc<GatewayState>,
    /// Listening sockets, once the services have started.
    pub(super) listeners: Arc<OnceLock<ListenFds>>,
    /// Set if the gateway that this one was to replace goes on serving.
    pub(super) not_replaced: Arc<SetOnce<()>>,
}

#[async_trait]
impl ShutdownSignalWatch for ShutdownSignals {
    async fn recv(&self) -> ShutdownSignal {
        let (mut quit, mut terminate, mut interrupt) = (
            signal_stream(SignalKind::quit()),
            signal_stream(SignalKind::terminate()),
            signal_stream(SignalKind::interrupt()),
        );
        let replaced = async {
            loop {
                quit.recv().await;
                if self.hand_over().await {
                    return;
                }
            }
        };
        tokio::select! {
            () = replaced => ShutdownSignal::GracefulTerminate,
            _ = terminate.recv() => ShutdownSignal::GracefulTerminate,
            () = self.not_replaced.wait() => ShutdownSignal::GracefulTerminate,
            _ = interrupt.recv() => ShutdownSignal::FastShutdown,
        }
    }
}

impl ShutdownSignals {
    /// Hands over to a new gateway. Returns whether that one serves.
    async fn hand_over(&self) -> bool {
        let socket = self.upgrade_socket.display();
        if !self.new_gateway_waits().await {
            tracing::error!(
                %socket,
                "SIGQUIT ignored: no new gateway waits for the sockets; start it with `gateway run --upgrade` first"
            );
            return false;
        }
        if let Err(error) = self.try_hand_over().await {
            self.gateway.remote_counters.store(None);
            tracing::error!(
                %socket,
                %error,
                "the new gateway does not accept connections: this one goes on serving; see the log of the new one"
            );
            return false;
        }
        true
    }

    async fn try_hand_over(&self) -> io::Result<()> {
        let new_gateway = NewGateway::connect(&self.upgrade_socket)?;
        self.send_listeners().await?;
        tracing::info!(
            "listening sockets sent to the new gateway: waiting until it accepts connections"
        );
        let (gateway, socket) = (Arc::clone(&self.gateway), self.upgrade_socket.clone());
        thread::spawn(move || hand_over(&socket, &gateway));
        if let Some(new_gateway) = new_gateway {
            return new_gateway.wait_until_ready().await;
        }
        sleep(UNACKNOWLEDGED_START_TIME).await;
        Ok(())
    }

    /// Sends the listening sockets, which stay open in this process.
    async fn send_listeners(&self) -> io::Result<()> {
        let listeners = self.listeners.get().map(Arc::clone);
        let listeners = listeners.ok_or(io::ErrorKind::NotConnected)?;
        let socket = self.upgrade_socket.display().to_string();
        // It blocks, and attempts to connect several times.
        let send = move || listeners.lock().send_to_sock(socket.as_str()).map(drop);
        spawn_blocking(send).await?.map_err(io::Error::from)
    }

    /// Returns whether a new gateway waits for the sockets within [`NEW_GATEWAY_TIMEOUT`].
    async fn new_gateway_waits(&self) -> bool {
        let deadline = Instant::now() + NEW_GATEWAY_TIMEOUT;
        while !is_listening(&self.upgrade_socket) {
            if Instant::now() > deadline {
                return false;
            }
            sleep(POLL_INTERVAL).await;
        }
        true
    }
}

/// Returns whether a process of this user listens at a Unix socket, by the owner of the file and the kernel's list:
/// connecting would start the transfer.
fn is_listening(socket: &Path) -> bool {
    /// `__SO_ACCEPTCON`, as proc(5) has it for /proc/net/unix.
    const SO_ACCEPTCON_FLAG: &str = "00010000";
    // The new gateway takes sockets from its own user, and another user's socket would take ours.
    let owner = std::fs::symlink_metadata(socket).map(|metadata| metadata.uid());
    if !owner.is_ok_and(|uid| uid == geteuid().as_raw()) {
        return false;
    }
    let Ok(sockets) = std::fs::read("/proc/net/unix") else {
        return true;
    };
    let path = socket.to_string_lossy();
    String::from_utf8_lossy(&sockets)
        .lines()
        .filter_map(flags_and_path)
        .any(|listed| listed == (SO_ACCEPTCON_FLAG, &*path))
}

/// Returns the fourth column of a line of /proc/net/unix and the last one, which may have spaces. `None` if the socket has no
/// path.
fn flags_and_path(line: &str) -> Option<(&str, &str)> {
    let (mut columns, mut rest) = ([""; 7], line);
    for column in &mut columns {
        (*column, rest) = rest.trim_start().split_once(' ')?;
    }
    Some((columns[3], rest))
}

fn signal_stream(kind: SignalKind) -> Signal {
    signal(kind).expect("the process can install a handler for this signal")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_listening_socket_is_recognised_whatever_its_path() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["upgrade.sock", "upgrade of a gateway.sock"] {
            let path = folder.path().join(name);
            assert!(!is_listening(&path));
            let listener = UnixListener::bind(&path).unwrap();
            assert!(is_listening(&path), "{name}");
            drop(listener);
            assert!(!is_listening(&path), "{name}");
        }
    }
}
