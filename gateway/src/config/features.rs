//! Parsing of the features of a path pattern, in the order of gateway.yml.

use std::num::NonZeroU32;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use crate::config::cors::parse_cors;
use crate::config::header_rules::{CorsPresence, folded_name, is_own, parse_header_rules};
use crate::config::identity::IdentityPresence;
use crate::config::model::{
    AuthRequirement, CircuitBreakerSettings, ErrorResponseSettings, Features, MonitoringSettings,
    QuotaKeyPart, RateLimitAlgorithm, RateLimitMode, RateLimitSettings, RetrySettings,
    TimeoutSettings,
};
use crate::config::node::{Mapping, Node};

/// Parses the value of `features` or `default_features`. `owner` names it in warnings.
pub(super) fn parse_features(
    value: &Node<'_, '_>,
    owner: &str,
    identity: IdentityPresence,
    warnings: &mut Vec<String>,
) -> Option<Features> {
    let mut mapping = value.mapping()?;
    let auth = parse_feature(&mut mapping, "auth", |settings| {
        parse_auth(settings, identity)
    });
    let has_auth = !matches!(auth, Some(None));
    let cors = parse_feature(&mut mapping, "cors", |settings| {
        parse_cors(settings, owner, auth.flatten(), warnings)
    });
    let cors_presence = match cors {
        Some(None) => CorsPresence::Absent,
        _ => CorsPresence::Present,
    };
    let headers = parse_feature(&mut mapping, "headers", |settings| {
        parse_header_rules(settings, cors_presence)
    });
    let replaces = |name: &HeaderName| {
        let Some(Some(rules)) = &headers else {
            return false;
        };
        let set = rules.request.set.iter().map(|(name, _)| name);
        let mut replaced = set.chain(&rules.request.remove);
        replaced.any(|replaced| folded_name(replaced.as_str()) == name.as_str())
    };
    let rate_limit = parse_feature(&mut mapping, "rate_limit", |settings| {
        parse_rate_limit(settings, |part| match part {
            QuotaKeyPart::Header(name) if replaces(&name) => Err(format!(
                "`{name}` is replaced by the feature headers beside rate_limit: a client could choose another quota by it"
            )),
            QuotaKeyPart::User if !has_auth => {
                Err("`user` needs the feature auth beside rate_limit".to_owned())
            }
            part => Ok(part),
        })
    });
    let monitoring = parse_feature(&mut mapping, "monitoring", parse_monitoring);
    let timeout = parse_feature(&mut mapping, "timeout", parse_timeout);
    let retry = parse_feature(&mut mapping, "retry", |settings| {
        for key in ["exceptions", "backoff"] {
            if settings.get(key).is_some() {
                warnings.push(format!(
                    "{owner}: retry.{key} has no effect: requests that are safe to repeat are retried \
                     after connection failures, 502, 503 and 504, and wait sets the delays"
                ));
            }
        }
        parse_retry(settings)
    });
    if let (Some(Some(timeout)), Some(Some(retry))) = (&timeout, &retry)
        && retry
            .attempt_timeout
            .is_some_and(|attempt_timeout| attempt_timeout >= timeout.limit)
    {
        warnings.push(format!(
            "{owner}: retry.attempt_timeout has no effect: it is not less than timeout.seconds, which all attempts have together"
        ));
    }
    let circuit_breaker = parse_feature(&mut mapping, "circuit_breaker", |settings| {
        if settings.get("expected_exception").is_some() {
            warnings.push(format!(
                "{owner}: circuit_breaker.expected_exception has no effect: broken connections, \
                 timeouts, 500, 502, 503 without Retry-After and 504 count as failures"
            ));
        }
        parse_circuit_breaker(settings)
    });
    // Keys of Premier's cache are accepted and ignored.
    let cache = parse_feature(&mut mapping, "cache", |settings| {
        settings.get("expire_s");
        settings.get("cache_key");
        settings.get("key_template");
        Some(())
    });
    if cache.as_ref().is_some_and(Option::is_some) {
        warnings.push(format!(
            "{owner}: cache has no effect: responses are never cached"
        ));
    }
    mapping.reject_unknown_keys();
    Some(Features {
        cors: cors?,
        headers: headers?,
        auth: auth?,
        rate_limit: rate_limit?,
        monitoring: monitoring?,
        timeout: timeout?,
        retry: retry?,
        circuit_breaker: circuit_breaker?,
    })
}

