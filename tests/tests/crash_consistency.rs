//! Every change of an account, a session or an OAuth client, interrupted at each of its requests to PostgreSQL and
//! Redis: the connection breaks, the store responds with an error, both stores become unreachable, the process is
//! killed, the client disconnects; and at each write to the embedded store: the disk is full, the process is killed.
//! Afterwards what was acknowledged is true at every replica and in the audit log, nothing is half there, and the same
//! request, repeated, leads to the new state.
//!
//! `make test` injects some of the faults, `CRASH_FAULTS=all` every one.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::slice::Iter;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use fred::interfaces::{ClientLike, KeysInterface, LuaInterface};
use fred::types::CustomCommand;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tests::client::{NEW_PASSWORD, PASSWORD, credentials};
use tests::interruption::{Action, Bench, Fault, HttpRequest, Instance, Outcome, Reply, Tokens};
use tests::oauth_client::{FORM, INTROSPECT, OAuthClient, REVOKE, form};
use tests::settings::settings;
use tests::{Store, wait};
use tokio::sync::Mutex;

/// Injects every fault if it is `all`.
const FAULTS_VARIABLE: &str = "CRASH_FAULTS";
/// Prints a line for each interruption if it is set.
const REPORT_VARIABLE: &str = "CRASH_REPORT";
/// Upper bound of the requests to the stores that an operation makes.
const MAX_REQUESTS: usize = 40;
/// Operations that may fail without a fault.
const MAX_SLOW: usize = 10;
/// Cost of a hash that is replaced. That of new ones is 4.
const OLD_BCRYPT_COST: u32 = 5;
/// Failed logins that lock a login.
const MAX_FAILURES: u32 = 10;

/// An account with two sessions.
#[derive(Debug, Clone)]
struct Subject {
    login: String,
    id: i64,
    /// Session in which an operation acts.
    own: Tokens,
    other: Tokens,
    /// Refresh token of its own session that was used, if the operation is to use it again.
    used_token: String,
    client: OAuthClient,
}

fn login_request(login: &str, password: &str) -> HttpRequest {
    HttpRequest::post("/api/login").json(&credentials(login, password))
}

fn register_request(login: &str) -> HttpRequest {
    HttpRequest::post("/api/register").json(&credentials(login, PASSWORD))
}

fn refresh_request(token: &str) -> HttpRequest {
    HttpRequest::post("/api/refresh").json(&json!({"refresh_token": token}))
}

fn introspect_request(client: &OAuthClient, token: &str) -> HttpRequest {
    HttpRequest {
        authorization: Some(client.basic()),
        content_type: FORM,
        body: form(&[("token", token)]),
        ..HttpRequest::post(INTROSPECT)
    }
}

/// Data of the stores, which a test reads beside the replicas.
enum Contents {
    Redis(fred::clients::Client),
    /// Path of the SQLite file.
    File(PathBuf),
}

