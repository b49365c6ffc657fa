//! Accounts, sessions and tokens against a model, on both stores: random sequences of operations of users and operators,
//! of expiries and of restarts, on two replicas.
//!
//! After each step, both replicas have to accept and reject the tokens of all sessions, and to list the sessions of both
//! users, as the model does. Time passes by steps of the clock of the replicas, of commands and of Redis.

#[path = "session_model/model.rs"]
mod model;
#[path = "session_model/step.rs"]
mod step;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use reqwest::Method;
use serde_json::json;
use tests::client::{Client, Response, credentials, send};
use tests::clock::Clock;
use tests::model::run_sequences;
use tests::oauth_client::OAuthClient;
use tests::replicas::Replicas;
use tests::settings::{Settings, settings};
use tests::{Store, wait};

use model::{
    ACCESS_TOKEN_LIFETIME, AccessToken, AccountState, Exchange, Model, REFRESH_GRACE,
    SESSION_LIFETIME, SESSION_MAX_AGE, Session, User, Verdict,
};
use step::{Actor, Command, Operation, Presented, REPLICAS, Recent, Step, Stop, step};

const MAX_STEPS: usize = 40;
/// Time after which a case ends early: it must not take as long as the model takes to pass for none.
const MAX_CASE_TIME: Duration = Duration::from_mins(1);
/// Failed verifications of a password that a case makes, of the ten that lock a login.
const MAX_FAILURES: usize = 8;

/// Tokens whose verdicts are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The last ones of each session.
    Latest,
    All,
}

/// Replicas with a clock of their own.
struct Service {
    replicas: Replicas,
    clients: Vec<Client>,
    clock: Clock,
    /// Seconds that have passed in all cases.
    offset: u64,
    /// Introspects and revokes tokens.
    oauth_client: OAuthClient,
}

impl Service {
    async fn start(store: Store) -> Result<Self> {
        let seconds = |limit: Duration| limit.as_secs().to_string();
        let clock = Clock::new(0)?;
        let mut all: Settings = settings([
            ("ACCESS_TOKEN_TTL", seconds(ACCESS_TOKEN_LIFETIME)),
            ("REFRESH_TOKEN_TTL", seconds(SESSION_LIFETIME)),
            ("SESSION_MAX_AGE", seconds(SESSION_MAX_AGE)),
            ("REFRESH_TOKEN_GRACE", seconds(REFRESH_GRACE)),
            ("LOG_LEVEL", "ERROR".to_owned()),
        ]);
        all.extend(clock.environment()?);
        let mut replicas = Replicas::start_with(store, 0, all).await?;
        if let Some(redis) = &mut replicas.redis {
            redis.use_clock(&clock)?;
        }
        for index in 0..REPLICAS {
            replicas.start_another()?;
            replicas.wait_until_ready(index).await?;
        }
        let clients = (0..REPLICAS).map(|index| replicas.client(index));
        Ok(Self {
            clients: clients.collect::<Result<_>>()?,
            oauth_client: OAuthClient::create(&replicas, "model")?,
            replicas,
            clock,
            offset: 0,
        })
    }

    fn pass(&mut self, duration: Duration) -> Result<()> {
        self.offset += duration.as_secs();
        self.clock.set(i64::try_from(self.offset)?)
    }

    async fn restart(&mut self, index: usize, stop: Stop) -> Result<()> {
        let mut replica = self.replicas.instances.remove(index);
        match stop {
            Stop::Terminate => {
                let status = replica.process.terminate()?;
                ensure!(status.success(), "{status}");
            }
            // Dropping it kills it.
            Stop::Kill => drop(replica),
        }
        self.replicas.start_another()?;
        let last = self.replicas.instances.len() - 1;
        self.replicas.instances.swap(index, last);
        self.replicas.wait_until_ready(index).await?;
        self.clients[index] = self.replicas.client(index)?;
        Ok(())
    }
}

/// A sequence of steps with accounts of its own.
struct Case<'s> {
    service: &'s mut Service,
    number: usize,
    model: Model,
}

/// Returns the index of a recent item, `None` if there is none.
fn recent<T>(items: &[T], position: Recent) -> Option<usize> {
    items.len().checked_sub(1 + position % items.len().max(1))
}

fn password(number: usize) -> String {
    format!("passphrase number {number}")
}

