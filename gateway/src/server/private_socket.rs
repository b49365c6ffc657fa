//! Unix sockets of two gateways of one user.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::net::sockopt;
use rustix::process::{Uid, geteuid, umask};

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Listening socket that only the user of this process may connect to. Its file is removed when it is dropped.
#[derive(Debug)]
pub(super) struct PrivateSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// Returns the path of a file beside the socket of the upgrade, whose name is that of the socket with a suffix.
pub(super) fn beside(upgrade_socket: &Path, suffix: &str) -> PathBuf {
    let mut path = upgrade_socket.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

impl PrivateSocket {
    /// Binds the socket, in place of what is at `path`.
    ///
    /// # Errors
    /// Returns an error if that is not possible.
    pub(super) fn bind(path: PathBuf) -> io::Result<Self> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The mode must be right from the beginning. No other thread creates files at this time.
        let previous = umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(&path);
        umask(previous);
        let listener = listener?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Waits for a connection of a process that may hand something over. Returns `None` if there is none within `timeout`.
pub(super) fn accept(socket: &PrivateSocket, timeout: Duration) -> io::Result<Option<UnixStream>> {
    let start = Instant::now();
    while start.elapsed() < timeout {
        match socket.listener.accept() {
            Ok((stream, _)) => {
                if is_peer_permitted(&stream)? {
                    stream.set_nonblocking(false)?;
                    return Ok(Some(stream));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(POLL_INTERVAL),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Returns whether the process at the other end of a connection may hand something over. The log says if it may not.
pub(super) fn is_peer_permitted(stream: impl AsFd) -> io::Result<bool> {
    let peer = sockopt::socket_peercred(stream)?;
    let is_permitted = may_hand_over(peer.uid, geteuid());
    if !is_permitted {
        tracing::warn!(
            uid = peer.uid.as_raw(),
            pid = peer.pid.as_raw_nonzero(),
            "process of another user connected to hand over: ignored"
        );
    }
    Ok(is_permitted)
}

/// Connects to a socket that a process of the same user has bound.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    let peer = sockopt::socket_peercred(&stream)?;
    if peer.uid == geteuid() {
        Ok(stream)
    } else {
        Err(ErrorKind::PermissionDenied.into())
    }
}

/// Returns whether a process of the user `peer` may hand something over to one of the user `own`.
fn may_hand_over(peer: Uid, own: Uid) -> bool {
    peer == own || peer.is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_user_and_root_may_hand_over() {
        let user = Uid::from_raw(1000);
        assert!(may_hand_over(user, user));
        assert!(may_hand_over(Uid::ROOT, user));
        assert!(!may_hand_over(Uid::from_raw(1001), user));
        assert!(!may_hand_over(user, Uid::ROOT));
    }

    #[test]
    fn the_socket_is_for_the_own_user_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("upgrade.sock");
        let _socket = PrivateSocket::bind(path.clone()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
