//! Parsing of the upstream groups: the servers of the default group, `load_balancing`, `health_check`, and the
//! groups under `upstreams`.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::model::{
    BalancingStrategy, DEFAULT_UPSTREAM, EndpointLimits, HealthCheckMethod, HealthCheckSettings,
    LoadBalancingSettings, UpstreamSettings, UpstreamTlsSettings,
};
use crate::config::node::{Mapping, NamedValue, Node};
use crate::config::server::{Scheme, Server};
use crate::config::upstream_tls::parse_upstream_tls;

/// Maximum length of the name of a group, which is a label of metrics.
const MAX_NAME_LENGTH: usize = 64;

/// Groups under `upstreams`.
pub(super) struct ParsedUpstreams {
    /// Names of all groups, the default one first, also of those that have errors.
    pub(super) names: Vec<String>,
    /// `None` if there are errors.
    pub(super) groups: Option<Vec<UpstreamSettings>>,
}

/// Parses `upstreams`: a mapping of names to groups.
pub(super) fn parse_upstreams(
    premier: &mut Mapping<'_, '_>,
    warnings: &mut Vec<String>,
) -> ParsedUpstreams {
    let mut names = vec![DEFAULT_UPSTREAM.to_owned()];
    let Ok(mapping) = premier.mapping("upstreams") else {
        return ParsedUpstreams {
            names,
            groups: None,
        };
    };
    let groups: Vec<_> = mapping
        .into_iter()
        .flat_map(Mapping::into_named_values)
        .map(|named| {
            if named.name != DEFAULT_UPSTREAM {
                names.push(named.name.clone());
            }
            let group = parse_upstream(&named)?;
            warn_about_tls(&group, warnings);
            Some(group)
        })
        .collect();
    ParsedUpstreams {
        names,
        groups: groups.into_iter().collect(),
    }
}

fn parse_upstream(named: &NamedValue<'_, '_>) -> Option<UpstreamSettings> {
    let is_valid_name = check_name(named);
    let mut mapping = named.value.mapping()?;
    let servers = mapping
        .require("servers")
        .and_then(|value| parse_servers(&value));
    let load_balancing = parse_load_balancing(&mut mapping);
    let health_check = parse_health_check(&mut mapping);
    let tls = parse_upstream_tls(&mut mapping);
    mapping.reject_unknown_keys();
    is_valid_name.then_some(())?;
    Some(UpstreamSettings {
        name: named.name.clone(),
        servers: servers?,
        load_balancing: load_balancing?,
        health_check: health_check?,
        tls: tls?,
    })
}

/// Warns about TLS settings that no connection has.
fn warn_about_tls(group: &UpstreamSettings, warnings: &mut Vec<String>) {
    let has_https = group
        .servers
        .iter()
        .any(|server| server.scheme == Scheme::Https);
    if group.tls != UpstreamTlsSettings::default() && !has_https {
        warnings.push(format!(
            "upstreams.{}.tls has no effect: none of the servers begins with https://",
            group.name
        ));
    }
}

/// Reports a name that cannot be that of a group.
fn check_name(NamedValue { name, key, .. }: &NamedValue<'_, '_>) -> bool {
    let is_name_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name == DEFAULT_UPSTREAM {
        key.report_error("is the name of the group that `servers` makes up: choose another one");
        false
    } else if !(1..=MAX_NAME_LENGTH).contains(&name.len()) || !name.bytes().all(is_name_byte) {
        key.report_error(format!(
            "is not a name: use 1 to {MAX_NAME_LENGTH} ASCII letters, digits, `-`, `_` and `.`"
        ));
        false
    } else {
        true
    }
}

/// Parses `servers` of the default group, which an environment variable replaces.
pub(super) fn parse_default_servers(premier: &mut Mapping<'_, '_>) -> Option<Vec<Server>> {
    const VARIABLE: &str = "GATEWAY_SERVERS";
    // Null is the default of Premier.
    let value = premier.get("servers").filter(|value| !value.is_null());
    if let Some(value) = value {
        return parse_servers(&value);
    }
    let environment = premier.environment();
    let text = environment.get(VARIABLE).unwrap_or("http://auth-api:8000");
    premier.parse_variable(VARIABLE, text, |text| match comma_separated(text) {
        Ok(servers) if servers.is_empty() => Err("must name at least one server".to_owned()),
        result => result,
    })
}

/// Parses a list of servers. Each element is one server, or several separated by commas.
fn parse_servers(value: &Node<'_, '_>) -> Option<Vec<Server>> {
    let servers = if value.is_list() {
        value
            .parse_list(|server| server.parse(comma_separated))?
            .concat()
    } else {
        value.parse(comma_separated)?
    };
    value.require_not_empty(servers)
}

fn comma_separated(text: &str) -> Result<Vec<Server>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::parse)
        .collect()
}

/// Parses `load_balancing` of a group.
pub(super) fn parse_load_balancing(group: &mut Mapping<'_, '_>) -> Option<LoadBalancingSettings> {
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
    let Some(mut mapping) = group.mapping("load_balancing").ok()? else {
        return Some(DEFAULT);
    };
    let strategy = mapping.get_or("strategy", DEFAULT.strategy, |value| {
        value.one_of(&STRATEGIES)
    });
    let limits = DEFAULT.endpoint_limits;
    let max_connections = mapping.get_or(
        "max_connections_per_endpoint",
        limits.max_connections,
        |value| value.size(1, MAX_CONNECTIONS),
    );
    let max_pending_requests = mapping.get_or(
        "max_pending_requests_per_endpoint",
        limits.max_pending_requests,
        |value| value.size(0, MAX_CONNECTIONS),
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

/// Parses `health_check` of a group.
pub(super) fn parse_health_check(group: &mut Mapping<'_, '_>) -> Option<HealthCheckSettings> {
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
    let Some(value) = group.get("health_check") else {
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
