//! Loopback addresses that no other test uses.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

use crate::random::random_bytes;

/// Returns an unused loopback address to listen on.
///
/// The whole of 127.0.0.0/8 is loopback. A random address in it with a port that the kernel
/// reports as free makes a collision between parallel tests, between choice and use, practically
/// impossible; 127.0.0.1 alone does not.
///
/// # Panics
/// Panics if loopback has no free port.
#[must_use]
pub fn unused_loopback() -> SocketAddr {
    // The socket must not listen: a process that another test forks at this instant inherits our
    // open sockets until it calls exec, and would keep the address in use.
    let bound_address = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((random_loopback(), 0).into())?;
        socket.local_addr()
    };
    bound_address().expect("loopback has a free port")
}

/// Returns a random loopback address. A test client binds to one so that the gateway counts it as
/// a client of its own.
#[must_use]
pub fn random_loopback() -> Ipv4Addr {
    let [_, a, b, c, ..] = random_bytes();
    // Excludes last bytes of network and broadcast addresses, and 127.0.0.0/16, which programs
    // outside the tests use.
    Ipv4Addr::new(127, a.max(1), b, c.clamp(2, 250))
}
