//! Limit of the keys that one client may have in the [store](super::store).
//!
//! Time is divided into epochs that last at least as long as a state of the quota; all quotas whose states
//! last about as long share them. Keys are charged to the first client that uses them in an epoch, so
//! that one client occupies at most twice [`MAX_KEYS_PER_CLIENT`] slots for each length of epochs: those
//! of this epoch, and those of the last one that have not expired. The number is counted in a table
//! of fixed size under the hash of client and epoch. Two clients with the same hash share their
//! number until the epoch ends: the limit gets stricter, never laxer.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::client::ClientKey;
use crate::features::rate_limit::algorithm::QuotaPolicy;
use crate::features::rate_limit::key_hasher::KeyHasher;
use crate::runtime::clock::Instant;

/// Keys that a client may use in an epoch. One client occupies less than a hundredth of the store's slots.
pub(super) const MAX_KEYS_PER_CLIENT: u32 = 1024;

/// Counters of the table: half a mebibyte.
pub(super) const COUNTERS: usize = 1 << 16;

/// Binary logarithm of the length of the shortest epoch in nanoseconds: about a second.
const MIN_EPOCH_BITS: u32 = 30;

/// Length of the epochs of a quota: 2^`bits` nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EpochLength {
    bits: u32,
}

/// Client and epoch that a key is charged to.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyOwner {
    client: ClientKey,
    length: EpochLength,
    /// Number of the epoch since the start of the machine.
    pub(super) epoch: u64,
}

/// Numbers of keys of all clients. Each counter has the end of its epoch, in units of the shortest one, in
/// its upper half and a number of keys in its lower half.
pub(super) struct KeyLimit(Box<[AtomicU64]>);

impl EpochLength {
    /// Returns the shortest length in which every state of a quota expires.
    pub(super) fn of(policy: QuotaPolicy) -> Self {
        let nanoseconds = policy.max_lifetime_ns();
        let bits = u64::BITS - nanoseconds.saturating_sub(1).leading_zeros();
        Self {
            bits: bits.clamp(MIN_EPOCH_BITS, u64::BITS - 1),
        }
    }

    pub(super) fn owner(self, client: ClientKey, now: Instant) -> KeyOwner {
        KeyOwner {
            client,
            length: self,
            epoch: now.0 >> self.bits,
        }
    }
}

impl KeyLimit {
    pub(super) fn new() -> Self {
        Self((0..COUNTERS).map(|_| AtomicU64::default()).collect())
    }

    /// Charges one more key to a client. Returns false, and charges nothing, if it has as many as it may.
    pub(super) fn charge(&self, hasher: KeyHasher, owner: KeyOwner, now: Instant) -> bool {
        let hash = hasher.hash_one((owner.client, owner.length.bits, owner.epoch));
        let index = usize::try_from(hash % COUNTERS as u64).expect("it is less than COUNTERS");
        let now = now.0 >> MIN_EPOCH_BITS;
        let epoch_end = (owner.epoch + 1) << (owner.length.bits - MIN_EPOCH_BITS);
        let epoch_end = epoch_end.min(u64::from(u32::MAX));
        let charge = |counter: u64| {
            let (end, keys) = (counter >> u32::BITS, counter & u64::from(u32::MAX));
            if end <= now {
                Some(epoch_end << u32::BITS | 1)
            } else if keys < u64::from(MAX_KEYS_PER_CLIENT) {
                Some(end.max(epoch_end) << u32::BITS | (keys + 1))
            } else {
                None
            }
        };
        // The counter protects no other memory.
        self.0[index]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge)
            .is_ok()
    }

    /// Returns the counters that are not zero, each with its position.
    pub(super) fn counters(&self) -> impl Iterator<Item = (usize, u64)> {
        let counters = self.0.iter().enumerate();
        counters
            .map(|(position, counter)| (position, counter.load(Ordering::Relaxed)))
            .filter(|(_, counter)| *counter != 0)
    }

    /// Replaces a counter.
    ///
    /// # Panics
    /// Panics if `position` is not less than [`COUNTERS`].
    pub(super) fn set_counter(&self, position: usize, counter: u64) {
        self.0[position].store(counter, Ordering::Relaxed);
    }

    pub(super) fn clear(&self) {
        for counter in &self.0 {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn client(number: u32) -> ClientKey {
        ClientKey::from(IpAddr::V4(Ipv4Addr::from_bits(number)))
    }

    #[test]
    fn a_client_has_a_limited_number_of_keys_in_each_epoch() {
        let (limit, hasher) = (KeyLimit::new(), KeyHasher::random());
        let length = EpochLength::of(QuotaPolicy {
            quota: 1,
            window_ns: 60 * SECOND_NS,
            bucket_size: 1,
        });
        let charge = |number: u32, now: Instant| {
            limit.charge(hasher, length.owner(client(number), now), now)
        };
        let first_epoch = Instant(SECOND_NS);
        for _ in 0..MAX_KEYS_PER_CLIENT {
            assert!(charge(1, first_epoch));
        }
        assert!(!charge(1, first_epoch));
        let refused = (2..1002).filter(|one| !charge(*one, first_epoch)).count();
        assert!(
            refused < 10,
            "{refused} clients share a counter with the first"
        );
        assert!(charge(1, Instant(120 * SECOND_NS)));
    }

    #[test]
    fn an_epoch_is_at_least_as_long_as_a_state() {
        for (window_ns, quota, bucket_size) in [
            (1, 1, 1),
            (SECOND_NS, 1, 1),
            (60 * SECOND_NS, 100, 1000),
            (u64::MAX, 1, u32::MAX),
        ] {
            let policy = QuotaPolicy {
                quota,
                window_ns,
                bucket_size,
            };
            let length = EpochLength::of(policy);
            let is_long_enough = 1 << length.bits >= policy.max_lifetime_ns();
            assert!(is_long_enough || length.bits == u64::BITS - 1, "{policy:?}");
        }
    }
}
