//! From YAML to a [`Config`]: each key, its type, its default, in the order of gateway.yml.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use ipnet::IpNet;
use saphyr::{LoadableYamlNode, MarkedYaml};

use super::interpolate::Environment;
use super::listen::listen;
use super::mistake::{Mistake, Mistakes, Place};
use super::section::{Reading, Section, Value};
use super::{
    Algorithm, Certificate, CertificateFiles, CircuitBreaker, Config, Features, HealthCheck,
    Limits, Monitoring, PathRule, Per, RateLimit, Refusal, Retry, Server, Strategy, Timeout,
};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn read(file: &Path, text: &str, environment: &Environment) -> Result<Config, Mistakes> {
    let documents = documents(text).map_err(|mistake| Mistakes::new(file, vec![mistake]))?;
    let [document] = documents.as_slice() else {
        let problem = format!("has {} YAML documents, must have one", documents.len());
        return Err(Mistakes::of_file(file, problem));
    };
    let reading = Reading::new(environment);
    let mut warnings = Vec::new();
    let config = root(
        &Value::new(document, String::new(), &reading),
        &mut warnings,
    );
    let mistakes = reading.into_mistakes();
    match config {
        Some(config) if mistakes.is_empty() => Ok(Config {
            warnings,
            hash: hash(text),
            ..config
        }),
        _ => Err(Mistakes::new(file, mistakes)),
    }
}

/// The YAML of a file, before it is looked at whether there is one document in it.
pub(super) fn documents(text: &str) -> Result<Vec<MarkedYaml<'_>>, Mistake> {
    MarkedYaml::load_from_str(text).map_err(|error| {
        let line = error.marker().line();
        let is_about_a_variable = text
            .lines()
            .nth(line.saturating_sub(1))
            .is_some_and(|line| line.contains("${"));
        Mistake {
            place: Some(Place {
                line,
                column: error.marker().col() + 1,
            }),
            key: String::new(),
            problem: format!("is no YAML: {}", error.info()),
            hint: is_about_a_variable.then(|| {
                "inside {…} and […] a value with ${…} is in quotes: \"${NAME}\"".to_owned()
            }),
        }
    })
}

fn root(document: &Value<'_, '_>, warnings: &mut Vec<String>) -> Option<Config> {
    let mut root = document.section()?;
    let mut premier = root.need("premier")?.section()?;
    root.end();

    let keyspace = premier
        .get("keyspace")
        .map_or_else(|| Some("asgi-gateway".to_owned()), |value| value.text());
    let listen = listen(&mut premier);
    let certificates = certificates(&mut premier);
    let servers = servers(&mut premier);
    let strategy = strategy(&mut premier);
    let health_check = health_check(&mut premier);
    let trusted_proxies = trusted_proxies(&mut premier, warnings);
    let limits = limits(&mut premier);
    let paths = premier.get("paths").map_or_else(
        || Some(Vec::new()),
        |paths| each(&paths, |rule| path_rule(rule, warnings)),
    );
    warn_of_useless(paths.as_deref().unwrap_or_default(), warnings);
    let default_features = premier.get("default_features").map_or_else(
        || Some(Features::default()),
        |value| features(&value, "default_features", warnings),
    );
    premier.end();
    Some(Config {
        keyspace: keyspace?,
        listen: listen?,
        certificates: certificates?,
        servers: servers?,
        strategy: strategy?,
        health_check: health_check?,
        trusted_proxies: trusted_proxies?,
        limits: limits?,
        paths: paths?,
        default_features: default_features?,
        warnings: Vec::new(),
        hash: String::new(),
    })
}

