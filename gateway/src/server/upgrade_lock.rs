//! Lock of an upgrade: one new gateway at a time waits for the running one.
//!
//! The running gateway reaches the new one by the files of its sockets. A second new gateway would replace some of them, so
//! that the sockets went to one process and the acknowledgement came from another one. The kernel releases the lock of a
//! process that ends, however it does (flock(2)).

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::server::private_socket;

/// The lock, held until it is dropped. Its file stays: to remove it would let two processes lock two files.
#[derive(Debug)]
pub(super) struct UpgradeLock {
    _file: File,
}

impl UpgradeLock {
    /// Acquires the lock, without waiting for it.
    ///
    /// # Errors
    /// Returns an error if another new gateway holds it, or if the file cannot be created or locked.
    pub(super) fn acquire(upgrade_socket: &Path) -> io::Result<Self> {
        let path = path(upgrade_socket);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            // Another user may have put a link to a file of ours there.
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                ErrorKind::ResourceBusy,
                "another new gateway waits there already: try again once it has taken over or has given up",
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

fn path(upgrade_socket: &Path) -> PathBuf {
    private_socket::beside(upgrade_socket, ".lock")
}