/// Script that returns the violations of two invariants: every key expires, and each session is in an index.
const CHECK_REDIS: &str = r"
    local faults = {}
    for _, key in ipairs(redis.call('KEYS', '*')) do
        if redis.call('TTL', key) == -1 then
            faults[#faults + 1] = key .. ' does not expire'
        end
        if key:sub(1, 8) == 'session:' and key ~= 'session:check' then
            local user = redis.call('HGET', key, 'user')
            if not user or not redis.call('ZSCORE', 'sessions:' .. user, key:sub(9)) then
                faults[#faults + 1] = key .. ' is in no index'
            end
        end
    end
    return faults";

impl Contents {
    async fn of(bench: &Bench) -> Result<Self> {
        Ok(match &bench.replicas.redis {
            Some(server) => Self::Redis(server.connect().await?),
            None => Self::File(bench.replicas.sqlite_file()),
        })
    }

    /// Checks the invariants that no interruption may break.
    async fn check(&self) -> Result<()> {
        match self {
            Self::Redis(redis) => {
                let none = Vec::<String>::new;
                let faults: Vec<String> = redis.eval(CHECK_REDIS, none(), none()).await?;
                ensure!(faults.is_empty(), "{faults:?}");
            }
            Self::File(file) => {
                let result: String = sqlx::query_scalar("PRAGMA integrity_check")
                    .fetch_one(&mut connect(file).await?)
                    .await?;
                ensure!(result == "ok", "{result}");
            }
        }
        Ok(())
    }

    /// Returns the number of failed verifications that are counted.
    async fn failures(&self) -> Result<u32> {
        match self {
            Self::Redis(redis) => {
                let mut sum = 0;
                for key in failure_keys(redis).await? {
                    let count: u32 = redis.get(key).await?;
                    sum += count;
                }
                Ok(sum)
            }
            Self::File(file) => {
                let sum = sqlx::query_scalar("SELECT coalesce(sum(count), 0) FROM failures");
                Ok(sum.fetch_one(&mut connect(file).await?).await?)
            }
        }
    }

    /// Forgets failed verifications. Empties the write-ahead log of a file, so that it is not begun anew during an
    /// operation.
    async fn reset(&self) -> Result<()> {
        match self {
            Self::Redis(redis) => {
                for key in failure_keys(redis).await? {
                    let _: () = redis.del(key).await?;
                }
            }
            Self::File(file) => {
                let mut connection = connect(file).await?;
                for statement in ["DELETE FROM failures", "PRAGMA wal_checkpoint(TRUNCATE)"] {
                    sqlx::query(statement).execute(&mut connection).await?;
                }
            }
        }
        Ok(())
    }
}

async fn connect(file: &Path) -> Result<SqliteConnection> {
    Ok(SqliteConnectOptions::new().filename(file).connect().await?)
}

async fn failure_keys(redis: &fred::clients::Client) -> Result<Vec<String>> {
    let keys = CustomCommand::new_static("KEYS", None, false);
    Ok(redis.custom(keys, vec!["failures:*"]).await?)
}

/// Stores, replicas and a registered client, for one interruption after the other.
struct Scene {
    bench: Bench,
    contents: Contents,
    service: OAuthClient,
    subjects: usize,
}

/// State of a session, by all of its tokens at both replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Active,
    Ended,
}

impl Scene {
    async fn start(store: Store, pool_mode: &str) -> Result<Self> {
        let settings = settings([("DB_POOL_MODE", pool_mode.to_owned())]);
        let mut bench = Bench::start(store, settings).await?;
        let contents = Contents::of(&bench).await?;
        let (_, output) = bench.command(&["client", "create", "orders"], "").await?;
        let service = parse_client(&output)?;
        Ok(Self {
            bench,
            contents,
            service,
            subjects: 0,
        })
    }

    fn new_login(&mut self) -> String {
        self.subjects += 1;
        format!("user{}", self.subjects)
    }

    async fn new_subject(&mut self) -> Result<Subject> {
        let login = self.new_login();
        let registered = self.send(&register_request(&login)).await?;
        let id = registered.json()["id"].as_i64();
        let id = id.with_context(|| format!("{registered:?}"))?;
        let own = Tokens::of(&self.send(&login_request(&login, PASSWORD)).await?)?;
        let other = Tokens::of(&self.send(&login_request(&login, PASSWORD)).await?)?;
        let subject = Subject {
            login,
            id,
            own,
            other,
            used_token: String::new(),
            client: self.service.clone(),
        };
        for tokens in [&subject.own, &subject.other] {
            // The witness caches it.
            let profile = HttpRequest::get("/api/profile").bearer(&tokens.access);
            ensure!(self.send(&profile).await?.status == 200);
        }
        Ok(subject)
    }

    /// Sends a request to the witness.
    async fn send(&self, request: &HttpRequest) -> Result<Reply> {
        self.bench.send(Instance::Witness, request).await
    }

    /// Sends a request to the replica that was interrupted, or that has replaced it.
    async fn repeat(&self, request: &HttpRequest) -> Result<Reply> {
        self.bench.send(Instance::Interrupted, request).await
    }

    /// Returns whether a session is active.
    ///
    /// # Errors
    /// Returns an error if its tokens or the replicas disagree.
    async fn standing(&self, tokens: &Tokens) -> Result<Standing> {
        let mut observed = Vec::new();
        for instance in Bench::INSTANCES {
            let profile = HttpRequest::get("/api/profile").bearer(&tokens.access);
            let profile = self.bench.send(instance, &profile).await?;
            observed.push(match profile.status {
                200 => Standing::Active,
                401 | 404 => Standing::Ended,
                _ => bail!("{profile:?}"),
            });
            for token in [&tokens.access, &tokens.refresh] {
                let is_active = self.introspect(instance, token).await?;
                observed.push(if is_active {
                    Standing::Active
                } else {
                    Standing::Ended
                });
            }
        }
        ensure!(
            observed.iter().all(|standing| *standing == observed[0]),
            "a session is half there: profile, access token, refresh token of both replicas: {observed:?}"
        );
        Ok(observed[0])
    }

    /// Like [`Self::standing`], after an operation that was not acknowledged: a replica may cache a session for a while.
    async fn eventual_standing(&self, tokens: &Tokens) -> Result<Standing> {
        let start = Instant::now();
        loop {
            match self.standing(tokens).await {
                Err(_) if start.elapsed() < wait::TIMEOUT => {}
                standing => return standing,
            }
        }
    }

    async fn introspect(&self, instance: Instance, token: &str) -> Result<bool> {
        let request = introspect_request(&self.service, token);
        let reply = self.bench.send(instance, &request).await?;
        let is_active = reply.json()["active"].as_bool();
        is_active.with_context(|| format!("{reply:?}"))
    }

    /// Returns whether both replicas accept a password, and ends the sessions that this creates.
    async fn accepts(&self, login: &str, password: &str) -> Result<bool> {
        let mut accepted = Vec::new();
        for instance in Bench::INSTANCES {
            let request = login_request(login, password);
            let reply = self.bench.send(instance, &request).await?;
            ensure!([200, 401].contains(&reply.status), "{reply:?}");
            accepted.push(reply.status == 200);
            if reply.status == 200 {
                let tokens = Tokens::of(&reply)?;
                let logout = HttpRequest::post("/api/logout").bearer(&tokens.access);
                let logout = self.send(&logout).await?;
                ensure!(logout.status == 200, "{logout:?}");
            }
        }
        ensure!(accepted[0] == accepted[1], "the replicas disagree");
        Ok(accepted[0])
    }

    async fn session_count(&self, tokens: &Tokens) -> Result<usize> {
        let list = HttpRequest::get("/api/sessions").bearer(&tokens.access);
        let list = self.send(&list).await?;
        let sessions = list.json()["sessions"].as_array().map(Vec::len);
        sessions.with_context(|| format!("{list:?}"))
    }

    /// Waits until the replica that is interrupted reaches both stores, without which the next operation would fail
    /// at once.
    async fn wait_until_available(&self) -> Result<()> {
        let reply = self.repeat(&login_request("no account", PASSWORD)).await?;
        ensure!(reply.status == 401, "{reply:?}");
        self.contents.reset().await
    }
}

fn parse_client(output: &str) -> Result<OAuthClient> {
    let value = |key: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(key));
        line.map(str::to_owned).with_context(|| output.to_owned())
    };
    Ok(OAuthClient {
        id: value("client_id: ")?,
        secret: value("client_secret: ")?,
    })
}