fn hash(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Every element of a list, or nothing if one is wrong; all are read either way.
fn each<'y, 'r, T>(
    list: &Value<'y, 'r>,
    mut read: impl FnMut(&Value<'y, 'r>) -> Option<T>,
) -> Option<Vec<T>> {
    if list.is_null() {
        return Some(Vec::new());
    }
    let elements: Vec<_> = list.list()?.iter().map(&mut read).collect();
    elements.into_iter().collect()
}

/// A key's value as `read` has it, or its default where the file leaves it out.
fn or<'y, 'r, T>(
    section: &mut Section<'y, 'r>,
    key: &'static str,
    default: T,
    read: impl FnOnce(&Value<'y, 'r>) -> Option<T>,
) -> Option<T> {
    section
        .get(key)
        .map_or_else(|| Some(default), |value| read(&value))
}

/// A section that a file may leave out.
pub(super) fn subsection<'y, 'r>(
    parent: &mut Section<'y, 'r>,
    key: &'static str,
) -> Result<Option<Section<'y, 'r>>, Wrong> {
    match parent.get(key) {
        None => Ok(None),
        Some(value) => value.section().map(Some).ok_or(Wrong),
    }
}

/// Something was wrong, and is noted.
pub(super) struct Wrong;

fn certificates(premier: &mut Section<'_, '_>) -> Option<Vec<Certificate>> {
    let mut tls = subsection(premier, "tls").ok()?;
    let list = tls.as_mut().and_then(|tls| tls.get("certificates"));
    if let Some(tls) = tls {
        tls.end();
    }
    let Some(list) = list else {
        return default_certificate(premier).map(|certificate| vec![certificate]);
    };
    let certificates = each(&list, |value| {
        let mut section = value.section()?;
        let cert = section.need("cert").and_then(|value| value.text());
        let key = section.need("key").and_then(|value| value.text());
        section.end();
        let files = CertificateFiles {
            cert: cert?.into(),
            key: key?.into(),
        };
        let wrong = |problem| value.wrong(problem, None);
        Certificate::load(files)
            .map_err(|problems| problems.into_iter().for_each(wrong))
            .ok()
    })?;
    not_empty(&list, certificates)
}

fn default_certificate(premier: &Section<'_, '_>) -> Option<Certificate> {
    let environment = premier.environment();
    let file = |variable, default: &str| environment.get(variable).unwrap_or(default).into();
    let files = CertificateFiles {
        cert: file("SSL_CERTFILE", ".ssl/cert.pem"),
        key: file("SSL_KEYFILE", ".ssl/key.pem"),
    };
    let wrong = |problem| {
        premier.wrong(format!(
            "{problem}; SSL_CERTFILE and SSL_KEYFILE, or tls.certificates, say where they are"
        ));
    };
    Certificate::load(files)
        .map_err(|problems| problems.into_iter().for_each(wrong))
        .ok()
}

fn not_empty<T>(list: &Value<'_, '_>, elements: Vec<T>) -> Option<Vec<T>> {
    if elements.is_empty() {
        list.wrong("needs one at least", None);
        return None;
    }
    Some(elements)
}

fn servers(premier: &mut Section<'_, '_>) -> Option<Vec<Server>> {
    const VARIABLE: &str = "GATEWAY_SERVERS";
    let comma_separated = |text: &str| {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(str::parse)
            .collect::<Result<Vec<Server>, _>>()
    };
    // Premier's own default is nothing.
    let Some(value) = premier.get("servers").filter(|value| !value.is_null()) else {
        let environment = premier.environment();
        let text = environment.get(VARIABLE).unwrap_or("http://auth-api:8000");
        return premier.parsed_variable(VARIABLE, text, |text| match comma_separated(text) {
            Ok(servers) if servers.is_empty() => Err("needs one server at least".to_owned()),
            result => result,
        });
    };
    let servers = if value.is_list() {
        each(&value, |server| server.parsed(comma_separated))?.concat()
    } else {
        value.parsed(comma_separated)?
    };
    not_empty(&value, servers)
}

fn strategy(premier: &mut Section<'_, '_>) -> Option<Strategy> {
    const STRATEGIES: [(&str, Strategy); 3] = [
        ("least_requests", Strategy::LeastRequests),
        ("round_robin", Strategy::RoundRobin),
        ("random", Strategy::Random),
    ];
    let Some(mut section) = subsection(premier, "load_balancing").ok()? else {
        return Some(Strategy::LeastRequests);
    };
    let strategy = or(&mut section, "strategy", Strategy::LeastRequests, |value| {
        value.one_of(&STRATEGIES)
    });
    section.end();
    strategy
}

fn health_check(premier: &mut Section<'_, '_>) -> Option<HealthCheck> {
    let default = HealthCheck {
        path: "/ready".to_owned(),
        port: None,
        interval: 2 * SECOND,
        timeout: SECOND,
        healthy_after: NonZeroU32::MIN,
        unhealthy_after: NonZeroU32::MIN.saturating_add(1),
    };
    let Some(mut section) = subsection(premier, "health_check").ok()? else {
        return Some(default);
    };
    let path = or(&mut section, "path", default.path, |value| {
        value.parsed(|path| {
            let is_good = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
            is_good
                .then(|| path.to_owned())
                .ok_or_else(|| format!("`{path}` is no path: it must start with /"))
        })
    });
    let port = or(&mut section, "port", None, |value| value.port().map(Some));
    let interval = or(&mut section, "interval", default.interval, Value::seconds);
    let timeout = or(&mut section, "timeout", default.timeout, Value::seconds);
    let healthy = or(
        &mut section,
        "healthy_after",
        default.healthy_after,
        Value::count,
    );
    let unhealthy = or(
        &mut section,
        "unhealthy_after",
        default.unhealthy_after,
        Value::count,
    );
    section.end();
    Some(HealthCheck {
        path: path?,
        port: port?,
        interval: interval?,
        timeout: timeout?,
        healthy_after: healthy?,
        unhealthy_after: unhealthy?,
    })
}

fn trusted_proxies(
    premier: &mut Section<'_, '_>,
    warnings: &mut Vec<String>,
) -> Option<Vec<IpNet>> {
    let mut network = |text: &str| {
        let network = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
            .map_err(|_| format!("`{text}` is no network: write 10.0.0.0/8, or one address"))?;
        let whole = network.trunc();
        if network != whole {
            warnings.push(format!(
                "trusted_proxies: {text} is an address in a network, and all of {whole} is trusted"
            ));
        }
        Ok(whole)
    };
    premier.get("trusted_proxies").map_or_else(
        || Some(Vec::new()),
        |list| each(&list, |value| value.parsed(&mut network)),
    )
}

fn limits(premier: &mut Section<'_, '_>) -> Option<Limits> {
    const MEBIBYTE: u64 = 1 << 20;
    // Every connection may hold as much before anything is known of it.
    const LARGEST_HEADER: u64 = MEBIBYTE;
    // Into less no browser's request fits.
    const SMALLEST_HEADER: u64 = 1024;
    let default = Limits {
        max_body: MEBIBYTE,
        max_header: 32 * 1024,
        header_timeout: 10 * SECOND,
        idle_timeout: 60 * SECOND,
        max_connections: 20_000,
        max_connections_per_client: 10_000,
    };
    let Some(mut section) = subsection(premier, "limits").ok()? else {
        return Some(default);
    };
    let size = |value: &Value<'_, '_>, least, most| {
        let number = value.number(least, most)?;
        usize::try_from(number).ok()
    };
    let max_body = or(&mut section, "max_body_bytes", default.max_body, |value| {
        value.number(0, u64::MAX >> 1)
    });
    let max_header = or(
        &mut section,
        "max_header_bytes",
        default.max_header,
        |value| size(value, SMALLEST_HEADER, LARGEST_HEADER),
    );
    let header_timeout = or(
        &mut section,
        "header_timeout",
        default.header_timeout,
        Value::seconds,
    );
    let idle_timeout = or(
        &mut section,
        "idle_timeout",
        default.idle_timeout,
        Value::seconds,
    );
    let connections = or(
        &mut section,
        "max_connections",
        default.max_connections,
        |value| size(value, 1, u32::MAX.into()),
    );
    let per_client = or(
        &mut section,
        "max_connections_per_client",
        default.max_connections_per_client,
        |value| size(value, 1, u32::MAX.into()),
    );
    section.end();
    Some(Limits {
        max_body: max_body?,
        max_header: max_header?,
        header_timeout: header_timeout?,
        idle_timeout: idle_timeout?,
        max_connections: connections?,
        max_connections_per_client: per_client?,
    })
}

fn path_rule(rule: &Value<'_, '_>, warnings: &mut Vec<String>) -> Option<PathRule> {
    let mut section = rule.section()?;
    let pattern = section
        .need("pattern")
        .and_then(|value| value.parsed(str::parse));
    let found = section.get("features").map_or_else(
        || Some(Features::default()),
        |value| {
            let place = pattern
                .as_ref()
                .map_or_else(String::new, ToString::to_string);
            features(&value, &place, warnings)
        },
    );
    section.end();
    Some(PathRule {
        pattern: pattern?,
        features: found?,
    })
}

/// Warns of patterns that take nothing, since the first that matches wins, and of those that take
/// what they seem to leave out.
fn warn_of_useless(paths: &[PathRule], warnings: &mut Vec<String>) {
    for (number, PathRule { pattern, .. }) in paths.iter().enumerate() {
        let before = paths[..number].iter().map(|rule| &rule.pattern);
        if let Some(winner) = before.clone().find(|before| before.covers(pattern)) {
            warnings.push(format!(
                "{pattern}: has no effect, since {winner} stands before it and takes all that it would"
            ));
        }
        if pattern.has_a_shells_negation() {
            warnings.push(format!(
                "{pattern}: [!…] is a class that has `!` in it; one of all but… is written [^…]"
            ));
        }
    }
}

fn features(value: &Value<'_, '_>, place: &str, warnings: &mut Vec<String>) -> Option<Features> {
    let mut section = value.section()?;
    let rate_limit = feature(&mut section, "rate_limit", rate_limit);
    let monitoring = feature(&mut section, "monitoring", monitoring);
    let timeout = feature(&mut section, "timeout", timeout);
    let retry = feature(&mut section, "retry", retry);
    let circuit_breaker = feature(&mut section, "circuit_breaker", |section| {
        if section.get("expected_exception").is_some() {
            warnings.push(format!(
                "{place}: circuit_breaker.expected_exception has no effect: failures are refused \
                 connections, time-outs and answers of 5xx"
            ));
        }
        circuit_breaker(section)
    });
    // Premier's own keys beside these have a meaning that is no settings of ours.
    let cache = feature(&mut section, "cache", |section| {
        section.get("expire_s");
        section.get("cache_key");
        Some(())
    });
    if cache.as_ref().is_some_and(Option::is_some) {
        warnings.push(format!(
            "{place}: cache has no effect: answers are never cached"
        ));
    }
    section.end();
    Some(Features {
        rate_limit: rate_limit?,
        monitoring: monitoring?,
        timeout: timeout?,
        retry: retry?,
        circuit_breaker: circuit_breaker?,
    })
}

/// A feature's settings: `Some(None)` where the file does not ask for it.
#[expect(
    clippy::option_option,
    reason = "what is wrong and what is left out are two things"
)]
fn feature<'y, 'r, T>(
    features: &mut Section<'y, 'r>,
    key: &'static str,
    read: impl FnOnce(&mut Section<'y, 'r>) -> Option<T>,
) -> Option<Option<T>> {
    let Some(value) = features.get(key) else {
        return Some(None);
    };
    let mut section = value.section()?;
    let settings = read(&mut section);
    section.end();
    settings.map(Some)
}

