//! Ed25519 keys that sign and verify access tokens, and their public form as a JWK set (RFC 7517, RFC 8037).

use std::collections::HashSet;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::digest::sha256;

/// Algorithm of these keys in JOSE headers (RFC 8037, section 3.1).
pub(super) const EDDSA: &str = "EdDSA";

/// Private key, with its public one.
#[derive(Debug)]
pub(crate) struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// Key that verifies signatures of one private key.
#[derive(Debug, Clone)]
pub(crate) struct PublicKey {
    key: ParsedPublicKey,
    /// The 32 bytes in base64url, as in a JWK.
    x: String,
    kid: String,
}

/// Reason a text holds no keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidSigningKey {
    #[error("no private key in PEM (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    #[error("a private key that is not an Ed25519 key in PKCS#8")]
    NotEd25519,
}

impl SigningKey {
    /// Reads every private key of a PEM text (RFC 7468, RFC 8410).
    ///
    /// # Errors
    /// Returns an error if there is none, or if one is of another algorithm.
    pub(crate) fn from_pem(text: &str) -> Result<Vec<Self>, InvalidSigningKey> {
        let keys = PrivatePkcs8KeyDer::pem_slice_iter(text.as_bytes())
            .map(|der| {
                Self::from_pkcs8(
                    der.map_err(|_| InvalidSigningKey::NoKey)?
                        .secret_pkcs8_der(),
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(InvalidSigningKey::NoKey);
        }
        Ok(keys)
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidSigningKey> {
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|_| InvalidSigningKey::NotEd25519)?;
        let public = pair.public_key().as_ref();
        let key = ParsedPublicKey::new(&ED25519, public);
        let x = URL_SAFE_NO_PAD.encode(public);
        let public = PublicKey {
            key: key.map_err(|_| InvalidSigningKey::NotEd25519)?,
            kid: thumbprint(&x),
            x,
        };
        Ok(Self { pair, public })
    }

    pub(crate) fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl PublicKey {
    /// Returns the id of the key: its thumbprint, so that no other key has it.
    pub(crate) fn kid(&self) -> &str {
        &self.kid
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(message, signature).is_ok()
    }

    fn to_jwk(&self) -> Value {
        json!({
            "kty": "OKP",
            "crv": "Ed25519",
            "x": self.x,
            "kid": self.kid,
            "alg": EDDSA,
            "use": "sig",
        })
    }
}

/// Returns the thumbprint of a public key: the SHA-256 of the required members of its JWK in lexicographic order
/// (RFC 7638, section 3; RFC 8037, section 2).
fn thumbprint(x: &str) -> String {
    let members = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(sha256(&[members.as_bytes()]))
}

/// Keys of all replicas. While a key is rotated, replicas sign with different keys, so each verifies with the
/// previous and next ones too.
#[derive(Debug, Default)]
pub(crate) struct SigningKeys {
    current: Option<SigningKey>,
    /// Each once: the current one, the next ones, the previous ones.
    public: Vec<PublicKey>,
}

impl SigningKeys {
    /// Without a `current` key these keys sign nothing.
    pub(crate) fn new(current: Option<SigningKey>, verifying_only: &[SigningKey]) -> Self {
        let mut known = HashSet::new();
        let public = current
            .iter()
            .chain(verifying_only)
            .map(SigningKey::public)
            .filter(|key| known.insert(key.kid.clone()))
            .cloned()
            .collect();
        Self { current, public }
    }

    pub(crate) fn current(&self) -> Option<&SigningKey> {
        self.current.as_ref()
    }

    /// Returns the key with this id. Any other key is none of ours.
    pub(super) fn public_key(&self, kid: &str) -> Option<&PublicKey> {
        self.public.iter().find(|key| key.kid == kid)
    }

    /// Returns the JWK set. Services that verify tokens read in it the next keys before tokens are signed with
    /// them.
    pub(super) fn jwk_set(&self) -> Value {
        let keys: Vec<_> = self.public.iter().map(PublicKey::to_jwk).collect();
        json!({"keys": keys})
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Private key of RFC 8037, appendix A.1, in PKCS#8.
    pub(crate) const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";
    /// Another one, of a seed of 32 equal bytes.
    pub(crate) const OTHER_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIBERERERERERERERERERERERERERERERERERERERERER
-----END PRIVATE KEY-----
";

    pub(crate) fn key(pem: &str) -> SigningKey {
        SigningKey::from_pem(pem).unwrap().remove(0)
    }

    #[test]
    fn the_examples_of_rfc_8037_hold() {
        let key = key(KEY);
        assert_eq!(key.public.x, "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        assert_eq!(
            key.public.kid(),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
        );
        // Appendix A.4.
        let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let signature = key.sign(message);
        assert_eq!(
            URL_SAFE_NO_PAD.encode(&signature),
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
        );
        assert!(key.public.verifies(message, &signature));
        assert!(!key.public.verifies(b"another message", &signature));
    }

    #[test]
    fn a_text_may_hold_several_keys() {
        let both = format!("{KEY}\n{OTHER_KEY}");
        assert_eq!(SigningKey::from_pem(&both).unwrap().len(), 2);
    }

    #[test]
    fn other_texts_and_keys_are_rejected() {
        // P-256, by `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`.
        let p256 = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgqpM+P/Y5q0GiEHME
x+bQbXky7AuIZ8Olbb9lG/aBETyhRANCAASPigWGXQ53N6bwVI6mW+RW1vzI8FiH
/KogiUI10fByIOYnwa1XjUSQaY8FuLiCsLQIDTqYgfdxwQkgH/tsuCEX
-----END PRIVATE KEY-----
";
        for (text, reason) in [
            ("", InvalidSigningKey::NoKey),
            (
                "a secret of more than thirty-two bytes",
                InvalidSigningKey::NoKey,
            ),
            (&KEY.replace("PRIVATE", "PUBLIC"), InvalidSigningKey::NoKey),
            (&KEY[..60], InvalidSigningKey::NoKey),
            (p256, InvalidSigningKey::NotEd25519),
        ] {
            assert_eq!(SigningKey::from_pem(text).err(), Some(reason), "{text}");
        }
    }

    #[test]
    fn the_jwk_set_has_each_public_key_once_and_no_private_one() {
        let keys = SigningKeys::new(Some(key(KEY)), &[key(OTHER_KEY), key(KEY)]);
        let set = keys.jwk_set();
        let members = set["keys"].as_array().unwrap();
        assert_eq!(members.len(), 2);
        assert_eq!(members[0]["kid"], key(KEY).public.kid());
        assert!(members.iter().all(|jwk| jwk.get("d").is_none()));
        assert_eq!(SigningKeys::default().jwk_set(), json!({"keys": []}));
    }
}
