//! Access tokens: none is accepted that `jsonwebtoken` rejects with the same key, nor one of another key. A gateway
//! rejects none that auth-api accepts, and verifies the signatures of the key alone.

use std::sync::LazyLock;

use auth_api::fuzz::{ReplicaKeys, TokenPrincipal};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use gateway::fuzz::TokenScreening;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::Value;

const SECRET: &[u8] = b"a secret key of the targets, which has 32 bytes or more";
const OTHER_SECRET: &[u8] = b"another secret key of the targets, of 32 bytes or more";
/// Private key of RFC 8037, appendix A.1, in PKCS#8.
const SIGNING_KEY: &str = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";
/// Its public key.
const PUBLIC_KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
/// Its thumbprint, by the same appendix.
const KEY_ID: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";
const ISSUER: &str = "https://auth.example.org";
const AUDIENCE: &str = "auth-api";
/// Time of verification, in seconds since 1970.
const NOW: i64 = 1_800_000_000;
const CLOCK_SKEW_SECONDS: i64 = 30;

static SECRET_ONLY: LazyLock<ReplicaKeys> =
    LazyLock::new(|| ReplicaKeys::new(SECRET, None, ISSUER, AUDIENCE));
static BOTH_KEYS: LazyLock<ReplicaKeys> = LazyLock::new(|| {
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{SIGNING_KEY}\n-----END PRIVATE KEY-----\n");
    ReplicaKeys::new(SECRET, Some(&pem), ISSUER, AUDIENCE)
});
static KEY_PAIR: LazyLock<Ed25519KeyPair> = LazyLock::new(|| {
    let der = STANDARD.decode(SIGNING_KEY).expect("base64");
    Ed25519KeyPair::from_pkcs8(&der).expect("an Ed25519 key")
});

static GATEWAY: LazyLock<TokenScreening> = LazyLock::new(|| {
    let key = format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{KEY_ID}","x":"{PUBLIC_KEY}"}}"#);
    let key_set = format!(r#"{{"keys":[{key}]}}"#);
    TokenScreening::new(key_set.as_bytes(), ISSUER, AUDIENCE)
});

/// Input: a byte that selects the key, then header and payload, one line each, or a whole token.
pub(crate) fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    let is_foreign = matches!(choice % 6, 2..=4);
    let token = match choice % 6 {
        0 => signed(rest, |message| hmac_of(SECRET, message)),
        1 => signed(rest, |message| KEY_PAIR.sign(message).as_ref().to_vec()),
        2 => signed(rest, |message| hmac_of(OTHER_SECRET, message)),
        // The public key is no secret.
        3 => signed(rest, |message| hmac_of(PUBLIC_KEY.as_bytes(), message)),
        4 => signed(rest, |_| Vec::new()),
        _ => String::from_utf8_lossy(rest).into_owned(),
    };
    for keys in [&*SECRET_ONLY, &*BOTH_KEYS] {
        let verified = keys.verify_access_token(&token, NOW);
        // The second time it may be remembered.
        assert_eq!(keys.verify_access_token(&token, NOW), verified);
        if let Some(principal) = verified {
            assert!(!is_foreign, "accepted with a foreign signature");
            check(&token, principal);
        }
    }
    let screened = GATEWAY.screen(&token, NOW);
    if let Some(screened) = screened.filter(|screened| screened.is_verified) {
        assert!(!is_foreign, "verified with a foreign signature");
        assert!(screened.expires_at.is_some_and(|expiry| expiry > NOW));
    }
    if BOTH_KEYS.verify_access_token(&token, NOW).is_some() && is_for_gateways(&token) {
        assert!(screened.is_some(), "rejected by the gateway alone");
    }
}

/// Returns whether a gateway accepts a token that auth-api accepts. It requires the types of RFC 7515 and RFC 7519 also
/// of members that auth-api does not need, and the second in which the token expires is the last for auth-api alone.
fn is_for_gateways(token: &str) -> bool {
    let mut parts = token.split('.').map(|part| {
        let json = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        serde_json::from_slice::<Value>(&json).unwrap_or_default()
    });
    let (header, claims) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let is_text = |value: &Value| value.is_null() || value.is_string();
    let is_audience = |value: &Value| {
        let all = value.as_array();
        all.map_or_else(|| is_text(value), |all| all.iter().all(Value::is_string))
    };
    let is_typed =
        is_text(&header["typ"]) && is_text(&header["kid"]) && is_audience(&claims["aud"]);
    is_typed && claims["exp"].as_i64().is_some_and(|expiry| expiry > NOW)
}

fn hmac_of(secret: &[u8], message: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::sign(&key, message).as_ref().to_vec()
}

fn signed(parts: &[u8], sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let mut lines = parts.splitn(2, |byte| *byte == b'\n');
    let (header, payload) = (
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
    );
    let [header, payload] = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part));
    let message = format!("{header}.{payload}");
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// Checks an accepted token by the other implementation.
fn check(token: &str, principal: TokenPrincipal) {
    let header = match decode_header(token) {
        Ok(header) => header,
        // A member that we do not use is of another type than it expects.
        Err(error) if matches!(error.kind(), ErrorKind::Json(_)) => return,
        Err(error) => panic!("the header is rejected: {error}"),
    };
    let (key, algorithm) = match header.alg {
        Algorithm::HS256 => (Ok(DecodingKey::from_secret(SECRET)), Algorithm::HS256),
        _ => (
            DecodingKey::from_ed_components(PUBLIC_KEY),
            Algorithm::EdDSA,
        ),
    };
    let mut validation = Validation::new(algorithm);
    // Times are compared below, with a clock that stands still.
    validation.validate_exp = false;
    validation.validate_aud = algorithm == Algorithm::EdDSA;
    if algorithm == Algorithm::EdDSA {
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    } else {
        validation.set_issuer(&["auth-api"]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
    }
    let claims = decode::<Value>(token, &key.expect("a key"), &validation);
    let claims = claims.expect("jsonwebtoken accepts the token").claims;
    assert!(claims["exp"].as_i64().is_some_and(|expiry| expiry >= NOW));
    for valid_from in [&claims["nbf"], &claims["iat"]] {
        assert!(
            valid_from
                .as_i64()
                .is_none_or(|time| time <= NOW + CLOCK_SKEW_SECONDS)
        );
    }
    assert_eq!(claims["user_id"].as_i64(), Some(principal.user));
    let session = format!("{:032x}", u128::from_be_bytes(principal.session));
    assert_eq!(claims["sid"].as_str(), Some(session.as_str()));
}
