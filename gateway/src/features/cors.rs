//! Cross-origin resource sharing (Fetch standard, section 3.3): which pages of other origins may read responses.
//!
//! Invariant: `Access-Control-Allow-Origin` is `*`, or the one `Origin` of the request if that is permitted. What an
//! endpoint says about other origins is removed. A response that depends on the origin says so in `Vary`.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::config::{AllowedOrigins, CorsCredentials, CorsSettings};

const ANY: HeaderValue = HeaderValue::from_static("*");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const VARY_ORIGIN: HeaderValue = HeaderValue::from_static("Origin");
/// Prefix of the headers by which a server permits other origins.
const RESPONSE_PREFIX: &str = "access-control-";

/// Origin of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RequestOrigin {
    /// The request names none, or its path has no `cors`.
    Absent,
    /// Its pages may read the response.
    Permitted(HeaderValue),
    /// They may not, or the request names several.
    Foreign,
}

/// Policy of a path.
#[derive(Debug)]
pub(crate) struct Cors {
    origins: AllowedOrigins,
    /// Headers of every response to a permitted origin besides `Access-Control-Allow-Origin`.
    of_responses: Vec<(HeaderName, HeaderValue)>,
    /// Headers of the response to a preflight besides these.
    of_preflights: Vec<(HeaderName, HeaderValue)>,
}

impl Cors {
    pub(crate) fn new(settings: &CorsSettings) -> Self {
        let list = |names: &mut dyn Iterator<Item = &str>| {
            let list = names.collect::<Vec<_>>().join(", ");
            // Names of methods and headers are tokens, which any value may have.
            HeaderValue::try_from(list)
                .ok()
                .filter(|list| !list.is_empty())
        };
        let credentials = match settings.credentials {
            CorsCredentials::Included => Some(TRUE),
            CorsCredentials::Excluded => None,
        };
        let exposed = list(&mut settings.exposed_headers.iter().map(HeaderName::as_str));
        let methods = list(&mut settings.methods.iter().map(Method::as_str));
        let headers = list(&mut settings.headers.iter().map(HeaderName::as_str));
        let present = |(name, value): (HeaderName, Option<HeaderValue>)| Some((name, value?));
        let of_responses = [
            (ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials),
            (ACCESS_CONTROL_EXPOSE_HEADERS, exposed),
        ];
        let of_preflights = [
            (ACCESS_CONTROL_ALLOW_METHODS, methods),
            (ACCESS_CONTROL_ALLOW_HEADERS, headers),
            (
                ACCESS_CONTROL_MAX_AGE,
                settings.max_age.map(HeaderValue::from),
            ),
        ];
        Self {
            origins: settings.origins.clone(),
            of_responses: of_responses.into_iter().filter_map(present).collect(),
            of_preflights: of_preflights.into_iter().filter_map(present).collect(),
        }
    }

    /// Returns the origin of a request. Browsers send one `Origin`; of several, an endpoint may read another.
    pub(crate) fn origin_of(&self, request: &HeaderMap) -> RequestOrigin {
        let mut origins = request.get_all(ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => RequestOrigin::Absent,
            (Some(origin), None) if self.origins.permit(origin.as_bytes()) => {
                RequestOrigin::Permitted(origin.clone())
            }
            _ => RequestOrigin::Foreign,
        }
    }

    /// Sets the headers of a response to a request from `origin`, in place of those of its endpoint.
    pub(crate) fn insert_into(&self, response: &mut HeaderMap, origin: &RequestOrigin) {
        Self::remove_from(response);
        let permitted = match (&self.origins, origin) {
            // The same for every request, so that caches need no `Vary`.
            (AllowedOrigins::Any, _) => ANY,
            (AllowedOrigins::Listed(_), RequestOrigin::Permitted(origin)) => {
                add_vary_origin(response);
                origin.clone()
            }
            (AllowedOrigins::Listed(_), _) => return add_vary_origin(response),
        };
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, permitted);
        insert_all(response, &self.of_responses);
    }

    /// Adds the headers of the response to a preflight.
    pub(crate) fn insert_preflight_into(&self, response: &mut HeaderMap) {
        response.remove(ACCESS_CONTROL_EXPOSE_HEADERS);
        insert_all(response, &self.of_preflights);
    }

    /// Removes the headers by which an endpoint permits other origins.
    pub(crate) fn remove_from(response: &mut HeaderMap) {
        let is_of_cors = |name: &&HeaderName| name.as_str().starts_with(RESPONSE_PREFIX);
        let names: Vec<_> = response.keys().filter(is_of_cors).cloned().collect();
        for name in names {
            response.remove(name);
        }
    }
}

