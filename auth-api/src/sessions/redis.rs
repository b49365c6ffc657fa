//! Sessions in Redis.
//!
//! `session:{id}` is a hash that expires with its session; `sessions:{user}` is a sorted set of a
//! user's session ids, ordered by expiry. Lua scripts change both atomically, by the clock of Redis
//! because those of replicas may differ, and publish invalidations.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta};
use fred::types::scripts::Script;
use supervision::Supervisor;

use super::cache::SessionCache;
use super::invalidation::acknowledgement::InvalidationTracker;
use super::invalidation::message::{INVALIDATION_CHANNEL, UNACKNOWLEDGED_HEADER};
use super::invalidation::subscriber::Subscriber;
use super::policy::{LAST_USED_INTERVAL, MAX_LOST_ROTATIONS, MAX_SESSIONS_PER_USER, MAX_SIBLINGS};
use crate::domain::principal::{Principal, SessionId};
use crate::domain::refresh_token::SealedSuccessor;
use crate::domain::session::{
    ActiveSession, ClientInfo, EndOutcome, NewSession, Rotation, RotationOutcome, SessionPolicy,
};
use crate::domain::session_cutoff::AuthTime;
use crate::domain::user::UserId;
use crate::store::check::CheckError;
use crate::store::redis::{Redis, argument, unexpected_reply};
use crate::store::unavailable::Unavailable;

static CREATE: LazyLock<Script> = LazyLock::new(|| with_prelude(include_str!("redis/create.lua")));
static CHECK: LazyLock<Script> = LazyLock::new(|| with_prelude(include_str!("redis/check.lua")));
static ROTATE: LazyLock<Script> = LazyLock::new(|| with_prelude(include_str!("redis/rotate.lua")));
static END: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("redis/end.lua")));
static END_ALL: LazyLock<Script> =
    LazyLock::new(|| Script::from_lua(include_str!("redis/end_all.lua")));
static LIST: LazyLock<Script> = LazyLock::new(|| with_prelude(include_str!("redis/list.lua")));

/// Name of the subscriber in the metrics.
const SUBSCRIBER_TASK: &str = "session_subscriber";

/// Session as `list.lua` returns it: id, created, last used (ms since 1970), address, user agent, time
/// of the password's verification (µs since 1970).
type ListedSession = (String, i64, i64, String, String, i64);

/// Sessions in Redis, cached by this replica. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RedisSessions {
    redis: Redis,
    cache: Arc<SessionCache>,
    tracker: Arc<InvalidationTracker>,
}

impl RedisSessions {
    /// Starts the subscriber of invalidations, which `supervisor` restarts with a new connection if it ends.
    pub(crate) fn start(redis: Redis, supervisor: &Supervisor) -> Self {
        let sessions = Self {
            redis,
            cache: Arc::default(),
            tracker: Arc::new(InvalidationTracker::new()),
        };
        let (supervisor, subscribed) = (supervisor.clone(), sessions.clone());
        tokio::spawn(async move {
            let subscribe = || subscribed.clone().process_invalidations();
            supervisor.keep_running(SUBSCRIBER_TASK, subscribe).await;
        });
        sessions
    }

    async fn process_invalidations(self) {
        match self.redis.subscriber() {
            Ok(connection) => {
                let subscriber = Subscriber::new(self.redis, connection, self.cache, self.tracker);
                subscriber.run().await;
            }
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
            INVALIDATION_CHANNEL.into(),
            Bytes::copy_from_slice(&session.refresh_hash.0),
            argument(&session.client.address),
            argument(&session.client.user_agent),
            // A login does not wait until the sessions that it displaces are invalidated.
            argument(UNACKNOWLEDGED_HEADER),
            argument(session.auth_time.0),
            argument(session.refresh_generation.0),
        ];
        let keys = keys(session.principal);
        self.redis
            .run::<i64>(&CREATE, keys, arguments)
            .await
            .map(drop)
    }

    pub(super) async fn auth_time(
        &self,
        principal: Principal,
        policy: SessionPolicy,
    ) -> Result<Option<AuthTime>, Unavailable> {
        let version = match self.cache.get(principal, Instant::now()) {
            Ok(auth_time) => return Ok(Some(auth_time)),
            Err(version) => version,
        };
        let arguments = vec![
            argument(principal.session),
            argument(principal.user.0),
            argument(LAST_USED_INTERVAL.as_millis()),
            max_age(policy),
        ];
        let keys = keys(principal);
        let reply: Option<i64> = self.redis.run(&CHECK, keys, arguments).await?;
        let auth_time = reply.map(AuthTime);
        if let Some(auth_time) = auth_time {
            self.cache
                .insert(principal, auth_time, version, Instant::now());
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

    pub(super) async fn end(&self, principal: Principal) -> Result<EndOutcome, Unavailable> {
        let invalidation = self.tracker.begin();
        let arguments = vec![
            argument(principal.session),
            argument(principal.user.0),
            INVALIDATION_CHANNEL.into(),
            argument(invalidation.header()),
        ];
        let ended: bool = self.redis.run(&END, keys(principal), arguments).await?;
        self.cache.invalidate_session(principal.session);
        invalidation.acknowledged_by_all().await;
        Ok(if ended {
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
        let (kept, auth_time) = kept.map_or_else(
            || (Bytes::new(), Bytes::new()),
            |(session, auth_time)| (argument(session), argument(auth_time.0)),
        );
        let invalidation = self.tracker.begin();
        let arguments = vec![
            kept,
            argument(user.0),
            INVALIDATION_CHANNEL.into(),
            argument(invalidation.header()),
            auth_time,
        ];
        let keys = vec![index_key(user)];
        let ended: u64 = self.redis.run(&END_ALL, keys, arguments).await?;
        self.cache.invalidate_user(user);
        invalidation.acknowledged_by_all().await;
        Ok(ended)
    }

    pub(super) async fn list(&self, user: UserId) -> Result<Vec<ActiveSession>, Unavailable> {
        let listed: Vec<ListedSession> = self
            .redis
            .run(&LIST, vec![index_key(user)], Vec::new())
            .await?;
        listed.into_iter().map(to_active_session).collect()
    }

    pub(super) async fn check(&self) -> Result<(), CheckError> {
        self.redis.check().await
    }
}

/// Returns `script` preceded by the functions that the scripts share.
fn with_prelude(script: &str) -> Script {
    Script::from_lua([include_str!("redis/prelude.lua"), script].concat())
}

fn to_active_session(
    (id, created, used, address, user_agent, auth_time): ListedSession,
) -> Result<ActiveSession, Unavailable> {
    let time = |millis| {
        DateTime::from_timestamp_millis(millis)
            .ok_or_else(|| unexpected_reply("list.lua: time out of range"))
    };
    Ok(ActiveSession {
        id: SessionId::parse(&id)
            .ok_or_else(|| unexpected_reply("list.lua: invalid session id"))?,
        auth_time: AuthTime(auth_time),
        created_at: time(created)?,
        last_used: time(used)?,
        client: ClientInfo {
            address,
            user_agent,
        },
    })
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
