//! Forms: `application/x-www-form-urlencoded` as OAuth uses it (RFC 6749, appendix B).
//!
//! Inputs that parsers read differently are rejected: a parameter that occurs twice, an incomplete percent-encoding, bytes that
//! are no UTF-8.

use std::collections::BTreeMap;

pub(super) const MEDIA_TYPE: &str = "application/x-www-form-urlencoded";

/// Parameters of a form by name, each at most once.
pub(super) struct Form(BTreeMap<String, String>);

/// Reason a form is rejected. Its `Display` is the description for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidForm {
    #[error("The form is not well-formed")]
    Malformed,
    /// Also of a parameter that is not used (RFC 6749, section 3.2).
    #[error("A parameter occurs more than once")]
    RepeatedParameter,
}

impl Form {
    pub(super) fn parse(body: &[u8]) -> Result<Self, InvalidForm> {
        let mut parameters = BTreeMap::new();
        for pair in body.split(|byte| *byte == b'&') {
            if pair.is_empty() {
                continue;
            }
            let mut parts = pair.splitn(2, |byte| *byte == b'=');
            let mut next = || decode(parts.next().unwrap_or_default());
            let (name, value) = (next(), next());
            let (name, value) = name.zip(value).ok_or(InvalidForm::Malformed)?;
            if parameters.insert(name, value).is_some() {
                return Err(InvalidForm::RepeatedParameter);
            }
        }
        Ok(Self(parameters))
    }

    /// Removes a parameter. One without a value counts as absent (RFC 6749, section 3.2).
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }
}

/// Decodes a name or a value. Returns `None` if it is malformed.
pub(super) fn decode(encoded: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.iter().copied();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => 16 * hexadecimal(bytes.next()?)? + hexadecimal(bytes.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hexadecimal(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(body: &str) -> Result<Vec<(String, String)>, InvalidForm> {
        Form::parse(body.as_bytes()).map(|form| form.0.into_iter().collect())
    }

    #[test]
    fn parameters_are_decoded() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            let pairs = pairs.iter().copied();
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        };
        for (body, expected) in [
            ("", pairs(&[])),
            ("&&", pairs(&[])),
            ("a=b", pairs(&[("a", "b")])),
            ("a", pairs(&[("a", "")])),
            ("=b", pairs(&[("", "b")])),
            ("a=b=c&d=", pairs(&[("a", "b=c"), ("d", "")])),
            (
                // RFC 6749, appendix B.
                "x=+%25%26%2B%C2%A3%E2%82%AC",
                pairs(&[("x", " %&+\u{a3}\u{20ac}")]),
            ),
            ("%61%00=%3d", pairs(&[("a\0", "=")])),
        ] {
            assert_eq!(parse(body), Ok(expected), "{body}");
        }
    }

    #[test]
    fn ambiguous_forms_are_rejected() {
        for body in [
            "a=%", "a=%4", "a=%zz", "%=a", "a=%ff", "a=%C3", "a=%+1", "a=%-1",
        ] {
            assert_eq!(parse(body), Err(InvalidForm::Malformed), "{body}");
        }
        assert!(Form::parse(b"a=\xff").is_err());
        for body in ["a=1&a=2", "a&a", "a=1&b=2&%61=1", "=&="] {
            assert_eq!(parse(body), Err(InvalidForm::RepeatedParameter), "{body}");
        }
    }

    #[test]
    fn a_parameter_without_a_value_is_absent() {
        let mut form = Form::parse(b"a=&b=1&c").unwrap();
        assert_eq!(form.take("a"), None);
        assert_eq!(form.take("b").as_deref(), Some("1"));
        assert_eq!(form.take("b"), None);
        assert_eq!(form.take("c"), None);
    }

    proptest! {
        #[test]
        fn no_body_makes_the_parser_panic(body: Vec<u8>) {
            let _ = Form::parse(&body);
        }

        #[test]
        fn whatever_is_encoded_is_decoded(name: String, value: String) {
            let encode = |text: &str| {
                let bytes = text.bytes().map(|byte| format!("%{byte:02X}"));
                bytes.collect::<Vec<_>>().concat()
            };
            let body = format!("{}={}", encode(&name), encode(&value));
            prop_assert_eq!(parse(&body), Ok(vec![(name, value)]));
        }
    }
}
