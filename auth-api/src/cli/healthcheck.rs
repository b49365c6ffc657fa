//! `auth-api healthcheck`: requests `/health` or `/ready` on this machine.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of the response that are read. It is shorter.
const MAX_RESPONSE_BYTES: u64 = 4096;

/// Requests `path` of the program that listens on `listen`.
///
/// # Errors
/// Returns an error if it does not respond with 200.
pub(super) fn run(listen: SocketAddr, path: &str) -> Result<()> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, listen.port());
    let mut stream = TcpStream::connect_timeout(&address, HEALTHCHECK_TIMEOUT)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut response = String::new();
    stream
        .take(MAX_RESPONSE_BYTES)
        .read_to_string(&mut response)?;
    if !response.starts_with("HTTP/1.1 200 ") {
        let status_line = response.lines().next().unwrap_or("nothing");
        let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        bail!("{path} of {address} responded: {status_line} {body}");
    }
    Ok(())
}
