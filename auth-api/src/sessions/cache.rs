//! Cache of active sessions, which saves a request to Redis for each API call.
//!
//! It is valid only under a [`Lease`]. A session that ends while it is
//! looked up in the store is not cached: each lookup takes the number of invalidations so far, and
//! its result is inserted only if that number has not changed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::domain::principal::{Principal, SessionId};
use crate::domain::session_cutoff::AuthTime;
use crate::domain::user::UserId;
use crate::sessions::lease::Lease;

/// Lifetime of an entry. It bounds how long an expired session is accepted, since expiry is not published.
const ENTRY_LIFETIME: Duration = Duration::from_secs(3);
/// Number of entries (1 MiB) at which the cache is cleared.
const MAX_ENTRIES: usize = 10_000;

/// Active sessions that this replica has seen.
#[derive(Debug, Default)]
pub(super) struct SessionCache(Mutex<CacheState>);

#[derive(Debug, Default)]
struct CacheState {
    lease: Lease,
    version: u64,
    entries: HashMap<SessionId, CacheEntry>,
    /// The cache was used since the last heartbeat.
    was_used: bool,
}

#[derive(Debug, Clone, Copy)]
struct CacheEntry {
    user: UserId,
    auth_time: AuthTime,
    expires_at: Instant,
}

/// Number of invalidations that were received before a lookup in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheVersion(u64);

impl SessionCache {
    /// Returns when the password was last verified in the session if it is cached, else the version to
    /// pass to [`Self::insert`].
    pub(super) fn get(&self, principal: Principal, now: Instant) -> Result<AuthTime, CacheVersion> {
        let mut state = self.0.lock();
        state.was_used = true;
        match state.entries.get(&principal.session) {
            Some(entry)
                if entry.user == principal.user
                    && entry.expires_at > now
                    && state.lease.is_valid(now) =>
            {
                Ok(entry.auth_time)
            }
            _ => Err(CacheVersion(state.version)),
        }
    }

    /// Caches a session, unless something was invalidated since `version` was returned.
    pub(super) fn insert(
        &self,
        principal: Principal,
        auth_time: AuthTime,
        version: CacheVersion,
        now: Instant,
    ) {
        let mut state = self.0.lock();
        if state.lease == Lease::Unsubscribed || state.version != version.0 {
            return;
        }
        if state.entries.len() >= MAX_ENTRIES {
            state.entries.clear();
        }
        let entry = CacheEntry {
            user: principal.user,
            auth_time,
            expires_at: now + ENTRY_LIFETIME,
        };
        state.entries.insert(principal.session, entry);
    }

    pub(super) fn invalidate_session(&self, session: SessionId) {
        let mut state = self.0.lock();
        state.version += 1;
        state.entries.remove(&session);
    }

    pub(super) fn invalidate_user(&self, user: UserId) {
        let mut state = self.0.lock();
        state.version += 1;
        state.entries.retain(|_, entry| entry.user != user);
    }

    pub(super) fn invalidate_all(&self) {
        self.0.lock().invalidate_all();
    }

    /// Starts to cache. Lookups that began before may have missed an invalidation.
    pub(super) fn subscription_started(&self) {
        let mut state = self.0.lock();
        state.lease = Lease::subscribed();
        state.invalidate_all();
    }

    pub(super) fn subscription_lost(&self) {
        let mut state = self.0.lock();
        state.lease = Lease::Unsubscribed;
        state.invalidate_all();
    }

    /// Returns whether the cache was used since the last call. An unused cache needs no heartbeats.
    pub(super) fn take_was_used(&self) -> bool {
        std::mem::take(&mut self.0.lock().was_used)
    }

    /// Records that Redis accepted the heartbeat that was sent at `sent`.
    pub(super) fn heartbeat_published(&self, sent: Instant) {
        self.0.lock().lease.heartbeat_published(sent);
    }

    /// Renews the lease: the heartbeat that was sent at `sent` has returned.
    pub(super) fn heartbeat_received(&self, sent: Instant) {
        self.0.lock().lease.heartbeat_received(sent);
    }

