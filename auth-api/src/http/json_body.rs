//! Extractor of JSON request bodies, with the rules and the 422 responses of FastAPI.

use std::fmt;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use serde_json::{Map, Value};

use super::body::{self, BodyError};
use super::error::ApiError;
use crate::domain::problem::Problem;

/// Request body that is a JSON object. Its `Debug` does not show it, since it may have passwords and tokens.
pub(crate) struct JsonObject(Map<String, Value>);

impl JsonObject {
    /// Returns the string that is the value of `field`.
    ///
    /// # Errors
    /// Returns an error if the field is missing or its value is not a string.
    pub(crate) fn string(&self, field: &'static str) -> Result<&str, Problem> {
        match self.0.get(field) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Problem::not_a_string(field)),
            None => Err(Problem::missing(field)),
        }
    }

    /// Parses the bytes of a body.
    ///
    /// # Errors
    /// Returns an error if they are no JSON object.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        if bytes.is_empty() {
            return Err(Problem::missing_body());
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(Value::Null) => Err(Problem::missing_body()),
            Ok(_) => Err(Problem::not_an_object()),
            Err(error) => Err(Problem::invalid_json(error_offset(bytes, &error))),
        }
    }
}

impl fmt::Debug for JsonObject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JsonObject(…)")
    }
}

impl<S: Sync> FromRequest<S> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let is_json = is_json(request.headers());
        let bytes = body::read(request.into_body()).await?;
        let object = match (bytes.is_empty(), is_json) {
            (false, false) => Err(Problem::not_an_object()),
            _ => Self::parse(&bytes),
        };
        object.map_err(|problem| ApiError::InvalidBody(vec![problem]))
    }
}

/// Returns both values, or the problems of both.
pub(crate) fn both<A, B>(
    first: Result<A, Problem>,
    second: Result<B, Problem>,
) -> Result<(A, B), ApiError> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (first, second) => Err(ApiError::InvalidBody(
            first.err().into_iter().chain(second.err()).collect(),
        )),
    }
}

/// Returns the errors that any endpoint with a body can produce, for the OpenAPI document.
pub(super) fn possible_errors() -> [ApiError; 4] {
    [
        ApiError::InvalidBody(vec![Problem::missing("password")]),
        BodyError::TooLarge.into(),
        BodyError::Incomplete.into(),
        BodyError::Timeout.into(),
    ]
}

/// Returns the number of characters that Python's parser accepts before it reports the error.
fn error_offset(bytes: &[u8], error: &serde_json::Error) -> usize {
    let line_start = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum::<usize>();
    let mut offset = (line_start + error.column()).min(bytes.len());
    if !error.is_eof() {
        offset = offset.saturating_sub(1);
        // Python reports an unknown literal at its first letter.
        while offset > 0
            && bytes[offset - 1].is_ascii_alphabetic()
            && bytes[offset].is_ascii_alphabetic()
        {
            offset -= 1;
        }
    }
    String::from_utf8_lossy(&bytes[..offset]).chars().count()
}

/// Returns whether the request declares a JSON body, by exactly one `Content-Type`: `application/json` or
/// another type with the suffix `+json`, with any parameters.
///
/// A body without a type is not parsed, although FastAPI did: a page of another origin may send one
/// without a preflight request (Fetch, section 2.2.2).
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = body::media_type(headers).unwrap_or_default();
    let Some(subtype) = media_type.strip_prefix("application/") else {
        return false;
    };
    subtype == "json" || subtype.strip_suffix("+json").is_some_and(is_token)
}

