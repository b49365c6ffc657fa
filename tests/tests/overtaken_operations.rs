//! Operations on one account, of which one overtakes the other before each of its requests to the stores. Once an end
//! of sessions is acknowledged, no token is accepted that a session from before it gets, whatever was under way.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::Store;
use tests::client::{PASSWORD, credentials};
use tests::interruption::{Bench, HttpRequest, Instance, Reply};
use tests::settings::settings;

/// Upper bound of the requests to the stores that an operation makes.
const MAX_REQUESTS: usize = 40;
const SLOW: &str = "the password of the slow change";
const FAST: &str = "the password of the fast change";

/// An account with two sessions.
struct Account {
    login: String,
    own: Tokens,
    other: Tokens,
}

struct Tokens {
    access: String,
    refresh: String,
}

impl Tokens {
    fn of(reply: &Reply) -> Result<Self> {
        let body = reply.json();
        let token = |name: &str| {
            let token = body[name].as_str().map(str::to_owned);
            token.with_context(|| format!("{name} in {reply:?}"))
        };
        Ok(Self {
            access: token("access_token")?,
            refresh: token("refresh_token")?,
        })
    }
}

/// An operation overtaken by another one, and what it came to.
struct Overtaken {
    account: Account,
    /// Status of the response to the slow operation, 0 if there was none, and its tokens.
    slow: (u16, Option<Tokens>),
    fast: u16,
    /// Request to a store before which it was overtaken, and both statuses.
    context: String,
}

/// Starts two replicas, and lets `fast` overtake `slow` before each of its requests to the stores, each time with a new
/// account.
async fn overtake_everywhere(
    slow: impl Fn(&Account) -> HttpRequest,
    fast: impl Fn(&Account) -> HttpRequest,
    check: impl AsyncFn(&Bench, &Overtaken) -> Result<()>,
) -> Result<()> {
    let bench = Bench::start(Store::PostgresRedis, settings([])).await?;
    for number in 1..MAX_REQUESTS {
        let account = new_account(&bench, number).await?;
        let requests = (slow(&account), fast(&account));
        let (slow, overtaken) = bench.overtake(&requests.0, number, &requests.1).await?;
        let Some((place, fast)) = overtaken else {
            ensure!(number > 1 && slow.is_some_and(|reply| reply.status == 200));
            return Ok(());
        };
        let status = slow.as_ref().map_or(0, |reply| reply.status);
        let tokens = slow.as_ref().map(Tokens::of).transpose();
        let overtaken = Overtaken {
            account,
            slow: (status, tokens.ok().flatten()),
            fast: fast.status,
            context: format!("request {number} ({place}): {status}, {}", fast.status),
        };
        let checked = check(&bench, &overtaken).await;
        checked.context(overtaken.context)?;
    }
    bail!("an operation makes more than {MAX_REQUESTS} requests")
}

async fn new_account(bench: &Bench, number: usize) -> Result<Account> {
    let login = format!("user{number}");
    let register = HttpRequest::post("/api/register").json(&credentials(&login, PASSWORD));
    bench.send(Instance::Witness, &register).await?;
    let new_session = || async { Tokens::of(&log_in(bench, &login, PASSWORD).await?) };
    let (own, other) = (new_session().await?, new_session().await?);
    Ok(Account { login, own, other })
}

fn login(account: &Account) -> HttpRequest {
    HttpRequest::post("/api/login").json(&credentials(&account.login, PASSWORD))
}

fn refresh(account: &Account) -> HttpRequest {
    let token: Value = json!({"refresh_token": account.other.refresh});
    HttpRequest::post("/api/refresh").json(&token)
}

fn change_password(account: &Account, new: &str) -> HttpRequest {
    let body = json!({"current_password": PASSWORD, "new_password": new});
    let request = HttpRequest::post("/api/password").json(&body);
    request.bearer(&account.own.access)
}

fn log_out_everywhere(account: &Account) -> HttpRequest {
    HttpRequest::post("/api/logout-all").bearer(&account.own.access)
}

