//! Loopback addresses that nobody else uses.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A free address of this machine.
///
/// The whole of 127.0.0.0/8 is loopback. A random address of it with a port that the kernel
/// says is free makes a clash between parallel tests, between the choice and its use, next to
/// impossible; 127.0.0.1 alone would not.
#[must_use]
pub fn free() -> SocketAddr {
    // It must not listen: a program that another test starts at this moment has what we have open
    // until it runs, and would keep the address from whoever is to listen there.
    let bound = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((random_loopback(), 0).into())?;
        socket.local_addr()
    };
    bound().expect("loopback has a free port")
}

/// A loopback address for a client to come from, so that it is a client of its own.
#[must_use]
pub fn random_loopback() -> Ipv4Addr {
    let [_, a, b, c, ..] = random_bytes();
    // Neither a network's nor a broadcast's last byte, and none of 127.0/16, where people live.
    Ipv4Addr::new(127, a.max(1), b, c.clamp(2, 250))
}

pub(crate) fn random_bytes() -> [u8; 8] {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded by the operating system, once a process, and counts on.
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
        .to_le_bytes()
}
