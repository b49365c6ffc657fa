//! JSON Web Signatures in compact serialization (RFC 7515, section 7.1).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

use crate::domain::strict_json::StrictObject;

/// Signed token that was parsed and not verified yet.
#[derive(Debug)]
pub(super) struct Jws<'t> {
    pub(super) header: StrictObject,
    pub(super) payload: StrictObject,
    /// Header and payload as they were signed.
    pub(super) signed: &'t str,
    pub(super) signature: Vec<u8>,
}

impl<'t> Jws<'t> {
    /// Returns `None` if `token` is malformed, if a member of its header or payload occurs twice, or if it has
    /// critical extensions, of which this service implements none (RFC 7515, section 4.1.11).
    pub(super) fn parse(token: &'t str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header = StrictObject::from_base64url(header)?;
        if header.has("crit") {
            return None;
        }
        Some(Self {
            header,
            payload: StrictObject::from_base64url(payload)?,
            signed,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }
}

/// Returns the token of `header`, which is JSON, and `payload`.
pub(super) fn encode(
    header: &str,
    payload: &impl Serialize,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> String {
    let payload = serde_json::to_vec(payload).expect("claims are plain JSON");
    let mut token = URL_SAFE_NO_PAD.encode(header);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(payload, &mut token);
    let signature = sign(token.as_bytes());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}
