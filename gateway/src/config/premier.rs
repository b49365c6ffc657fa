//! Parsing of the keys under `premier`, except `listen` and the features, in the order of gateway.yml.

use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::certificate::{Certificate, CertificateFiles};
use crate::config::features::parse_features;
use crate::config::listen::{Listen, parse_listen};
use crate::config::model::{
    BalancingStrategy, Config, EndpointLimits, Features, HealthCheckMethod, HealthCheckSettings,
    Limits, LoadBalancingSettings, PathRule,
};
use crate::config::node::{Mapping, Node};
use crate::config::server::Server;

/// Parses a document. Warnings and hash of the result are empty: the caller sets them.
pub(super) fn parse(document: &Node<'_, '_>, warnings: &mut Vec<String>) -> Option<Config> {
    let mut root = document.mapping()?;
    let mut premier = root.require("premier")?.mapping()?;
    warn_about_unused_keys(&root, warnings);

    let keyspace = premier.get_or("keyspace", "asgi-gateway".to_owned(), Node::string);
    let listen = parse_listen(&mut premier, warnings);
    let certificates = parse_certificates(&mut premier, warnings);
    let servers = parse_servers(&mut premier);
    let load_balancing = parse_load_balancing(&mut premier);
    let health_check = parse_health_check(&mut premier);
    let trusted_proxies = parse_trusted_proxies(&mut premier, warnings);
    let limits = parse_limits(&mut premier);
    let paths = premier.get_or("paths", Vec::new(), |paths| {
        paths.parse_list(|rule| parse_path_rule(rule, warnings))
    });
    warn_about_patterns(paths.as_deref().unwrap_or_default(), warnings);
    let default_features = premier.get_or("default_features", Features::default(), |value| {
        parse_features(value, "default_features", warnings)
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
        trusted_proxies: trusted_proxies?,
        limits: limits?,
        paths: paths?,
        default_features: default_features?,
        warnings: Vec::new(),
        hash: String::new(),
    })
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

fn parse_servers(premier: &mut Mapping<'_, '_>) -> Option<Vec<Server>> {
    const VARIABLE: &str = "GATEWAY_SERVERS";
    let comma_separated = |text: &str| {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(str::parse)
            .collect::<Result<Vec<Server>, _>>()
    };
    // Null is the default of Premier.
    let Some(value) = premier.get("servers").filter(|value| !value.is_null()) else {
        let environment = premier.environment();
        let text = environment.get(VARIABLE).unwrap_or("http://auth-api:8000");
        return premier.parse_variable(VARIABLE, text, |text| match comma_separated(text) {
            Ok(servers) if servers.is_empty() => Err("must name at least one server".to_owned()),
            result => result,
        });
    };
    let servers = if value.is_list() {
        value
            .parse_list(|server| server.parse(comma_separated))?
            .concat()
    } else {
        value.parse(comma_separated)?
    };
    value.require_not_empty(servers)
}

fn parse_load_balancing(premier: &mut Mapping<'_, '_>) -> Option<LoadBalancingSettings> {
    const STRATEGIES: [(&str, BalancingStrategy); 3] = [
        ("least_requests", BalancingStrategy::LeastRequests),
        ("round_robin", BalancingStrategy::RoundRobin),
        ("random", BalancingStrategy::Random),
    ];
    const MAX_CONNECTIONS: u64 = u32::MAX as u64;
    const DEFAULT: LoadBalancingSettings = LoadBalancingSettings {
        strategy: BalancingStrategy::LeastRequests,
        endpoint_limits: EndpointLimits {
            max_connections: 4096,
            max_pending_requests: 1024,
        },
    };
    let Some(mut mapping) = premier.mapping("load_balancing").ok()? else {
        return Some(DEFAULT);
    };
    let strategy = mapping.get_or("strategy", DEFAULT.strategy, |value| {
        value.one_of(&STRATEGIES)
    });
    let limits = DEFAULT.endpoint_limits;
    let max_connections = mapping.get_or(
        "max_connections_per_endpoint",
        limits.max_connections,
        |value| parse_size(value, 1, MAX_CONNECTIONS),
    );
    let max_pending_requests = mapping.get_or(
        "max_pending_requests_per_endpoint",
        limits.max_pending_requests,
        |value| parse_size(value, 0, MAX_CONNECTIONS),
    );
    mapping.reject_unknown_keys();
    Some(LoadBalancingSettings {
        strategy: strategy?,
        endpoint_limits: EndpointLimits {
            max_connections: max_connections?,
            max_pending_requests: max_pending_requests?,
        },
    })
}

fn parse_size(value: &Node<'_, '_>, min: u64, max: u64) -> Option<usize> {
    let number = value.integer(min..=max)?;
    usize::try_from(number).ok()
}

fn parse_health_check(premier: &mut Mapping<'_, '_>) -> Option<HealthCheckSettings> {
    const DEFAULT_PATH: &str = "/ready";
    let default = HealthCheckSettings {
        method: HealthCheckMethod::TcpConnect,
        port: None,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        healthy_after: NonZeroU32::MIN,
        unhealthy_after: NonZeroU32::MIN.saturating_add(1),
    };
    // Servers of a file for Premier, which has no health checks, need not have a path for them.
    let Some(value) = premier.get("health_check") else {
        return Some(default);
    };
    if value.is_null() {
        return Some(HealthCheckSettings {
            method: HealthCheckMethod::None,
            ..default
        });
    }
    let mut mapping = value.mapping()?;
    let path = mapping.get_or("path", DEFAULT_PATH.to_owned(), |value| {
        value.parse(|path| {
            let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
            is_path.then(|| path.to_owned()).ok_or_else(|| {
                format!("`{path}` is not a path: it must begin with / and be printable ASCII")
            })
        })
    });
    let port = mapping.get_or("port", None, |value| value.port().map(Some));
    let interval = mapping.get_or("interval", default.interval, Node::positive_duration);
    let timeout = mapping.get_or("timeout", default.timeout, Node::positive_duration);
    let healthy_after = mapping.get_or(
        "healthy_after",
        default.healthy_after,
        Node::positive_integer,
    );
    let unhealthy_after = mapping.get_or(
        "unhealthy_after",
        default.unhealthy_after,
        Node::positive_integer,
    );
    mapping.reject_unknown_keys();
    Some(HealthCheckSettings {
        method: HealthCheckMethod::Http { path: path? },
        port: port?,
        interval: interval?,
        timeout: timeout?,
        healthy_after: healthy_after?,
        unhealthy_after: unhealthy_after?,
    })
}

fn parse_trusted_proxies(
    premier: &mut Mapping<'_, '_>,
    warnings: &mut Vec<String>,
) -> Option<Vec<IpNet>> {
    let mut parse_network = |text: &str| {
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
    premier.get_or("trusted_proxies", Vec::new(), |list| {
        list.parse_list(|network| network.parse(&mut parse_network))
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
        parse_size(value, MIN_HEADER_BYTES, MAX_HEADER_BYTES)
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
        parse_size(value, 1, MAX_CONNECTIONS)
    });
    let max_connections_per_client = mapping.get_or(
        "max_connections_per_client",
        default.max_connections_per_client,
        |value| Some(Some(parse_size(value, 1, MAX_CONNECTIONS)?)),
    );
    let max_upstream_requests_per_client = mapping.get_or(
        "max_upstream_requests_per_client",
        default.max_upstream_requests_per_client,
        |value| parse_size(value, 1, MAX_CONNECTIONS),
    );
    let max_abandoned_requests_per_client = mapping.get_or(
        "max_abandoned_requests_per_client",
        default.max_abandoned_requests_per_client,
        Node::positive_integer,
    );
    let max_buffered_bytes =
        mapping.get_or("max_buffered_bytes", default.max_buffered_bytes, |value| {
            parse_size(value, MIN_BUFFERED_BYTES, MAX_BUFFERED_BYTES)
        });
    let max_buffered_bytes_per_client = mapping.get_or(
        "max_buffered_bytes_per_client",
        default.max_buffered_bytes_per_client,
        |value| parse_size(value, MIN_BUFFERED_BYTES, MAX_BUFFERED_BYTES),
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

fn parse_path_rule(rule: &Node<'_, '_>, warnings: &mut Vec<String>) -> Option<PathRule> {
    let mut mapping = rule.mapping()?;
    let pattern = mapping
        .require("pattern")
        .and_then(|value| value.parse(str::parse));
    let features = mapping.get_or("features", Features::default(), |value| {
        let pattern = pattern
            .as_ref()
            .map_or_else(String::new, ToString::to_string);
        parse_features(value, &pattern, warnings)
    });
    mapping.reject_unknown_keys();
    Some(PathRule {
        pattern: pattern?,
        features: features?,
    })
}

/// Warns about patterns that never apply because of an earlier one, and about those that look like
/// shell globs with a negated class.
fn warn_about_patterns(paths: &[PathRule], warnings: &mut Vec<String>) {
    for (index, PathRule { pattern, .. }) in paths.iter().enumerate() {
        let mut earlier = paths[..index].iter().map(|rule| &rule.pattern);
        if let Some(earlier) = earlier.find(|earlier| earlier.covers(pattern)) {
            warnings.push(format!(
                "{pattern}: has no effect: the earlier pattern {earlier} matches every path that it matches"
            ));
        }
        if pattern.has_shell_negation() {
            warnings.push(format!(
                "{pattern}: [!…] is a class that contains `!`; a negated class is written [^…]"
            ));
        }
    }
}