fn expect(response: &Response, status: u16) -> Result<()> {
    ensure!(
        response.status == status,
        "{} in place of {status}: {}",
        response.status,
        response.text
    );
    Ok(())
}

fn member(response: &Response, name: &str) -> Result<String> {
    let value = response.json()[name].as_str().map(str::to_owned);
    value.with_context(|| format!("no {name} in {}", response.text))
}

impl Case<'_> {
    async fn run(&mut self, steps: &[Step]) -> Result<()> {
        let begun = Instant::now();
        let client = self.service.clients[0].clone();
        for user in 0..self.model.accounts.len() {
            self.register(&client, user).await?;
            self.log_in(&client, user, Presented::Current).await?;
        }
        for (number, step) in steps.iter().enumerate() {
            if begun.elapsed() > MAX_CASE_TIME {
                return Ok(());
            }
            let result = async {
                self.take(*step).await?;
                self.check(Scope::Latest).await
            };
            result
                .await
                .with_context(|| format!("step {number}, {step:?}"))?;
        }
        self.check(Scope::All).await.context("at the end")
    }

    async fn take(&mut self, Step { replica, operation }: Step) -> Result<()> {
        let client = self.service.clients[replica].clone();
        match operation {
            Operation::Register(user) => self.register(&client, user).await,
            Operation::LogIn(user, presented) => self.log_in(&client, user, presented).await,
            Operation::Refresh { session, token } => self.refresh(&client, session, token).await,
            Operation::LogOut(actor) => self.log_out(&client, actor).await,
            Operation::LogOutEverywhere(actor) => self.log_out_everywhere(&client, actor).await,
            Operation::EndSession { by, session } => self.end_session(&client, by, session).await,
            Operation::ChangePassword(actor, presented) => {
                self.change_password(&client, actor, presented).await
            }
            Operation::DeleteAccount(user, presented) => {
                self.delete_account(&client, user, presented).await
            }
            Operation::RevokeAccessToken(actor) => self.revoke_access_token(&client, actor).await,
            Operation::RevokeRefreshToken { session, token } => {
                self.revoke_refresh_token(&client, session, token).await
            }
            Operation::Command(user, command) => self.command(user, command),
            Operation::EndAllSessions => self.end_all_sessions(),
            Operation::Pass(duration) => {
                self.model.pass(duration);
                self.service.pass(duration)
            }
            Operation::Restart(stop) => self.service.restart(replica, stop).await,
        }
    }

    fn login(&self, user: User) -> String {
        format!("user-{user}-of-{}", self.number)
    }

    /// Returns the password that is presented for an account, and whether it is right. Returns `None` if too many wrong
    /// ones were presented before.
    fn present(&mut self, user: User, presented: Presented) -> Option<(String, bool)> {
        let account = &mut self.model.accounts[user];
        let (number, is_current) = match presented {
            Presented::Current => (account.password, true),
            Presented::Old => (account.password.wrapping_sub(1), false),
        };
        let is_right = is_current && account.state == AccountState::Active;
        if !is_right {
            if account.failures == MAX_FAILURES {
                return None;
            }
            account.failures += 1;
        }
        Some((password(number), is_right))
    }

    /// Returns the indices of a session and of one of its access tokens.
    fn access_token(&self, actor: Actor) -> Option<(usize, usize)> {
        let session = recent(&self.model.sessions, actor.session)?;
        let token = recent(&self.model.sessions[session].access_tokens, actor.token)?;
        Some((session, token))
    }

    /// Returns the indices of a session and of one of its refresh tokens.
    fn refresh_token(&self, session: Recent, token: Recent) -> Option<(usize, usize)> {
        let session = recent(&self.model.sessions, session)?;
        let token = recent(&self.model.sessions[session].refresh_tokens, token)?;
        Some((session, token))
    }

    /// Returns the index of a session, the text of one of its access tokens and the verdict on it, `None` if that is
    /// not certain.
    fn actor(&self, actor: Actor) -> Option<(usize, String, Verdict)> {
        let (index, token) = self.access_token(actor)?;
        let session = &self.model.sessions[index];
        let token = &session.access_tokens[token];
        let verdict = self.model.verdict(session, token);
        (verdict != Verdict::Cached).then(|| (index, token.text.clone(), verdict))
    }

    async fn register(&mut self, client: &Client, user: User) -> Result<()> {
        let number = self.model.accounts[user].password + 1;
        let body = credentials(&self.login(user), &password(number));
        let response = client.post("/api/register", &body).await?;
        if self.model.accounts[user].state != AccountState::Absent {
            return expect(&response, 409);
        }
        let account = &mut self.model.accounts[user];
        account.state = AccountState::Active;
        account.password = number;
        expect(&response, 201)
    }

    async fn log_in(&mut self, client: &Client, user: User, presented: Presented) -> Result<()> {
        let Some((password, is_right)) = self.present(user, presented) else {
            return Ok(());
        };
        let body = credentials(&self.login(user), &password);
        let response = client.post("/api/login", &body).await?;
        if !is_right {
            return expect(&response, 401);
        }
        expect(&response, 200)?;
        let access_token = response.access_token()?;
        let refresh_token = member(&response, "refresh_token")?;
        let identity = client.get_with_token(&access_token, "/api/verify").await?;
        expect(&identity, 200)?;
        let id = identity.header("x-session-id").to_owned();
        self.model.log_in(user, id, access_token, refresh_token);
        Ok(())
    }

    async fn refresh(&mut self, client: &Client, session: Recent, token: Recent) -> Result<()> {
        let Some((index, token)) = self.refresh_token(session, token) else {
            return Ok(());
        };
        let session = &self.model.sessions[index];
        let body = json!({"refresh_token": session.refresh_tokens[token].text});
        let response = client.post("/api/refresh", &body).await?;
        let exchange = self.model.exchange(session, token);
        match exchange {
            Exchange::SessionNotActive => return expect(&response, 401),
            Exchange::Reuse => {
                self.model.end(index);
                return expect(&response, 401);
            }
            Exchange::NewSuccessor => {
                expect(&response, 200)?;
                let successor = member(&response, "refresh_token")?;
                let mut known = session.refresh_tokens.iter();
                ensure!(
                    known.all(|known| known.text != successor),
                    "a token was issued twice"
                );
                self.model.add_successor(index, token, successor);
            }
            Exchange::Retry(successor) => {
                expect(&response, 200)?;
                let again = member(&response, "refresh_token")?;
                ensure!(
                    again == session.refresh_tokens[successor].text,
                    "another successor than before"
                );
            }
        }
        self.model.add_access_token(index, response.access_token()?);
        Ok(())
    }

    async fn log_out(&mut self, client: &Client, actor: Actor) -> Result<()> {
        let Some((session, token)) = self.access_token(actor) else {
            return Ok(());
        };
        let token = &self.model.sessions[session].access_tokens[token];
        let path = "/api/logout";
        let response = client.post_with_token(&token.text, path, None).await?;
        let status = if self.model.is_expired(token) {
            401
        } else if self.model.end(session) {
            200
        } else {
            400
        };
        expect(&response, status)
    }

    async fn log_out_everywhere(&mut self, client: &Client, actor: Actor) -> Result<()> {
        let Some((session, token, verdict)) = self.actor(actor) else {
            return Ok(());
        };
        let response = client
            .post_with_token(&token, "/api/logout-all", None)
            .await?;
        if verdict == Verdict::Rejected {
            return expect(&response, 401);
        }
        expect(&response, 200)?;
        let user = self.model.sessions[session].user;
        let ended = self.model.end_all(user, None);
        ensure!(
            response.json()["ended"] == ended,
            "{} in place of {ended}",
            response.text
        );
        Ok(())
    }

    async fn end_session(&mut self, client: &Client, by: Actor, session: Recent) -> Result<()> {
        let Some((actor, token, verdict)) = self.actor(by) else {
            return Ok(());
        };
        let Some(session) = recent(&self.model.sessions, session) else {
            return Ok(());
        };
        let path = format!("/api/sessions/{}", self.model.sessions[session].id);
        let request = client.request(Method::DELETE, &path).bearer_auth(token);
        let response = send(request).await?;
        let sessions = &self.model.sessions;
        let status = if verdict == Verdict::Rejected {
            401
        } else if sessions[actor].user == sessions[session].user && self.model.end(session) {
            200
        } else {
            404
        };
        expect(&response, status)
    }

    async fn change_password(
        &mut self,
        client: &Client,
        actor: Actor,
        presented: Presented,
    ) -> Result<()> {
        let Some((session, token, verdict)) = self.actor(actor) else {
            return Ok(());
        };
        let user = self.model.sessions[session].user;
        let Some((current, is_right)) = self.present(user, presented) else {
            return Ok(());
        };
        let number = self.model.accounts[user].password + 1;
        let body = json!({"current_password": current, "new_password": password(number)});
        let response = client
            .post_with_token(&token, "/api/password", Some(&body))
            .await?;
        if verdict == Verdict::Rejected || !is_right {
            return expect(&response, 401);
        }
        self.model.accounts[user].password = number;
        self.model.end_all(user, Some(session));
        expect(&response, 200)
    }

    async fn delete_account(
        &mut self,
        client: &Client,
        user: User,
        presented: Presented,
    ) -> Result<()> {
        let Some((password, is_right)) = self.present(user, presented) else {
            return Ok(());
        };
        let body = credentials(&self.login(user), &password);
        let response = client.post("/api/delete", &body).await?;
        if !is_right {
            return expect(&response, 401);
        }
        self.model.accounts[user].state = AccountState::Absent;
        self.model.end_all(user, None);
        expect(&response, 200)
    }

    async fn revoke_access_token(&mut self, client: &Client, actor: Actor) -> Result<()> {
        let Some((session, token)) = self.access_token(actor) else {
            return Ok(());
        };
        let token = &self.model.sessions[session].access_tokens[token];
        self.service
            .oauth_client
            .revoke(client, &token.text)
            .await?;
        if !self.model.is_expired(token) {
            self.model.end(session);
        }
        Ok(())
    }

    async fn revoke_refresh_token(
        &mut self,
        client: &Client,
        session: Recent,
        token: Recent,
    ) -> Result<()> {
        let Some((session, token)) = self.refresh_token(session, token) else {
            return Ok(());
        };
        let token = &self.model.sessions[session].refresh_tokens[token].text;
        self.service.oauth_client.revoke(client, token).await?;
        self.model.end(session);
        Ok(())
    }

    fn command(&mut self, user: User, command: Command) -> Result<()> {
        let name = match command {
            Command::Disable => "disable",
            Command::Enable => "enable",
            Command::SetPassword => "set-password",
            Command::EndSessions => "end-sessions",
            Command::Delete => "delete",
        };
        let number = self.model.accounts[user].password + 1;
        let arguments = [name, &self.login(user)];
        let output = self
            .service
            .replicas
            .user_command(&arguments, &password(number))?;
        let account = &mut self.model.accounts[user];
        let exists = account.state != AccountState::Absent;
        ensure!(output.status.success() == exists, "{output:?}");
        if !exists {
            return Ok(());
        }
        match command {
            Command::Disable => account.state = AccountState::Disabled,
            Command::Enable => {
                account.state = AccountState::Active;
                return Ok(());
            }
            Command::SetPassword => account.password = number,
            Command::EndSessions => {}
            Command::Delete => account.state = AccountState::Absent,
        }
        let ended = format!("sessions ended: {}", self.model.end_all(user, None));
        let text = String::from_utf8(output.stdout)?;
        ensure!(
            text.lines().any(|line| line == ended),
            "{text} in place of {ended}"
        );
        Ok(())
    }

    fn end_all_sessions(&mut self) -> Result<()> {
        let output = self
            .service
            .replicas
            .user_command(&["end-all-sessions"], "")?;
        ensure!(output.status.success(), "{output:?}");
        self.model.end_all_by_account();
        Ok(())
    }

    /// Compares the replicas with the model.
    async fn check(&self, scope: Scope) -> Result<()> {
        for (replica, client) in self.service.clients.iter().enumerate() {
            for (number, session) in self.model.sessions.iter().enumerate() {
                let checked = self.check_tokens(client, session, scope).await;
                checked.with_context(|| format!("session {number} at replica {replica}"))?;
            }
            for user in 0..self.model.accounts.len() {
                let checked = self.check_list(client, user).await;
                checked.with_context(|| format!("user {user} at replica {replica}"))?;
            }
        }
        Ok(())
    }

    async fn check_tokens(&self, client: &Client, session: &Session, scope: Scope) -> Result<()> {
        let first = |tokens: usize| match scope {
            Scope::Latest => tokens - 1,
            Scope::All => 0,
        };
        let access_tokens = &session.access_tokens;
        for (number, token) in access_tokens
            .iter()
            .enumerate()
            .skip(first(access_tokens.len()))
        {
            let verdict = self.model.verdict(session, token);
            if verdict == Verdict::Cached && scope == Scope::Latest {
                continue;
            }
            let checked = check_access_token(client, session, token, verdict).await;
            checked.with_context(|| format!("access token {number}"))?;
        }
        let refresh_tokens = &session.refresh_tokens;
        for (number, token) in refresh_tokens
            .iter()
            .enumerate()
            .skip(first(refresh_tokens.len()))
        {
            let introspection = self
                .service
                .oauth_client
                .introspect(client, &token.text)
                .await?;
            let is_unused = self.model.is_unused(session, number);
            ensure!(
                introspection["active"] == is_unused,
                "{introspection} of refresh token {number}, of which it is {is_unused} that it is unused and good"
            );
        }
        Ok(())
    }

    /// Compares the list of a user's sessions, if the user has an access token to request it with.
    async fn check_list(&self, client: &Client, user: User) -> Result<()> {
        let sessions = &self.model.sessions;
        let current = self.model.active_sessions(user).find_map(|index| {
            let token = sessions[index].access_tokens.last()?;
            let verdict = self.model.verdict(&sessions[index], token);
            (verdict == Verdict::Accepted).then_some((index, token))
        });
        let Some((current, token)) = current else {
            return Ok(());
        };
        let response = client.get_with_token(&token.text, "/api/sessions").await?;
        expect(&response, 200)?;
        // The newest first.
        let mut expected: Vec<_> = self.model.active_sessions(user).collect();
        expected.reverse();
        let expected = expected.into_iter().map(|index| {
            let is_current = index == current;
            (json!(sessions[index].id), json!(is_current))
        });
        let listed = response.json()["sessions"].as_array().cloned();
        let listed = listed.unwrap_or_default();
        let listed = listed
            .iter()
            .map(|session| (session["id"].clone(), session["current"].clone()));
        let (listed, expected): (Vec<_>, Vec<_>) = (listed.collect(), expected.collect());
        ensure!(
            listed == expected,
            "{listed:?} is listed in place of {expected:?}"
        );
        Ok(())
    }
}

