//! Request bodies, and what is said of those that are wrong.
//!
//! The Python service's clients read FastAPI's 422: a list of problems, each with its type, place
//! and message. The texts here are its own. It also repeats the input, and so sends a password
//! back; we do not.

use std::fmt::Display;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::Error;

/// The longest body that is read.
pub(crate) const MAX_BYTES: usize = 64 * 1024;
/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// One thing that is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    r#type: &'static str,
    loc: Vec<Place>,
    msg: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Place {
    Name(&'static str),
    /// Characters before the place in the body.
    Offset(usize),
}

impl Problem {
    fn new(kind: &'static str, below_body: Option<Place>, msg: impl Into<String>) -> Self {
        Self {
            r#type: kind,
            loc: std::iter::once(Place::Name("body"))
                .chain(below_body)
                .collect(),
            msg: msg.into(),
        }
    }

    /// A field's value breaks a rule.
    pub(crate) fn value(field: &'static str, why: impl Display) -> Self {
        Self::new(
            "value_error",
            Some(Place::Name(field)),
            format!("Value error, {why}"),
        )
    }
}

/// A JSON object.
#[derive(Debug)]
pub(crate) struct Object(Map<String, Value>);

impl Object {
    /// The text under `field`.
    pub(crate) fn text(&self, field: &'static str) -> Result<&str, Problem> {
        let place = Some(Place::Name(field));
        match self.0.get(field) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Problem::new(
                "string_type",
                place,
                "Input should be a valid string",
            )),
            None => Err(Problem::new("missing", place, "Field required")),
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, Problem> {
        let missing = || Problem::new("missing", None, "Field required");
        if bytes.is_empty() {
            return Err(missing());
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(Value::Null) => Err(missing()),
            Ok(_) => Err(not_an_object()),
            Err(error) => {
                let place = Place::Offset(offset(bytes, &error));
                Err(Problem::new(
                    "json_invalid",
                    Some(place),
                    "JSON decode error",
                ))
            }
        }
    }
}

/// How a body may be refused, whatever is in it.
pub(crate) fn refusals() -> [Error; 4] {
    let missing = Problem::new("missing", Some(Place::Name("password")), "Field required");
    [
        Error::Invalid(vec![missing]),
        Error::BodyTooLarge,
        Error::BodyIncomplete,
        Error::BodyTooSlow,
    ]
}

fn not_an_object() -> Problem {
    let text = "Input should be a valid dictionary or object to extract fields from";
    Problem::new("model_attributes_type", None, text)
}

/// How many characters Python's parser would have passed before it gave up.
fn offset(bytes: &[u8], error: &serde_json::Error) -> usize {
    let line_start = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum::<usize>();
    let mut at = (line_start + error.column()).min(bytes.len());
    if !error.is_eof() {
        at = at.saturating_sub(1);
        // A word that is none is refused from its beginning.
        while at > 0 && bytes[at - 1].is_ascii_alphabetic() && bytes[at].is_ascii_alphabetic() {
            at -= 1;
        }
    }
    String::from_utf8_lossy(&bytes[..at]).chars().count()
}

impl<S: Sync> FromRequest<S> for Object {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self, Error> {
        let is_json = is_json(&request);
        let bytes = collect(request.into_body(), PATIENCE).await?;
        let object = match (bytes.is_empty(), is_json) {
            (false, false) => Err(not_an_object()),
            _ => Self::read(&bytes),
        };
        object.map_err(|problem| Error::Invalid(vec![problem]))
    }
}

/// As FastAPI has it: a body without a content type is JSON too.
fn is_json(request: &Request) -> bool {
    let Some(value) = request.headers().get(CONTENT_TYPE) else {
        return true;
    };
    let essence = value
        .to_str()
        .unwrap_or("")
        .split(';')
        .next()
        .unwrap_or("")
        .trim();
    let essence = essence.to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

async fn collect(body: Body, patience: Duration) -> Result<Bytes, Error> {
    let body = Limited::new(body, MAX_BYTES).collect();
    match tokio::time::timeout(patience, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Error::BodyTooLarge),
        Ok(Err(_)) => Err(Error::BodyIncomplete),
        Err(_) => Err(Error::BodyTooSlow),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use axum::body::HttpBody;
    use hyper::body::Frame;

    use super::*;

    /// A body that never comes.
    struct Silent;

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    fn problem(body: &str) -> String {
        serde_json::to_string(&Object::read(body.as_bytes()).unwrap_err()).unwrap()
    }

    #[test]
    fn what_is_no_object_is_told_as_fastapi_does() {
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
        for (body, at) in [
            ("not json", 0),
            ("{", 1),
            (r#"{"login":"#, 9),
            (r#"{"a":1,}"#, 7),
            (r#"{"a": x}"#, 6),
        ] {
            let expected = format!(
                r#"{{"type":"json_invalid","loc":["body",{at}],"msg":"JSON decode error"}}"#
            );
            assert_eq!(problem(body), expected, "{body}");
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let whole = collect(Body::from("whole"), PATIENCE).await;
        assert_eq!(whole.unwrap(), "whole");
        let refused = collect(Body::new(Silent), Duration::from_millis(1)).await;
        assert!(matches!(refused, Err(Error::BodyTooSlow)));
    }

    #[test]
    fn no_body_is_too_strange() {
        assert!(problem(&"[".repeat(20_000)).contains("json_invalid"));
        assert!(problem(r#"{"login":"\ud800"}"#).contains("json_invalid"));
        assert!(Object::read(b"{\"login\":\"\xff\"}").is_err());
    }
}
