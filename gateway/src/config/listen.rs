//! Parsing of `premier.listen`, and of the environment variables that replace its keys.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use crate::config::document::parse_documents;
use crate::config::interpolate::Environment;
use crate::config::model::ListenAddresses;
use crate::config::node::{Mapping, Node, ParseContext};

const DEFAULT_HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 443);
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
const ADMIN_VARIABLE: &str = "GATEWAY_ADMIN";

/// Parsed section `listen`.
pub(super) struct Listen {
    pub(super) addresses: ListenAddresses,
    pub(super) acme_challenges: Option<PathBuf>,
}

/// Parses the section `listen`. A key of the file has precedence over its variable.
pub(super) fn parse_listen(
    premier: &mut Mapping<'_, '_>,
    warnings: &mut Vec<String>,
) -> Option<Listen> {
    let environment = premier.environment();
    let mut listen = premier.mapping("listen").ok()?;
    let mut parse = |key, variable, default: Option<SocketAddr>| {
        let value = listen.as_mut().and_then(|mapping| mapping.get(key));
        match value {
            Some(value) if value.is_empty() && default.is_none() => Some(None),
            Some(value) => value.parse(parse_address).map(Some),
            None => match environment.get(variable) {
                Some(text) => premier
                    .parse_variable(variable, text, parse_address)
                    .map(Some),
                None => Some(default),
            },
        }
    };
    let https = parse("https", "GATEWAY_HTTPS", Some(DEFAULT_HTTPS));
    let http = parse("http", "GATEWAY_HTTP", None);
    let admin = parse("admin", ADMIN_VARIABLE, Some(DEFAULT_ADMIN));
    let public_port = parse_public_port(listen.as_mut(), premier);
    let acme_challenges = parse_acme_challenges(listen.as_mut());
    let listeners: Vec<_> = [("https", https), ("http", http), ("admin", admin)]
        .into_iter()
        .filter_map(|(key, address)| Some((key, address??)))
        .collect();
    reject_overlaps(listen.as_ref().unwrap_or(premier), &listeners);
    if let Some(listen) = listen {
        listen.reject_unknown_keys();
    }
    let (https, http, acme_challenges) = (https??, http?, acme_challenges?);
    if let Some(folder) = &acme_challenges {
        warn_about_acme_challenges(folder, http, warnings);
    }
    Some(Listen {
        addresses: ListenAddresses {
            https,
            http,
            admin: admin??,
            public_port: public_port?.unwrap_or_else(|| https.port()),
        },
        acme_challenges,
    })
}

/// Parses the folder of ACME challenges. Returns `Some(None)` if there is none, `None` if it has an error.
#[expect(
    clippy::option_option,
    reason = "an error and an absent key are distinct"
)]
fn parse_acme_challenges(listen: Option<&mut Mapping<'_, '_>>) -> Option<Option<PathBuf>> {
    match listen.and_then(|mapping| mapping.get("acme_challenges")) {
        Some(value) if value.is_empty() => Some(None),
        Some(value) => value.string().map(|folder| Some(folder.into())),
        None => Some(None),
    }
}

/// Warns about a folder from which no challenge can be served.
fn warn_about_acme_challenges(folder: &Path, http: Option<SocketAddr>, warnings: &mut Vec<String>) {
    if http.is_none() {
        warnings.push(
            "listen.acme_challenges has no effect without listen.http: set that to 0.0.0.0:80, where the \
             authority asks for challenges"
                .to_owned(),
        );
    }
    if let Err(error) = std::fs::read_dir(folder) {
        let folder = folder.display();
        warnings.push(format!(
            "listen.acme_challenges: {folder} cannot be read: {error}; create it, readable by the user of \
             the gateway"
        ));
    }
}

