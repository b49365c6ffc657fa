//! `Host`, and the client behind trusted proxies: no client can choose its address, and both are read as by a parser of
//! RFC 3986.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fluent_uri::Uri;
use fluent_uri::component::Host;
use gateway::fuzz::{identify_client, parse_authority};
use ipnet::IpNet;

/// Address that the nearest proxy saw.
const CLIENT: &str = "198.51.100.7";
const CLIENT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Input: lines. The first is a `Host`, the others are those of `X-Forwarded-For`.
pub(crate) fn run(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    check_host(lines.next().unwrap_or_default());
    let lines: Vec<&[u8]> = lines.collect();
    let trusted: [IpNet; 2] = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a network"));
    let identify = |peer, lines: &[&[u8]]| identify_client(peer, lines, &trusted);
    let Some(client) = identify(PROXY, &lines) else {
        return;
    };
    // A client that is no trusted proxy is itself.
    let stranger = identify(STRANGER, &lines).expect("the lines are valid");
    assert_eq!(stranger.address, STRANGER);
    assert_eq!(
        identify_client(PROXY, &lines, &[]).map(|client| client.address),
        Some(PROXY)
    );
    // Several lines are one list.
    let joined = lines.join(&b", "[..]);
    assert_eq!(identify(PROXY, &[&joined[..]]), Some(client));
    assert_eq!(client.address, model(&joined, &trusted).unwrap_or(PROXY));
    // Elements that a client sends, before the addresses that proxies append, do not matter.
    for appended in [CLIENT.to_owned(), format!("{CLIENT}, 10.1.1.1, fd00::2")] {
        let mut with_line = lines.clone();
        with_line.push(appended.as_bytes());
        let with_element = [&joined, &b","[..], appended.as_bytes()].concat();
        for lines in [&with_line[..], &[&with_element[..]]] {
            let client = identify(PROXY, lines).expect("the lines are valid");
            assert_eq!(client.address, CLIENT_ADDRESS);
        }
    }
    assert_eq!(client.key, key(client.address));
}

/// Returns the address that a list names: the last one that is not of a trusted proxy, else the first one of an
/// unbroken row of addresses at the end.
fn model(list: &[u8], trusted: &[IpNet]) -> Option<IpAddr> {
    let list = String::from_utf8_lossy(list);
    let elements: Vec<&str> = list
        .split(',')
        .map(|element| element.trim_matches([' ', '\t']))
        .filter(|element| !element.is_empty())
        .collect();
    let row: Vec<IpAddr> = elements.into_iter().rev().map_while(address).collect();
    let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
    let untrusted = row.iter().find(|address| !is_trusted(address));
    untrusted.or(row.last()).copied()
}

/// Parses an address with or without brackets and port.
fn address(element: &str) -> Option<IpAddr> {
    // The library's numbers may have a sign.
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_port = |port: &str| is_digits(port) && port.parse::<u16>().is_ok();
    let is_zone = |zone: &str| is_digits(zone) && zone.parse::<u32>().is_ok();
    let parsed: IpAddr = if let Some(rest) = element.strip_prefix('[') {
        let (inner, port) = rest.split_once(']')?;
        let is_complete = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        // A zone is local to the host that wrote it; only a number is accepted, and only before a port.
        let inner = match inner.split_once('%') {
            Some((address, zone)) if !port.is_empty() && is_zone(zone) => address,
            _ => inner,
        };
        inner
            .parse::<Ipv6Addr>()
            .ok()
            .filter(|_| is_complete)?
            .into()
    } else if element.matches(':').count() == 1 {
        let (host, port) = element.split_once(':')?;
        host.parse::<Ipv4Addr>()
            .ok()
            .filter(|_| is_port(port))?
            .into()
    } else {
        element.parse::<IpAddr>().ok()?
    };
    Some(parsed.to_canonical())
}

fn key(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits() & !u128::from(u64::MAX),
    }
}

fn check_host(host: &[u8]) {
    let Some((without_port, name)) = parse_authority(host) else {
        return;
    };
    let text = str::from_utf8(host).expect("a host is ASCII");
    let uri = format!("http://{text}/");
    let uri = Uri::parse(uri.as_str()).expect("the host is one of RFC 3986");
    let authority = uri.authority().expect("it has one");
    assert_eq!(authority.as_str(), text);
    assert_eq!(authority.userinfo(), None);
    assert_eq!(authority.host(), without_port);
    let port = authority.port().map_or("", |port| port.as_str());
    assert!(port.is_empty() || port.parse::<u16>().is_ok());
    match authority.host_parsed() {
        Host::Ipv6 { .. } => assert_eq!(format!("[{name}]"), without_port),
        _ => assert_eq!(name, without_port.strip_suffix('.').unwrap_or(without_port)),
    }
}
