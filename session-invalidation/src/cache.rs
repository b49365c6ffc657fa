//! Cache of active sessions, which saves a request to their store, or to a replica, for each request of a client.
//!
//! It is valid only under a [`Lease`]. A session that ends while it is
//! looked up is not cached: each lookup takes the number of invalidations so far, and
//! its result is inserted only if that number has not changed.

use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::generation::{CacheEntry, Generation};
use crate::ids::{SessionId, UserId};
use crate::lease::Lease;
use crate::message::Invalidated;
use crate::recent::RecentInvalidations;

/// Source of what a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupSource {
    /// The store of sessions: a lookup that begins after an invalidation was received sees its effect, since
    /// the store published it with the change.
    Store,
    /// A replica that may respond from a cache of its own. It may receive an invalidation after this cache
    /// has, and until then it responds as before, for as long as its lease is valid: less than
    /// [`LEASE_DURATION`](crate::lease::LEASE_DURATION) after the publication. So a session is not cached if it was
    /// invalidated within that time before its lookup began, or if that cannot be known.
    CachingReplica,
}

/// Time after the last use for which the lease of a cache is renewed whose lookups are requests to a replica: it
/// also serves requests that come seldom, and while no replica responds.
const HEARTBEATS_AFTER_USE: Duration = Duration::from_secs(30);

/// Values that belong to active sessions, by a key. Bounded in number.
#[derive(Debug)]
pub struct LeasedCache<K, V> {
    source: LookupSource,
    /// Number of entries of a generation.
    max_generation: usize,
    state: Mutex<CacheState<K, V>>,
}

#[derive(Debug)]
struct CacheState<K, V> {
    lease: Lease,
    version: u64,
    current: Generation<K, V>,
    previous: Generation<K, V>,
    recent: RecentInvalidations,
    /// Time of the last use; `None` if a heartbeat was sent since.
    last_used: Option<Instant>,
}

/// Number of invalidations that were received before a lookup, and the time at which it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheVersion {
    number: u64,
    began: Instant,
}

impl CacheVersion {
    /// Returns the time at which the lookup began. What it finds may be as old.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }
}

impl<K: Hash + Eq + Clone, V: Clone> LeasedCache<K, V> {
    /// Creates an empty cache of at most `max_entries`.
    #[must_use]
    pub fn new(source: LookupSource, max_entries: usize) -> Self {
        Self {
            source,
            max_generation: (max_entries / 2).max(1),
            state: Mutex::new(CacheState {
                lease: Lease::default(),
                version: 0,
                current: Generation::default(),
                previous: Generation::default(),
                recent: RecentInvalidations::default(),
                last_used: None,
            }),
        }
    }

    /// Returns a cached value.
    ///
    /// # Errors
    /// Returns the version to pass to [`Self::insert`] if there is none that may be used. The lookup
    /// begins after that.
    pub fn get(&self, key: &K, now: Instant) -> Result<V, CacheVersion> {
        let mut state = self.state.lock();
        state.last_used = Some(now);
        let generations = [&state.current, &state.previous];
        let entry = generations
            .iter()
            .find_map(|generation| generation.get(key));
        match entry {
            Some(entry) if entry.expires_at > now && state.lease.is_valid(now) => {
                Ok(entry.value.clone())
            }
            _ => Err(CacheVersion {
                number: state.version,
                began: now,
            }),
        }
    }

    /// Caches the result of a lookup, unless its session may have been invalidated since `version` was
    /// returned.
    pub fn insert(&self, key: K, entry: CacheEntry<V>, version: CacheVersion) {
        let state = &mut *self.state.lock();
        let may_be_invalidated = state.version != version.number
            || self.source == LookupSource::CachingReplica
                && state.recent.include(entry.owner, version.began);
        if state.lease == Lease::Unsubscribed || may_be_invalidated {
            return;
        }
        if state.current.is_full(self.max_generation) {
            state.previous = std::mem::take(&mut state.current);
        }
        state.current.insert(key, entry);
    }

    /// Removes the values of a session, after it was ended.
    pub fn invalidate_session(&self, session: SessionId, now: Instant) {
        self.remove(Invalidated::Session(session), now);
    }

    /// Removes the values of all sessions of a user, after they were ended.
    pub fn invalidate_user(&self, user: UserId, now: Instant) {
        self.remove(Invalidated::SessionsOf(user), now);
    }

    fn remove(&self, invalidated: Invalidated, now: Instant) {
        let state = &mut *self.state.lock();
        state.version += 1;
        state.current.remove(invalidated);
        state.previous.remove(invalidated);
        if self.source == LookupSource::CachingReplica {
            state.recent.record(invalidated, now);
        }
    }

    /// Returns the number of values, which may include some that have expired.
    #[must_use]
    pub fn len(&self) -> usize {
        let state = self.state.lock();
        state.current.len() + state.previous.len()
    }

    /// Returns whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Part of a cache that the subscriber needs, whatever the cache holds.
pub(crate) trait Invalidate: Send + Sync {
    fn invalidate(&self, invalidated: Invalidated, now: Instant);

