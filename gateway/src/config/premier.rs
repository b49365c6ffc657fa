//! Parsing of the keys under `premier`, in the order of gateway.yml. `listen`, the upstream groups and the paths have
//! parsers of their own.

use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::certificate::{Certificate, CertificateFiles};
use crate::config::features::parse_features;
use crate::config::identity::parse_identity;
use crate::config::listen::{Listen, parse_listen};
use crate::config::model::{Config, DEFAULT_UPSTREAM, Features, Limits, LoadBalancingSettings};
use crate::config::node::{Mapping, Node};
use crate::config::paths::{parse_path_rule, warn_about_rules, warn_about_unused};
use crate::config::quotas::parse_quotas;
use crate::config::upstreams::{
    parse_default_servers, parse_health_check, parse_load_balancing, parse_upstreams,
};

/// Parses a document. Warnings and hash of the result are empty: the caller sets them.
pub(super) fn parse(document: &Node<'_, '_>, warnings: &mut Vec<String>) -> Option<Config> {
    let mut root = document.mapping()?;
    let mut premier = root.require("premier")?.mapping()?;
    warn_about_unused_keys(&root, warnings);

    let keyspace = premier.get_or("keyspace", "asgi-gateway".to_owned(), Node::string);
    let listen = parse_listen(&mut premier, warnings);
    let certificates = parse_certificates(&mut premier, warnings);
    let servers = parse_default_servers(&mut premier);
    let load_balancing = parse_load_balancing(&mut premier);
    let health_check = parse_health_check(&mut premier);
    let upstreams = parse_upstreams(&mut premier, warnings);
    let trusted_proxies = parse_trusted_proxies(&mut premier, warnings);
    let limits = parse_limits(&mut premier);
    if let (Some(default), Some(groups), Some(limits)) =
        (&load_balancing, &upstreams.groups, &limits)
    {
        let default = (DEFAULT_UPSTREAM, default);
        let named = groups
            .iter()
            .map(|group| (&*group.name, &group.load_balancing));
        warn_about_share_of_client(std::iter::once(default).chain(named), limits, warnings);
    }
    let (has_identity, identity) = parse_identity(&mut premier);
    let quotas = parse_quotas(&mut premier);
    let paths = premier.get_or("paths", Vec::new(), |paths| {
        paths.parse_list(|rule| parse_path_rule(rule, &upstreams.names, has_identity, warnings))
    });
    warn_about_rules(paths.as_deref().unwrap_or_default(), warnings);
    if let (Some(paths), Some(certificates)) = (&paths, &certificates) {
        warn_about_unused(paths, &upstreams.names, certificates, warnings);
    }
    let default_features = premier.get_or("default_features", Features::default(), |value| {
        parse_features(value, "default_features", has_identity, warnings)
    });
    if premier.get("dashboard").is_some() {
        warnings.push(
            "dashboard has no effect: operators have /status and /metrics on the admin listener"
                .to_owned(),
        );
    }
    premier.reject_unknown_keys();
    let Listen {
        addresses: listen,
        acme_challenges,
    } = listen?;
    Some(Config {
        keyspace: keyspace?,
        listen,
        acme_challenges,
        certificates: certificates?,
        servers: servers?,
        load_balancing: load_balancing?,
        health_check: health_check?,
        upstreams: upstreams.groups?,
        trusted_proxies: trusted_proxies?,
        limits: limits?,
        identity: identity?,
        quotas: quotas?,
        paths: paths?,
        default_features: default_features?,
        warnings: Vec::new(),
        hash: String::new(),
    })
}

/// Warns about groups of which one client may use all connections to an endpoint.
fn warn_about_share_of_client<'g>(
    groups: impl Iterator<Item = (&'g str, &'g LoadBalancingSettings)>,
    limits: &Limits,
    warnings: &mut Vec<String>,
) {
    let of_client = limits.max_upstream_requests_per_client;
    for (name, load_balancing) in groups {
        let max = load_balancing.endpoint_limits.max_connections;
        if max <= of_client {
            warnings.push(format!(
                "max_connections_per_endpoint of the upstream group {name} is {max}: one client can use all of them, \
                 unless limits.max_upstream_requests_per_client ({of_client}) is less"
            ));
        }
    }
}

