//! Acknowledgement of an upgrade: the running gateway ends only once the new one accepts connections.
//!
//! The new gateway binds a Unix socket beside that of the [upgrade](super::upgrade), with the same permissions. The running
//! one connects to it before it sends its listening sockets, and goes on serving. The new one sends [`READY`] when its
//! listeners run; the running one closes the connection and ends. If the new one ends or hangs before, the running
//! one sends [`STAYS`] and goes on; a new gateway that receives it ends.
//!
//! Invariant: one of the two goes on serving, also if the other one is killed at any point.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::server::private_socket::{self, PrivateSocket};
use crate::server::upgrade_lock::UpgradeLock;

/// Longest time from the hand-over of the sockets until the new gateway accepts connections.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Message of the new gateway: it accepts connections.
const READY: u8 = b'r';
/// Message of the running gateway: it goes on accepting connections.
const STAYS: u8 = b's';

/// Gateway that goes on serving after an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Successor {
    New,
    Old,
}

/// Socket at which the new gateway waits for the running one. It is the first one of an upgrade that is bound, and the last
/// one that is removed: no other new gateway binds any of them meanwhile.
#[derive(Debug)]
pub(super) struct AcknowledgementSocket {
    socket: PrivateSocket,
    _lock: UpgradeLock,
}

impl AcknowledgementSocket {
    /// Binds the socket.
    ///
    /// # Errors
    /// Returns an error if that is not possible, or if another new gateway waits.
    pub(super) fn bind(upgrade_socket: &Path) -> io::Result<Self> {
        let lock = UpgradeLock::acquire(upgrade_socket)?;
        let socket = PrivateSocket::bind(path(upgrade_socket))?;
        Ok(Self {
            socket,
            _lock: lock,
        })
    }

    /// Tells the running gateway that this one accepts connections. Returns when it ends or goes on serving, or after
    /// [`READY_TIMEOUT`] if it has not connected: a version without acknowledgement does not, and ends.
    ///
    /// # Errors
    /// Returns an error if no connection can be accepted.
    pub(super) async fn acknowledge(self) -> io::Result<Successor> {
        let mut stream = match timeout(READY_TIMEOUT, self.accept()).await {
            Ok(stream) => stream?,
            Err(_) => return Ok(Successor::New),
        };
        // The running gateway may have closed the connection, with or without its message.
        let _ = stream.write_all(&[READY]).await;
        match stream.read_u8().await {
            Ok(STAYS) => Ok(Successor::Old),
            Ok(_) | Err(_) => Ok(Successor::New),
        }
    }

    async fn accept(&self) -> io::Result<UnixStream> {
        let socket = self.socket.listener();
        let listener = tokio::net::UnixListener::from_std(socket.try_clone()?)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            // The connections before the last one are of hand-overs that have failed.
            while let Ok((later, _)) = socket.accept() {
                later.set_nonblocking(true)?;
                stream = UnixStream::from_std(later)?;
            }
            if private_socket::is_peer_permitted(&stream)? {
                return Ok(stream);
            }
        }
    }
}

/// Connection to a new gateway that acknowledges the upgrade.
#[derive(Debug)]
pub(super) struct NewGateway {
    stream: UnixStream,
}

impl NewGateway {
    /// Connects to the new gateway, before the sockets are sent to it. Returns `None` if it is of a version without
    /// acknowledgement.
    ///
    /// # Errors
    /// Returns an error if another user's process is at the socket, or if the new gateway was killed, which leaves the file.
    pub(super) fn connect(upgrade_socket: &Path) -> io::Result<Option<Self>> {
        let stream = match private_socket::connect(&path(upgrade_socket)) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        Ok(Some(Self { stream }))
    }

    /// Waits until the new gateway, which has been sent the sockets, accepts connections.
    ///
    /// # Errors
    /// Returns an error if it has ended, or does not accept connections within [`READY_TIMEOUT`]. It does not go on
    /// serving then.
    pub(super) async fn wait_until_ready(mut self) -> io::Result<()> {
        let error = match timeout(READY_TIMEOUT, self.stream.read_u8()).await {
            Ok(Ok(READY)) => return Ok(()),
            Ok(Ok(_)) => ErrorKind::InvalidData.into(),
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
        // It may have ended.
        let _ = self.stream.write_all(&[STAYS]).await;
        Err(error)
    }
}

fn path(upgrade_socket: &Path) -> PathBuf {
    private_socket::beside(upgrade_socket, ".ready")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Folder of the sockets, a new gateway that waits, and the running one's connection to it.
    fn connect() -> (tempfile::TempDir, AcknowledgementSocket, NewGateway) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("upgrade.sock");
        let new = AcknowledgementSocket::bind(&socket).unwrap();
        let running = NewGateway::connect(&socket).unwrap().unwrap();
        (folder, new, running)
    }

    #[tokio::test]
    async fn the_new_gateway_replaces_the_running_one_when_it_is_ready() {
        let (_folder, new, running) = connect();
        let (ready, successor) = tokio::join!(running.wait_until_ready(), new.acknowledge());
        ready.unwrap();
        assert_eq!(successor.unwrap(), Successor::New);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_gateway_that_is_ready_too_late_does_not_replace_the_running_one() {
        let (_folder, new, running) = connect();
        let error = running.wait_until_ready().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(new.acknowledge().await.unwrap(), Successor::Old);
    }

    #[tokio::test]
    async fn the_running_gateway_goes_on_if_the_new_one_ends() {
        let (_folder, new, running) = connect();
        drop(new);
        running.wait_until_ready().await.unwrap_err();
    }

    #[tokio::test]
    async fn a_second_hand_over_after_one_that_failed_is_acknowledged() {
        let (folder, new, failed) = connect();
        drop(failed);
        let socket = folder.path().join("upgrade.sock");
        let running = NewGateway::connect(&socket).unwrap().unwrap();
        let (ready, successor) = tokio::join!(running.wait_until_ready(), new.acknowledge());
        ready.unwrap();
        assert_eq!(successor.unwrap(), Successor::New);
    }

    #[tokio::test]
    async fn the_new_gateway_serves_if_the_running_one_ends_without_a_message() {
        let (_folder, new, running) = connect();
        drop(running);
        assert_eq!(new.acknowledge().await.unwrap(), Successor::New);
    }

    #[tokio::test]
    async fn a_gateway_without_acknowledgement_is_recognized() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("upgrade.sock");
        assert!(NewGateway::connect(&socket).unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn another_new_gateway_can_wait_after_an_upgrade_from_a_version_without_acknowledgement()
    {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("upgrade.sock");
        let new = AcknowledgementSocket::bind(&socket).unwrap();
        assert_eq!(new.acknowledge().await.unwrap(), Successor::New);
        AcknowledgementSocket::bind(&socket).unwrap();
    }

    #[test]
    fn a_gateway_that_was_killed_is_not_taken_for_one_without_acknowledgement() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("upgrade.sock");
        let stale = path(&socket);
        drop(UnixListener::bind(&stale).unwrap());
        let error = NewGateway::connect(&socket).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        AcknowledgementSocket::bind(&socket).unwrap();
    }

    #[test]
    fn one_new_gateway_waits_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("upgrade.sock");
        let first = AcknowledgementSocket::bind(&socket).unwrap();
        let error = AcknowledgementSocket::bind(&socket).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        assert!(path(&socket).exists());
        drop(first);
        AcknowledgementSocket::bind(&socket).unwrap();
    }
}