    /// Removes everything: invalidations may have been lost.
    fn invalidate_all(&self, now: Instant);

    /// Starts to cache. Lookups that began before may have missed an invalidation.
    fn subscription_started(&self, now: Instant);

    fn subscription_lost(&self, now: Instant);

    /// Returns whether the cache needs heartbeats: it was used since the last call, or a short time ago.
    fn take_needs_heartbeat(&self, now: Instant) -> bool;

    /// Records that a heartbeat is sent at `sent`.
    fn heartbeat_sent(&self, sent: Instant);

    /// Records that Redis accepted the write before the heartbeat that was sent at `sent`.
    fn primary_confirmed(&self, sent: Instant);

    /// Records that the heartbeat that was sent at `sent` has returned, which renews the lease unless it is the first one after an
    /// interruption.
    fn heartbeat_received(&self, sent: Instant, now: Instant);

    fn is_heartbeat_overdue(&self, now: Instant) -> bool;
}

impl<K: Hash + Eq + Clone + Send, V: Clone + Send> Invalidate for LeasedCache<K, V> {
    fn invalidate(&self, invalidated: Invalidated, now: Instant) {
        self.remove(invalidated, now);
    }

    fn invalidate_all(&self, now: Instant) {
        self.state.lock().invalidate_all(now);
    }

    fn subscription_started(&self, now: Instant) {
        let mut state = self.state.lock();
        state.lease = Lease::subscribed(now);
        state.invalidate_all(now);
    }

    fn subscription_lost(&self, now: Instant) {
        let mut state = self.state.lock();
        state.lease = Lease::Unsubscribed;
        state.invalidate_all(now);
    }

    fn take_needs_heartbeat(&self, now: Instant) -> bool {
        let last_used = &mut self.state.lock().last_used;
        match self.source {
            LookupSource::Store => last_used.take().is_some(),
            LookupSource::CachingReplica => {
                last_used.is_some_and(|last_used| now < last_used + HEARTBEATS_AFTER_USE)
            }
        }
    }

    fn heartbeat_sent(&self, sent: Instant) {
        self.state.lock().lease.heartbeat_sent(sent);
    }

    fn primary_confirmed(&self, sent: Instant) {
        self.state.lock().lease.primary_confirmed(sent);
    }

    fn heartbeat_received(&self, sent: Instant, now: Instant) {
        self.state.lock().lease.heartbeat_received(sent, now);
    }