/// Returns whether a request asks for permission to send another (Fetch standard, section 4.8).
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Returns whether the value of `Origin` is that of pages of `host`, which is the value of `Host`, served over TLS.
pub(crate) fn is_same_origin(headers: &HeaderMap, host: &str) -> bool {
    let mut origins = headers.get_all(ORIGIN).iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else {
        return false;
    };
    let host = host.strip_suffix(":443").unwrap_or(host);
    origin
        .as_bytes()
        .strip_prefix(b"https://")
        .is_some_and(|origin| origin.eq_ignore_ascii_case(host.as_bytes()))
}

fn insert_all(response: &mut HeaderMap, headers: &[(HeaderName, HeaderValue)]) {
    for (name, value) in headers {
        response.insert(name, value.clone());
    }
}

/// Adds `Origin` to `Vary`, which is then one line.
fn add_vary_origin(response: &mut HeaderMap) {
    let mut list = Vec::new();
    for line in response.get_all(VARY) {
        let mut names = line.as_bytes().split(|byte| *byte == b',');
        if names.any(|name| {
            matches!(name.trim_ascii(), b"*") || name.trim_ascii().eq_ignore_ascii_case(b"origin")
        }) {
            return;
        }
        if !line.is_empty() {
            list.extend_from_slice(line.as_bytes());
            list.extend_from_slice(b", ");
        }
    }
    list.extend_from_slice(VARY_ORIGIN.as_bytes());
    // The lines were values, so is the list of them.
    let vary = HeaderValue::from_maybe_shared(bytes::Bytes::from(list)).unwrap_or(VARY_ORIGIN);
    response.insert(VARY, vary);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cors(origins: &[&str], credentials: CorsCredentials) -> Cors {
        let origins = match origins {
            ["*"] => AllowedOrigins::Any,
            listed => {
                let listed = listed.iter().map(|origin| origin.parse().unwrap());
                AllowedOrigins::Listed(listed.collect())
            }
        };
        Cors::new(&CorsSettings {
            origins,
            methods: vec![Method::GET, Method::PUT],
            headers: vec![HeaderName::from_static("x-a"), HeaderName::from_static("*")],
            exposed_headers: vec![HeaderName::from_static("x-request-id")],
            credentials,
            max_age: Some(600),
        })
    }

    fn header_map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), value.parse().unwrap())
        };
        lines.iter().map(line).collect()
    }

    /// Returns the headers of a response as sorted lines.
    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort_unstable();
        lines
    }

    /// Returns the headers of the response to a request with the lines `origins` of `Origin`, of which the endpoint has
    /// sent `response`.
    fn response(cors: &Cors, origins: &[&str], response: &[(&'static str, &str)]) -> Vec<String> {
        let origins: Vec<_> = origins.iter().map(|origin| ("origin", *origin)).collect();
        let mut headers = header_map(response);
        cors.insert_into(&mut headers, &cors.origin_of(&header_map(&origins)));
        lines(&headers)
    }

    #[test]
    fn a_permitted_origin_is_reflected_and_a_foreign_one_is_not() {
        let cors = cors(&["https://a.org", "null"], CorsCredentials::Included);
        let permitted = |origin: &str| {
            vec![
                "access-control-allow-credentials: true".to_owned(),
                format!("access-control-allow-origin: {origin}"),
                "access-control-expose-headers: x-request-id".to_owned(),
                "vary: Origin".to_owned(),
            ]
        };
        for origin in ["https://a.org", "null"] {
            assert_eq!(response(&cors, &[origin], &[]), permitted(origin));
        }
        for foreign in [
            &[][..],
            &["https://b.org"],
            &["https://a.org", "https://a.org"],
            &["https://b.org", "https://a.org"],
        ] {
            assert_eq!(
                response(&cors, foreign, &[]),
                ["vary: Origin"],
                "{foreign:?}"
            );
        }
    }

    #[test]
    fn any_origin_is_permitted_by_a_response_that_does_not_vary() {
        let cors = cors(&["*"], CorsCredentials::Excluded);
        for origins in [&[][..], &["https://b.org"], &["null"], &["a", "b"]] {
            assert_eq!(
                response(&cors, origins, &[("vary", "Accept")]),
                [
                    "access-control-allow-origin: *",
                    "access-control-expose-headers: x-request-id",
                    "vary: Accept"
                ]
            );
        }
    }

    #[test]
    fn what_an_endpoint_says_about_origins_is_replaced() {
        let cors = cors(&["https://a.org"], CorsCredentials::Excluded);
        let of_endpoint = [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-origin", "https://b.org"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-secret"),
            ("access-control-allow-methods", "DELETE"),
            ("access-control-allow-headers", "x-b"),
            ("access-control-max-age", "1"),
            ("access-control-allow-private-network", "true"),
            ("x-other", "o"),
        ];
        assert_eq!(
            response(&cors, &["https://b.org"], &of_endpoint),
            ["vary: Origin", "x-other: o"]
        );
        assert_eq!(
            response(&cors, &["https://a.org"], &of_endpoint),
            [
                "access-control-allow-origin: https://a.org",
                "access-control-expose-headers: x-request-id",
                "vary: Origin",
                "x-other: o"
            ]
        );
    }

    #[test]
    fn vary_has_the_names_of_the_endpoint_and_origin_once() {
        for (of_endpoint, expected) in [
            (&[][..], &["Origin"][..]),
            (&["Accept-Encoding"], &["Accept-Encoding, Origin"]),
            (&["a", "b , c"], &["a, b , c, Origin"]),
            (&[""], &["Origin"]),
            (&["a, ORIGIN"], &["a, ORIGIN"]),
            (&["a", "origin"], &["a", "origin"]),
            (&["*"], &["*"]),
            (&["X-Origin"], &["X-Origin, Origin"]),
        ] {
            let mut headers = HeaderMap::new();
            for line in of_endpoint {
                headers.append(VARY, HeaderValue::from_static(line));
            }
            add_vary_origin(&mut headers);
            let vary: Vec<_> = headers.get_all(VARY).iter().collect();
            assert_eq!(vary, expected, "{of_endpoint:?}");
        }
    }

    #[test]
    fn a_preflight_is_told_what_is_permitted() {
        let cors = cors(&["https://*.a.org"], CorsCredentials::Excluded);
        let mut headers = HeaderMap::new();
        let origin = cors.origin_of(&header_map(&[("origin", "https://b.a.org")]));
        cors.insert_into(&mut headers, &origin);
        cors.insert_preflight_into(&mut headers);
        assert_eq!(
            lines(&headers),
            [
                "access-control-allow-headers: x-a, *",
                "access-control-allow-methods: GET, PUT",
                "access-control-allow-origin: https://b.a.org",
                "access-control-max-age: 600",
                "vary: Origin"
            ]
        );
    }

    #[test]
    fn a_preflight_has_an_origin_and_a_requested_method() {
        let (origin, method) = (
            ("origin", "https://a"),
            ("access-control-request-method", "PUT"),
        );
        let is_preflight = |verb: &Method, lines: &[_]| is_preflight(verb, &header_map(lines));
        assert!(is_preflight(&Method::OPTIONS, &[origin, method]));
        assert!(!is_preflight(&Method::OPTIONS, &[origin]));
        assert!(!is_preflight(&Method::OPTIONS, &[method]));
        assert!(!is_preflight(&Method::GET, &[origin, method]));
    }

    #[test]
    fn a_page_of_the_requested_host_has_the_same_origin() {
        let is_same =
            |origin: &str, host: &str| is_same_origin(&header_map(&[("origin", origin)]), host);
        assert!(is_same("https://a.org", "a.org"));
        assert!(is_same("https://a.org", "A.org:443"));
        assert!(is_same("https://a.org:8443", "a.org:8443"));
        for (origin, host) in [
            ("http://a.org", "a.org"),
            ("https://a.org", "a.org:8443"),
            ("https://a.org:8443", "a.org"),
            ("https://b.org", "a.org"),
            ("https://a.org.evil.net", "a.org"),
            ("null", "null"),
        ] {
            assert!(!is_same(origin, host), "{origin} {host}");
        }
    }

    proptest! {
        #[test]
        fn the_permitted_origin_is_that_of_the_request_or_absent(
            origins in proptest::collection::vec("(https://)?[a-b.@:]{0,3}(a\\.org)?(:1)?", 0..3),
        ) {
            let cors = cors(&["https://a.org", "https://*.a.org"], CorsCredentials::Included);
            let request: Vec<_> = origins.iter().map(|origin| ("origin", origin.as_str())).collect();
            let mut headers = HeaderMap::new();
            cors.insert_into(&mut headers, &cors.origin_of(&header_map(&request)));
            prop_assert_eq!(headers.get(VARY), Some(&VARY_ORIGIN));
            let permitted = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN);
            prop_assert_eq!(permitted.is_some(), headers.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS));
            if let Some(permitted) = permitted {
                prop_assert_eq!(&origins, &[permitted.to_str().unwrap()]);
                let host = permitted.to_str().unwrap().strip_prefix("https://").unwrap();
                prop_assert!(host == "a.org" || host.ends_with(".a.org"));
            }
        }
    }
}
