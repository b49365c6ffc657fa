//! Secret keys of the service, from which the keys of access and refresh tokens are made.

use secrecy::SecretSlice;

/// Keys of all replicas: tokens are signed with the current one and verified with each. While a key
/// is rotated, replicas sign with different keys, so each verifies with the previous and next ones too.
pub(crate) struct SecretKeys {
    current: SecretSlice<u8>,
    verifying_only: Vec<SecretSlice<u8>>,
}

impl SecretKeys {
    pub(crate) fn new(current: SecretSlice<u8>, verifying_only: Vec<SecretSlice<u8>>) -> Self {
        Self {
            current,
            verifying_only,
        }
    }

    /// Returns the key that signs.
    pub(crate) fn current(&self) -> &SecretSlice<u8> {
        &self.current
    }

    /// Returns the keys that verify, the current one first, since it signed most tokens.
    pub(crate) fn verifying(&self) -> impl Iterator<Item = &SecretSlice<u8>> {
        std::iter::once(&self.current).chain(&self.verifying_only)
    }

    /// Returns keys from texts, for tests.
    #[cfg(test)]
    pub(crate) fn of(current: &str, verifying_only: &[&str]) -> Self {
        let key = |text: &str| SecretSlice::from(text.as_bytes().to_vec());
        Self::new(
            key(current),
            verifying_only.iter().map(|text| key(text)).collect(),
        )
    }
}
