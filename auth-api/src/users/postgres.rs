//! Users in PostgreSQL, in the Python service's table.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgConnection, PgPoolOptions, PgQueryResult, PgRow,
};
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgPool, Postgres};

use super::Deleted;
use super::lent::Lent;
use super::profiles::Profiles;
use crate::domain::login::Login;
use crate::domain::password::PasswordHash;
use crate::domain::user::{Account, Listed, Profile, Standing, UserId};
use crate::metrics::{PoolUse, StoreMetrics};
use crate::migrations;
use crate::unavailable::Unavailable;

pub(super) const STORE: &str = "PostgreSQL";
/// A statement is over, or given up, well within a request's three seconds.
pub(super) const DEADLINE: Duration = Duration::from_millis(2500);
/// The part of it in which a connection has to be had.
const ACQUIRE_PATIENCE: Duration = Duration::from_secs(1);
/// The server gives a statement up before we do, so that what was answered 503 is not done later.
const STATEMENT_PATIENCE: Duration = Duration::from_millis(1250);
/// And a lock before others stop waiting for a connection: who asks for one row that somebody holds
/// must not have the whole pool.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const CONNECTIONS: u32 = 10;

/// A connection that was idle for longer is asked whether it still stands before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// Past that it does not stand: enough of the deadline is left to make another.
const PING_PATIENCE: Duration = Duration::from_millis(500);
/// The lock under which replicas that start at once migrate one after the other: any number that
/// nobody else takes.
const MIGRATION_LOCK: i64 = 0x6175_7468_2d61_7069;

/// How long a start waits for a server that is not there yet.
const START_PATIENCE: Duration = Duration::from_mins(1);
const START_PAUSE: Duration = Duration::from_millis(500);
/// `cannot_connect_now`: the server starts or ends (PostgreSQL, appendix A).
const CANNOT_CONNECT_NOW: &str = "57P03";

/// How long a server's session is ours, in the words of `PgBouncer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PoolMode {
    /// As long as the connection: statements are prepared once.
    Session,
    /// For one transaction: each statement is prepared and run in one of its own.
    Transaction,
}

impl PoolMode {
    fn keeps_statements(self) -> bool {
        self == Self::Session
    }
}

/// What a session is told once, where it is ours.
fn limits_of_session() -> AssertSqlSafe<String> {
    AssertSqlSafe(limits("SET"))
}

/// What begins a transaction where nothing longer is ours: a pooler refuses settings that come with
/// a connection, and would lend those of a session to strangers.
fn begin_within_limits() -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("BEGIN; {}", limits("SET LOCAL")))
}

fn limits(set: &str) -> String {
    let (statement, lock) = (STATEMENT_PATIENCE.as_millis(), LOCK_PATIENCE.as_millis());
    format!("{set} statement_timeout = {statement}; {set} lock_timeout = {lock}")
}

/// Where the server is, and how to speak to it.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) connection: PgConnectOptions,
    pub(crate) pool_mode: PoolMode,
}

/// A pool of connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PostgresUsers {
    pool: PgPool,
    settings: Arc<Settings>,
    metrics: StoreMetrics,
    profiles: Profiles,
}

type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;
type QueryAs<'q, T> = sqlx::query::QueryAs<'q, Postgres, T, PgArguments>;
type Row = (i64, String, Option<DateTime<Utc>>, Option<DateTime<Utc>>);
type ListedRow = (
    i64,
    String,
    Option<DateTime<Utc>>,
    Option<DateTime<Utc>>,
    bool,
);