/// Response to an operation: with an acknowledgement it has taken place, without one it may have.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Acknowledgement {
    /// Body of the response, or standard output of the command.
    Given(String),
    /// The client got 503, or the command an error, and the stores could be reached again.
    Refused,
    Missing,
}

impl Acknowledgement {
    fn is_given(&self) -> bool {
        matches!(self, Self::Given(_))
    }

    /// Returns the tokens that the acknowledgement has.
    fn tokens(&self) -> Result<Option<Tokens>> {
        let Self::Given(body) = self else {
            return Ok(None);
        };
        let body = body.clone();
        Tokens::of(&Reply { status: 200, body }).map(Some)
    }
}

/// An operation as it is sent to a replica or run by an operator, and what it leaves when it is acknowledged.
#[derive(Debug)]
struct Attempt {
    action: Action,
    /// Status of the response that acknowledges it. A command does so by its exit code.
    acknowledgement: u16,
    /// Its audit event, if it has one.
    event: Option<&'static str>,
    /// Numbers of failed verifications that are counted before it and after it.
    failures: [u32; 2],
}

impl Attempt {
    /// A request that is acknowledged by 200, without an audit event.
    fn request(request: HttpRequest) -> Self {
        Self {
            action: Action::Request(request),
            acknowledgement: 200,
            event: None,
            failures: [0, 0],
        }
    }

    /// A command of an operator with a line of standard input.
    fn command(arguments: &[&str], input: &str) -> Self {
        let arguments = arguments.iter().copied().map(str::to_owned);
        Self {
            action: Action::Command(arguments.collect(), input.to_owned()),
            ..Self::request(HttpRequest::default())
        }
    }

    fn acknowledged_by(self, status: u16) -> Self {
        Self {
            acknowledgement: status,
            ..self
        }
    }

    fn audited_as(self, event: &'static str) -> Self {
        Self {
            event: Some(event),
            ..self
        }
    }

    fn counting(self, failures: [u32; 2]) -> Self {
        Self { failures, ..self }
    }
}

/// An operation, and what has to hold after it was acknowledged or not.
trait Operation: Debug {
    async fn prepare(&self, scene: &mut Scene) -> Result<Subject> {
        scene.new_subject().await
    }

    fn attempt(&self, subject: &Subject) -> Attempt;

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()>;
}

/// State of the account and its sessions after an attempt that may have been interrupted.
struct Aftermath<'a> {
    scene: &'a mut Scene,
    subject: &'a Subject,
    attempt: &'a Attempt,
    acknowledgement: &'a Acknowledgement,
}

impl Aftermath<'_> {
    fn is_acknowledged(&self) -> bool {
        self.acknowledgement.is_given()
    }

    /// Sends the request once more, to the replica that was interrupted or that has replaced it, which has to respond
    /// with this status.
    async fn repeat(&self, status: u16) -> Result<Reply> {
        let Action::Request(request) = &self.attempt.action else {
            bail!("a command");
        };
        let repeated = self.scene.repeat(request).await?;
        ensure!(repeated.status == status, "{repeated:?}");
        Ok(repeated)
    }

    /// Runs the command once more. It may refuse with this message to do again what it has done.
    async fn repeat_command(&mut self, refusal: &str) -> Result<String> {
        let Action::Command(arguments, input) = &self.attempt.action else {
            bail!("a request");
        };
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let (has_succeeded, output) = self.scene.bench.command(&arguments, input).await?;
        ensure!(has_succeeded || output.contains(refusal), "{output}");
        Ok(output)
    }

    /// Returns whether both replicas accept a password for the subject.
    async fn accepts(&self, password: &str) -> Result<bool> {
        self.scene.accepts(&self.subject.login, password).await
    }

    /// Returns whether the sessions of the subject are active, its own first.
    async fn standing_of_both(&self) -> Result<[Standing; 2]> {
        let (scene, own, other) = (&self.scene, &self.subject.own, &self.subject.other);
        Ok(if self.is_acknowledged() {
            [scene.standing(own).await?, scene.standing(other).await?]
        } else {
            [
                scene.eventual_standing(own).await?,
                scene.eventual_standing(other).await?,
            ]
        })
    }

    async fn ensure<const N: usize>(
        &self,
        sessions: [&Tokens; N],
        expected: Standing,
    ) -> Result<()> {
        for tokens in sessions {
            let standing = self.scene.standing(tokens).await?;
            ensure!(standing == expected, "{standing:?}, not {expected:?}");
        }
        Ok(())
    }

    async fn ensure_both_have_ended(&self) -> Result<()> {
        let both = [&self.subject.own, &self.subject.other];
        self.ensure(both, Standing::Ended).await
    }

    /// Checks the end of one session. The repeated request gets the first status if it has not ended, else the second.
    async fn check_end_of_one(
        &self,
        [ended, kept]: [&Tokens; 2],
        [success, refusal]: [u16; 2],
    ) -> Result<()> {
        if self.is_acknowledged() {
            self.ensure([ended], Standing::Ended).await?;
        }
        let has_ended = self.scene.eventual_standing(ended).await? == Standing::Ended;
        self.ensure([kept], Standing::Active).await?;
        self.repeat(if has_ended { refusal } else { success })
            .await?;
        self.ensure([ended], Standing::Ended).await?;
        self.ensure([kept], Standing::Active).await
    }

    /// Checks that both sessions of the subject have ended, or none. Returns whether they have.
    async fn check_end_of_both(&self) -> Result<bool> {
        let standing = self.standing_of_both().await?;
        let have_ended = standing == [Standing::Ended; 2];
        ensure!(
            have_ended || (standing == [Standing::Active; 2] && !self.is_acknowledged()),
            "{standing:?}"
        );
        Ok(have_ended)
    }

    /// Checks that the account is there as a whole, or gone with its sessions. Returns whether it is there.
    async fn check_deletion(&self) -> Result<bool> {
        let standing = self.standing_of_both().await?;
        let exists = self.accepts(PASSWORD).await?;
        ensure!(!exists || !self.is_acknowledged(), "the account exists");
        // The sessions are ended before the deletion.
        ensure!(exists || standing == [Standing::Ended; 2], "{standing:?}");
        Ok(exists)
    }

    /// Checks that the account is gone, and that another one with its login is independent of it.
    async fn check_login_is_free(&self) -> Result<()> {
        ensure!(!self.accepts(PASSWORD).await?);
        let registration = register_request(&self.subject.login);
        let registered = self.scene.repeat(&registration).await?;
        ensure!(registered.status == 201, "{registered:?}");
        ensure!(self.accepts(PASSWORD).await?);
        self.ensure_both_have_ended().await
    }

    /// Checks that the subject has its new password or the old one. Returns whether it is the new one.
    async fn check_password(&self) -> Result<bool> {
        let is_changed = self.accepts(NEW_PASSWORD).await?;
        let is_old = self.accepts(PASSWORD).await?;
        ensure!(
            is_changed != is_old,
            "new password: {is_changed}, old one: {is_old}"
        );
        ensure!(is_changed || !self.is_acknowledged());
        Ok(is_changed)
    }

    /// Enables the account, which was disabled, and checks that the sessions of before stay ended.
    async fn enable_and_check_sessions(&mut self) -> Result<()> {
        let enable = ["user", "enable", self.subject.login.as_str()];
        let (is_enabled, output) = self.scene.bench.command(&enable, "").await?;
        ensure!(is_enabled, "{output}");
        self.ensure_both_have_ended().await
    }
}

