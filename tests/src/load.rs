//! People who register, log in, read their profile and log out, again and again, whatever happens.
//!
//! Each knows what it was told, so that an answer that contradicts it shows: a profile of somebody
//! else, a token that lives on after its logout, an account that is gone though its registration
//! was acknowledged. Only an outage may be told instead, by 503 (or by 502 and 504 of a gateway).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use reqwest::Method;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::client::{Answer, Client, PASSWORD, credentials};

/// A crowd that is at it.
#[derive(Debug)]
pub struct Load {
    end: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    people: JoinSet<()>,
}

/// What a crowd was told.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub requests: u64,
    pub by_status: BTreeMap<u16, u64>,
    /// Requests that got no answer at all.
    pub unanswered: u64,
    /// Answers that contradict an earlier one, in words.
    pub wrong: Vec<String>,
    /// Accounts whose registration was acknowledged, by login.
    pub accounts: Vec<String>,
    pub slowest: Duration,
    /// When a request last failed.
    pub last_failure: Option<Instant>,
}

/// Tells one crowd's logins from another's.
static CROWDS: AtomicU64 = AtomicU64::new(0);

impl Load {
    /// Sends a crowd, each person with a client of their own, pausing so long between two requests.
    #[must_use]
    pub fn start(clients: Vec<Client>, pause: Duration) -> Self {
        let crowd = CROWDS.fetch_add(1, Ordering::Relaxed);
        let end = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut people = JoinSet::new();
        for (number, client) in clients.into_iter().enumerate() {
            let person = Person {
                client,
                tally: Arc::clone(&tally),
                pause,
            };
            let end = Arc::clone(&end);
            people.spawn(async move {
                let mut round = 0;
                while !end.load(Ordering::Relaxed) {
                    let login = format!("{} {crowd}-{number}-{round}", std::process::id());
                    person.live(&login).await;
                    round += 1;
                }
            });
        }
        Self { end, tally, people }
    }

    /// What was told so far.
    pub async fn tally(&self) -> Tally {
        self.tally.lock().await.clone()
    }

    /// Lets everybody finish what they began.
    pub async fn end(self) -> Tally {
        self.end.store(true, Ordering::Relaxed);
        self.people.join_all().await;
        let tally = self.tally.lock().await;
        tally.clone()
    }
}

impl Tally {
    /// Requests that were not answered, or answered by an outage.
    #[must_use]
    pub fn failures(&self) -> u64 {
        let outages: u64 = [502, 503, 504]
            .iter()
            .filter_map(|status| self.by_status.get(status))
            .sum();
        outages + self.unanswered
    }

    /// How many acknowledged accounts can no longer log in.
    ///
    /// # Errors
    /// When one can be asked about by no means.
    pub async fn lost(&self, client: &Client) -> Result<usize> {
        let mut lost = 0;
        for some in self.accounts.chunks(16) {
            let mut asked = JoinSet::new();
            for login in some {
                asked.spawn(is_lost(client.clone(), login.clone()));
            }
            while let Some(is_lost) = asked.join_next().await {
                lost += usize::from(is_lost??);
            }
        }
        Ok(lost)
    }

    /// `200: 12, 503: 3`
    #[must_use]
    pub fn statuses(&self) -> String {
        let mut words: Vec<_> = self
            .by_status
            .iter()
            .map(|(status, count)| format!("{status}: {count}"))
            .collect();
        if self.unanswered > 0 {
            words.push(format!("none: {}", self.unanswered));
        }
        words.join(", ")
    }
}

async fn is_lost(client: Client, login: String) -> Result<bool> {
    loop {
        match client.login(&login).await?.status {
            200 => return Ok(false),
            429 | 502 | 503 | 504 => tokio::time::sleep(Duration::from_millis(100)).await,
            _ => return Ok(true),
        }
    }
}

struct Person {
    client: Client,
    tally: Arc<Mutex<Tally>>,
    pause: Duration,
}

impl Person {
    /// One life: it is given up at the first outage.
    async fn live(&self, login: &str) -> Option<()> {
        let body = credentials(login, PASSWORD);
        let registered = self
            .ask(Method::POST, "/api/register", None, Some(&body), &[201])
            .await?;
        self.tally.lock().await.accounts.push(login.to_owned());
        let logged_in = self
            .ask(Method::POST, "/api/login", None, Some(&body), &[200])
            .await?;
        let tokens = logged_in.json();
        let token = tokens["access_token"].as_str();
        for _ in 0..5 {
            let profile = self
                .ask(Method::GET, "/api/profile", token, None, &[200])
                .await?;
            let profile = profile.json();
            if profile["login"] != login || profile["id"] != registered.json()["id"] {
                self.wrong(&format!("{login} reads {profile}")).await;
            }
        }
        // 400 where the first try was lost on its way back and was made again.
        self.ask(Method::POST, "/api/logout", token, None, &[200, 400])
            .await?;
        self.ask(Method::GET, "/api/profile", token, None, &[401])
            .await?;
        Some(())
    }

    /// An answer of one of these statuses; of another, it is an outage or it is wrong.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
        expected: &[u16],
    ) -> Option<Answer> {
        tokio::time::sleep(self.pause).await;
        let request = self.client.request(method, path);
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let start = Instant::now();
        let answer = crate::client::send(request).await;
        let mut tally = self.tally.lock().await;
        tally.requests += 1;
        tally.slowest = tally.slowest.max(start.elapsed());
        let Ok(answer) = answer else {
            tally.unanswered += 1;
            tally.last_failure = Some(Instant::now());
            return None;
        };
        *tally.by_status.entry(answer.status).or_default() += 1;
        if expected.contains(&answer.status) {
            return Some(answer);
        }
        if [502, 503, 504].contains(&answer.status) {
            tally.last_failure = Some(Instant::now());
        } else {
            let text = format!("{path} is answered {}: {}", answer.status, answer.text);
            tally.wrong.push(text);
        }
        None
    }

    async fn wrong(&self, what: &str) {
        self.tally.lock().await.wrong.push(what.to_owned());
    }
}
