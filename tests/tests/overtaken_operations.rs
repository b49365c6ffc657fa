//! Operations on one account, of which one overtakes the other before each of its requests to the stores. Once an end
//! of sessions is acknowledged, no token is accepted that a session from before it gets, whatever was under way.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tests::Store;
use tests::client::{PASSWORD, credentials};
use tests::interruption::{Bench, HttpRequest, Instance, Reply, Tokens};
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

/// An operation overtaken by another one, and what both came to.
struct Overtaken {
    account: Account,
    slow: Reply,
    fast: Reply,
}

impl Overtaken {
    /// Returns whether both operations have a definite outcome. One that is answered by 503 may have taken effect.
    fn is_definite(&self) -> bool {
        self.slow.status != 503 && self.fast.status != 503
    }
}

/// Starts two replicas, and lets `fast` overtake `slow` before each of its requests to the stores, each time with a new
/// account. On a slow machine a store may not respond in time, but not always.
async fn overtake_everywhere(
    slow: impl Fn(&Account) -> HttpRequest,
    fast: impl Fn(&Account) -> HttpRequest,
    check: impl AsyncFn(&Bench, &Overtaken) -> Result<()>,
) -> Result<()> {
    let bench = Bench::start(Store::PostgresRedis, settings([])).await?;
    let mut definite = 0;
    for number in 1..MAX_REQUESTS {
        let account = new_account(&bench, number).await?;
        let requests = (slow(&account), fast(&account));
        let (slow, overtaken) = bench.overtake(&requests.0, number, &requests.1).await?;
        let slow = slow.context("the slow operation got no response")?;
        let Some((place, fast)) = overtaken else {
            ensure!(slow.status == 200 && definite > 0, "{definite}: {slow:?}");
            return Ok(());
        };
        let overtaken = Overtaken {
            account,
            slow,
            fast: fast.context("the fast operation got no response")?,
        };
        definite += usize::from(overtaken.is_definite());
        let checked = check(&bench, &overtaken).await;
        checked.with_context(|| {
            let Overtaken { slow, fast, .. } = &overtaken;
            format!("request {number} ({place}): {slow:?}, {fast:?}")
        })?;
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
    refresh_request(&account.other.refresh)
}

fn refresh_request(token: &str) -> HttpRequest {
    HttpRequest::post("/api/refresh").json(&json!({"refresh_token": token}))
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

async fn is_refreshed(bench: &Bench, refresh_token: &str) -> Result<bool> {
    let request = refresh_request(refresh_token);
    let mut is_refreshed = false;
    for instance in Bench::INSTANCES {
        let reply = bench.send(instance, &request).await?;
        ensure!([200, 401].contains(&reply.status), "{reply:?}");
        is_refreshed |= reply.status == 200;
    }
    Ok(is_refreshed)
}

/// Checks that neither the other session from before an acknowledged end of sessions nor the tokens of the slow operation
/// are accepted.
async fn have_ended(bench: &Bench, overtaken: &Overtaken) -> Result<()> {
    let Overtaken {
        account,
        slow,
        fast,
    } = overtaken;
    if fast.status == 503 {
        return Ok(());
    }
    ensure!(fast.status == 200, "it fails beside a slow operation");
    ensure!([200, 401, 503].contains(&slow.status), "{slow:?}");
    let new = (slow.status == 200).then(|| Tokens::of(slow)).transpose()?;
    for Tokens { access, refresh } in [&account.other].into_iter().chain(&new) {
        let statuses = profile_statuses(bench, access).await?;
        ensure!(
            statuses
                .iter()
                .all(|status| *status == 401 || *status == 404),
            "{statuses:?}"
        );
        ensure!(!is_refreshed(bench, refresh).await?, "refreshed");
    }
    Ok(())
}

/// Checks in addition that the session of the change goes on, and that its password is the one of the account.
async fn others_have_ended(bench: &Bench, overtaken: &Overtaken) -> Result<()> {
    have_ended(bench, overtaken).await?;
    if overtaken.fast.status == 200 {
        let Account { login, own, .. } = &overtaken.account;
        ensure!(profile_statuses(bench, &own.access).await? == [200, 200]);
        ensure!(is_refreshed(bench, &own.refresh).await?);
        ensure!(log_in(bench, login, FAST).await?.status == 200);
        ensure!(log_in(bench, login, PASSWORD).await?.status == 401);
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
            let Account { login, own, other } = &overtaken.account;
            let statuses = profile_statuses(bench, &own.access).await?;
            ensure!(statuses == [200, 200], "{statuses:?}");
            ensure!(is_refreshed(bench, &own.refresh).await?);
            let mut accepted = Vec::new();
            for password in [SLOW, FAST, PASSWORD] {
                if log_in(bench, login, password).await?.status == 200 {
                    accepted.push(password);
                }
            }
            ensure!(accepted.len() == 1, "{accepted:?}");
            if overtaken.is_definite() {
                let expected = match (overtaken.slow.status, overtaken.fast.status) {
                    (200, 401) => SLOW,
                    (401, 200) => FAST,
                    statuses => bail!("{statuses:?}"),
                };
                ensure!(accepted == [expected], "{accepted:?}");
                ensure!(profile_statuses(bench, &other.access).await? == [401, 401]);
            }
            Ok(())
        },
    )
    .await
}

#[tokio::test]
async fn a_login_that_a_change_of_the_password_overtakes_gets_no_session() -> Result<()> {
    overtake_everywhere(
        login,
        |account| change_password(account, FAST),
        others_have_ended,
    )
    .await
}

#[tokio::test]
async fn a_refresh_that_a_change_of_the_password_overtakes_gets_no_session() -> Result<()> {
    overtake_everywhere(
        refresh,
        |account| change_password(account, FAST),
        others_have_ended,
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
