//! Parsing of the feature `cors`.

use http::{HeaderName, Method};

use crate::config::model::{AuthRequirement, CorsCredentials, CorsSettings};
use crate::config::node::{Mapping, Node};
use crate::config::origin::{AllowedOrigins, OriginPattern};

/// Element of a list that stands for all values in requests without credentials (Fetch standard, section 3.3).
const ANY: &str = "*";
/// Longest time for which a preflight may be remembered: a year. Browsers have lower limits of their own.
const MAX_AGE_SECONDS: u64 = 366 * 24 * 3600;
const AUTHORIZATION: &str = "authorization";

/// Parses the settings of `cors`. `owner` names the path in warnings, `auth` is the feature beside it.
pub(super) fn parse_cors(
    settings: &mut Mapping<'_, '_>,
    owner: &str,
    auth: Option<AuthRequirement>,
    warnings: &mut Vec<String>,
) -> Option<CorsSettings> {
    let origins = settings.require("origins");
    // Before the lists, which depend on it.
    let credentials = settings.get_or("credentials", CorsCredentials::Excluded, |value| {
        Some(if value.boolean()? {
            CorsCredentials::Included
        } else {
            CorsCredentials::Excluded
        })
    });
    let origins = origins.and_then(|value| parse_origins(&value, credentials));
    let default_methods = vec![Method::GET, Method::HEAD, Method::POST];
    let methods = settings.get_or("methods", default_methods, |value| {
        let methods = parse_elements(value, credentials, parse_method)?;
        value.require_not_empty(methods)
    });
    let headers = settings.get_or("headers", Vec::new(), |value| {
        parse_elements(value, credentials, parse_header_name)
    });
    let exposed_headers = settings.get_or("exposed_headers", Vec::new(), |value| {
        parse_elements(value, credentials, parse_header_name)
    });
    let max_age = settings.get_or("max_age", None, |value| {
        Some(Some(value.integer(0..=MAX_AGE_SECONDS)?))
    });
    let parsed = CorsSettings {
        origins: origins?,
        methods: methods?,
        headers: headers?,
        exposed_headers: exposed_headers?,
        credentials: credentials?,
        max_age: max_age?,
    };
    warn_about_cors(&parsed, owner, auth, warnings);
    Some(parsed)
}

fn parse_origins(
    value: &Node<'_, '_>,
    credentials: Option<CorsCredentials>,
) -> Option<AllowedOrigins> {
    let count = value.elements()?.len();
    let origins = value.parse_list(|element| {
        if element.is_null() {
            element.report_error("is empty: the origin null is written in quotes, \"null\"");
            return None;
        }
        element.parse(|text| match text {
            ANY if credentials == Some(CorsCredentials::Included) => Err(
                "`*` cannot be combined with `credentials: true`, since every website could read responses with \
                 its visitors' credentials: list the origins"
                    .to_owned(),
            ),
            ANY if count > 1 => Err("`*` permits every origin: it has to be the only one".to_owned()),
            ANY => Ok(None),
            _ => text.parse::<OriginPattern>().map(Some),
        })
    })?;
    let origins = value.require_not_empty(origins)?;
    // `None` is `*`, which is alone.
    let listed: Option<Vec<_>> = origins.into_iter().collect();
    Some(listed.map_or(AllowedOrigins::Any, AllowedOrigins::Listed))
}

/// Parses a list in which `*` may occur unless requests have credentials: browsers take it literally then.
fn parse_elements<T>(
    list: &Node<'_, '_>,
    credentials: Option<CorsCredentials>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    list.parse_list(|element| {
        element.parse(|text| {
            if text == ANY && credentials == Some(CorsCredentials::Included) {
                return Err(
                    "`*` has no effect with `credentials: true`, since browsers take it literally: list them"
                        .to_owned(),
                );
            }
            parse(text)
        })
    })
}

fn parse_method(text: &str) -> Result<Method, String> {
    let method =
        Method::from_bytes(text.as_bytes()).map_err(|_| format!("`{text}` is not a method"))?;
    let upper_case = text.to_ascii_uppercase();
    match upper_case.as_str() {
        "CONNECT" | "TRACE" | "TRACK" => Err(format!(
            "pages can never send `{text}` (Fetch standard): remove it"
        )),
        "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" if upper_case != text => {
            Err(format!("methods are case-sensitive: write {upper_case}"))
        }
        _ => Ok(method),
    }
}

fn parse_header_name(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("`{text}` is not a header name"))
}

fn warn_about_cors(
    cors: &CorsSettings,
    owner: &str,
    auth: Option<AuthRequirement>,
    warnings: &mut Vec<String>,
) {
    let with_credentials = match (&cors.origins, cors.credentials) {
        (AllowedOrigins::Listed(origins), CorsCredentials::Included) => origins.as_slice(),
        _ => &[],
    };
    if with_credentials.iter().any(OriginPattern::is_null) {
        warnings.push(format!(
            "{owner}: cors.origins: every website can have the origin `null`, by a sandboxed frame, and read \
             responses with its visitors' credentials"
        ));
    }
    for origin in with_credentials {
        if let Some(domain) = origin.top_level_domain() {
            warnings.push(format!(
                "{owner}: cors.origins: `{origin}` permits every website under `{domain}` to read responses with its \
                 visitors' credentials: name a domain of yours"
            ));
        }
    }
    // `*` does not stand for this one (Fetch standard, section 4.9).
    if auth.is_some() && !cors.headers.iter().any(|name| name == AUTHORIZATION) {
        warnings.push(format!(
            "{owner}: cors.headers has no Authorization: pages of other origins cannot send the access token \
             that `auth` reads"
        ));
    }
}
