//! Checks before the start, for what Pingora would only find out later, or panic about.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Access, access};

use crate::config::{Environment, ListenAddresses};
use crate::server::upgrade::HandedOverSockets;

const UPGRADE_SOCKET: &str = "GATEWAY_UPGRADE_SOCKET";

/// Returns the Unix socket at which one gateway hands its listening sockets over to the next.
///
/// # Errors
/// Returns an error if the path is relative and the working directory is unknown.
pub(super) fn upgrade_socket(environment: &Environment) -> Result<PathBuf> {
    let socket = environment.get(UPGRADE_SOCKET);
    let socket = Path::new(socket.unwrap_or("/run/gateway-upgrade.sock"));
    // The kernel lists sockets by the path that they were bound to.
    std::path::absolute(socket).with_context(|| format!("{UPGRADE_SOCKET}: {}", socket.display()))
}

/// Checks that the upgrade socket can be created.
///
/// # Errors
/// Returns an error if its folder is not writable.
pub(super) fn check_writable(upgrade_socket: &Path) -> Result<()> {
    let folder = upgrade_socket.parent().unwrap_or(upgrade_socket);
    access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .with_context(|| format!("{UPGRADE_SOCKET}: cannot write into {}", folder.display()))
}

/// Checks that the listeners that were not handed over can be bound.
///
/// # Errors
/// Returns an error that names the first listener that cannot, with its address.
pub(super) fn check_addresses_free(
    listen: ListenAddresses,
    handed_over: Option<&HandedOverSockets>,
) -> Result<()> {
    let listeners = [
        ("https", Some(listen.https)),
        ("admin", Some(listen.admin)),
        ("http", listen.http),
    ];
    // All are held until the last one is bound: two of them may conflict.
    let mut held = Vec::new();
    for (key, address) in listeners {
        let Some(address) = address else { continue };
        if handed_over.is_some_and(|sockets| sockets.contains(address)) {
            continue;
        }
        let listener = TcpListener::bind(address)
            .with_context(|| format!("premier.listen.{key}: listening on {address}"))?;
        held.push(listener);
    }
    Ok(())
}
