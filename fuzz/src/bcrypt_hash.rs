//! Stored bcrypt hashes, against a plain parser of their format.

use auth_api::fuzz::{Bcrypt, format_password_hash, parse_password_hash};

const ALPHABET: &[u8; 64] = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const VERSIONS: [&str; 3] = ["$2a$", "$2b$", "$2y$"];

/// Input: a stored text.
pub(crate) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Some((cost, salt, digest)) = reference(&text) else {
        assert_eq!(parse_password_hash(&text, &[0; 24]), None, "{text}");
        return;
    };
    let mut full_digest = [0; 24];
    full_digest[..23].copy_from_slice(&digest);
    let hash = |matches| Bcrypt {
        cost,
        salt,
        matches,
    };
    assert_eq!(parse_password_hash(&text, &full_digest), Some(hash(true)));
    assert_eq!(
        format_password_hash(cost, salt, &full_digest)[4..],
        text[4..]
    );
    // The last octet of the output of bcrypt is not stored.
    full_digest[23] ^= 0xff;
    assert_eq!(parse_password_hash(&text, &full_digest), Some(hash(true)));
    full_digest[usize::from(input[10] % 23)] ^= 1;
    assert_eq!(parse_password_hash(&text, &full_digest), Some(hash(false)));
}

/// Parses version, cost of two digits, salt of 22 characters, and digest of 31.
fn reference(text: &str) -> Option<(u32, [u8; 16], [u8; 23])> {
    let rest = VERSIONS
        .iter()
        .find_map(|version| text.strip_prefix(version))?;
    let (cost, rest) = rest.split_once('$')?;
    let is_cost = cost.len() == 2 && cost.bytes().all(|byte| byte.is_ascii_digit());
    let cost = cost
        .parse()
        .ok()
        .filter(|cost| is_cost && (4..=31).contains(cost))?;
    let (salt, digest) = rest.split_at_checked(22)?;
    Some((cost, decode(salt)?, decode(digest)?))
}

/// Decodes characters of six bits each. Bits beyond the last octet have to be zero.
fn decode<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    if text.len() != (BYTES * 8).div_ceil(6) {
        return None;
    }
    let (mut decoded, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for character in text.bytes() {
        let value = ALPHABET.iter().position(|known| *known == character)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push(u8::try_from(bits >> count).ok()?);
            bits &= (1 << count) - 1;
        }
    }
    decoded.try_into().ok().filter(|_| bits == 0)
}