/// Party that an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Sends a request.
    Client,
    /// Runs a command, which exits after a failure.
    Operator,
}

/// Selection of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coverage {
    /// One of each kind that leaves the stores in another state.
    Kinds,
    /// Every fault, also in the transactions of a pooler.
    Everything,
}

impl Coverage {
    fn of_environment() -> Self {
        match std::env::var(FAULTS_VARIABLE) {
            Ok(faults) if faults == "all" => Self::Everything,
            _ => Self::Kinds,
        }
    }
}

/// Returns the faults by which an operation is interrupted.
fn faults(store: Store, caller: Caller, coverage: Coverage) -> &'static [Fault] {
    match (store, caller, coverage) {
        (Store::PostgresRedis, Caller::Client, Coverage::Everything) => &[
            Fault::RequestLost,
            Fault::ResponseLost,
            Fault::StoreError,
            Fault::OutageBefore,
            Fault::OutageAfter,
            Fault::KilledBefore,
            Fault::KilledAfter,
            Fault::ClientGoneBefore,
            Fault::ClientGoneAfter,
        ],
        (Store::PostgresRedis, Caller::Operator, Coverage::Everything) => &[
            Fault::RequestLost,
            Fault::ResponseLost,
            Fault::StoreError,
            Fault::OutageBefore,
            Fault::OutageAfter,
            Fault::KilledBefore,
            Fault::KilledAfter,
        ],
        (Store::Embedded, Caller::Client, Coverage::Everything) => {
            &[Fault::DiskFull, Fault::KilledAtWrite]
        }
        (Store::PostgresRedis, Caller::Client, Coverage::Kinds) => &[
            Fault::ResponseLost,
            Fault::KilledAfter,
            Fault::ClientGoneBefore,
        ],
        (Store::PostgresRedis, Caller::Operator, Coverage::Kinds) => &[Fault::KilledAfter],
        (Store::Embedded, Caller::Client, Coverage::Kinds) => &[Fault::KilledAtWrite],
        (Store::Embedded, Caller::Operator, _) => &[Fault::DiskFull],
    }
}

/// Interrupts an operation at each request or write to the stores by each fault, and checks what it has left behind.
async fn interrupt_everywhere(
    operation: impl Operation,
    caller: Caller,
    store: Store,
) -> Result<()> {
    let coverage = Coverage::of_environment();
    let faults = faults(store, caller, coverage);
    let lane = async |pool_mode: &str, remaining: &Mutex<Iter<'_, Fault>>| -> Result<()> {
        let mut scene = Scene::start(store, pool_mode).await?;
        loop {
            let Some(fault) = remaining.lock().await.next() else {
                return Ok(());
            };
            interrupt_at_each_request(&operation, *fault, &mut scene).await?;
        }
    };
    let remaining = Mutex::new(faults.iter());
    match (store, coverage) {
        (Store::PostgresRedis, Coverage::Everything) => {
            let pooled = Mutex::new(faults.iter());
            let lanes = (lane("session", &remaining), lane("transaction", &pooled));
            tokio::try_join!(lanes.0, lanes.1)?;
        }
        _ if faults.len() == 1 => lane("session", &remaining).await?,
        _ => {
            let lanes = (lane("session", &remaining), lane("session", &remaining));
            tokio::try_join!(lanes.0, lanes.1)?;
        }
    }
    Ok(())
}

