//! Checks before the start, for what Pingora would only find out later, or panic about.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail};
use rustix::fs::{Access, access};

use crate::config::{Environment, ListenAddresses};
use crate::server::listening_sockets::{self, ListeningSocket, sockets_in_the_way};
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
    // All are held until the last one is bound: two of them may conflict.
    let mut held = Vec::new();
    for (key, address) in listeners(listen) {
        if !handed_over.is_some_and(|sockets| sockets.contains(address)) {
            held.push(bind(key, address)?);
        }
    }
    Ok(())
}

/// Addresses of a gateway that takes over from a running one.
#[derive(Debug)]
pub(super) struct TakeOver {
    /// Listeners of addresses that were free. They are bound before the running gateway ends.
    pub(super) bound: Vec<(SocketAddr, TcpListener)>,
    /// Error of an address that the running gateway has to hand over.
    pub(super) in_use: Error,
}

/// Binds the addresses that are free, and checks that one process can hand the others over. Returns `None` if all
/// are free.
///
/// # Errors
/// Returns an error if another program than the running gateway uses an address. That is unknown if this process
/// may not see the files of any process that uses one.
pub(super) fn prepare_take_over(listen: ListenAddresses) -> Result<Option<TakeOver>> {
    let (mut bound, mut in_use) = (Vec::new(), Vec::new());
    for (key, address) in listeners(listen) {
        match bind(key, address) {
            Ok(listener) => bound.push((address, listener)),
            Err(error) => in_use.push((address, error)),
        }
    }
    let mut holders = Vec::new();
    for (address, error) in &in_use {
        let Ok(sockets) = sockets_in_the_way(*address) else {
            continue;
        };
        let is_own = |socket: &ListeningSocket| {
            socket.address != *address && listen.all().any(|own| own == socket.address)
        };
        if sockets.is_empty() || sockets.iter().any(is_own) {
            bail!("{error:#}");
        }
        holders.extend(sockets.into_iter().map(|socket| Holders {
            address: socket.address,
            processes: listening_sockets::holders(socket.inode),
        }));
    }
    check_one_process(&holders)?;
    let first = in_use.into_iter().next();
    Ok(first.map(|(_, in_use)| TakeOver { bound, in_use }))
}

/// Processes that hold the listening socket of an address.
#[derive(Debug)]
struct Holders {
    address: SocketAddr,
    processes: BTreeSet<u32>,
}

/// Checks that one process holds all sockets, as far as that is known.
fn check_one_process(sockets: &[Holders]) -> Result<()> {
    let mut known = sockets.iter().flat_map(|socket| &socket.processes);
    let holds_all = |process: &u32| {
        let mut all = sockets.iter();
        all.all(|socket| socket.processes.contains(process))
    };
    if known.clone().next().is_none() || known.any(holds_all) {
        return Ok(());
    }
    let sockets: Vec<_> = sockets.iter().map(Holders::to_string).collect();
    bail!(
        "different processes listen on {}: the running gateway cannot hand all of these over, so it is left running; \
         change premier.listen or stop the other program",
        sockets.join(" and ")
    )
}

impl fmt::Display for Holders {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (process ", self.address)?;
        match self.processes.first() {
            Some(process) => write!(formatter, "{process})"),
            None => write!(formatter, "of another user)"),
        }
    }
}

/// Returns the configured listeners, each with its key.
fn listeners(listen: ListenAddresses) -> impl Iterator<Item = (&'static str, SocketAddr)> {
    let listeners = [
        ("https", Some(listen.https)),
        ("admin", Some(listen.admin)),
        ("http", listen.http),
    ];
    let configured = |(key, address): (_, Option<SocketAddr>)| Some((key, address?));
    listeners.into_iter().filter_map(configured)
}

fn bind(key: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .with_context(|| format!("premier.listen.{key}: listening on {address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders(port: u16, processes: &[u32]) -> Holders {
        Holders {
            address: ([127, 0, 0, 1], port).into(),
            processes: processes.iter().copied().collect(),
        }
    }

    #[test]
    fn one_process_has_to_hold_all_sockets_as_far_as_that_is_known() {
        let is_possible = |sockets: &[Holders]| check_one_process(sockets).is_ok();
        assert!(is_possible(&[]));
        assert!(is_possible(&[holders(1, &[7]), holders(2, &[7])]));
        assert!(is_possible(&[holders(1, &[7, 8]), holders(2, &[8])]));
        assert!(is_possible(&[holders(1, &[]), holders(2, &[])]));
        assert!(!is_possible(&[holders(1, &[7]), holders(2, &[8])]));
        // The files of process 7 can be seen, and this socket is not among them.
        assert!(!is_possible(&[holders(1, &[7]), holders(2, &[])]));
    }
}