fn delete(account: &Account) -> HttpRequest {
    HttpRequest::post("/api/delete").json(&credentials(&account.login, PASSWORD))
}

async fn log_in(bench: &Bench, login: &str, password: &str) -> Result<Reply> {
    let request = HttpRequest::post("/api/login").json(&credentials(login, password));
    bench.send(Instance::Witness, &request).await
}

async fn profile_statuses(bench: &Bench, token: &str) -> Result<[u16; 2]> {
    let mut statuses = [0; 2];
    for (status, instance) in statuses.iter_mut().zip(Bench::INSTANCES) {
        let request = HttpRequest::get("/api/profile").bearer(token);
        *status = bench.send(instance, &request).await?.status;
    }
    Ok(statuses)
}

/// Checks that neither the other session from before an acknowledged end of sessions nor the tokens of the slow operation
/// are accepted.
async fn have_ended(bench: &Bench, overtaken: &Overtaken) -> Result<()> {
    ensure!(overtaken.fast == 200, "it fails beside a slow operation");
    let slow = overtaken.slow.1.as_ref();
    let tokens = [&overtaken.account.other].into_iter().chain(slow);
    for Tokens { access, refresh } in tokens {
        let statuses = profile_statuses(bench, access).await?;
        ensure!(
            statuses
                .iter()
                .all(|status| *status == 401 || *status == 404),
            "{statuses:?}"
        );
        let request = HttpRequest::post("/api/refresh").json(&json!({"refresh_token": refresh}));
        for instance in Bench::INSTANCES {
            let status = bench.send(instance, &request).await?.status;
            ensure!(status == 401, "{instance:?}: refreshed: {status}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_change_of_the_password_that_overtakes_another_one_in_its_session_keeps_the_session()
-> Result<()> {
    overtake_everywhere(
        |account| change_password(account, SLOW),
        |account| change_password(account, FAST),
        async |bench, overtaken| {
            let Account { login, own, .. } = &overtaken.account;
            let statuses = profile_statuses(bench, &own.access).await?;
            ensure!(statuses == [200, 200], "{statuses:?}");
            let mut accepted = Vec::new();
            for password in [SLOW, FAST, PASSWORD] {
                if log_in(bench, login, password).await?.status == 200 {
                    accepted.push(password);
                }
            }
            ensure!(accepted.len() == 1, "{accepted:?}");
            // A change that was answered by 503 may have taken effect.
            let (slow, fast) = (overtaken.slow.0, overtaken.fast);
            for (status, password) in [(slow, SLOW), (fast, FAST)] {
                let may_hold = status == 200 || status == 503;
                ensure!(may_hold || accepted != [password], "{accepted:?}");
            }
            let is_acknowledged = slow == 200 || fast == 200;
            ensure!(!is_acknowledged || accepted != [PASSWORD], "{accepted:?}");
            Ok(())
        },
    )
    .await
}

#[tokio::test]
async fn a_login_that_a_change_of_the_password_overtakes_gets_no_session() -> Result<()> {
    overtake_everywhere(login, |account| change_password(account, FAST), have_ended).await
}

#[tokio::test]
async fn a_refresh_that_a_change_of_the_password_overtakes_gets_no_session() -> Result<()> {
    overtake_everywhere(
        refresh,
        |account| change_password(account, FAST),
        have_ended,
    )
    .await
}

#[tokio::test]
async fn a_refresh_that_a_logout_everywhere_overtakes_gets_no_session() -> Result<()> {
    overtake_everywhere(refresh, log_out_everywhere, have_ended).await
}

#[tokio::test]
async fn a_login_that_the_deletion_of_its_account_overtakes_gets_no_session() -> Result<()> {
    overtake_everywhere(login, delete, have_ended).await
}

#[tokio::test]
async fn a_refresh_that_the_deletion_of_its_account_overtakes_gets_no_session() -> Result<()> {
    overtake_everywhere(refresh, delete, have_ended).await
}