async fn interrupt_at_each_request(
    operation: &impl Operation,
    fault: Fault,
    scene: &mut Scene,
) -> Result<()> {
    let (mut number, mut slow) = (1, 0);
    while number < MAX_REQUESTS {
        scene.wait_until_available().await?;
        let subject = operation.prepare(scene).await?;
        let attempt = operation.attempt(&subject);
        let start = Instant::now();
        let (outcome, request) = scene.bench.run(&attempt.action, fault, number).await?;
        let (elapsed, place) = (start.elapsed(), request.as_deref().unwrap_or("none"));
        let context = || {
            format!(
                "{operation:?}: {fault:?} at request {number} ({place}), {elapsed:.1?}: {outcome}"
            )
        };
        if std::env::var_os(REPORT_VARIABLE).is_some() {
            report(&context());
        }
        let acknowledgement = acknowledgement(&attempt, fault, &outcome).with_context(context)?;
        let after = Aftermath {
            scene: &mut *scene,
            subject: &subject,
            attempt: &attempt,
            acknowledgement: &acknowledgement,
        };
        let checked = check(operation, after, &outcome).await;
        checked.with_context(context)?;
        match request {
            Some(_) => number += 1,
            None if acknowledgement.is_given() => {
                ensure!(number > 1, "{operation:?} makes no request to a store");
                return Ok(());
            }
            // On a busy machine a store may not respond in time.
            None => {
                slow += 1;
                ensure!(slow < MAX_SLOW, "{}", context());
            }
        }
    }
    bail!("{operation:?} makes more than {MAX_REQUESTS} requests")
}

#[expect(clippy::print_stderr, reason = "it is asked for")]
fn report(line: &str) {
    eprintln!("{}", line.trim_end().replace('\n', " | "));
}

fn acknowledgement(attempt: &Attempt, fault: Fault, outcome: &Outcome) -> Result<Acknowledgement> {
    match outcome {
        Outcome::Response(reply) if reply.status == attempt.acknowledgement => {
            Ok(Acknowledgement::Given(reply.body.clone()))
        }
        Outcome::Exit(0, stdout, _) => Ok(Acknowledgement::Given(stdout.clone())),
        Outcome::Response(Reply { status: 503, .. }) | Outcome::Exit(1, ..) => {
            Ok(if fault.is_outage() {
                Acknowledgement::Missing
            } else {
                Acknowledgement::Refused
            })
        }
        Outcome::Nothing => Ok(Acknowledgement::Missing),
        _ => bail!("neither success nor the failure of a store"),
    }
}

async fn check(
    operation: &impl Operation,
    mut after: Aftermath<'_>,
    outcome: &Outcome,
) -> Result<()> {
    let failures = after.scene.contents.failures().await?;
    let [before, counted] = after.attempt.failures;
    let is_counted = failures == counted || (failures == before && !after.is_acknowledged());
    ensure!(is_counted, "{failures} failed verifications are counted");
    if after.is_acknowledged()
        && let Some(event) = after.attempt.event
    {
        check_audit_event(event, after.scene, after.subject, outcome).await?;
    }
    operation.check(&mut after).await?;
    after.scene.contents.check().await
}

/// Checks that the audit log has an event about the subject once.
async fn check_audit_event(
    event: &str,
    scene: &Scene,
    subject: &Subject,
    outcome: &Outcome,
) -> Result<()> {
    let event = format!("\"event\":\"{event}\"");
    let names = [
        format!("\"login\":\"{}\"", subject.login),
        format!("\"user\":{},", subject.id),
    ];
    let count = |log: &str| {
        let events = log.lines().filter(|line| line.contains(&event));
        let about = |line: &&str| names.iter().any(|name| line.contains(name));
        events.filter(about).count()
    };
    if let Outcome::Exit(_, _, stderr) = outcome {
        // A command is about one subject, which events of clients and of all accounts do not name.
        ensure!(
            stderr.matches(&event).count() == 1,
            "{event} once in {stderr}"
        );
        return Ok(());
    }
    wait::until("the audit event", async || count(&scene.bench.log()) > 0).await?;
    ensure!(
        count(&scene.bench.log()) == 1,
        "the audit event is there twice"
    );
    Ok(())
}

/// Message of a command that is expected to succeed each time.
const NO_REFUSAL: &str = "no refusal";

#[derive(Debug)]
struct Registration;

impl Operation for Registration {
    async fn prepare(&self, scene: &mut Scene) -> Result<Subject> {
        let subject = scene.new_subject().await?;
        Ok(Subject {
            login: scene.new_login(),
            ..subject
        })
    }

    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::request(register_request(&subject.login))
            .acknowledged_by(201)
            .audited_as("register")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let exists = after.accepts(PASSWORD).await?;
        ensure!(exists || !after.is_acknowledged(), "the account is lost");
        after.repeat(if exists { 409 } else { 201 }).await?;
        ensure!(after.accepts(PASSWORD).await?);
        Ok(())
    }
}

#[derive(Debug)]
struct Login;

impl Operation for Login {
    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::request(login_request(&subject.login, PASSWORD)).audited_as("login")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let (scene, subject) = (&after.scene, after.subject);
        let count = async || scene.session_count(&subject.own).await;
        match after.acknowledgement {
            Acknowledgement::Given(_) => {
                ensure!(count().await? == 3);
                let new = after.acknowledgement.tokens()?.context("tokens")?;
                after.ensure([&new], Standing::Active).await?;
            }
            Acknowledgement::Refused => {
                wait::until("the session without a client to end", async || {
                    count().await.is_ok_and(|count| count == 2)
                })
                .await?;
            }
            Acknowledgement::Missing => ensure!((2..=3).contains(&count().await?)),
        }
        let repeated = Tokens::of(&after.repeat(200).await?)?;
        let all = [&repeated, &subject.own, &subject.other];
        after.ensure(all, Standing::Active).await
    }
}

