//! Sessions in Redis.
//!
//! `session:{id}` is a hash that expires with its session; `sessions:{user}` is a sorted set of a
//! user's session ids, ordered by expiry. Lua scripts change both atomically, by the clock of Redis
//! because those of replicas may differ, and publish invalidations.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::TimeDelta;
use fred::types::scripts::Script;
use parking_lot::Mutex;
use session_invalidation::{
    CacheEntry, INVALIDATION_CHANNEL, InvalidationTracker, LeasedCache, LookupSource, Owner,
    Subscriber, UNACKNOWLEDGED_HEADER,
};
use supervision::Supervisor;

use super::policy::{LAST_USED_INTERVAL, MAX_LOST_ROTATIONS, MAX_SESSIONS_PER_USER, MAX_SIBLINGS};
use super::rows::{SessionRow, time_from_millis, to_active_session};
use crate::domain::principal::{Principal, SessionId};
use crate::domain::refresh_token::SealedSuccessor;
use crate::domain::session::{
    ActiveSession, EndOutcome, NewSession, RefreshTokenQuery, RefreshTokenValidity, Rotation,
    RotationOutcome, SessionPolicy,
};
use crate::domain::session_cutoff::AuthTime;
use crate::domain::user::UserId;
use crate::store::check::CheckError;
use crate::store::redis::{Redis, STORE, argument, failed, unexpected_reply};
use crate::store::unavailable::Unavailable;

static CREATE: LazyLock<Script> = LazyLock::new(|| with_prelude(include_str!("redis/create.lua")));
static CHECK: LazyLock<Script> = LazyLock::new(|| with_prelude(include_str!("redis/check.lua")));
static ROTATE: LazyLock<Script> = LazyLock::new(|| with_prelude(include_str!("redis/rotate.lua")));
static UNUSED: LazyLock<Script> = LazyLock::new(|| with_prelude(include_str!("redis/unused.lua")));
static END: LazyLock<Script> = LazyLock::new(|| with_prelude(include_str!("redis/end.lua")));
static END_ALL: LazyLock<Script> =
    LazyLock::new(|| with_prelude(include_str!("redis/end_all.lua")));
static INDEX: LazyLock<Script> =
    LazyLock::new(|| Script::from_lua(include_str!("redis/index.lua")));
static LIST: LazyLock<Script> = LazyLock::new(|| with_prelude(include_str!("redis/list.lua")));

/// Times that the sessions of a user are ended until none is left, while logins add some.
const MAX_END_ATTEMPTS: u32 = 10;
/// Lifetime of a cached session. It bounds how long an expired one is accepted, since expiry is not published.
const CACHE_ENTRY_LIFETIME: Duration = Duration::from_secs(3);
/// Time within which a primary responds twice that has not been stopped until another one was promoted, from the sending of the
/// earlier command to the later response. A failover takes longer (`docs/operations.md`, "Kinds of Redis").
const MAX_INTERRUPTION: Duration = Duration::from_secs(3);
/// Number of cached sessions (about 2 MiB).
const MAX_CACHED_SESSIONS: usize = 10_000;
/// Number of refused sessions that are known (about 1 MiB).
const MAX_REFUSED_SESSIONS: usize = 10_000;
/// Name of the subscriber in the metrics.
const SUBSCRIBER_TASK: &str = "session_subscriber";

/// Sessions in Redis, cached by this replica. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RedisSessions {
    redis: Redis,
    cache: Arc<LeasedCache<Principal, AuthTime>>,
    tracker: Arc<InvalidationTracker>,
    /// Sessions that their accounts refuse, of which every cache has been told.
    refused: Arc<Mutex<HashSet<(Principal, AuthTime)>>>,
}

impl RedisSessions {
    /// Starts the subscriber of invalidations, which `supervisor` restarts with a new connection if it ends.
    pub(crate) fn start(redis: Redis, supervisor: &Supervisor) -> Self {
        let sessions = Self {
            redis,
            cache: Arc::new(LeasedCache::new(LookupSource::Store, MAX_CACHED_SESSIONS)),
            tracker: Arc::new(InvalidationTracker::new(Instant::now())),
            refused: Arc::default(),
        };
        let (supervisor, subscribed) = (supervisor.clone(), sessions.clone());
        tokio::spawn(async move {
            let subscribe = || subscribed.clone().process_invalidations();
            supervisor.keep_running(SUBSCRIBER_TASK, subscribe).await;
        });
        sessions
    }

