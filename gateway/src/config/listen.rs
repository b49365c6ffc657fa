//! Where the gateway listens: `premier.listen`, and the variables that stand in for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Listen;
use super::interpolate::Environment;
use super::read::{documents, subsection};
use super::section::{Reading, Section, Value};

const HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 443);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

pub(super) fn listen(premier: &mut Section<'_, '_>) -> Option<Listen> {
    let environment = premier.environment();
    let mut listen = subsection(premier, "listen").ok()?;
    let mut read = |key, variable, default| {
        let value = listen.as_mut().and_then(|section| section.get(key));
        match value {
            Some(value) if value.is_null() => Some(None),
            Some(value) => value.parsed(|text| {
                if text.is_empty() {
                    Ok(None)
                } else {
                    address(text).map(Some)
                }
            }),
            None => match environment.get(variable) {
                Some(text) => premier.parsed_variable(variable, text, address).map(Some),
                None => Some(default),
            },
        }
    };
    let https = read("https", "GATEWAY_HTTPS", Some(HTTPS));
    let http = read("http", "GATEWAY_HTTP", None);
    let admin = read("admin", "GATEWAY_ADMIN", Some(ADMIN));
    if let Some(section) = listen {
        section.end();
    }
    let needed = |key: &str, address: Option<SocketAddr>| {
        if address.is_none() {
            premier.wrong(format!("`listen.{key}` cannot be left empty"));
        }
        address
    };
    Some(Listen {
        https: needed("https", https?)?,
        http: http?,
        admin: needed("admin", admin?)?,
    })
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
    text.parse()
        .map_err(|_| format!("`{text}` is no address: write IP:PORT, as in 0.0.0.0:443"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