impl PostgresUsers {
    /// A pool that connects when it is first used: the server may come later than we.
    pub(crate) fn new(settings: Settings, metrics: StoreMetrics) -> Self {
        let pool_mode = settings.pool_mode;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_PATIENCE)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if pool_mode == PoolMode::Session {
                        connection.execute(limits_of_session()).await?;
                    }
                    Ok(())
                })
            })
            // To ask each time would double the round trips of a request.
            .test_before_acquire(false)
            .before_acquire(|connection, about| {
                Box::pin(async move {
                    if about.idle_for < TRUSTED_IDLE {
                        return Ok(true);
                    }
                    let pong = tokio::time::timeout(PING_PATIENCE, connection.ping()).await;
                    Ok(matches!(pong, Ok(Ok(()))))
                })
            })
            .connect_lazy_with(settings.connection.clone());
        Self {
            pool,
            settings: Arc::new(settings),
            metrics,
            profiles: Profiles::default(),
        }
    }

    /// Brings the table up to date. Of several replicas that start at once, one does it, in one
    /// transaction: a pooler between us and the server may know of no longer thing.
    pub(crate) async fn migrate(&self) -> Result<(), sqlx::migrate::MigrateError> {
        let mut migrator = migrations::tolerant(sqlx::migrate!("../migrations/postgres"));
        migrator.set_locking(false);
        // One of its own, closed afterwards: prepared statements are forgotten on it.
        let mut connection = self.reach().await?;
        let mut transaction = connection.begin().await?;
        let lock = format!("DEALLOCATE ALL; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
        transaction.execute(AssertSqlSafe(lock)).await?;
        migrator.run(&mut *transaction).await?;
        migrations::tell_of_newer(&migrator, &mut *transaction).await?;
        transaction.execute("DEALLOCATE ALL").await?;
        transaction.commit().await?;
        connection.close().await?;
        Ok(())
    }

    /// A connection, as soon as the server is there: it may start beside us.
    async fn reach(&self) -> Result<PgConnection, sqlx::Error> {
        let start = Instant::now();
        loop {
            let error = match PgConnection::connect_with(&self.settings.connection).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            if !may_come(&error) || start.elapsed() > START_PATIENCE {
                return Err(error);
            }
            tracing::warn!(store = STORE, %error, "waiting for a store");
            tokio::time::sleep(START_PAUSE).await;
        }
    }

    pub(super) fn pool_use(&self) -> PoolUse {
        PoolUse::of(&self.pool)
    }

    /// `None` where the login is taken.
    pub(super) async fn add(
        &self,
        login: &Login,
        hash: &PasswordHash,
    ) -> Result<Option<UserId>, Unavailable> {
        let insert = sqlx::query_as(
            "INSERT INTO users (login, password_hash) VALUES ($1, $2)
             ON CONFLICT (login) DO NOTHING RETURNING id::bigint",
        )
        .bind(login.as_str())
        .bind(hash.as_str());
        let row: Option<(i64,)> = self.one(insert).await?;
        Ok(row.map(|(id,)| UserId(id)))
    }

    pub(super) async fn account(&self, login: &Login) -> Result<Option<Account>, Unavailable> {
        let select = sqlx::query_as(
            "SELECT id::bigint, password_hash, disabled_at IS NOT NULL FROM users WHERE login = $1",
        )
        .bind(login.as_str());
        let row: Option<(i64, String, bool)> = self.one(select).await?;
        Ok(row.map(|(id, hash, is_disabled)| super::account(id, login, hash, is_disabled)))
    }

    pub(super) async fn holder(
        &self,
        user: UserId,
    ) -> Result<Option<(Login, Standing)>, Unavailable> {
        let select =
            sqlx::query_as("SELECT login, disabled_at IS NOT NULL FROM users WHERE id = $1")
                .bind(user.0);
        let row: Option<(String, bool)> = self.one(select).await?;
        Ok(row.and_then(|(login, is_disabled)| {
            Some((Login::existing(&login)?, super::standing(is_disabled)))
        }))
    }

    pub(super) async fn profile(&self, user: UserId) -> Result<Option<Profile>, Unavailable> {
        self.profiles.get(self, user).await
    }

    /// The profiles of those who are there, fetched on the connection that is `held`. The pool has each
    /// connection answer a ping when it comes back, which doubles the round trips: who goes on
    /// asking keeps it.
    pub(super) async fn profiles(
        &self,
        held: &mut Option<Lent>,
        users: &[i64],
    ) -> Result<Vec<Profile>, Unavailable> {
        let select: QueryAs<'_, Row> = sqlx::query_as(
            "SELECT id::bigint, login, created_at, last_login FROM users WHERE id = ANY($1)",
        )
        .bind(users)
        .persistent(self.settings.pool_mode.keeps_statements());
        let rows = self
            .run(held, async |connection: &mut PgConnection| {
                select.fetch_all(connection).await
            })
            .await?;
        let profile = |(id, login, created_at, last_login)| Profile {
            id: UserId(id),
            login,
            created_at,
            last_login,
        };
        Ok(rows.into_iter().map(profile).collect())
    }

    pub(super) async fn log_in(
        &self,
        account: &Account,
        now: DateTime<Utc>,
    ) -> Result<bool, Unavailable> {
        let update = sqlx::query(
            "UPDATE users SET last_login = $3
             WHERE id = $1 AND password_hash = $2 AND disabled_at IS NULL",
        )
        .bind(account.id.0)
        .bind(account.hash.as_str())
        .bind(now);
        Ok(self.execute(update).await?.rows_affected() == 1)
    }

    pub(super) async fn set_hash(
        &self,
        user: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool, Unavailable> {
        let update =
            sqlx::query("UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2")
                .bind(user.0)
                .bind(old.as_str())
                .bind(new.as_str());
        Ok(self.execute(update).await?.rows_affected() == 1)
    }

    pub(super) async fn set_standing(
        &self,
        user: UserId,
        standing: Standing,
    ) -> Result<(), Unavailable> {
        let statement = match standing {
            Standing::Active => "UPDATE users SET disabled_at = NULL WHERE id = $1",
            Standing::Disabled => {
                "UPDATE users SET disabled_at = coalesce(disabled_at, now()) WHERE id = $1"
            }
        };
        let update = sqlx::query(statement).bind(user.0);
        self.execute(update).await.map(drop)
    }

    pub(super) async fn page(&self, after: UserId, count: u32) -> Result<Vec<Listed>, Unavailable> {
        // `id` alone would be the first column, which no index is on.
        let select = sqlx::query_as(
            "SELECT id::bigint, login, created_at, last_login, disabled_at IS NOT NULL FROM users
             WHERE id > $1 ORDER BY users.id LIMIT $2",
        )
        .bind(after.0)
        .bind(i64::from(count));
        let rows: Vec<ListedRow> = self.all(select).await?;
        let listed = |(id, login, created_at, last_login, is_disabled)| Listed {
            profile: Profile {
                id: UserId(id),
                login,
                created_at,
                last_login,
            },
            standing: super::standing(is_disabled),
        };
        Ok(rows.into_iter().map(listed).collect())
    }

    pub(super) async fn delete(&self, user: UserId) -> Result<Deleted, Unavailable> {
        let delete = sqlx::query("DELETE FROM users WHERE id = $1").bind(user.0);
        Ok(match self.execute(delete).await?.rows_affected() {
            0 => Deleted::Before,
            _ => Deleted::Now,
        })
    }

    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        self.execute(sqlx::query("SELECT 1")).await.map(drop)
    }

    async fn one<T>(&self, query: QueryAs<'_, T>) -> Result<Option<T>, Unavailable>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let query = query.persistent(self.settings.pool_mode.keeps_statements());
        self.run(&mut None, async |connection: &mut PgConnection| {
            query.fetch_optional(connection).await
        })
        .await
    }

    async fn all<T>(&self, query: QueryAs<'_, T>) -> Result<Vec<T>, Unavailable>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let query = query.persistent(self.settings.pool_mode.keeps_statements());
        self.run(&mut None, async |connection: &mut PgConnection| {
            query.fetch_all(connection).await
        })
        .await
    }

    async fn execute(&self, query: Query<'_>) -> Result<PgQueryResult, Unavailable> {
        let query = query.persistent(self.settings.pool_mode.keeps_statements());
        self.run(&mut None, async |connection: &mut PgConnection| {
            query.execute(connection).await
        })
        .await
    }

    /// Runs a statement on the connection that is `held`, or on one of the pool, which is held then.
    /// Where it fails none is held any more.
    async fn run<T>(
        &self,
        held: &mut Option<Lent>,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Unavailable> {
        let timer = self.metrics.start();
        let work = self.run_on(held, statement);
        let outcome = match tokio::time::timeout(DEADLINE, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Unavailable::because(STORE, &error)),
            Err(late) => Err(Unavailable::because(STORE, &late)),
        };
        timer.end(&outcome);
        outcome
    }

    async fn run_on<T>(
        &self,
        held: &mut Option<Lent>,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut connection = match held.take() {
            Some(connection) => connection,
            None => Lent::by(&self.pool).await?,
        };
        let done = self.in_pool_mode(connection.begin(), statement).await?;
        connection.end();
        *held = Some(connection);
        Ok(done)
    }

    /// Runs a statement on a connection that is ours for as long as the pool mode says.
    async fn in_pool_mode<T>(
        &self,
        connection: &mut PgConnection,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        match self.settings.pool_mode {
            PoolMode::Session => statement(connection).await,
            PoolMode::Transaction => {
                let mut transaction = connection.begin_with(begin_within_limits()).await?;
                let done = statement(&mut transaction).await?;
                transaction.commit().await?;
                Ok(done)
            }
        }
    }
}

/// Whether a server that refused us may only not be ready.
fn may_come(error: &sqlx::Error) -> bool {
    match error {
        // A certificate that is none of ours stays one.
        sqlx::Error::Io(error) => error.kind() != std::io::ErrorKind::InvalidData,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code == CANNOT_CONNECT_NOW),
        _ => false,
    }
}
