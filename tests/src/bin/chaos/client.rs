//! Clients: each sends one request after the other, to either gateway, and records it with its begin and end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use tests::Client;
use tests::client::{Protocol, Response, credentials, send};
use tokio::time::sleep;

use crate::account::{Account, Tokens};
use crate::history::{Action, Decision, GatewayId, Operation, Outcome, Time};
use crate::random::Random;
use crate::run::Run;

/// Time after which a client does not wait any longer: far more than any deadline.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(25);
/// Clients of one account at the same time.
const CLIENTS_PER_ACCOUNT: usize = 3;
/// Attempts to verify a password at the end.
const VERIFICATIONS: usize = 10;
const VERIFICATION_PAUSE: Duration = Duration::from_millis(300);

/// A client with connections of its own.
pub(crate) struct Actor {
    run: Arc<Run>,
    random: Random,
    protocol: Protocol,
    /// Connections to each gateway, and the number of its faults when they were opened.
    connections: [Option<(Client, usize)>; 2],
}

impl Actor {
    pub(crate) fn new(run: &Arc<Run>, random: Random, number: usize) -> Self {
        Self {
            run: Arc::clone(run),
            random,
            protocol: if number.is_multiple_of(3) {
                Protocol::Http1
            } else {
                Protocol::Http2
            },
            connections: [None, None],
        }
    }

    /// Uses the account until it is used up, its lifetime is over, or the run ends.
    async fn use_account(&mut self, account: &Account) {
        let born = self.run.now();
        while !account.is_used_up()
            && self.run.now() < born + account.lifetime
            && !self.run.is_over()
        {
            sleep(self.random.milliseconds(20..250)).await;
            let (action, tokens) = account.choose(&mut self.random);
            let operation = self.operate(account, action, tokens.as_ref()).await;
            let has_ended = operation.outcome == Outcome::Done
                && matches!(
                    action,
                    Action::LogOut { .. } | Action::LogOutEverywhere { .. } | Action::Delete { .. }
                );
            account.record(operation);
            if let Some(tokens) = tokens.filter(|_| has_ended) {
                self.present_ended_token(account, &tokens).await;
            }
        }
    }

    /// Uses a token at once after its session ended, at both gateways and at auth-api.
    async fn present_ended_token(&mut self, account: &Account, tokens: &Tokens) {
        for decision in [Decision::Gateway, Decision::AuthApi] {
            let session = tokens.session;
            let action = Action::UseToken { session, decision };
            for gateway in GatewayId::ALL {
                let operation = self
                    .operate_at(gateway, account, action, Some(tokens))
                    .await;
                account.record(operation);
            }
        }
    }

    async fn operate(
        &mut self,
        account: &Account,
        action: Action,
        tokens: Option<&Tokens>,
    ) -> Operation {
        let gateway = self.random.choose(&GatewayId::ALL);
        self.operate_at(gateway, account, action, tokens).await
    }

    async fn operate_at(
        &mut self,
        gateway: GatewayId,
        account: &Account,
        action: Action,
        tokens: Option<&Tokens>,
    ) -> Operation {
        let access = tokens.map_or("", |tokens| &tokens.access);
        let refresh = tokens.map_or("", |tokens| &tokens.refresh);
        let post = |path| (Method::POST, path);
        let (method, path) = match action {
            Action::Register { .. } => post("/api/register"),
            Action::LogIn { .. } => post("/api/login"),
            Action::ChangePassword { .. } => post("/api/password"),
            Action::Delete { .. } => post("/api/delete"),
            Action::Refresh { .. } => post("/api/refresh"),
            Action::LogOut { .. } => post("/api/logout"),
            Action::LogOutEverywhere { .. } => post("/api/logout-all"),
            Action::UseToken {
                decision: Decision::AuthApi,
                ..
            } => (Method::GET, "/api/profile"),
            Action::UseToken {
                decision: Decision::Gateway,
                ..
            } => (Method::GET, "/edge/health"),
            Action::TakeQuota => (Method::GET, "/window/health"),
        };
        let password = |password| account.password(password);
        let body = match action {
            Action::Register { password: id }
            | Action::LogIn { password: id }
            | Action::Delete { password: id } => Some(credentials(&account.login, &password(id))),
            Action::ChangePassword { from, to, .. } => {
                Some(json!({"current_password": password(from), "new_password": password(to)}))
            }
            Action::Refresh { .. } => Some(json!({"refresh_token": refresh})),
            _ => None,
        };
        let (began, ended, response) = self
            .send(gateway, |client| {
                let request = client.request(method.clone(), path);
                let request = match action.session() {
                    Some(_) if body.is_none() || path == "/api/password" => {
                        request.bearer_auth(access)
                    }
                    _ => request,
                };
                match &body {
                    Some(body) => request.json(body),
                    None => request,
                }
            })
            .await;
        Operation {
            gateway,
            began,
            ended,
            action,
            outcome: outcome_of(account, action, response),
        }
    }

