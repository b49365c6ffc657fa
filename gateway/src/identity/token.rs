//! Screening of access tokens: what the gateway can tell about a token alone (RFC 8725, RFC 9068).
//!
//! Screening only rejects. A token that passes is checked by auth-api, which decides about it: it alone has the
//! keys of HS256 tokens and knows which sessions are active.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use thiserror::Error;

use crate::identity::key_set::KeySet;

/// Tolerated difference between the clocks of the issuer and the gateway, in seconds.
const CLOCK_SKEW_SECONDS: i64 = 30;
/// Type of access tokens (RFC 9068, section 2.1), with and without the prefix of media types.
const TOKEN_TYPES: [&str; 2] = ["at+jwt", "application/at+jwt"];

/// Reason a token is rejected. Its `Display` is the message for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum InvalidToken {
    /// Malformed, forged, or for another purpose.
    #[error("Invalid token")]
    Invalid,
    /// Signed with a key of the set, but not an access token of this issuer for this audience.
    #[error("Invalid token")]
    Foreign,
    #[error("Token has expired")]
    Expired,
    /// auth-api does not accept it: its session has ended, or its signature is wrong.
    #[error("Token not found or expired")]
    Rejected,
}

/// Result of the screening of a token that may be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Screened {
    /// Expiry in Unix time, if the token has one. It holds if auth-api accepts the token.
    pub(crate) expires_at: Option<i64>,
    pub(crate) signature: Signature,
}

/// Knowledge about the signature of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signature {
    Verified,
    /// The gateway has no key for tokens of this kind.
    Unknown,
    /// The key set has no key with the identifier that an `EdDSA` token names.
    UnknownKey,
}

/// Issuer of the tokens that `EdDSA` signs, and for whom they have to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'e> {
    /// Its keys, as far as they are known.
    pub(crate) keys: &'e KeySet,
    pub(crate) issuer: &'e str,
    pub(crate) audience: Option<&'e str>,
}