    async fn process_invalidations(self) {
        match Subscriber::new(&self.redis.connection, self.cache, self.tracker) {
            Ok(subscriber) => subscriber.run().await,
            Err(error) => {
                tracing::error!(%error, "session invalidations cannot be subscribed to");
            }
        }
    }

    pub(super) async fn create(&self, session: &NewSession) -> Result<(), Unavailable> {
        let arguments = vec![
            argument(session.principal.session),
            argument(session.principal.user.0),
            millis(session.expires_at() - session.created_at),
            argument(MAX_SESSIONS_PER_USER),
            Bytes::copy_from_slice(&session.refresh_hash.0),
            argument(&session.client.address),
            argument(&session.client.user_agent),
            argument(session.auth_time.0),
            argument(session.refresh_generation.0),
        ];
        let user = session.principal.user;
        let surplus: Vec<String> = self
            .redis
            .run(&CREATE, keys(session.principal), arguments)
            .await?;
        for session in parse_ids(&surplus)? {
            let displaced = Principal { user, session };
            // A login does not wait until the sessions that it displaces are invalidated.
            self.run_end(displaced, argument(UNACKNOWLEDGED_HEADER))
                .await?;
        }
        Ok(())
    }

    /// Makes a request whose response is wrong if another server has become the primary, and once more if the server has not
    /// responded for a while, or the connection is a new one. A server that was stopped until then executes what has waited
    /// for it before it notices that its replicas are gone, and after that rejects the second request.
    async fn at_primary<T, R>(&self, request: impl Fn() -> R) -> Result<Responses<T>, Unavailable>
    where
        R: Future<Output = Result<T, Unavailable>>,
    {
        let connection = &self.redis.connection;
        let earlier = connection.last_success();
        let first = request().await?;
        let is_uninterrupted = earlier.is_some_and(|success| {
            success.sent_at.elapsed() < MAX_INTERRUPTION && connection.is_current(success)
        });
        let second = if is_uninterrupted {
            None
        } else {
            Some(request().await?)
        };
        Ok(Responses { first, second })
    }

    /// Ends one session. Returns whether it was active.
    async fn run_end(
        &self,
        principal: Principal,
        invalidation_header: Bytes,
    ) -> Result<bool, Unavailable> {
        let arguments = vec![
            argument(principal.session),
            argument(principal.user.0),
            INVALIDATION_CHANNEL.into(),
            invalidation_header,
        ];
        self.redis.run(&END, keys(principal), arguments).await
    }

    /// Returns the sessions of a user, also those that have just expired.
    async fn session_ids(&self, user: UserId) -> Result<Vec<SessionId>, Unavailable> {
        let keys = vec![index_key(user)];
        let ids: Vec<String> = self.redis.run(&INDEX, keys, Vec::new()).await?;
        parse_ids(&ids)
    }

    pub(super) async fn auth_time(
        &self,
        principal: Principal,
        policy: SessionPolicy,
    ) -> Result<Option<AuthTime>, Unavailable> {
        let version = match self.cache.get(&principal, Instant::now()) {
            Ok(auth_time) => return Ok(Some(auth_time)),
            Err(version) => version,
        };
        let reply: Option<i64> = self
            .at_primary(|| {
                let arguments = vec![
                    argument(principal.session),
                    argument(principal.user.0),
                    argument(LAST_USED_INTERVAL.as_millis()),
                    max_age(policy),
                ];
                self.redis.run(&CHECK, keys(principal), arguments)
            })
            .await?
            .last();
        let auth_time = reply.map(AuthTime);
        if let Some(auth_time) = auth_time {
            let entry = CacheEntry {
                owner: Owner {
                    user: session_invalidation::UserId(principal.user.0),
                    session: principal.session,
                },
                value: auth_time,
                expires_at: Instant::now() + CACHE_ENTRY_LIFETIME,
            };
            self.cache.insert(principal, entry, version);
        }
        Ok(auth_time)
    }