    /// Sends a request and returns when it began and ended, with the response.
    async fn send(
        &mut self,
        gateway: GatewayId,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> (Time, Time, Result<Response>) {
        let faults = self.run.fault_count(gateway);
        let connection = &mut self.connections[gateway.0];
        if connection
            .as_ref()
            .is_none_or(|(_, opened)| *opened != faults)
        {
            let client = self.run.deployment.client(gateway, self.protocol);
            *connection = Some((client.expect("the certificate is valid"), faults));
        }
        let (client, _) = connection.as_ref().expect("it was just opened");
        let request = request(client).timeout(CLIENT_TIMEOUT);
        let began = self.run.now();
        let response = send(request).await;
        let ended = self.run.now();
        self.run.count_operation();
        if response.is_err() {
            *connection = None;
        }
        (began, ended, response)
    }

    /// Sends requests on a path with a quota until the run ends.
    async fn use_quota(&mut self, quota: usize, pause: Duration) {
        let (path, key) = self.run.quota(quota);
        while !self.run.is_over() {
            sleep(pause).await;
            let gateway = self.random.choose(&GatewayId::ALL);
            let (began, ended, response) = self
                .send(gateway, |client| {
                    client.request(Method::GET, path).header("X-Key", key)
                })
                .await;
            let outcome = match response {
                Ok(response) => match response.status {
                    200 => Outcome::Done,
                    429 => Outcome::Throttled,
                    status @ 502..=504 => Outcome::Unavailable(status),
                    status => Outcome::Unexpected(format!("{status}: {}", response.text)),
                },
                Err(error) => Outcome::NoResponse(format!("{error:#}")),
            };
            self.run.record_quota(
                quota,
                Operation {
                    gateway,
                    began,
                    ended,
                    action: Action::TakeQuota,
                    outcome,
                },
            );
        }
    }

    /// Logs in with each password that the account may have, until one fits, so that the history shows whether the
    /// account is there.
    async fn verify(&mut self, account: &Account) {
        for password in account.candidates() {
            for _ in 0..VERIFICATIONS {
                let operation = self
                    .operate(account, Action::LogIn { password }, None)
                    .await;
                let outcome = operation.outcome.clone();
                account.record(operation);
                match outcome {
                    Outcome::LoggedIn(_) => return,
                    outcome if outcome.is_unknown() => sleep(VERIFICATION_PAUSE).await,
                    _ => break,
                }
            }
        }
    }
}

fn outcome_of(account: &Account, action: Action, response: Result<Response>) -> Outcome {
    let response = match response {
        Ok(response) => response,
        Err(error) => return Outcome::NoResponse(format!("{error:#}")),
    };
    let tokens = || {
        let body: serde_json::Value = serde_json::from_str(&response.text).ok()?;
        let token = |name: &str| Some(body.get(name)?.as_str()?.to_owned());
        Some((token("access_token")?, token("refresh_token")?))
    };
    let is_about_credentials = response.text.contains("Invalid credentials");
    match (response.status, action) {
        (200, Action::LogIn { .. }) => {
            if let Some((access, refresh)) = tokens() {
                return Outcome::LoggedIn(account.add_session(access, refresh));
            }
        }
        (200, Action::Refresh { session }) => {
            if let Some((access, refresh)) = tokens() {
                account.refreshed(session, access, refresh);
                return Outcome::Done;
            }
        }
        (200 | 201, _) => return Outcome::Done,
        (409, Action::Register { .. }) => return Outcome::LoginTaken,
        (401, _) if is_about_credentials => return Outcome::InvalidCredentials,
        (401 | 404, action) if action.session().is_some() => return Outcome::InvalidToken,
        (400, Action::LogOut { .. }) => return Outcome::AlreadyLoggedOut,
        (429, _) => return Outcome::Throttled,
        (status @ 502..=504, _) => return Outcome::Unavailable(status),
        _ => {}
    }
    Outcome::Unexpected(format!("{}: {}", response.status, response.text))
}

/// Uses one account after the other with several clients each, until the run ends.
pub(crate) async fn use_accounts(run: Arc<Run>, mut random: Random, slot: usize) {
    let mut actors: Vec<_> = (0..CLIENTS_PER_ACCOUNT)
        .map(|number| Actor::new(&run, random.split(), slot * CLIENTS_PER_ACCOUNT + number))
        .collect();
    while !run.is_over() {
        let account = run.add_account(random.milliseconds(10_000..40_000));
        let mut clients = tokio::task::JoinSet::new();
        for mut actor in actors.drain(..) {
            let account = Arc::clone(&account);
            clients.spawn(async move {
                actor.use_account(&account).await;
                actor
            });
        }
        actors = clients.join_all().await;
        let _ = account.retired.set(run.now());
    }
}

/// Uses a quota until the run ends.
pub(crate) async fn use_quota(run: Arc<Run>, mut random: Random, quota: usize, number: usize) {
    let pause = random.milliseconds(200..300);
    Actor::new(&run, random, number)
        .use_quota(quota, pause)
        .await;
}

/// Verifies the passwords of accounts.
pub(crate) async fn verify_accounts(run: Arc<Run>, random: Random, accounts: Vec<Arc<Account>>) {
    let mut actor = Actor::new(&run, random, 1);
    for account in accounts {
        actor.verify(&account).await;
    }
}