async fn check_access_token(
    client: &Client,
    session: &Session,
    token: &AccessToken,
    verdict: Verdict,
) -> Result<()> {
    let verify = async || client.get_with_token(&token.text, "/api/verify").await;
    match verdict {
        Verdict::Accepted => {
            let response = verify().await?;
            expect(&response, 200)?;
            let id = response.header("x-session-id");
            ensure!(id == session.id, "the token of session {id}");
            Ok(())
        }
        Verdict::Rejected => expect(&verify().await?, 401),
        Verdict::Cached => {
            wait::until("an expired session to leave the cache", async || {
                verify().await.is_ok_and(|response| response.status == 401)
            })
            .await
        }
    }
}

/// Runs cases on a store in lanes, each with stores and replicas of its own: a command that ends sessions, and the first
/// end after a replica was killed, waits for a second, until no lease can be valid that it does not know of.
fn compare(store: Store, lanes: usize, cases: u32) -> Result<()> {
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes)
            .map(|_| scope.spawn(|| compare_in_sequence(store, cases)))
            .collect();
        for lane in lanes {
            lane.join().map_err(|_| anyhow!("a lane has panicked"))??;
        }
        Ok(())
    })
}

fn compare_in_sequence(store: Store, cases: u32) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut service = runtime.block_on(Service::start(store))?;
    let mut number = 0;
    let outcome = run_sequences(cases, MAX_STEPS, step(), |steps| {
        number += 1;
        let mut case = Case {
            service: &mut service,
            number,
            model: Model::new(store),
        };
        runtime.block_on(case.run(steps))
    });
    // The replicas end within the runtime.
    runtime.block_on(async move { drop(service) });
    outcome
}

#[test]
fn sessions_in_postgres_and_redis_are_as_their_model() -> Result<()> {
    compare(Store::PostgresRedis, 3, 5)
}

#[test]
fn sessions_in_the_embedded_store_are_as_their_model() -> Result<()> {
    compare(Store::Embedded, 1, 30)
}