/// Parses the settings of one feature. Returns `Some(None)` if the file does not have it, `None` if it
/// has errors.
#[expect(
    clippy::option_option,
    reason = "an error and an absent feature are distinct"
)]
fn parse_feature<'y, 'c, T>(
    features: &mut Mapping<'y, 'c>,
    key: &'static str,
    parse: impl FnOnce(&mut Mapping<'y, 'c>) -> Option<T>,
) -> Option<Option<T>> {
    let Some(value) = features.get(key) else {
        return Some(None);
    };
    let mut mapping = value.mapping()?;
    let settings = parse(&mut mapping);
    mapping.reject_unknown_keys();
    settings.map(Some)
}

fn parse_error_response(
    settings: &mut Mapping<'_, '_>,
    default_status: StatusCode,
    default_message: &str,
) -> Option<ErrorResponseSettings> {
    let status = settings.get_or("error_status", default_status, |value| {
        let number = value.integer(400..=599)?;
        StatusCode::from_u16(u16::try_from(number).ok()?).ok()
    });
    let message = settings.get_or("error_message", default_message.to_owned(), Node::string);
    Some(ErrorResponseSettings {
        status: status?,
        message: message?,
    })
}

fn parse_auth(
    settings: &mut Mapping<'_, '_>,
    identity: IdentityPresence,
) -> Option<AuthRequirement> {
    let required = settings.get_or("required", AuthRequirement::Required, |value| {
        Some(if value.boolean()? {
            AuthRequirement::Required
        } else {
            AuthRequirement::Optional
        })
    });
    if identity == IdentityPresence::Absent {
        settings.report_error(
            "needs premier.identity, which says where access tokens are verified: \
             identity: {keys: http://auth-api:8000/.well-known/jwks.json}",
        );
        return None;
    }
    required
}

/// Parses a rate limit. `check` rejects parts of its key that the path cannot have.
fn parse_rate_limit(
    settings: &mut Mapping<'_, '_>,
    check: impl Fn(QuotaKeyPart) -> Result<QuotaKeyPart, String>,
) -> Option<RateLimitSettings> {
    const ALGORITHMS: [(&str, RateLimitAlgorithm); 4] = [
        ("fixed_window", RateLimitAlgorithm::FixedWindow),
        ("sliding_window", RateLimitAlgorithm::SlidingWindow),
        ("token_bucket", RateLimitAlgorithm::TokenBucket),
        ("leaky_bucket", RateLimitAlgorithm::LeakyBucket),
    ];
    const MODES: [(&str, RateLimitMode); 2] = [
        ("enforce", RateLimitMode::Enforce),
        ("observe", RateLimitMode::Observe),
    ];
    let quota = settings
        .require("quota")
        .and_then(|value| value.positive_integer());
    let duration = settings
        .require("duration")
        .and_then(|value| value.positive_duration());
    let algorithm = settings.get_or("algorithm", RateLimitAlgorithm::FixedWindow, |value| {
        value.one_of(&ALGORITHMS)
    });
    let mode = settings.get_or("mode", RateLimitMode::Enforce, |value| value.one_of(&MODES));
    let default_key = vec![QuotaKeyPart::Client, QuotaKeyPart::Path];
    let per = settings.get_or("per", default_key, |value| {
        // Null is not the empty list here: that would be one counter for all clients.
        let parts: Vec<_> = value
            .elements()?
            .iter()
            .map(|part| part.parse(|text| check(parse_key_part(text)?)))
            .collect();
        parts.into_iter().collect()
    });
    // Null is the default of Premier, and means the quota.
    let bucket_size = settings
        .get("bucket_size")
        .filter(|value| !value.is_null())
        .map_or(Some(quota), |value| value.positive_integer().map(Some));
    let error_response = parse_error_response(
        settings,
        StatusCode::TOO_MANY_REQUESTS,
        "Rate limit exceeded",
    );
    Some(RateLimitSettings {
        quota: quota?,
        duration: duration?,
        algorithm: algorithm?,
        mode: mode?,
        per: per?,
        bucket_size: bucket_size??,
        error_response: error_response?,
    })
}

