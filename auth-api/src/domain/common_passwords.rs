//! List of the most common passwords, which attackers guess first. Sources: `data/README.md`.

use std::sync::LazyLock;

/// Lower case, sorted by bytes.
static COMMON_PASSWORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    include_str!("../../data/common-passwords.txt")
        .lines()
        .collect()
});

/// Returns whether `password` is on the list, ignoring case.
pub(super) fn is_common(password: &str) -> bool {
    let password = password.to_lowercase();
    COMMON_PASSWORDS.binary_search(&password.as_str()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_large() {
        assert!(COMMON_PASSWORDS.is_sorted());
        assert!(COMMON_PASSWORDS.len() > 8_000);
    }
}