/// Reports listeners that cannot be bound together.
fn reject_overlaps(mapping: &Mapping<'_, '_>, listeners: &[(&str, SocketAddr)]) {
    for (index, (key, address)) in listeners.iter().enumerate() {
        for (other_key, other) in &listeners[..index] {
            if overlap(*address, *other) {
                mapping.report_error(format!(
                    "`listen.{other_key}` ({other}) and `listen.{key}` ({address}) overlap: give \
                     each listener its own port"
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

/// Returns true if a listener at address `one` also accepts connections to `other`. A listener at `::`
/// accepts those over IPv4 too, since `IPV6_V6ONLY` is not set.
fn covers(one: IpAddr, other: IpAddr) -> bool {
    one.is_unspecified() && (one.is_ipv6() || other.is_ipv4())
}

/// Parses the port of https as clients see it. Returns `Some(None)` if it is the listener's, `None` if
/// it has an error.
#[expect(
    clippy::option_option,
    reason = "an error and an absent key are distinct"
)]
fn parse_public_port(
    listen: Option<&mut Mapping<'_, '_>>,
    premier: &Mapping<'_, '_>,
) -> Option<Option<u16>> {
    const VARIABLE: &str = "GATEWAY_PUBLIC_PORT";
    let parse_port = |text: &str| {
        text.parse::<NonZeroU16>()
            .map_err(|_| format!("`{text}` is not a port: it must be a number from 1 to 65535"))
    };
    match listen.and_then(|mapping| mapping.get("public_port")) {
        Some(value) if value.is_empty() => Some(None),
        Some(value) => value.port().map(Some),
        None => match premier.environment().get(VARIABLE) {
            Some(text) => premier
                .parse_variable(VARIABLE, text, parse_port)
                .map(|port| Some(port.get())),
            None => Some(None),
        },
    }
}

/// Returns the address of the admin listener, whatever errors the rest of the file has.
pub(super) fn admin_address(text: &str, environment: &Environment) -> SocketAddr {
    admin_address_in_file(text, environment)
        .or_else(|| parse_address(environment.get(ADMIN_VARIABLE)?).ok())
        .unwrap_or(DEFAULT_ADMIN)
}

fn admin_address_in_file(text: &str, environment: &Environment) -> Option<SocketAddr> {
    let documents = parse_documents(text).ok()?;
    let context = ParseContext::new(environment);
    let mut node = Node::root(documents.first()?, &context);
    for key in ["premier", "listen", "admin"] {
        node = node.mapping()?.get(key)?;
    }
    node.parse(parse_address)
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("`{text}` is not a socket address: write IP:PORT, as in 0.0.0.0:443")
    })?;
    if address.port() == 0 {
        return Err(format!(
            "`{text}` has port 0, which is a random port: name a fixed one"
        ));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn listen(yaml: &str, variables: &[(&str, &str)]) -> Result<ListenAddresses, String> {
        let environment = Environment::for_tests().with(variables);
        Config::parse("gateway.yml".as_ref(), yaml, &environment)
            .map(|config| config.listen)
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn the_public_port_defaults_to_the_port_of_the_listener() {
        let port = |yaml, variables| listen(yaml, variables).map(|listen| listen.public_port);
        let unmapped = [("GATEWAY_HTTPS", "0.0.0.0:8443")];
        assert_eq!(port("premier: {}", &unmapped), Ok(8443));
        let mapped = [
            ("GATEWAY_HTTPS", "0.0.0.0:8443"),
            ("GATEWAY_PUBLIC_PORT", "443"),
        ];
        assert_eq!(port("premier: {}", &mapped), Ok(443));
        assert_eq!(
            port("premier: {listen: {public_port: 4443}}", &mapped),
            Ok(4443)
        );
        let empty = "premier: {listen: {public_port: '${NONE:-}'}}";
        assert_eq!(port(empty, &unmapped), Ok(8443));
        let error = port("premier: {listen: {public_port: 0}}", &[]).unwrap_err();
        assert!(error.contains("an integer from 1 to 65535"), "{error}");
        let error = port("premier: {}", &[("GATEWAY_PUBLIC_PORT", "https")]).unwrap_err();
        assert!(
            error.contains("GATEWAY_PUBLIC_PORT: `https` is not a port"),
            "{error}"
        );
    }

    #[test]
    fn overlapping_listeners_are_rejected() {
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("127.0.0.1:80", "0.0.0.0:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "[::]:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
        ] {
            let result = listen(
                "premier: {}",
                &[("GATEWAY_HTTPS", one), ("GATEWAY_HTTP", other)],
            );
            let error = result.unwrap_err();
            let expected = format!("`listen.https` ({one}) and `listen.http` ({other}) overlap");
            assert!(error.contains(&expected), "{error}");
        }
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:81"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("0.0.0.0:80", "[::1]:80"),
        ] {
            let addresses = listen(
                "premier: {}",
                &[("GATEWAY_HTTPS", one), ("GATEWAY_HTTP", other)],
            );
            assert!(addresses.is_ok(), "{addresses:?}");
        }
        let error = listen("premier: {listen: {admin: '[::]:443'}}", &[]).unwrap_err();
        assert!(
            error.contains("premier.listen: `listen.https` (0.0.0.0:443) and `listen.admin`"),
            "{error}"
        );
    }

    #[test]
    fn port_0_is_rejected() {
        let error = listen("premier: {listen: {https: '0.0.0.0:0'}}", &[]).unwrap_err();
        assert!(
            error.contains("premier.listen.https: `0.0.0.0:0` has port 0"),
            "{error}"
        );
    }

    #[test]
    fn the_admin_address_is_found_despite_errors_in_the_file() {
        let environment = Environment::from([("GATEWAY_ADMIN", "[::1]:2"), ("PORT", "3")]);
        let address = |text: &str| admin_address(text, &environment).to_string();
        for with_address in [
            "premier: {listen: {admin: '127.0.0.1:${PORT}'}}",
            "premier: {listen: {admin: '127.0.0.1:3', htps: x}, servers: 5, pahts: []}",
        ] {
            assert_eq!(address(with_address), "127.0.0.1:3", "{with_address}");
        }
        for without_address in [
            "",
            "premier: [",
            "premier: {}",
            "premier: {listen: {admin: }}",
            "premier: {listen: {admin: here}}",
            "premier: {listen: {admin: '${NONE}'}}",
        ] {
            assert_eq!(address(without_address), "[::1]:2", "{without_address}");
        }
        let empty = Environment::default();
        assert_eq!(admin_address("", &empty).to_string(), "127.0.0.1:9901");
    }
}