/// Warns about the keys beside `premier`. Premier ignores them, and its documentation shows some.
fn warn_about_unused_keys(root: &Mapping<'_, '_>, warnings: &mut Vec<String>) {
    for key in root.unknown_keys() {
        warnings.push(format!(
            "{key} has no effect beside premier: move it under premier if it is meant for the gateway, \
             or begin its name with x-"
        ));
    }
}

fn parse_certificates(
    premier: &mut Mapping<'_, '_>,
    warnings: &mut Vec<String>,
) -> Option<Vec<Certificate>> {
    let mut tls = premier.mapping("tls").ok()?;
    let list = tls.as_mut().and_then(|tls| tls.get("certificates"));
    if let Some(tls) = tls {
        tls.reject_unknown_keys();
    }
    let Some(list) = list else {
        return default_certificate(premier).map(|certificate| vec![certificate]);
    };
    let certificates = list.parse_list(|element| {
        let mut mapping = element.mapping()?;
        let cert = mapping.require("cert").and_then(|value| value.string());
        let key = mapping.require("key").and_then(|value| value.string());
        mapping.reject_unknown_keys();
        let files = CertificateFiles {
            cert: cert?.into(),
            key: key?.into(),
        };
        Certificate::load(files)
            .map_err(|problems| {
                for problem in problems {
                    element.report_error(problem);
                }
            })
            .ok()
    })?;
    warn_about_certificates(&certificates, warnings);
    list.require_not_empty(certificates)
}

/// Warns about certificates that no client is served.
fn warn_about_certificates(certificates: &[Certificate], warnings: &mut Vec<String>) {
    for (index, certificate) in certificates.iter().enumerate().skip(1) {
        if certificate.is_hidden_by(&certificates[..index]) {
            warnings.push(format!(
                "tls.certificates: {} is never served: earlier certificates with the same kind of key \
                 have all of its names",
                certificate.files.cert.display()
            ));
        }
    }
}

fn default_certificate(premier: &Mapping<'_, '_>) -> Option<Certificate> {
    let environment = premier.environment();
    let file = |variable, default: &str| environment.get(variable).unwrap_or(default).into();
    let files = CertificateFiles {
        cert: file("SSL_CERTFILE", ".ssl/cert.pem"),
        key: file("SSL_KEYFILE", ".ssl/key.pem"),
    };
    Certificate::load(files)
        .map_err(|problems| {
            for problem in problems {
                premier.report_error(format!(
                    "{problem}; set the files by SSL_CERTFILE and SSL_KEYFILE, or by tls.certificates"
                ));
            }
        })
        .ok()
}

fn parse_trusted_proxies(
    premier: &mut Mapping<'_, '_>,
    warnings: &mut Vec<String>,
) -> Option<Vec<IpNet>> {
    let mut parse_network = |text: &str| -> Result<IpNet, String> {
        let network = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
            .map_err(|_| {
                format!(
                    "`{text}` is not a network: write an IP address, or a prefix as in 10.0.0.0/8"
                )
            })?;
        let truncated = network.trunc();
        if network != truncated {
            warnings.push(format!(
                "trusted_proxies: {text} has host bits set: all of {truncated} is trusted"
            ));
        }
        Ok(truncated)
    };
    // Each element is one network, or several separated by commas, as in a variable.
    let mut parse_networks = |text: &str| {
        let networks = text.split(',').map(str::trim);
        networks
            .filter(|network| !network.is_empty())
            .map(&mut parse_network)
            .collect::<Result<Vec<_>, _>>()
    };
    premier.get_or("trusted_proxies", Vec::new(), |list| {
        let networks = list.parse_list(|element| element.parse(&mut parse_networks))?;
        Some(networks.concat())
    })
}

