//! Validation problems of a request body, in the form of FastAPI's 422 responses.
//!
//! Clients of the Python service parse them: each has a type, a location and a message, and the
//! texts here are that service's own. Unlike it, this one does not repeat the input, which would
//! send a password back.

use std::fmt::Display;

use serde::Serialize;

/// One problem of a request body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    r#type: &'static str,
    loc: Vec<Location>,
    msg: String,
}

/// Element of a problem's location.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Location {
    Name(&'static str),
    /// Number of characters of the body before the error.
    Offset(usize),
}

impl Problem {
    /// The body is absent.
    pub(crate) fn missing_body() -> Self {
        Self::new("missing", None, "Field required")
    }

    /// The body is JSON but not an object.
    pub(crate) fn not_an_object() -> Self {
        let message = "Input should be a valid dictionary or object to extract fields from";
        Self::new("model_attributes_type", None, message)
    }

    /// The body is not JSON; the first error is after `offset` characters.
    pub(crate) fn invalid_json(offset: usize) -> Self {
        let location = Location::Offset(offset);
        Self::new("json_invalid", Some(location), "JSON decode error")
    }

    /// The body has no `field`.
    pub(crate) fn missing(field: &'static str) -> Self {
        Self::new("missing", Some(Location::Name(field)), "Field required")
    }

    /// The value of `field` is not a string.
    pub(crate) fn not_a_string(field: &'static str) -> Self {
        let message = "Input should be a valid string";
        Self::new("string_type", Some(Location::Name(field)), message)
    }

    /// The value of `field` violates the rule that `reason` states.
    pub(crate) fn invalid_value(field: &'static str, reason: impl Display) -> Self {
        let message = format!("Value error, {reason}");
        Self::new("value_error", Some(Location::Name(field)), message)
    }

    fn new(kind: &'static str, below_body: Option<Location>, message: impl Into<String>) -> Self {
        Self {
            r#type: kind,
            loc: std::iter::once(Location::Name("body"))
                .chain(below_body)
                .collect(),
            msg: message.into(),
        }
    }
}
