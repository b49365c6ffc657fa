//! JSON objects without duplicate member names.
//!
//! Parsers differ on which of two members with one name counts. In a token that would let one text
//! carry two identities (RFC 8725, section 2.4), so such an object is rejected.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

/// JSON object whose top-level names are unique. Nested values are not checked, because no claim is an object.
#[derive(Debug, Clone)]
pub(crate) struct StrictObject(Map<String, Value>);

impl StrictObject {
    /// Decodes base64url without padding and parses the JSON in it.
    pub(super) fn from_base64url(text: &str) -> Option<Self> {
        let json = URL_SAFE_NO_PAD.decode(text).ok()?;
        serde_json::from_slice(&json).ok()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Returns a member that is a string.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }
}

impl From<StrictObject> for Value {
    fn from(object: StrictObject) -> Self {
        Self::Object(object.0)
    }
}

impl<'de> Deserialize<'de> for StrictObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StrictObjectVisitor)
    }
}

struct StrictObjectVisitor;

impl<'de> Visitor<'de> for StrictObjectVisitor {
    type Value = StrictObject;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<StrictObject, A::Error> {
        let mut map = Map::new();
        while let Some((name, value)) = access.next_entry::<String, Value>()? {
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("duplicate member name"));
            }
        }
        Ok(StrictObject(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Option<StrictObject> {
        StrictObject::from_base64url(&URL_SAFE_NO_PAD.encode(json))
    }

    #[test]
    fn only_an_object_with_unique_names_is_read() {
        let object = parse(r#" {"alg":"HS256","kid":null,"crit":["exp"],"a":{"b":1,"b":2}} "#);
        let object = object.unwrap();
        assert_eq!(object.text("alg"), Some("HS256"));
        assert_eq!(object.text("crit"), None);
        assert!(object.has("kid") && !object.has("typ"));
        for other in [
            "",
            "null",
            "1",
            r#""alg""#,
            "[]",
            r#"[{"alg":"HS256"}]"#,
            "{",
            "{}{}",
            r#"{"alg":"HS256","alg":"HS256"}"#,
            // The same name in another spelling.
            r#"{"alg":"HS256","\u0061lg":"none"}"#,
            r#"{"alg":"\ud800"}"#,
        ] {
            assert!(parse(other).is_none(), "{other}");
        }
        for text in ["e30=", "e3 0", "e31", "%"] {
            assert!(StrictObject::from_base64url(text).is_none(), "{text}");
        }
        assert!(StrictObject::from_base64url("e30").is_some());
    }
}