fn refusal(section: &mut Section<'_, '_>, status: StatusCode, message: &str) -> Option<Refusal> {
    let status = or(section, "error_status", status, |value| {
        let number = value.number(400, 599)?;
        StatusCode::from_u16(u16::try_from(number).ok()?).ok()
    });
    let message = or(section, "error_message", message.to_owned(), Value::text);
    Some(Refusal {
        status: status?,
        message: message?,
    })
}

fn rate_limit(section: &mut Section<'_, '_>) -> Option<RateLimit> {
    const ALGORITHMS: [(&str, Algorithm); 4] = [
        ("fixed_window", Algorithm::FixedWindow),
        ("sliding_window", Algorithm::SlidingWindow),
        ("token_bucket", Algorithm::TokenBucket),
        ("leaky_bucket", Algorithm::LeakyBucket),
    ];
    let quota = section.need("quota").and_then(|value| value.count());
    let duration = section.need("duration").and_then(|value| value.seconds());
    let algorithm = or(section, "algorithm", Algorithm::FixedWindow, |value| {
        value.one_of(&ALGORITHMS)
    });
    let per = or(section, "per", vec![Per::Client, Per::Endpoint], |value| {
        // Nothing is not the empty list here: that would be one quota for everybody.
        let parts: Vec<_> = value.list()?.iter().map(|part| part.parsed(per)).collect();
        parts.into_iter().collect()
    });
    // Premier's own default is nothing: the quota.
    let bucket_size = section
        .get("bucket_size")
        .filter(|value| !value.is_null())
        .map_or(Some(quota), |value| value.count().map(Some));
    let refusal = refusal(
        section,
        StatusCode::TOO_MANY_REQUESTS,
        "Rate limit exceeded",
    );
    Some(RateLimit {
        quota: quota?,
        duration: duration?,
        algorithm: algorithm?,
        per: per?,
        bucket_size: bucket_size??,
        refusal: refusal?,
    })
}

