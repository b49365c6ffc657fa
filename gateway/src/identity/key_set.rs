//! Keys that verify tokens: a JSON Web Key Set (RFC 7517) with Ed25519 keys (RFC 8037).

use anyhow::{Context, Result, ensure};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

const PUBLIC_KEY_BYTES: usize = 32;
/// Most keys that a set may have.
const MAX_KEYS: usize = 64;

/// Ed25519 keys by their identifiers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeySet(Vec<(String, [u8; PUBLIC_KEY_BYTES])>);

#[derive(Deserialize)]
struct JsonWebKeySet {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct JsonWebKey {
    kty: String,
    kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
}

impl KeySet {
    /// Parses a key set. Keys of other types and for other purposes, and malformed ones, are left out (RFC 7517,
    /// section 5): they must not keep out the others.
    ///
    /// # Errors
    /// Returns an error if the text is no key set.
    pub(crate) fn parse(json: &[u8]) -> Result<Self> {
        let set: JsonWebKeySet = serde_json::from_slice(json).context("not a JSON Web Key Set")?;
        ensure!(set.keys.len() <= MAX_KEYS, "more than {MAX_KEYS} keys");
        let mut keys = Vec::new();
        for key in set.keys {
            let Ok(key) = JsonWebKey::deserialize(key) else {
                tracing::warn!("a malformed key of the key set is ignored");
                continue;
            };
            let is_for =
                |member: &Option<String>, value| member.as_deref().is_none_or(|is| is == value);
            let is_ed25519 = key.kty == "OKP" && key.crv.as_deref() == Some("Ed25519");
            if !is_ed25519 || !is_for(&key.alg, "EdDSA") || !is_for(&key.purpose, "sig") {
                continue;
            }
            let bytes = URL_SAFE_NO_PAD.decode(key.x.unwrap_or_default());
            let public = bytes.ok().and_then(|bytes| bytes.try_into().ok());
            if let (Some(kid), Some(public)) = (&key.kid, public) {
                keys.push((kid.clone(), public));
            } else {
                tracing::warn!(kid = key.kid, "a malformed key of the key set is ignored");
            }
        }
        Ok(Self(keys))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the key with an identifier.
    pub(super) fn get(&self, kid: &str) -> Option<UnparsedPublicKey<&[u8]>> {
        let (_, public) = self.0.iter().find(|(known, _)| known == kid)?;
        Some(UnparsedPublicKey::new(&ED25519, public.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Example of RFC 8037, appendix A.2.
    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    #[test]
    fn keys_for_other_algorithms_and_purposes_are_left_out() {
        let set = format!(
            r#"{{"keys": [
                {{"kty": "OKP", "crv": "Ed25519", "x": "{X}", "kid": "one", "use": "sig", "alg": "EdDSA", "more": 1}},
                {{"kty": "OKP", "crv": "Ed25519", "x": "{X}", "kid": "two"}},
                {{"kty": "OKP", "crv": "Ed25519", "x": "{X}", "kid": "encryption", "use": "enc"}},
                {{"kty": "OKP", "crv": "X25519", "x": "{X}", "kid": "agreement"}},
                {{"kty": "oct", "k": "c2VjcmV0", "kid": "shared"}}
            ]}}"#
        );
        let set = KeySet::parse(set.as_bytes()).unwrap();
        assert!(set.get("one").is_some() && set.get("two").is_some());
        assert_eq!(set.len(), 2);
        assert_eq!(
            KeySet::parse(br#"{"keys": []}"#).unwrap(),
            KeySet::default()
        );
    }

    #[test]
    fn a_malformed_key_does_not_keep_out_the_others() {
        let good = format!(r#"{{"kty": "OKP", "crv": "Ed25519", "kid": "good", "x": "{X}"}}"#);
        for malformed in [
            "1",
            "{}",
            r#"{"kid": "a"}"#,
            r#"{"kty": 1, "kid": "a"}"#,
            &format!(r#"{{"kty": "OKP", "crv": "Ed25519", "x": "{X}"}}"#),
            r#"{"kty": "OKP", "crv": "Ed25519", "kid": "a"}"#,
            r#"{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "AAAA"}"#,
            r#"{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "%"}"#,
        ] {
            let set = format!(r#"{{"keys": [{malformed}, {good}]}}"#);
            let set = KeySet::parse(set.as_bytes()).unwrap();
            assert!(set.get("good").is_some(), "{malformed}");
            assert_eq!(set.len(), 1, "{malformed}");
        }
    }

    #[test]
    fn a_malformed_set_is_rejected() {
        for invalid in [
            "[]".to_owned(),
            "{}".to_owned(),
            "x".to_owned(),
            format!(
                r#"{{"keys": [{}]}}"#,
                vec![r#"{"kty": "oct"}"#; MAX_KEYS + 1].join(",")
            ),
        ] {
            assert!(KeySet::parse(invalid.as_bytes()).is_err(), "{invalid}");
        }
    }
}