    pub(super) async fn rotate(&self, rotation: &Rotation) -> Result<RotationOutcome, Unavailable> {
        let arguments = vec![
            argument(rotation.principal.session),
            argument(rotation.principal.user.0),
            argument(rotation.policy.lifetime.as_millis()),
            max_age(rotation.policy),
            argument(rotation.policy.refresh_grace.as_millis()),
            argument(rotation.cutoff.micros()),
            Bytes::copy_from_slice(&rotation.presented.0),
            argument(rotation.presented_generation.0),
            Bytes::copy_from_slice(&rotation.successor.0),
            argument(rotation.successor_generation.0),
            Bytes::copy_from_slice(&rotation.sealed_successor.0),
            argument(MAX_SIBLINGS),
            argument(MAX_LOST_ROTATIONS),
        ];
        let keys = keys(rotation.principal);
        let reply: Vec<Bytes> = self.redis.run(&ROTATE, keys, arguments).await?;
        match reply.as_slice() {
            [outcome] if outcome == "rotated" => Ok(RotationOutcome::Rotated),
            [outcome] if outcome == "reused" => Ok(RotationOutcome::Reused),
            [outcome] if outcome == "session_not_found" => Ok(RotationOutcome::SessionNotFound),
            [outcome, sealed @ ..] if outcome == "retried" => sealed
                .iter()
                .map(|sealed| sealed[..].try_into().map(SealedSuccessor))
                .collect::<Result<_, _>>()
                .map(RotationOutcome::Retried)
                .map_err(|_| unexpected_reply("rotate.lua: sealed successor of wrong length")),
            _ => Err(unexpected_reply("rotate.lua: unknown outcome")),
        }
    }

    pub(super) async fn refresh_token_validity(
        &self,
        query: &RefreshTokenQuery,
    ) -> Result<Option<RefreshTokenValidity>, Unavailable> {
        let times: Vec<i64> = self
            .at_primary(|| {
                let arguments = vec![
                    argument(query.principal.user.0),
                    max_age(query.policy),
                    argument(query.cutoff.micros()),
                    Bytes::copy_from_slice(&query.presented.0),
                    argument(query.presented_generation.0),
                    argument(MAX_LOST_ROTATIONS),
                ];
                self.redis.run(&UNUSED, keys(query.principal), arguments)
            })
            .await?
            .last();
        let time = |millis| {
            time_from_millis(millis)
                .ok_or_else(|| unexpected_reply("unused.lua: time out of range"))
        };
        let Some(expires_at) = times.first().copied().map(time).transpose()? else {
            return Ok(None);
        };
        Ok(Some(RefreshTokenValidity {
            issued_at: times.get(1).copied().map(time).transpose()?,
            expires_at,
        }))
    }

    pub(super) async fn end(&self, principal: Principal) -> Result<EndOutcome, Unavailable> {
        let responses = self
            .at_primary(|| async {
                let invalidation = self.tracker.begin();
                let header = argument(invalidation.header());
                let ended = self.run_end(principal, header).await?;
                Ok((ended, invalidation))
            })
            .await?;
        self.cache
            .invalidate_session(principal.session, Instant::now());
        let is_ended = responses.iter().any(|(ended, _)| *ended);
        responses.last().1.acknowledged_by_all().await;
        Ok(if is_ended {
            EndOutcome::Ended
        } else {
            EndOutcome::NotFound
        })
    }

    pub(super) async fn end_all(
        &self,
        user: UserId,
        kept: Option<(SessionId, AuthTime)>,
    ) -> Result<u64, Unavailable> {
        let (kept, auth_time) = kept.unzip();
        let kept_key = kept.map_or_else(|| index_key(user), session_key);
        let mut ended = 0;
        // A script may access only keys that are named to it, so the index is read before. A login in between
        // adds a session.
        for _ in 0..MAX_END_ATTEMPTS {
            let invalidation = self.tracker.begin();
            let mut sessions = self.session_ids(user).await?;
            sessions.retain(|session| Some(*session) != kept);
            let keys = [index_key(user), kept_key.clone()].into_iter();
            let keys = keys.chain(sessions.iter().copied().map(session_key));
            let arguments = [
                kept.map_or_else(Bytes::new, argument),
                argument(user.0),
                INVALIDATION_CHANNEL.into(),
                argument(invalidation.header()),
                auth_time.map_or_else(Bytes::new, |time| argument(time.0)),
            ];
            let arguments = arguments.into_iter().chain(sessions.iter().map(argument));
            // Redis has just responded, so a former primary knows that its replicas are gone.
            let (ended_now, others): (u64, u64) = self
                .redis
                .run(&END_ALL, keys.collect(), arguments.collect())
                .await?;
            ended += ended_now;
            let user_id = session_invalidation::UserId(user.0);
            self.cache.invalidate_user(user_id, Instant::now());
            if others == 0 {
                invalidation.acknowledged_by_all().await;
                return Ok(ended);
            }
        }
        Err(unexpected_reply(
            "end_all.lua: sessions are added without end",
        ))
    }