/// Members of a JOSE header. A repeated one is an error.
#[derive(Deserialize)]
struct JoseHeader {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

/// Claims that the gateway checks. A repeated one is an error.
#[derive(Deserialize)]
struct Claims {
    exp: Option<i64>,
    nbf: Option<i64>,
    iat: Option<i64>,
    iss: Option<String>,
    aud: Option<Audience>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// Screens a token at `now`, in Unix time. `expected` is `None` if the gateway knows no issuer.
///
/// # Errors
/// Returns an error if the token cannot be valid.
pub(crate) fn screen(
    token: &str,
    expected: Option<Expected<'_>>,
    now: i64,
) -> Result<Screened, InvalidToken> {
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        // Not a JWT: its form is known to auth-api alone.
        return Ok(Screened {
            expires_at: None,
            signature: Signature::Unknown,
        });
    };
    let header: JoseHeader = decode(header)?;
    let claims: Claims = decode(claims)?;
    if header.crit.is_some() || header.alg.eq_ignore_ascii_case("none") {
        return Err(InvalidToken::Invalid);
    }
    let mut screened = Screened {
        expires_at: claims.exp,
        signature: Signature::Unknown,
    };
    // The algorithm is bound to the keys: each of the set is for EdDSA, and no other token is checked with them.
    if let Some(expected) = expected
        && header.alg == "EdDSA"
    {
        // Also without the key, which may not have been fetched yet: auth-api does not know the audience of this gateway.
        let is_foreign = !is_access_token(&header, &claims, expected, now);
        let key = header.kid.as_deref().and_then(|kid| expected.keys.get(kid));
        screened.signature = match key {
            None if is_foreign => return Err(InvalidToken::Invalid),
            None => Signature::UnknownKey,
            Some(key) => {
                let signed = &token[..token.len() - signature.len() - 1];
                let signature = URL_SAFE_NO_PAD.decode(signature);
                let is_valid = signature
                    .is_ok_and(|signature| key.verify(signed.as_bytes(), &signature).is_ok());
                if !is_valid {
                    return Err(InvalidToken::Invalid);
                }
                if is_foreign {
                    return Err(InvalidToken::Foreign);
                }
                Signature::Verified
            }
        };
    }
    if claims.exp.is_some_and(|exp| exp <= now) {
        return Err(InvalidToken::Expired);
    }
    Ok(screened)
}

/// Returns whether a token claims to be an access token for this gateway, except for its expiry.
fn is_access_token(header: &JoseHeader, claims: &Claims, expected: Expected<'_>, now: i64) -> bool {
    let has_type = header.typ.as_deref().is_some_and(|typ| {
        let is_type = |known: &&str| typ.eq_ignore_ascii_case(known);
        TOKEN_TYPES.iter().any(is_type)
    });
    let has_audience = expected.audience.is_none_or(|audience| match &claims.aud {
        Some(Audience::One(one)) => one == audience,
        Some(Audience::Several(several)) => several.iter().any(|one| one == audience),
        None => false,
    });
    let valid_from = claims.iat.max(claims.nbf);
    has_type
        && has_audience
        && claims.exp.is_some()
        && claims.iss.as_deref() == Some(expected.issuer)
        && valid_from.is_none_or(|valid_from| valid_from <= now.saturating_add(CLOCK_SKEW_SECONDS))
}

fn decode<T: for<'t> Deserialize<'t>>(part: &str) -> Result<T, InvalidToken> {
    let json = URL_SAFE_NO_PAD.decode(part).ok();
    let value = json.and_then(|json| serde_json::from_slice(&json).ok());
    value.ok_or(InvalidToken::Invalid)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const HEADER: &str = r#"{"alg":"EdDSA","typ":"at+jwt","kid":"a"}"#;

    struct Signer {
        pair: Ed25519KeyPair,
        keys: KeySet,
    }

    fn signer() -> Signer {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key());
        let set = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"a","x":"{x}"}}]}}"#);
        let keys = KeySet::parse(set.as_bytes()).unwrap();
        Signer { pair, keys }
    }

    impl Signer {
        fn sign(&self, header: &str, claims: &str) -> String {
            let text = [header, claims]
                .map(|part| URL_SAFE_NO_PAD.encode(part))
                .join(".");
            let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(text.as_bytes()));
            format!("{text}.{signature}")
        }

        fn screen(&self, token: &str) -> Result<Screened, InvalidToken> {
            Self::screen_with(&self.keys, token)
        }

        fn screen_with(keys: &KeySet, token: &str) -> Result<Screened, InvalidToken> {
            let expected = Expected {
                keys,
                issuer: "auth-api",
                audience: Some("shop"),
            };
            screen(token, Some(expected), NOW)
        }
    }

    fn claims(changed: &str) -> String {
        let (name, _) = changed.split_once(':').unwrap_or_default();
        let unchanged = [
            format!(r#""exp":{}"#, NOW + 60),
            r#""iss":"auth-api""#.to_owned(),
            r#""aud":"shop""#.to_owned(),
            r#""sub":"alice""#.to_owned(),
        ];
        let mut members: Vec<_> = unchanged
            .into_iter()
            .filter(|member| name.is_empty() || !member.starts_with(name))
            .collect();
        if !changed.is_empty() && !changed.ends_with(':') {
            members.push(changed.to_owned());
        }
        format!("{{{}}}", members.join(","))
    }

    #[test]
    fn a_token_of_the_issuer_passes() {
        let signer = signer();
        for (header, changed) in [
            (HEADER, ""),
            (
                r#"{"alg":"EdDSA","typ":"application/AT+JWT","kid":"a"}"#,
                "",
            ),
            (HEADER, r#""aud":["other","shop"]"#),
            (HEADER, r#""iat":1800000030"#),
        ] {
            let token = signer.sign(header, &claims(changed));
            let expected = Screened {
                expires_at: Some(NOW + 60),
                signature: Signature::Verified,
            };
            assert_eq!(signer.screen(&token), Ok(expected), "{header} {changed}");
        }
    }

    #[test]
    fn a_token_for_another_purpose_or_of_another_issuer_is_invalid() {
        let signer = signer();
        for (header, changed) in [
            (r#"{"alg":"EdDSA","kid":"a"}"#, ""),
            (r#"{"alg":"EdDSA","typ":"JWT","kid":"a"}"#, ""),
            (
                r#"{"alg":"EdDSA","typ":"at+jwt","kid":"a","crit":["exp"]}"#,
                "",
            ),
            (
                r#"{"alg":"EdDSA","alg":"EdDSA","typ":"at+jwt","kid":"a"}"#,
                "",
            ),
            (r#"{"alg":"none","typ":"at+jwt"}"#, ""),
            (r#"{"alg":"NonE"}"#, ""),
            (HEADER, r#""iss":"other""#),
            (HEADER, r#""iss":"#),
            (HEADER, r#""aud":"other""#),
            (HEADER, r#""aud":"#),
            (HEADER, r#""exp":"#),
            (HEADER, r#""exp":"1900000000""#),
            (HEADER, r#""nbf":1800000031"#),
            (HEADER, r#""iat":1800000031"#),
            (HEADER, r#""iat":1,"iat":1"#),
        ] {
            let token = signer.sign(header, &claims(changed));
            let screened = signer.screen(&token);
            assert!(
                matches!(screened, Err(InvalidToken::Invalid | InvalidToken::Foreign)),
                "{header} {changed}: {screened:?}"
            );
        }
        let foreign = signer.sign(HEADER, &claims(r#""aud":"other""#));
        assert_eq!(signer.screen(&foreign), Err(InvalidToken::Foreign));
        // Also while the gateway has no key.
        for changed in [
            r#""iss":"other""#,
            r#""aud":"other""#,
            r#""aud":"#,
            r#""exp":"#,
        ] {
            let token = signer.sign(HEADER, &claims(changed));
            assert_eq!(
                Signer::screen_with(&KeySet::default(), &token),
                Err(InvalidToken::Invalid),
                "{changed}"
            );
        }
        for malformed in ["a.b.c", "..", "e30.e30.", "e30.e30.e30"] {
            assert_eq!(
                signer.screen(malformed),
                Err(InvalidToken::Invalid),
                "{malformed}"
            );
        }
    }

    #[test]
    fn a_forged_token_is_invalid() {
        let signer = signer();
        let token = signer.sign(HEADER, &claims(""));
        let (text, signature) = token.rsplit_once('.').unwrap();
        let other = signer.sign(HEADER, &claims(r#""sub":"mallory""#));
        let (other_text, _) = other.rsplit_once('.').unwrap();
        for forged in [
            format!("{other_text}.{signature}"),
            format!("{text}."),
            format!("{text}.{}", &signature[1..]),
            format!("{text}.{}", URL_SAFE_NO_PAD.encode([0; 64])),
        ] {
            assert_eq!(
                signer.screen(&forged),
                Err(InvalidToken::Invalid),
                "{forged}"
            );
        }
    }

    #[test]
    fn an_expired_token_is_rejected_with_any_signature() {
        let signer = signer();
        for header in [HEADER, r#"{"alg":"HS256","typ":"JWT"}"#] {
            for exp in [NOW, NOW - 1, 0, i64::MIN] {
                let token = signer.sign(header, &claims(&format!(r#""exp":{exp}"#)));
                assert_eq!(
                    signer.screen(&token),
                    Err(InvalidToken::Expired),
                    "{header} {exp}"
                );
            }
        }
    }

    #[test]
    fn what_the_gateway_cannot_check_is_left_to_auth_api() {
        let signer = signer();
        let screened = |expires_at, signature| {
            Ok(Screened {
                expires_at,
                signature,
            })
        };
        let unknown_key = signer.sign(r#"{"alg":"EdDSA","typ":"at+jwt","kid":"b"}"#, &claims(""));
        assert_eq!(
            signer.screen(&unknown_key),
            screened(Some(NOW + 60), Signature::UnknownKey)
        );
        // The public key is not used as the secret of an HMAC, whatever the header says.
        for algorithm in ["HS256", "RS256", "ES256"] {
            let header = format!(r#"{{"alg":"{algorithm}","typ":"at+jwt","kid":"a"}}"#);
            let token = signer.sign(&header, &claims(""));
            assert_eq!(
                signer.screen(&token),
                screened(Some(NOW + 60), Signature::Unknown)
            );
        }
        assert_eq!(signer.screen("opaque"), screened(None, Signature::Unknown));
        let foreign = signer.sign(HEADER, &claims(r#""iss":"other""#));
        assert_eq!(
            screen(&foreign, None, NOW),
            screened(Some(NOW + 60), Signature::Unknown)
        );
    }

    proptest! {
        #[test]
        fn only_a_signature_of_the_issuer_verifies(
            token in "[A-Za-z0-9_.~+/-]{0,40}={0,2}",
            header in r#"\{("(alg|kid|typ|crit)":("EdDSA"|"a"|"at\+jwt"|"none"|1|\[\]),){0,3}"(alg|kid|typ|crit)":("EdDSA"|"a"|"at\+jwt"|"none"|1|\[\])\}"#,
            claims in r#"\{("(exp|nbf|iat|iss|aud)":("auth-api"|"shop"|-?[0-9]{1,20}|\["shop"\]|null),){0,3}"(exp|nbf|iat|iss|aud)":("auth-api"|"shop"|-?[0-9]{1,20}|\["shop"\]|null)\}"#,
            signature in "[A-Za-z0-9_-]{0,90}",
        ) {
            let signer = signer();
            let forged = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
            for token in [token, format!("{forged}.{signature}")] {
                let is_verified = signer
                    .screen(&token)
                    .is_ok_and(|screened| screened.signature == Signature::Verified);
                prop_assert!(!is_verified, "{token}");
            }
        }
    }
}
