//! Sessions in Redis.
//!
//! `session:{id}` is a hash with what is known of a session, gone when it expires; `sessions:{user}`
//! is a sorted set of a user's session ids by expiry. Lua scripts change both as one.

use std::time::Duration;

use fred::clients::Client;
use fred::error::Error as RedisError;
use fred::interfaces::{ClientLike, HashesInterface};
use fred::types::config::{Config, ReconnectPolicy};
use fred::types::scripts::Script;
use fred::types::{Builder, ConnectHandle};

use crate::domain::session::{Ended, NewSession};
use crate::domain::token::Principal;
use crate::domain::user::UserId;
use crate::unavailable::Unavailable;

const STORE: &str = "Redis";
/// A command is over, or given up, well within a request's three seconds.
const DEADLINE: Duration = Duration::from_millis(1500);
/// Between two tries to connect, so that Redis is used again within a second of its return.
const RECONNECT: Duration = Duration::from_millis(200);

/// KEYS: session, index. ARGV: id, expiry (ms), now (ms), then the record's fields and values.
const CREATE: &str = r"
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('PEXPIREAT', KEYS[1], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', last[2]))
return 1
";

/// KEYS: session, index. ARGV: id, user.
const END: &str = r"
if redis.call('HGET', KEYS[1], 'user') ~= ARGV[2] then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
";

/// KEYS: index.
const END_ALL: &str = r"
local ended = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  ended = ended + redis.call('DEL', 'session:' .. id)
end
redis.call('DEL', KEYS[1])
return ended
";

/// A connection that is made again whenever it breaks.
#[derive(Debug, Clone)]
pub(crate) struct RedisSessions {
    client: Client,
    create: Script,
    end: Script,
    end_all: Script,
}

impl RedisSessions {
    /// Begins to connect; the server may come later than we.
    pub(crate) fn start(config: Config) -> Result<(Self, ConnectHandle), RedisError> {
        let mut builder = Builder::from_config(config);
        builder
            .with_connection_config(|connection| {
                connection.connection_timeout = DEADLINE;
                connection.internal_command_timeout = DEADLINE;
                connection.max_command_attempts = 1;
                connection.reconnect_on_auth_error = true;
                connection.unresponsive.max_timeout = Some(DEADLINE);
                connection.unresponsive.interval = Duration::from_millis(500);
            })
            .with_performance_config(|performance| {
                performance.default_command_timeout = DEADLINE;
            })
            .set_policy(ReconnectPolicy::new_constant(
                0,
                u32::try_from(RECONNECT.as_millis()).expect("it is short"),
            ));
        let client = builder.build()?;
        let connection = client.connect();
        let sessions = Self {
            client,
            create: Script::from_lua(CREATE),
            end: Script::from_lua(END),
            end_all: Script::from_lua(END_ALL),
        };
        Ok((sessions, connection))
    }

    pub(super) async fn create(&self, session: &NewSession) -> Result<(), Unavailable> {
        let id = session.id.to_string();
        let expires = session.expires_at.timestamp_millis().to_string();
        let created = session.created_at.timestamp_millis().to_string();
        let user = session.user.0.to_string();
        let keys = vec![record(&id), index(session.user)];
        let arguments: Vec<fred::types::Value> = vec![
            id.into(),
            expires.into(),
            created.clone().into(),
            "user".into(),
            user.into(),
            "refresh".into(),
            session.refresh.0.as_slice().into(),
            "created_at".into(),
            created.clone().into(),
            "last_used".into(),
            created.into(),
            "address".into(),
            session.origin.address.clone().into(),
            "user_agent".into(),
            session.origin.user_agent.clone().into(),
        ];
        self.run(&self.create, keys, arguments).await.map(drop)
    }

    pub(super) async fn is_live(&self, principal: Principal) -> Result<bool, Unavailable> {
        let key = record(&principal.session.to_string());
        let user: Option<i64> = self.client.hget(key, "user").await.map_err(failed)?;
        Ok(user == Some(principal.user.0))
    }

    pub(super) async fn end(&self, principal: Principal) -> Result<Ended, Unavailable> {
        let id = principal.session.to_string();
        let keys = vec![record(&id), index(principal.user)];
        let arguments = vec![id.into(), principal.user.0.to_string().into()];
        Ok(match self.run(&self.end, keys, arguments).await? {
            0 => Ended::Before,
            _ => Ended::Now,
        })
    }

    pub(super) async fn end_all(&self, user: UserId) -> Result<u64, Unavailable> {
        self.run(&self.end_all, vec![index(user)], Vec::new()).await
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        self.client.ping::<()>(None).await.map_err(failed)
    }

    async fn run(
        &self,
        script: &Script,
        keys: Vec<String>,
        arguments: Vec<fred::types::Value>,
    ) -> Result<u64, Unavailable> {
        script
            .evalsha_with_reload(&self.client, keys, arguments)
            .await
            .map_err(failed)
    }
}

fn record(id: &str) -> String {
    format!("session:{id}")
}

fn index(user: UserId) -> String {
    format!("sessions:{}", user.0)
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn failed(error: RedisError) -> Unavailable {
    Unavailable::because(STORE, &error)
}
