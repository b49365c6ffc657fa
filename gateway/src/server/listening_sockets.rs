//! Listening TCP sockets of this network namespace, and the processes that hold them, as proc(5) lists them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process;

/// State of a listening socket in `/proc/net/tcp`, `TCP_LISTEN`.
const LISTEN: &str = "0A";

/// Listening TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListeningSocket {
    pub(super) address: SocketAddr,
    pub(super) inode: u64,
}

/// Returns the sockets because of which `address` cannot be bound: the one at the address itself, or those at
/// addresses that include it or that it includes.
///
/// # Errors
/// Returns an error if the kernel's lists cannot be read.
pub(super) fn sockets_in_the_way(address: SocketAddr) -> io::Result<Vec<ListeningSocket>> {
    let mut sockets = parse(&fs::read_to_string("/proc/net/tcp")?);
    // A kernel without IPv6 has no such list.
    if let Ok(table) = fs::read_to_string("/proc/net/tcp6") {
        sockets.extend(parse(&table));
    }
    sockets.retain(|socket| overlaps(socket.address, address));
    if sockets.iter().any(|socket| socket.address == address) {
        sockets.retain(|socket| socket.address == address);
    }
    Ok(sockets)
}

/// Returns the processes that hold a socket, without this one. Those whose files this process may not see, as those
/// of another user or namespace, are missing.
pub(super) fn holders(inode: u64) -> BTreeSet<u32> {
    let link = format!("socket:[{inode}]");
    let holds_socket = |process: &u32| {
        let files = fs::read_dir(format!("/proc/{process}/fd"));
        files.is_ok_and(|mut files| {
            files.any(|file| {
                let target = file.and_then(|file| fs::read_link(file.path()));
                target.is_ok_and(|target| target.as_os_str() == link.as_str())
            })
        })
    };
    let Ok(processes) = fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|process| *process != process::id())
        .filter(holds_socket)
        .collect()
}

/// Returns whether two addresses cannot be bound at once. `[::]` includes the addresses of IPv4, unless it is bound
/// otherwise.
fn overlaps(one: SocketAddr, other: SocketAddr) -> bool {
    let is_all = |address: IpAddr| address.is_unspecified();
    one.port() == other.port()
        && match (one.ip(), other.ip()) {
            (a, b) if a == b => true,
            (IpAddr::V4(_), all @ IpAddr::V6(_)) | (all @ IpAddr::V6(_), IpAddr::V4(_)) => {
                is_all(all)
            }
            (a, b) => is_all(a) || is_all(b),
        }
}

/// Parses `/proc/net/tcp` or `/proc/net/tcp6`. Lines that are not understood are left out.
fn parse(table: &str) -> Vec<ListeningSocket> {
    let parse_line = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let address = parse_address(fields.next()?)?;
        let is_listening = fields.nth(1)? == LISTEN;
        let inode = fields.nth(5)?.parse().ok()?;
        is_listening.then_some(ListeningSocket { address, inode })
    };
    table.lines().skip(1).filter_map(parse_line).collect()
}

/// Parses an address: words of 32 bits in the byte order of the machine, a colon and the port, all in hexadecimal.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for word in ip.as_bytes().chunks(8) {
        let word = u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listening_socket_is_in_the_way_of_its_address() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert!(address.contains("::1"), "only IPv6 may be missing");
                continue;
            };
            let address = listener.local_addr().unwrap();
            let [socket] = sockets_in_the_way(address).unwrap()[..] else {
                panic!("{address}");
            };
            assert_eq!(socket.address, address);
            assert!(holders(socket.inode).is_empty(), "held by this process");
            drop(listener);
            assert_eq!(sockets_in_the_way(address).unwrap(), []);
        }
    }

    #[test]
    fn an_address_overlaps_those_that_it_includes() {
        let overlap = |one: &str, other: &str| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlaps(one, other), overlaps(other, one));
            overlaps(one, other)
        };
        assert!(overlap("127.0.0.1:80", "127.0.0.1:80"));
        assert!(overlap("127.0.0.1:80", "0.0.0.0:80"));
        assert!(overlap("127.0.0.1:80", "[::]:80"));
        assert!(overlap("[::1]:80", "[::]:80"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!overlap("0.0.0.0:80", "[::1]:80"));
    }
}
