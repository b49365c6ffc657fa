//! Where the gateway listens: `premier.listen`, and the variables that stand in for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;

use super::Listen;
use super::interpolate::Environment;
use super::read::{documents, subsection};
use super::section::{Reading, Section, Value};

const HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 443);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

pub(super) fn listen(premier: &mut Section<'_, '_>) -> Option<Listen> {
    let environment = premier.environment();
    let mut listen = subsection(premier, "listen").ok()?;
    let mut read = |key, variable, default: Option<SocketAddr>| {
        let value = listen.as_mut().and_then(|section| section.get(key));
        match value {
            Some(value) if value.is_empty() && default.is_none() => Some(None),
            Some(value) => value.parsed(address).map(Some),
            None => match environment.get(variable) {
                Some(text) => premier.parsed_variable(variable, text, address).map(Some),
                None => Some(default),
            },
        }
    };
    let https = read("https", "GATEWAY_HTTPS", Some(HTTPS));
    let http = read("http", "GATEWAY_HTTP", None);
    let admin = read("admin", "GATEWAY_ADMIN", Some(ADMIN));
    let public_port = public_port(listen.as_mut(), premier);
    let listeners: Vec<_> = [("https", https), ("http", http), ("admin", admin)]
        .into_iter()
        .filter_map(|(key, address)| Some((key, address??)))
        .collect();
    must_be_apart(listen.as_ref().unwrap_or(premier), &listeners);
    if let Some(section) = listen {
        section.end();
    }
    let https = https??;
    Some(Listen {
        https,
        http: http?,
        admin: admin??,
        public_port: public_port?.unwrap_or_else(|| https.port()),
    })
}

/// Notes listeners of which the system would refuse the second.
fn must_be_apart(section: &Section<'_, '_>, listeners: &[(&str, SocketAddr)]) {
    for (number, (key, address)) in listeners.iter().enumerate() {
        for (other_key, other) in &listeners[..number] {
            if overlap(*address, *other) {
                section.wrong(format!(
                    "`listen.{other_key}` ({other}) and `listen.{key}` ({address}) would take the \
                     same connections: give each its own port"
                ));
            }
        }
    }
}

fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (one_ip, other_ip) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port()
        && (one_ip == other_ip || covers(one_ip, other_ip) || covers(other_ip, one_ip))
}

/// Whether a listener at one address takes the connections to another: at `::` it takes those over
/// IPv4 too, as sockets are unless they are told not to.
fn covers(one: IpAddr, other: IpAddr) -> bool {
    one.is_unspecified() && (one.is_ipv6() || other.is_ipv4())
}

/// `Some(None)` where clients reach the https listener at its own port.
#[expect(
    clippy::option_option,
    reason = "what is wrong and what is left out are two things"
)]
fn public_port(
    listen: Option<&mut Section<'_, '_>>,
    premier: &Section<'_, '_>,
) -> Option<Option<u16>> {
    const VARIABLE: &str = "GATEWAY_PUBLIC_PORT";
    let port = |text: &str| {
        text.parse::<NonZeroU16>()
            .map_err(|_| format!("`{text}` is no port: a number from 1 to 65535"))
    };
    match listen.and_then(|section| section.get("public_port")) {
        Some(value) if value.is_empty() => Some(None),
        Some(value) => value.port().map(Some),
        None => match premier.environment().get(VARIABLE) {
            Some(text) => premier
                .parsed_variable(VARIABLE, text, port)
                .map(|port| Some(port.get())),
            None => Some(None),
        },
    }
}

/// Where the admin listener is, for somebody to whom nothing else in the file matters.
pub(super) fn admin_address(text: &str, environment: &Environment) -> SocketAddr {
    in_file(text, environment)
        .or_else(|| address(environment.get("GATEWAY_ADMIN")?).ok())
        .unwrap_or(ADMIN)
}

