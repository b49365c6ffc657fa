//! The passwords that guessers try first. Where they come from: `data/README.md`.

use std::sync::LazyLock;

/// Lower case, sorted by bytes.
static COMMONEST: LazyLock<Vec<&str>> = LazyLock::new(|| {
    include_str!("../../data/common-passwords.txt")
        .lines()
        .collect()
});

/// Whether a password is among the commonest, in whatever case.
pub(super) fn contain(password: &str) -> bool {
    let password = password.to_lowercase();
    COMMONEST.binary_search(&password.as_str()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_large() {
        assert!(COMMONEST.is_sorted());
        assert!(COMMONEST.len() > 8_000);
    }
}