/// Returns whether `text` is a token (RFC 9110, section 5.6.2): an element of a list is none.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::HeaderValue;
    use axum::http::header::CONTENT_TYPE;

    use super::super::error::ErrorResponse;
    use super::*;

    fn problem(body: &str) -> String {
        serde_json::to_string(&JsonObject::parse(body.as_bytes()).unwrap_err()).unwrap()
    }

    #[test]
    fn a_body_that_is_not_an_object_is_reported_as_by_fastapi() {
        assert_eq!(
            problem(""),
            r#"{"type":"missing","loc":["body"],"msg":"Field required"}"#
        );
        for body in ["[]", "1", r#""x""#, "true"] {
            assert!(
                problem(body).contains(r#""model_attributes_type","loc":["body"]"#),
                "{body}"
            );
        }
        for (body, offset) in [
            ("not json", 0),
            ("{", 1),
            (r#"{"login":"#, 9),
            (r#"{"a":1,}"#, 7),
            (r#"{"a": x}"#, 6),
        ] {
            let expected = format!(
                r#"{{"type":"json_invalid","loc":["body",{offset}],"msg":"JSON decode error"}}"#
            );
            assert_eq!(problem(body), expected, "{body}");
        }
    }

    #[test]
    fn a_body_is_json_only_by_exactly_one_content_type() {
        let is_json_with = |lines: &[&'static str]| {
            let lines = lines.iter().copied().map(HeaderValue::from_static);
            is_json(&lines.map(|line| (CONTENT_TYPE, line)).collect())
        };
        for line in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/json;",
            "application/vnd.example.v1+json",
        ] {
            assert!(is_json_with(&[line]), "{line}");
        }
        for lines in [
            &[][..],
            &[""],
            &["text/plain"],
            &["application/x-www-form-urlencoded"],
            &["text/json"],
            &["application/jsonx"],
            &["application/+json"],
            &["application/json, text/plain"],
            &["application/xml, application/a+json"],
            &["application/json", "application/json"],
            &["application/json", "text/plain"],
            &["text/plain", "application/json"],
        ] {
            assert!(!is_json_with(lines), "{lines:?}");
        }
    }

    #[test]
    fn a_body_is_not_in_its_debug_output() {
        let body = JsonObject::parse(br#"{"password":"secure"}"#).unwrap();
        assert!(!format!("{body:?}").contains("secure"));
    }

    #[test]
    fn malformed_bodies_are_rejected() {
        assert!(problem(&"[".repeat(20_000)).contains("json_invalid"));
        assert!(problem(r#"{"login":"\ud800"}"#).contains("json_invalid"));
        assert!(JsonObject::parse(b"{\"login\":\"\xff\"}").is_err());
    }

    async fn receive(content_type: &str, body: impl Into<Body>) -> Result<JsonObject, ApiError> {
        let request = Request::builder().header(CONTENT_TYPE, content_type);
        JsonObject::from_request(request.body(body.into()).unwrap(), &()).await
    }

    #[tokio::test]
    async fn a_request_has_an_object_or_a_documented_error() {
        let object = receive("application/json", r#"{"login":"alice"}"#).await;
        assert_eq!(object.unwrap().string("login"), Ok("alice"));
        let documented = possible_errors().map(|error| ErrorResponse::from(error).status);
        for (content_type, body, expected) in [
            ("application/json", Body::empty(), "missing"),
            ("text/plain", Body::empty(), "missing"),
            ("text/plain", Body::from("{}"), "model_attributes_type"),
            (
                "application/json",
                Body::from("[]"),
                "model_attributes_type",
            ),
            ("application/json", Body::from("{"), "json_invalid"),
            (
                "application/json",
                Body::from(vec![b' '; 70_000]),
                "TooLarge",
            ),
        ] {
            let error = receive(content_type, body).await.unwrap_err();
            assert!(format!("{error:?}").contains(expected), "{error:?}");
            assert!(documented.contains(&ErrorResponse::from(error).status));
        }
    }

    #[test]
    fn the_problems_of_both_values_are_reported() {
        let problem = Problem::missing;
        assert_eq!(both(Ok(1), Ok(2)).unwrap(), (1, 2));
        for (one, other, expected) in [
            (Err(problem("a")), Ok(2), vec![problem("a")]),
            (Ok(1), Err(problem("b")), vec![problem("b")]),
            (
                Err(problem("a")),
                Err(problem("b")),
                vec![problem("a"), problem("b")],
            ),
        ] {
            match both::<i32, i32>(one, other) {
                Err(ApiError::InvalidBody(problems)) => assert_eq!(problems, expected),
                other => panic!("{other:?}"),
            }
        }
    }
}
