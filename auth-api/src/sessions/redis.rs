//! Sessions in Redis.
//!
//! `session:{id}` is a hash with what is known of a session, gone when it expires; `sessions:{user}`
//! is a sorted set of a user's session ids by expiry. Lua scripts change both as one, by Redis's clock
//! since those of replicas may differ, and tell every replica of endings on a channel.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use fred::error::Error as RedisError;
use fred::types::scripts::Script;

use super::announcement::Announcements;
use super::cache::Cache;
use super::ears::{ENDINGS, Ears, NO_ANNOUNCEMENT};
use super::{GRACE, MOST_OF_A_USER, TOUCH};
use crate::domain::refresh_token::SealedSecret;
use crate::domain::session::{
    Ended, Exchange, Exchanged, LiveSession, NewSession, Origin, SessionId,
};
use crate::domain::token::Principal;
use crate::domain::user::UserId;
use crate::redis::{Redis, nonsense, text};
use crate::unavailable::Unavailable;

static CREATE: LazyLock<Script> = LazyLock::new(|| noting(include_str!("redis/create.lua")));
static TOUCHED: LazyLock<Script> = LazyLock::new(|| noting(include_str!("redis/touch.lua")));
static ROTATE: LazyLock<Script> = LazyLock::new(|| noting(include_str!("redis/rotate.lua")));
static END: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("redis/end.lua")));
static END_ALL: LazyLock<Script> =
    LazyLock::new(|| Script::from_lua(include_str!("redis/end_all.lua")));
static LIST: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("redis/list.lua")));

/// What the script tells of a session: id, created, used (ms), address, user agent.
type Listed = (String, i64, i64, String, String);

/// Sessions in Redis, and what this replica remembers of them.
#[derive(Debug, Clone)]
pub(crate) struct RedisSessions {
    redis: Redis,
    cache: Arc<Cache>,
    announcements: Arc<Announcements>,
}

impl RedisSessions {
    /// Begins to listen for endings.
    pub(crate) fn start(redis: Redis) -> Result<Self, RedisError> {
        let cache = Arc::new(Cache::default());
        let announcements = Arc::new(Announcements::new());
        let ears = Ears::new(
            redis.clone(),
            redis.subscriber()?,
            Arc::clone(&cache),
            Arc::clone(&announcements),
        );
        tokio::spawn(ears.listen());
        Ok(Self {
            redis,
            cache,
            announcements,
        })
    }

    pub(super) async fn create(&self, session: &NewSession) -> Result<(), Unavailable> {
        let arguments = vec![
            text(session.principal.session),
            text(session.principal.user.0),
            lifetime(session.created_at, session.expires_at),
            text(MOST_OF_A_USER),
            ENDINGS.into(),
            Bytes::copy_from_slice(&session.refresh.0),
            text(&session.origin.address),
            text(&session.origin.user_agent),
            // Nobody waits for it.
            text(NO_ANNOUNCEMENT),
        ];
        let keys = keys(session.principal);
        self.redis
            .run::<i64>(&CREATE, keys, arguments)
            .await
            .map(drop)
    }

    pub(super) async fn is_live(&self, principal: Principal) -> Result<bool, Unavailable> {
        let heard = match self.cache.knows(principal, Instant::now()) {
            Ok(()) => return Ok(true),
            Err(heard) => heard,
        };
        let arguments = vec![
            text(principal.session),
            text(principal.user.0),
            text(TOUCH.as_millis()),
        ];
        let keys = keys(principal);
        let is_live: bool = self.redis.run(&TOUCHED, keys, arguments).await?;
        if is_live {
            self.cache.keep(principal, heard, Instant::now());
        }
        Ok(is_live)
    }

    pub(super) async fn exchange(&self, exchange: &Exchange) -> Result<Exchanged, Unavailable> {
        let arguments = vec![
            text(exchange.principal.session),
            text(exchange.principal.user.0),
            lifetime(exchange.now, exchange.expires_at),
            text(GRACE.as_millis()),
            Bytes::copy_from_slice(&exchange.presented.0),
            Bytes::copy_from_slice(&exchange.next.0),
            Bytes::copy_from_slice(&exchange.sealed.0),
        ];
        let keys = keys(exchange.principal);
        let answer: Vec<Bytes> = self.redis.run(&ROTATE, keys, arguments).await?;
        match answer.as_slice() {
            [word] if word == "rotated" => Ok(Exchanged::Rotated),
            [word] if word == "stale" => Ok(Exchanged::Used),
            [word] if word == "gone" => Ok(Exchanged::Gone),
            [word, sealed] if word == "repeated" => sealed[..]
                .try_into()
                .map(|sealed| Exchanged::Repeated(SealedSecret(sealed)))
                .map_err(|_| nonsense("a sealed token of another length")),
            _ => Err(nonsense("an exchange without a known outcome")),
        }
    }

    pub(super) async fn end(&self, principal: Principal) -> Result<Ended, Unavailable> {
        let announcement = self.announcements.begin();
        let arguments = vec![
            text(principal.session),
            text(principal.user.0),
            ENDINGS.into(),
            text(announcement.head()),
        ];
        let ended: bool = self.redis.run(&END, keys(principal), arguments).await?;
        self.cache.forget(principal.session);
        announcement.heard_by_all().await;
        Ok(if ended { Ended::Now } else { Ended::Before })
    }

    pub(super) async fn end_all(
        &self,
        user: UserId,
        kept: Option<SessionId>,
    ) -> Result<u64, Unavailable> {
        let kept = kept.map_or_else(Bytes::new, text);
        let announcement = self.announcements.begin();
        let arguments = vec![
            kept,
            text(user.0),
            ENDINGS.into(),
            text(announcement.head()),
        ];
        let keys = vec![index(user)];
        let ended: u64 = self.redis.run(&END_ALL, keys, arguments).await?;
        self.cache.forget_user(user);
        announcement.heard_by_all().await;
        Ok(ended)
    }

    pub(super) async fn list(&self, user: UserId) -> Result<Vec<LiveSession>, Unavailable> {
        let listed: Vec<Listed> = self.redis.run(&LIST, vec![index(user)], Vec::new()).await?;
        listed.into_iter().map(live).collect()
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        self.redis.ping().await
    }
}

/// A script that notes sessions.
fn noting(script: &str) -> Script {
    Script::from_lua([include_str!("redis/shared.lua"), script].concat())
}

fn live((id, created, used, address, user_agent): Listed) -> Result<LiveSession, Unavailable> {
    let time = |millis| {
        DateTime::from_timestamp_millis(millis).ok_or_else(|| nonsense("a time out of range"))
    };
    Ok(LiveSession {
        id: SessionId::parse(&id).ok_or_else(|| nonsense("a session without an id"))?,
        created_at: time(created)?,
        last_used: time(used)?,
        origin: Origin {
            address,
            user_agent,
        },
    })
}

/// Scripts know the present time themselves.
fn lifetime(from: DateTime<Utc>, to: DateTime<Utc>) -> Bytes {
    text((to - from).num_milliseconds())
}

fn keys(principal: Principal) -> Vec<String> {
    vec![record(principal.session), index(principal.user)]
}

fn record(session: SessionId) -> String {
    format!("session:{session}")
}

fn index(user: UserId) -> String {
    format!("sessions:{}", user.0)
}