fn parse_key_part(text: &str) -> Result<QuotaKeyPart, String> {
    match text.split_once(':') {
        None if text == "client" => Ok(QuotaKeyPart::Client),
        None if text == "user" => Ok(QuotaKeyPart::User),
        None if text == "endpoint" => Ok(QuotaKeyPart::Path),
        Some(("header", name)) => parse_key_header(name.trim()).map(QuotaKeyPart::Header),
        _ => Err(format!(
            "`{text}` is unknown: must be client, user, endpoint or header:NAME"
        )),
    }
}

/// Parses the name of a header that a quota counts by, and folds it: a server may take any spelling of it for the header.
fn parse_key_header(name: &str) -> Result<HeaderName, String> {
    let folded = folded_name(name);
    // The gateway replaces no `Host`.
    if is_own(&folded) && folded != "host" {
        return Err(format!(
            "`{name}` reaches servers as the gateway sets it, and a client could choose another quota by it: use client or user"
        ));
    }
    HeaderName::from_bytes(name.as_bytes())
        .and(HeaderName::from_bytes(folded.as_bytes()))
        .map_err(|_| format!("`{name}` is not a header name"))
}

fn parse_monitoring(settings: &mut Mapping<'_, '_>) -> Option<MonitoringSettings> {
    const DEFAULT_THRESHOLD: Duration = Duration::from_millis(100);
    let log_threshold = settings.get_or("log_threshold", DEFAULT_THRESHOLD, Node::duration)?;
    Some(MonitoringSettings { log_threshold })
}

fn parse_timeout(settings: &mut Mapping<'_, '_>) -> Option<TimeoutSettings> {
    let limit = settings
        .require("seconds")
        .and_then(|value| value.positive_duration());
    let error_response =
        parse_error_response(settings, StatusCode::GATEWAY_TIMEOUT, "Request timeout");
    Some(TimeoutSettings {
        limit: limit?,
        error_response: error_response?,
    })
}

fn parse_retry(settings: &mut Mapping<'_, '_>) -> Option<RetrySettings> {
    const DEFAULT_ATTEMPTS: NonZeroU32 = NonZeroU32::MIN.saturating_add(2);
    const MAX_ATTEMPTS: u64 = 100;
    const DEFAULT_WAIT: Duration = Duration::from_secs(1);
    let max_attempts = settings.get_or("max_attempts", DEFAULT_ATTEMPTS, |value| {
        let attempts = value.integer(1..=MAX_ATTEMPTS)?;
        u32::try_from(attempts).ok().and_then(NonZeroU32::new)
    });
    let wait = settings.get_or("wait", vec![DEFAULT_WAIT], |value| {
        if value.is_list() {
            let waits = value.parse_list(Node::duration)?;
            value.require_not_empty(waits)
        } else {
            value.duration().map(|wait| vec![wait])
        }
    });
    let attempt_timeout = settings.get_or("attempt_timeout", None, |value| {
        value.positive_duration().map(Some)
    });
    Some(RetrySettings {
        max_attempts: max_attempts?,
        wait: wait?,
        attempt_timeout: attempt_timeout?,
    })
}

fn parse_circuit_breaker(settings: &mut Mapping<'_, '_>) -> Option<CircuitBreakerSettings> {
    const DEFAULT_THRESHOLD: NonZeroU32 = NonZeroU32::MIN.saturating_add(4);
    const DEFAULT_RECOVERY_TIMEOUT: Duration = Duration::from_mins(1);
    let failure_threshold = settings.get_or(
        "failure_threshold",
        DEFAULT_THRESHOLD,
        Node::positive_integer,
    );
    let recovery_timeout =
        settings.get_or("recovery_timeout", DEFAULT_RECOVERY_TIMEOUT, Node::duration);
    Some(CircuitBreakerSettings {
        failure_threshold: failure_threshold?,
        recovery_timeout: recovery_timeout?,
    })
}