/// A login by a hash of another cost than new ones have, which is replaced.
#[derive(Debug)]
struct LoginByOldHash;

impl Operation for LoginByOldHash {
    async fn prepare(&self, scene: &mut Scene) -> Result<Subject> {
        let subject = scene.new_subject().await?;
        let (hash, id) = (bcrypt::hash(PASSWORD, OLD_BCRYPT_COST)?, subject.id);
        let update = format!("UPDATE users SET password_hash = '{hash}' WHERE id = {id}");
        scene.bench.replicas.execute(update).await?;
        Ok(subject)
    }

    fn attempt(&self, subject: &Subject) -> Attempt {
        Login.attempt(subject)
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        Login.check(after).await
    }
}

#[derive(Debug)]
struct FailedLogin;

impl Operation for FailedLogin {
    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::request(login_request(&subject.login, "a wrong password 1"))
            .acknowledged_by(401)
            .audited_as("login_failed")
            .counting([0, 1])
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        ensure!(after.accepts(PASSWORD).await?);
        ensure!(after.scene.session_count(&after.subject.own).await? == 2);
        ensure!(
            after.scene.contents.failures().await? == 0,
            "a login forgets the failures"
        );
        Ok(())
    }
}

#[derive(Debug)]
struct Refresh;

impl Operation for Refresh {
    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::request(refresh_request(&subject.own.refresh))
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let repeated = Tokens::of(&after.repeat(200).await?)?;
        if let Some(new) = after.acknowledgement.tokens()? {
            ensure!(
                new.refresh == repeated.refresh,
                "a retry within the grace period has another successor"
            );
            after.ensure([&new], Standing::Active).await?;
        }
        after.ensure([&repeated], Standing::Active).await?;
        let next = refresh_request(&repeated.refresh);
        let next = Tokens::of(&after.scene.repeat(&next).await?)?;
        let both = [&next, &after.subject.other];
        after.ensure(both, Standing::Active).await?;
        ensure!(after.scene.session_count(&next).await? == 2);
        Ok(())
    }
}

#[derive(Debug)]
struct RefreshTokenReuse;

impl Operation for RefreshTokenReuse {
    async fn prepare(&self, scene: &mut Scene) -> Result<Subject> {
        let mut subject = scene.new_subject().await?;
        subject.used_token.clone_from(&subject.own.refresh);
        // Within the grace period the token before the last used one would be taken for a retry.
        for _ in 0..3 {
            let refresh = refresh_request(&subject.own.refresh);
            subject.own = Tokens::of(&scene.send(&refresh).await?)?;
        }
        Ok(subject)
    }

    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::request(refresh_request(&subject.used_token))
            .acknowledged_by(401)
            .audited_as("refresh_token_reused")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let sessions = [&after.subject.own, &after.subject.other];
        after.check_end_of_one(sessions, [401, 401]).await
    }
}

#[derive(Debug)]
struct Logout;

impl Operation for Logout {
    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::request(HttpRequest::post("/api/logout").bearer(&subject.own.access))
            .audited_as("logout")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let sessions = [&after.subject.own, &after.subject.other];
        after.check_end_of_one(sessions, [200, 400]).await
    }
}

#[derive(Debug)]
struct EndOfSession;

impl Operation for EndOfSession {
    fn attempt(&self, subject: &Subject) -> Attempt {
        let request = HttpRequest {
            method: "DELETE",
            path: format!("/api/sessions/{}", session_id(&subject.other.access)),
            ..HttpRequest::default()
        };
        Attempt::request(request.bearer(&subject.own.access)).audited_as("session_ended")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let sessions = [&after.subject.other, &after.subject.own];
        after.check_end_of_one(sessions, [200, 404]).await
    }
}

/// Returns the claim `sid` of an access token.
fn session_id(access_token: &str) -> String {
    let payload = access_token.split('.').nth(1).expect("a payload");
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).expect("base64url");
    let claims: Value = serde_json::from_slice(&payload).expect("JSON");
    claims["sid"].as_str().expect("a session").to_owned()
}

#[derive(Debug)]
struct Revocation;

impl Operation for Revocation {
    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::request(HttpRequest {
            authorization: Some(subject.client.basic()),
            content_type: FORM,
            body: form(&[("token", &subject.own.refresh)]),
            ..HttpRequest::post(REVOKE)
        })
        .audited_as("token_revoked")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let sessions = [&after.subject.own, &after.subject.other];
        after.check_end_of_one(sessions, [200, 200]).await
    }
}

#[derive(Debug)]
struct FailedClientAuthentication;

impl Operation for FailedClientAuthentication {
    /// Its audit event names no subject.
    fn attempt(&self, subject: &Subject) -> Attempt {
        let client = OAuthClient {
            secret: "a wrong secret".to_owned(),
            ..subject.client.clone()
        };
        Attempt::request(introspect_request(&client, &subject.own.access))
            .acknowledged_by(401)
            .counting([0, 1])
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let own = [&after.subject.own];
        after.ensure(own, Standing::Active).await
    }
}

#[derive(Debug)]
struct LogoutEverywhere;