fn parse_limits(premier: &mut Mapping<'_, '_>) -> Option<Limits> {
    const MEBIBYTE: u64 = 1 << 20;
    // Every connection may need that much memory before anything is known about its client.
    const MAX_HEADER_BYTES: u64 = MEBIBYTE;
    // Requests of browsers have more.
    const MIN_HEADER_BYTES: u64 = 1024;
    const MAX_BODY_BYTES: u64 = u64::MAX >> 1;
    const MAX_CONNECTIONS: u64 = u32::MAX as u64;
    // Bytes that one exchange may buffer.
    const MIN_BUFFERED_BYTES: u64 = 64 * 1024;
    const MAX_BUFFERED_BYTES: u64 = u32::MAX as u64;
    let default = Limits {
        max_body_bytes: MEBIBYTE,
        max_header_bytes: 32 * 1024,
        header_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_mins(1),
        stream_idle_timeout: Duration::from_mins(1),
        max_connections: 20_000,
        max_connections_per_client: None,
        max_upstream_requests_per_client: 2048,
        max_abandoned_requests_per_client: NonZeroU32::MIN.saturating_add(999),
        max_buffered_bytes: 256 << 20,
        max_buffered_bytes_per_client: 16 << 20,
    };
    let Some(mut mapping) = premier.mapping("limits").ok()? else {
        return Some(default);
    };
    let max_body_bytes = mapping.get_or("max_body_bytes", default.max_body_bytes, |value| {
        value.integer(0..=MAX_BODY_BYTES)
    });
    let max_header_bytes = mapping.get_or("max_header_bytes", default.max_header_bytes, |value| {
        value.size(MIN_HEADER_BYTES, MAX_HEADER_BYTES)
    });
    let header_timeout = mapping.get_or(
        "header_timeout",
        default.header_timeout,
        Node::positive_duration,
    );
    let body_timeout = mapping.get_or(
        "body_timeout",
        default.body_timeout,
        Node::positive_duration,
    );
    let idle_timeout = mapping.get_or(
        "idle_timeout",
        default.idle_timeout,
        Node::positive_duration,
    );
    let stream_idle_timeout = mapping.get_or(
        "stream_idle_timeout",
        default.stream_idle_timeout,
        Node::positive_duration,
    );
    let max_connections = mapping.get_or("max_connections", default.max_connections, |value| {
        value.size(1, MAX_CONNECTIONS)
    });
    let max_connections_per_client = mapping.get_or(
        "max_connections_per_client",
        default.max_connections_per_client,
        |value| Some(Some(value.size(1, MAX_CONNECTIONS)?)),
    );
    let max_upstream_requests_per_client = mapping.get_or(
        "max_upstream_requests_per_client",
        default.max_upstream_requests_per_client,
        |value| value.size(1, MAX_CONNECTIONS),
    );
    let max_abandoned_requests_per_client = mapping.get_or(
        "max_abandoned_requests_per_client",
        default.max_abandoned_requests_per_client,
        Node::positive_integer,
    );
    let max_buffered_bytes =
        mapping.get_or("max_buffered_bytes", default.max_buffered_bytes, |value| {
            value.size(MIN_BUFFERED_BYTES, MAX_BUFFERED_BYTES)
        });
    let max_buffered_bytes_per_client = mapping.get_or(
        "max_buffered_bytes_per_client",
        default.max_buffered_bytes_per_client,
        |value| value.size(MIN_BUFFERED_BYTES, MAX_BUFFERED_BYTES),
    );
    mapping.reject_unknown_keys();
    Some(Limits {
        max_body_bytes: max_body_bytes?,
        max_header_bytes: max_header_bytes?,
        header_timeout: header_timeout?,
        body_timeout: body_timeout?,
        idle_timeout: idle_timeout?,
        stream_idle_timeout: stream_idle_timeout?,
        max_connections: max_connections?,
        max_connections_per_client: max_connections_per_client?,
        max_upstream_requests_per_client: max_upstream_requests_per_client?,
        max_abandoned_requests_per_client: max_abandoned_requests_per_client?,
        max_buffered_bytes: max_buffered_bytes?,
        max_buffered_bytes_per_client: max_buffered_bytes_per_client?,
    })
}