    fn is_heartbeat_overdue(&self, now: Instant) -> bool {
        self.state.lock().lease.is_heartbeat_overdue(now)
    }
}

impl<K, V> CacheState<K, V> {
    fn invalidate_all(&mut self, now: Instant) {
        self.version += 1;
        self.current = Generation::default();
        self.previous = Generation::default();
        self.recent.record_all(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Owner;
    use crate::lease::{HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT, LEASE_DURATION};

    const VALUE: u32 = 1;
    const LIFETIME: Duration = Duration::from_secs(3);
    const MAX_ENTRIES: usize = 100;

    type Cache = LeasedCache<SessionId, u32>;

    fn owner() -> Owner {
        Owner {
            user: UserId(1),
            session: SessionId::random(),
        }
    }

    fn entry(owner: Owner, now: Instant) -> CacheEntry<u32> {
        CacheEntry {
            owner,
            value: VALUE,
            expires_at: now + LIFETIME,
        }
    }

    fn cache_of(source: LookupSource) -> Cache {
        Cache::new(source, MAX_ENTRIES)
    }

    /// Returns a cache whose lease was renewed at `now`.
    fn leased_cache(now: Instant) -> Cache {
        let cache = cache_of(LookupSource::Store);
        cache.subscription_started(now);
        renew(&cache, now);
        cache
    }

    /// Renews the lease by a heartbeat that returns at once.
    fn renew(cache: &Cache, now: Instant) {
        cache.primary_confirmed(now);
        cache.heartbeat_received(now, now);
    }

    fn insert(cache: &Cache, owner: Owner, version: CacheVersion, now: Instant) {
        cache.insert(owner.session, entry(owner, now), version);
    }

    /// Looks the session up at `now` and caches it.
    fn look_up(cache: &Cache, owner: Owner, now: Instant) {
        let version = cache.get(&owner.session, now).unwrap_err();
        insert(cache, owner, version, now);
    }

    fn is_cached(cache: &Cache, owner: Owner, now: Instant) -> bool {
        cache.get(&owner.session, now) == Ok(VALUE)
    }

    #[test]
    fn an_invalidated_or_expired_entry_is_not_found() {
        let (one, now) = (owner(), Instant::now());
        let cache = leased_cache(now);
        look_up(&cache, one, now);
        assert!(is_cached(&cache, one, now));
        let later = now + LIFETIME;
        renew(&cache, later);
        assert!(!is_cached(&cache, one, later));
        cache.invalidate_session(one.session, now);
        assert!(!is_cached(&cache, one, now));
    }

    #[test]
    fn an_invalidation_of_a_user_concerns_all_sessions_of_the_user_alone() {
        let now = Instant::now();
        let cache = leased_cache(now);
        let (one, two) = (owner(), owner());
        let other = Owner {
            user: UserId(2),
            ..owner()
        };
        for owner in [one, two, other] {
            look_up(&cache, owner, now);
        }
        cache.invalidate_user(one.user, now);
        let cached = [one, two, other].map(|owner| is_cached(&cache, owner, now));
        assert_eq!(cached, [false, false, true]);
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn a_session_that_ends_during_its_lookup_is_not_cached() {
        let (one, now) = (owner(), Instant::now());
        let cache = leased_cache(now);
        let version = cache.get(&one.session, now).unwrap_err();
        cache.invalidate_session(one.session, now);
        insert(&cache, one, version, now);
        assert!(!is_cached(&cache, one, now));
    }

    #[test]
    fn a_session_that_was_looked_up_before_the_subscription_is_not_cached() {
        let (cache, one, now) = (cache_of(LookupSource::Store), owner(), Instant::now());
        let version = cache.get(&one.session, now).unwrap_err();
        cache.subscription_started(now);
        renew(&cache, now);
        insert(&cache, one, version, now);
        assert!(!is_cached(&cache, one, now));
    }

    #[test]
    fn nothing_is_cached_without_a_subscription() {
        let (cache, one, now) = (cache_of(LookupSource::Store), owner(), Instant::now());
        look_up(&cache, one, now);
        assert!(!is_cached(&cache, one, now));
        cache.subscription_started(now);
        renew(&cache, now);
        look_up(&cache, one, now);
        assert!(is_cached(&cache, one, now));
        cache.subscription_lost(now);
        assert!(!is_cached(&cache, one, now));
    }

    #[test]
    fn the_cache_is_unused_once_its_lease_has_expired() {
        let (one, now) = (owner(), Instant::now());
        let cache = leased_cache(now);
        look_up(&cache, one, now);
        cache.heartbeat_sent(now + HEARTBEAT_INTERVAL);
        assert!(is_cached(&cache, one, now + LEASE_DURATION / 2));
        assert!(!is_cached(&cache, one, now + LEASE_DURATION));
        assert!(!cache.is_heartbeat_overdue(now + HEARTBEAT_TIMEOUT));
        let overdue = now + HEARTBEAT_INTERVAL + HEARTBEAT_TIMEOUT + HEARTBEAT_INTERVAL;
        assert!(cache.is_heartbeat_overdue(overdue));
        renew(&cache, now + HEARTBEAT_INTERVAL);
        assert!(is_cached(&cache, one, now + LEASE_DURATION));
        assert!(!cache.is_heartbeat_overdue(now + 2 * HEARTBEAT_TIMEOUT));
    }

    #[test]
    fn what_a_caching_replica_says_soon_after_an_invalidation_is_not_cached() {
        let (one, start) = (owner(), Instant::now());
        let cache = cache_of(LookupSource::CachingReplica);
        cache.subscription_started(start);
        // Invalidations from before the subscription are unknown: the replica may not have received them yet.
        renew(&cache, start);
        look_up(&cache, one, start);
        assert!(!is_cached(&cache, one, start));

        let now = start + LEASE_DURATION;
        renew(&cache, now);
        look_up(&cache, one, now);
        assert!(is_cached(&cache, one, now));
        cache.invalidate_session(one.session, now);
        look_up(&cache, one, now);
        assert!(!is_cached(&cache, one, now));
        let other = owner();
        look_up(&cache, other, now);
        assert!(is_cached(&cache, other, now));
        cache.invalidate_user(one.user, now);
        let later = now + LEASE_DURATION / 2;
        look_up(&cache, other, later);
        assert!(!is_cached(&cache, other, later));

        let end = now + LEASE_DURATION;
        renew(&cache, end);
        look_up(&cache, one, end);
        assert!(is_cached(&cache, one, end));
    }

    #[test]
    fn heartbeats_are_needed_while_the_cache_is_used() {
        let (one, now) = (owner(), Instant::now());
        let later = now + HEARTBEAT_INTERVAL;
        for (source, expected) in [
            (LookupSource::Store, [true, false, false]),
            (LookupSource::CachingReplica, [true, true, false]),
        ] {
            let cache = cache_of(source);
            assert!(!cache.take_needs_heartbeat(now));
            let _ = cache.get(&one.session, now);
            let needs = [now, later, now + HEARTBEATS_AFTER_USE];
            let needs = needs.map(|time| cache.take_needs_heartbeat(time));
            assert_eq!(needs, expected, "{source:?}");
        }
    }

    #[test]
    fn the_number_of_entries_is_bounded_and_the_latest_ones_are_kept() {
        let now = Instant::now();
        let cache = leased_cache(now);
        let owners: Vec<_> = (0..10 * MAX_ENTRIES).map(|_| owner()).collect();
        for owner in &owners {
            look_up(&cache, *owner, now);
            assert!(cache.len() <= MAX_ENTRIES);
        }
        let latest = &owners[owners.len() - MAX_ENTRIES / 2..];
        assert!(latest.iter().all(|owner| is_cached(&cache, *owner, now)));
    }
}