impl Operation for LogoutEverywhere {
    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::request(HttpRequest::post("/api/logout-all").bearer(&subject.own.access))
            .audited_as("logout_all")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let have_ended = after.check_end_of_both().await?;
        after.repeat(if have_ended { 401 } else { 200 }).await?;
        after.ensure_both_have_ended().await?;
        ensure!(after.accepts(PASSWORD).await?);
        Ok(())
    }
}

#[derive(Debug)]
struct PasswordChange;

impl Operation for PasswordChange {
    fn attempt(&self, subject: &Subject) -> Attempt {
        let change = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
        let request = HttpRequest::post("/api/password").json(&change);
        Attempt::request(request.bearer(&subject.own.access)).audited_as("password_changed")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let [own, other] = after.standing_of_both().await?;
        ensure!(
            own == Standing::Active,
            "the change has ended its own session"
        );
        let is_changed = after.check_password().await?;
        // The other sessions are ended before the change, and again with it.
        ensure!(
            !is_changed || other == Standing::Ended,
            "an old session is active"
        );
        after.repeat(if is_changed { 401 } else { 200 }).await?;
        ensure!(after.accepts(NEW_PASSWORD).await?);
        let (own, other) = (&after.subject.own, &after.subject.other);
        after.ensure([own], Standing::Active).await?;
        after.ensure([other], Standing::Ended).await
    }
}

#[derive(Debug)]
struct Deletion;

impl Operation for Deletion {
    fn attempt(&self, subject: &Subject) -> Attempt {
        let credentials = credentials(&subject.login, PASSWORD);
        Attempt::request(HttpRequest::post("/api/delete").json(&credentials)).audited_as("delete")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let exists = after.check_deletion().await?;
        after.repeat(if exists { 200 } else { 401 }).await?;
        after.check_login_is_free().await
    }
}

#[derive(Debug)]
struct DeletionByCommand;

impl Operation for DeletionByCommand {
    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::command(&["user", "delete", &subject.login], "").audited_as("delete")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        after.check_deletion().await?;
        after.repeat_command("no account has that login").await?;
        after.check_login_is_free().await
    }
}

#[derive(Debug)]
struct CreationByCommand;

impl Operation for CreationByCommand {
    async fn prepare(&self, scene: &mut Scene) -> Result<Subject> {
        Registration.prepare(scene).await
    }

    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::command(&["user", "create", &subject.login], PASSWORD).audited_as("register")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let exists = after.accepts(PASSWORD).await?;
        ensure!(exists || !after.is_acknowledged(), "the account is lost");
        after.repeat_command("taken").await?;
        ensure!(after.accepts(PASSWORD).await?);
        Ok(())
    }
}

#[derive(Debug)]
struct Disabling;

impl Operation for Disabling {
    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::command(&["user", "disable", &subject.login], "").audited_as("disabled")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let standing = after.standing_of_both().await?;
        let is_active = after.accepts(PASSWORD).await?;
        ensure!(
            !is_active || !after.is_acknowledged(),
            "the account is active"
        );
        let expected = if is_active {
            Standing::Active
        } else {
            Standing::Ended
        };
        ensure!(
            standing == [expected; 2],
            "active: {is_active}, {standing:?}"
        );
        if !is_active {
            // Also without another attempt, which would end the sessions again.
            after.enable_and_check_sessions().await?;
        }
        after.repeat_command(NO_REFUSAL).await?;
        ensure!(!after.accepts(PASSWORD).await?);
        after.enable_and_check_sessions().await
    }
}

#[derive(Debug)]
struct Enabling;

impl Operation for Enabling {
    async fn prepare(&self, scene: &mut Scene) -> Result<Subject> {
        let subject = scene.new_subject().await?;
        let disable = ["user", "disable", subject.login.as_str()];
        let (is_disabled, output) = scene.bench.command(&disable, "").await?;
        ensure!(is_disabled, "{output}");
        Ok(subject)
    }

    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::command(&["user", "enable", &subject.login], "").audited_as("enabled")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let is_active = after.accepts(PASSWORD).await?;
        ensure!(
            is_active || !after.is_acknowledged(),
            "the account is disabled"
        );
        after.repeat_command(NO_REFUSAL).await?;
        ensure!(after.accepts(PASSWORD).await?);
        after.ensure_both_have_ended().await
    }
}

#[derive(Debug)]
struct PasswordSetByCommand;

impl Operation for PasswordSetByCommand {
    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::command(&["user", "set-password", &subject.login], NEW_PASSWORD)
            .audited_as("password_set")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let standing = after.standing_of_both().await?;
        let is_changed = after.check_password().await?;
        let expected = if is_changed {
            Standing::Ended
        } else {
            Standing::Active
        };
        ensure!(
            standing == [expected; 2],
            "changed: {is_changed}, {standing:?}"
        );
        after.repeat_command(NO_REFUSAL).await?;
        ensure!(after.accepts(NEW_PASSWORD).await?);
        after.ensure_both_have_ended().await
    }
}

#[derive(Debug)]
struct EndOfSessionsByCommand;

impl Operation for EndOfSessionsByCommand {
    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::command(&["user", "end-sessions", &subject.login], "").audited_as("logout_all")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        after.check_end_of_both().await?;
        after.repeat_command(NO_REFUSAL).await?;
        after.ensure_both_have_ended().await?;
        ensure!(after.accepts(PASSWORD).await?);
        Ok(())
    }
}

#[derive(Debug)]
struct EndOfAllSessionsByCommand;

impl Operation for EndOfAllSessionsByCommand {
    fn attempt(&self, _: &Subject) -> Attempt {
        Attempt::command(&["user", "end-all-sessions"], "").audited_as("logout_all")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        EndOfSessionsByCommand.check(after).await
    }
}

