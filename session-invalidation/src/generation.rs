//! Generation of a cache: entries by key, with indexes by session and by user.
//!
//! A cache has a current generation and the one before it. It is bounded by dropping the older one as a
//! whole, which needs no bookkeeping at each use. Keys of entries that were removed may stay in an index until then:
//! they are counted, so the indexes are bounded too, and removing an entry twice changes nothing.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

use crate::ids::{SessionId, UserId};
use crate::message::Invalidated;

/// User and session that a cached value belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub user: UserId,
    pub session: SessionId,
}

/// Cached value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheEntry<V> {
    pub owner: Owner,
    pub value: V,
    /// Time from which the value is not used any more.
    pub expires_at: Instant,
}

#[derive(Debug)]
pub(crate) struct Generation<K, V> {
    entries: HashMap<K, CacheEntry<V>>,
    by_session: HashMap<SessionId, Vec<K>>,
    by_user: HashMap<UserId, Vec<K>>,
    /// Number of keys added to each index since the generation began, also those that were removed again.
    indexed: usize,
}

impl<K, V> Default for Generation<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            by_session: HashMap::new(),
            by_user: HashMap::new(),
            indexed: 0,
        }
    }
}

impl<K: Hash + Eq + Clone, V> Generation<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&CacheEntry<V>> {
        self.entries.get(key)
    }

    pub(crate) fn insert(&mut self, key: K, entry: CacheEntry<V>) {
        let owner = entry.owner;
        let previous = self.entries.insert(key.clone(), entry);
        if previous.is_some_and(|previous| previous.owner == owner) {
            return;
        }
        self.indexed += 1;
        let of_session = self.by_session.entry(owner.session).or_default();
        of_session.push(key.clone());
        self.by_user.entry(owner.user).or_default().push(key);
    }

    pub(crate) fn remove(&mut self, invalidated: Invalidated) {
        let keys = match invalidated {
            Invalidated::Session(session) => self.by_session.remove(&session),
            Invalidated::SessionsOf(user) => self.by_user.remove(&user),
            Invalidated::AllSessions => return *self = Self::default(),
        };
        for key in keys.into_iter().flatten() {
            self.entries.remove(&key);
        }
    }

    /// Returns whether the generation has as many keys as `max`.
    pub(crate) fn is_full(&self, max: usize) -> bool {
        self.indexed >= max
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
