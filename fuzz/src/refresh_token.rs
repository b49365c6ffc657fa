//! Refresh tokens: only those that were issued are accepted, in one spelling each.

use std::sync::LazyLock;

use auth_api::fuzz::{ReplicaKeys, TokenPrincipal};

use crate::input::Choices;

const PRINCIPAL: TokenPrincipal = TokenPrincipal {
    user: 7,
    session: *b"0123456789abcdef",
};

static KEYS: LazyLock<ReplicaKeys> =
    LazyLock::new(|| ReplicaKeys::new(b"a secret key of the targets, of 32 bytes", None, "a", "b"));
static TOKEN: LazyLock<String> = LazyLock::new(|| KEYS.issue_refresh_token(PRINCIPAL));

/// Input: a text, which is also taken as changes to a token, each a position and an octet.
pub(crate) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    check(&text);
    let mut token = TOKEN.clone().into_bytes();
    let mut changes = Choices::new(input);
    for _ in 0..4 {
        if changes.is_empty() {
            break;
        }
        let position = usize::from(changes.byte());
        match (token.get_mut(position), changes.byte() & 0x7f) {
            (Some(octet), value) => *octet = value,
            (None, 0) => drop(token.pop()),
            (None, value) => token.push(value),
        }
    }
    check(&String::from_utf8_lossy(&token));
    check(&TOKEN);
}

fn check(text: &str) {
    let expected = (text == *TOKEN).then(|| (PRINCIPAL, TOKEN.clone()));
    assert_eq!(KEYS.decode_refresh_token(text), expected);
}