#[derive(Debug)]
struct Unlocking;

impl Operation for Unlocking {
    async fn prepare(&self, scene: &mut Scene) -> Result<Subject> {
        let subject = scene.new_subject().await?;
        for _ in 0..MAX_FAILURES {
            let failed = scene
                .send(&login_request(&subject.login, "a wrong password 1"))
                .await?;
            ensure!(failed.status == 401, "{failed:?}");
        }
        Ok(subject)
    }

    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::command(&["user", "unlock", &subject.login], "")
            .audited_as("unlocked")
            .counting([MAX_FAILURES, 0])
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let login = login_request(&after.subject.login, PASSWORD);
        let status = after.scene.send(&login).await?.status;
        ensure!(
            status == 200 || (status == 429 && !after.is_acknowledged()),
            "{status}"
        );
        after.repeat_command(NO_REFUSAL).await?;
        ensure!(after.accepts(PASSWORD).await?);
        Ok(())
    }
}

#[derive(Debug)]
struct ClientCreation;

impl Operation for ClientCreation {
    fn attempt(&self, _: &Subject) -> Attempt {
        Attempt::command(&["client", "create", "billing"], "").audited_as("oauth_client_created")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let own = [&after.subject.own];
        if let Acknowledgement::Given(output) = after.acknowledgement {
            after.scene.service = parse_client(output)?;
            after.ensure(own, Standing::Active).await?;
        }
        let output = after.repeat_command(NO_REFUSAL).await?;
        after.scene.service = parse_client(&output)?;
        after.ensure(own, Standing::Active).await
    }
}

#[derive(Debug)]
struct ClientDeletion;

impl Operation for ClientDeletion {
    async fn prepare(&self, scene: &mut Scene) -> Result<Subject> {
        let subject = scene.new_subject().await?;
        let create = ["client", "create", "billing"];
        let (_, output) = scene.bench.command(&create, "").await?;
        let client = parse_client(&output)?;
        Ok(Subject { client, ..subject })
    }

    fn attempt(&self, subject: &Subject) -> Attempt {
        Attempt::command(&["client", "delete", &subject.client.id], "")
            .audited_as("oauth_client_deleted")
    }

    async fn check(&self, after: &mut Aftermath<'_>) -> Result<()> {
        let introspect = introspect_request(&after.subject.client, &after.subject.own.access);
        let mut statuses = Vec::new();
        for instance in Bench::INSTANCES {
            let reply = after.scene.bench.send(instance, &introspect).await?;
            statuses.push(reply.status);
        }
        let is_deleted = statuses == [401; 2];
        ensure!(
            is_deleted || (statuses == [200; 2] && !after.is_acknowledged()),
            "{statuses:?}"
        );
        after.repeat_command("no client has that id").await?;
        let refused = after.scene.repeat(&introspect).await?;
        ensure!(refused.status == 401, "{refused:?}");
        Ok(())
    }
}

/// Defines two tests for each operation, one for each store.
macro_rules! interrupted_anywhere {
    ($($test:ident: $operation:ident by $caller:ident),+ $(,)?) => {$(
        mod $test {
            use super::*;

            #[tokio::test]
            async fn on_postgres_and_redis() -> Result<()> {
                interrupt_everywhere($operation, Caller::$caller, Store::PostgresRedis).await
            }

            #[tokio::test]
            async fn embedded() -> Result<()> {
                interrupt_everywhere($operation, Caller::$caller, Store::Embedded).await
            }
        }
    )+};
}

interrupted_anywhere! {
    a_registration_has_created_an_account_or_none: Registration by Client,
    a_login_has_created_at_most_a_session_without_a_client: Login by Client,
    a_login_that_renews_the_hash_keeps_the_password: LoginByOldHash by Client,
    a_failed_login_that_was_reported_is_counted_once: FailedLogin by Client,
    a_failed_client_authentication_that_was_reported_is_counted_once: FailedClientAuthentication by Client,
    a_refresh_can_be_repeated_with_the_same_token: Refresh by Client,
    a_reused_refresh_token_ends_the_session_when_it_is_repeated_at_the_latest: RefreshTokenReuse by Client,
    a_logout_has_ended_the_session_or_not: Logout by Client,
    the_end_of_another_session_has_ended_that_one_or_none: EndOfSession by Client,
    a_revocation_has_ended_the_session_or_not: Revocation by Client,
    a_logout_everywhere_has_ended_all_sessions_or_none: LogoutEverywhere by Client,
    a_changed_password_has_no_old_sessions: PasswordChange by Client,
    a_deleted_account_has_no_sessions: Deletion by Client,
    a_deletion_by_command_leaves_no_sessions: DeletionByCommand by Operator,
    a_creation_by_command_has_created_an_account_or_none: CreationByCommand by Operator,
    a_disabled_account_has_no_sessions: Disabling by Operator,
    an_enabled_account_has_no_sessions_of_before: Enabling by Operator,
    a_password_set_by_command_has_no_old_sessions: PasswordSetByCommand by Operator,
    the_end_of_sessions_by_command_has_ended_all_or_none: EndOfSessionsByCommand by Operator,
    the_end_of_all_sessions_by_command_is_of_whole_accounts: EndOfAllSessionsByCommand by Operator,
    an_unlocked_login_can_log_in: Unlocking by Operator,
    a_created_client_has_a_secret_that_works: ClientCreation by Operator,
    a_deleted_client_is_refused_by_every_replica: ClientDeletion by Operator,
}