    /// Makes every cache forget a session that its account refuses. Once is enough for a session and its time of
    /// authentication, since no replica accepts them again, and a client may repeat the request without end.
    pub(super) async fn refuse(
        &self,
        principal: Principal,
        auth_time: AuthTime,
    ) -> Result<(), Unavailable> {
        let refused = (principal, auth_time);
        if self.refused.lock().contains(&refused) {
            return Ok(());
        }
        let session = principal.session;
        let responses = self
            .at_primary(|| async {
                let invalidation = self.tracker.begin();
                let published = invalidation.publish_for_session(&self.redis.connection, session);
                published.await.map_err(failed)?;
                Ok(invalidation)
            })
            .await?;
        self.cache.invalidate_session(session, Instant::now());
        responses.last().acknowledged_by_all().await;
        let mut known = self.refused.lock();
        if known.len() >= MAX_REFUSED_SESSIONS {
            known.clear();
        }
        known.insert(refused);
        Ok(())
    }

    /// Makes every cache forget all sessions, after the accounts have ended them.
    pub(super) async fn invalidate_all(&self) -> Result<(), Unavailable> {
        let responses = self
            .at_primary(|| async {
                let invalidation = self.tracker.begin();
                let published = invalidation.publish_for_all_sessions(&self.redis.connection);
                published.await.map_err(failed)?;
                Ok(invalidation)
            })
            .await?;
        responses.last().acknowledged_by_all().await;
        Ok(())
    }

    pub(super) async fn list(&self, user: UserId) -> Result<Vec<ActiveSession>, Unavailable> {
        let sessions = self.session_ids(user).await?;
        let keys = sessions.iter().copied().map(session_key).collect();
        let ids = sessions.iter().map(argument).collect();
        let listed: Vec<SessionRow> = self.redis.run(&LIST, keys, ids).await?;
        listed
            .into_iter()
            .map(|row| to_active_session(row, time_from_millis))
            .collect::<Result<_, _>>()
            .map_err(|damaged| Unavailable::because(STORE, &damaged))
    }

    pub(super) async fn check(&self) -> Result<(), CheckError> {
        self.redis.check().await
    }
}

/// Responses to a request that was made once or twice.
struct Responses<T> {
    first: T,
    second: Option<T>,
}

impl<T> Responses<T> {
    fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(&self.second)
    }

    fn last(self) -> T {
        self.second.unwrap_or(self.first)
    }
}

/// Returns `script` preceded by the functions that the scripts share.
fn with_prelude(script: &str) -> Script {
    Script::from_lua([include_str!("redis/prelude.lua"), script].concat())
}

fn parse_ids(ids: &[String]) -> Result<Vec<SessionId>, Unavailable> {
    ids.iter()
        .map(|id| SessionId::parse(id))
        .collect::<Option<_>>()
        .ok_or_else(|| unexpected_reply("index of sessions: invalid session id"))
}

/// Returns a duration in milliseconds. Scripts add them to the clock of Redis.
fn millis(duration: TimeDelta) -> Bytes {
    argument(duration.num_milliseconds())
}

/// Returns the maximum age of a session in milliseconds, 0 if there is none.
fn max_age(policy: SessionPolicy) -> Bytes {
    argument(policy.max_age.unwrap_or_default().as_millis())
}

fn keys(principal: Principal) -> Vec<String> {
    vec![session_key(principal.session), index_key(principal.user)]
}

fn session_key(session: SessionId) -> String {
    format!("session:{session}")
}

fn index_key(user: UserId) -> String {
    format!("sessions:{}", user.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn scripts_access_no_key_that_is_not_named_to_them() {
        for script in [
            include_str!("redis/create.lua"),
            include_str!("redis/check.lua"),
            include_str!("redis/rotate.lua"),
            include_str!("redis/unused.lua"),
            include_str!("redis/end.lua"),
            include_str!("redis/end_all.lua"),
            include_str!("redis/index.lua"),
            include_str!("redis/list.lua"),
        ] {
            let calls = script
                .split("redis.call(")
                .chain(script.split("redis.pcall("))
                .skip(1);
            for call in calls.filter(|call| call.starts_with('\'')) {
                let (command, arguments) = call.split_once(", ").unwrap_or((call, ""));
                let is_declared = arguments.starts_with("KEYS[") || arguments.starts_with("key,");
                assert!(is_declared || command == "'PUBLISH'", "{call}");
            }
        }
    }
}
