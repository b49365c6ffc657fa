//! Parsing of `identity`.

use redis_connection::Deployments;

use crate::config::http_url::HttpUrl;
use crate::config::model::IdentitySettings;
use crate::config::node::{Mapping, Node};
use crate::config::redis_url::parse_optional_url;

/// Path of auth-api that checks a token and its session.
const VERIFY_PATH: &str = "/api/verify";
/// Issuer of auth-api's tokens.
const DEFAULT_ISSUER: &str = "auth-api";

/// Identity of requests, as far as the file says that there is one: features may need it although its
/// own settings have errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdentityPresence {
    Configured,
    Absent,
}

/// Returns whether the file has `identity`, and its settings. The second value is `None` if they have errors.
#[expect(
    clippy::option_option,
    reason = "an error and absent settings are distinct"
)]
pub(super) fn parse_identity(
    premier: &mut Mapping<'_, '_>,
) -> (IdentityPresence, Option<Option<IdentitySettings>>) {
    match premier.get("identity") {
        None => (IdentityPresence::Absent, Some(None)),
        Some(value) if value.is_null() => (IdentityPresence::Absent, Some(None)),
        Some(value) => (IdentityPresence::Configured, parse(&value).map(Some)),
    }
}

fn parse(value: &Node<'_, '_>) -> Option<IdentitySettings> {
    let mut identity = value.mapping()?;
    let parse_url = |value: &Node<'_, '_>| value.parse(str::parse::<HttpUrl>).map(Some);
    let keys = identity.get_or("keys", None, parse_url);
    let verify = identity.get_or("verify", None, parse_url);
    let sessions = parse_optional_url(&mut identity, "sessions", Deployments::Primary);
    // An empty one is that of a variable without a value.
    let text = |value: &Node<'_, '_>| {
        value
            .string()
            .map(|text| (!text.is_empty()).then_some(text))
    };
    let issuer = identity.get_or("issuer", None, text);
    let audience = identity.get_or("audience", None, text);
    let names_recipient = matches!(issuer, Some(Some(_))) || matches!(audience, Some(Some(_)));
    if matches!((&keys, &verify), (Some(None), Some(Some(_)))) && names_recipient {
        identity.report_error(
            "`issuer` and `audience` need `keys`: without it tokens are checked by `verify` alone",
        );
        return None;
    }
    let verify = match (&keys, verify?) {
        (_, Some(verify)) => Some(verify),
        (Some(Some(keys)), None) => Some(keys.with_path(VERIFY_PATH)),
        (Some(None), None) => {
            identity.report_error("`keys` is missing: the URL of auth-api's JSON Web Key Set");
            None
        }
        (None, None) => None,
    };
    identity.reject_unknown_keys();
    Some(IdentitySettings {
        keys: keys?,
        verify: verify?,
        sessions: sessions?,
        issuer: issuer?.unwrap_or_else(|| DEFAULT_ISSUER.to_owned()),
        audience: audience?,
    })
}