    pub(super) fn is_heartbeat_overdue(&self, now: Instant) -> bool {
        self.0.lock().lease.is_heartbeat_overdue(now)
    }
}

impl CacheState {
    fn invalidate_all(&mut self) {
        self.version += 1;
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::lease::{HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT, LEASE_DURATION};

    const AUTH_TIME: AuthTime = AuthTime(1);

    fn principal() -> Principal {
        Principal {
            user: UserId(1),
            session: SessionId::random(),
        }
    }

    /// Returns a cache whose lease was renewed at `now`.
    fn leased_cache(now: Instant) -> SessionCache {
        let cache = SessionCache::default();
        cache.subscription_started();
        cache.heartbeat_received(now);
        cache
    }

    #[test]
    fn an_invalidated_or_expired_entry_is_not_found() {
        let (one, now) = (principal(), Instant::now());
        let cache = leased_cache(now);
        let version = cache.get(one, now).unwrap_err();
        cache.insert(one, AUTH_TIME, version, now);
        assert_eq!(cache.get(one, now), Ok(AUTH_TIME));
        let later = now + ENTRY_LIFETIME;
        cache.heartbeat_received(later);
        assert!(cache.get(one, later).is_err());
        let other_user = Principal {
            user: UserId(2),
            ..one
        };
        assert!(cache.get(other_user, now).is_err());
        cache.invalidate_session(one.session);
        assert!(cache.get(one, now).is_err());
    }

    #[test]
    fn a_session_that_ends_during_its_lookup_is_not_cached() {
        let (one, now) = (principal(), Instant::now());
        let cache = leased_cache(now);
        let version = cache.get(one, now).unwrap_err();
        cache.invalidate_session(one.session);
        cache.insert(one, AUTH_TIME, version, now);
        assert!(cache.get(one, now).is_err());
    }

    #[test]
    fn a_session_that_was_looked_up_before_the_subscription_is_not_cached() {
        let (cache, one, now) = (SessionCache::default(), principal(), Instant::now());
        let version = cache.get(one, now).unwrap_err();
        cache.subscription_started();
        cache.heartbeat_received(now);
        cache.insert(one, AUTH_TIME, version, now);
        assert!(cache.get(one, now).is_err());
    }

    #[test]
    fn nothing_is_cached_without_a_subscription() {
        let (cache, one, now) = (SessionCache::default(), principal(), Instant::now());
        let version = cache.get(one, now).unwrap_err();
        cache.insert(one, AUTH_TIME, version, now);
        assert!(cache.get(one, now).is_err());
        cache.subscription_started();
        cache.heartbeat_received(now);
        cache.insert(one, AUTH_TIME, cache.get(one, now).unwrap_err(), now);
        assert_eq!(cache.get(one, now), Ok(AUTH_TIME));
        cache.subscription_lost();
        assert!(cache.get(one, now).is_err());
    }

    #[test]
    fn the_cache_is_unused_once_its_lease_has_expired() {
        let (one, now) = (principal(), Instant::now());
        let cache = leased_cache(now);
        cache.insert(one, AUTH_TIME, cache.get(one, now).unwrap_err(), now);
        cache.heartbeat_published(now + HEARTBEAT_INTERVAL);
        assert_eq!(cache.get(one, now + LEASE_DURATION / 2), Ok(AUTH_TIME));
        assert!(cache.get(one, now + LEASE_DURATION).is_err());
        assert!(!cache.is_heartbeat_overdue(now + HEARTBEAT_TIMEOUT));
        let overdue = now + HEARTBEAT_INTERVAL + HEARTBEAT_TIMEOUT + HEARTBEAT_INTERVAL;
        assert!(cache.is_heartbeat_overdue(overdue));
        cache.heartbeat_received(now + HEARTBEAT_INTERVAL);
        assert_eq!(cache.get(one, now + LEASE_DURATION), Ok(AUTH_TIME));
        // A heartbeat may return before its publication is confirmed.
        cache.heartbeat_published(now + HEARTBEAT_INTERVAL);
        assert!(!cache.is_heartbeat_overdue(now + 2 * HEARTBEAT_TIMEOUT));
    }
}