fn in_file(text: &str, environment: &Environment) -> Option<SocketAddr> {
    let documents = documents(text).ok()?;
    let reading = Reading::new(environment);
    let mut value = Value::new(documents.first()?, String::new(), &reading);
    for key in ["premier", "listen", "admin"] {
        value = value.section()?.get(key)?;
    }
    value.parsed(address)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| format!("`{text}` is no address: write IP:PORT, as in 0.0.0.0:443"))?;
    if address.port() == 0 {
        return Err(format!(
            "`{text}` names no port: nobody would find the listener"
        ));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn listen(yaml: &str, variables: &[(&str, &str)]) -> Result<Listen, String> {
        let environment = Environment::for_tests().with(variables);
        Config::parse("gateway.yml".as_ref(), yaml, &environment)
            .map(|config| config.listen)
            .map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn the_public_port_is_that_of_the_listener_unless_it_is_named() {
        let port = |yaml, variables| listen(yaml, variables).map(|listen| listen.public_port);
        let behind = [("GATEWAY_HTTPS", "0.0.0.0:8443")];
        assert_eq!(port("premier: {}", &behind), Ok(8443));
        let mapped = [
            ("GATEWAY_HTTPS", "0.0.0.0:8443"),
            ("GATEWAY_PUBLIC_PORT", "443"),
        ];
        assert_eq!(port("premier: {}", &mapped), Ok(443));
        assert_eq!(
            port("premier: {listen: {public_port: 4443}}", &mapped),
            Ok(4443)
        );
        let left_empty = "premier: {listen: {public_port: '${NONE:-}'}}";
        assert_eq!(port(left_empty, &behind), Ok(8443));
        let told = port("premier: {listen: {public_port: 0}}", &[]).unwrap_err();
        assert!(told.contains("a whole number from 1 to 65535"), "{told}");
        let told = port("premier: {}", &[("GATEWAY_PUBLIC_PORT", "https")]).unwrap_err();
        assert!(
            told.contains("GATEWAY_PUBLIC_PORT: `https` is no port"),
            "{told}"
        );
    }

    #[test]
    fn listeners_that_would_be_in_each_others_way_are_told() {
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("127.0.0.1:80", "0.0.0.0:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "[::]:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
        ] {
            let told = listen(
                "premier: {}",
                &[("GATEWAY_HTTPS", one), ("GATEWAY_HTTP", other)],
            );
            let told = told.unwrap_err();
            let wanted = format!("`listen.https` ({one}) and `listen.http` ({other}) would take");
            assert!(told.contains(&wanted), "{told}");
        }
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:81"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("0.0.0.0:80", "[::1]:80"),
        ] {
            let good = listen(
                "premier: {}",
                &[("GATEWAY_HTTPS", one), ("GATEWAY_HTTP", other)],
            );
            assert!(good.is_ok(), "{good:?}");
        }
        let told = listen("premier: {listen: {admin: '[::]:443'}}", &[]).unwrap_err();
        assert!(
            told.contains("premier.listen: `listen.https` (0.0.0.0:443) and `listen.admin`"),
            "{told}"
        );
    }

    #[test]
    fn a_port_of_chance_is_told() {
        let told = listen("premier: {listen: {https: '0.0.0.0:0'}}", &[]).unwrap_err();
        assert!(
            told.contains("premier.listen.https: `0.0.0.0:0` names no port"),
            "{told}"
        );
    }

    #[test]
    fn the_admin_listener_is_found_in_any_file() {
        let environment = Environment::from([("GATEWAY_ADMIN", "[::1]:2"), ("PORT", "3")]);
        let found = |text: &str| admin_address(text, &environment).to_string();
        for good in [
            "premier: {listen: {admin: '127.0.0.1:${PORT}'}}",
            "premier: {listen: {admin: '127.0.0.1:3', htps: x}, servers: 5, pahts: []}",
        ] {
            assert_eq!(found(good), "127.0.0.1:3", "{good}");
        }
        for none in [
            "",
            "premier: [",
            "premier: {}",
            "premier: {listen: {admin: }}",
            "premier: {listen: {admin: here}}",
            "premier: {listen: {admin: '${NONE}'}}",
        ] {
            assert_eq!(found(none), "[::1]:2", "{none}");
        }
        let nothing = Environment::default();
        assert_eq!(admin_address("", &nothing).to_string(), "127.0.0.1:9901");
    }
}