fn per(text: &str) -> Result<Per, String> {
    match text.split_once(':') {
        None if text == "client" => Ok(Per::Client),
        None if text == "endpoint" => Ok(Per::Endpoint),
        Some(("header", name)) => HeaderName::from_bytes(name.trim().as_bytes())
            .map(Per::Header)
            .map_err(|_| format!("`{name}` is no header name")),
        _ => Err(format!(
            "`{text}` is nothing to count by: one of client, endpoint, header:NAME"
        )),
    }
}

fn monitoring(section: &mut Section<'_, '_>) -> Option<Monitoring> {
    let log_threshold = or(
        section,
        "log_threshold",
        SECOND / 10,
        Value::seconds_or_none,
    )?;
    Some(Monitoring { log_threshold })
}

fn timeout(section: &mut Section<'_, '_>) -> Option<Timeout> {
    let limit = section.need("seconds").and_then(|value| value.seconds());
    let refusal = refusal(section, StatusCode::GATEWAY_TIMEOUT, "Request timeout");
    Some(Timeout {
        limit: limit?,
        refusal: refusal?,
    })
}

fn retry(section: &mut Section<'_, '_>) -> Option<Retry> {
    const MOST_ATTEMPTS: u64 = 100;
    let three = NonZeroU32::MIN.saturating_add(2);
    let max_attempts = or(section, "max_attempts", three, |value| {
        let attempts = value.number(1, MOST_ATTEMPTS)?;
        u32::try_from(attempts).ok().and_then(NonZeroU32::new)
    });
    let wait = or(section, "wait", vec![SECOND], |value| {
        if value.is_list() {
            let waits = each(value, Value::seconds_or_none)?;
            not_empty(value, waits)
        } else {
            value.seconds_or_none().map(|wait| vec![wait])
        }
    });
    Some(Retry {
        max_attempts: max_attempts?,
        wait: wait?,
    })
}

fn circuit_breaker(section: &mut Section<'_, '_>) -> Option<CircuitBreaker> {
    let five = NonZeroU32::MIN.saturating_add(4);
    let failure_threshold = or(section, "failure_threshold", five, Value::count);
    let recovery_timeout = or(
        section,
        "recovery_timeout",
        60 * SECOND,
        Value::seconds_or_none,
    );
    Some(CircuitBreaker {
        failure_threshold: failure_threshold?,
        recovery_timeout: recovery_timeout?,
    })
}
