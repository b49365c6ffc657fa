//! One user of a load.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;
use tokio::sync::Mutex;

use super::report::{LoadReport, OUTAGE_STATUSES};
use crate::client::{Client, PASSWORD, Response, credentials, send};

/// Number of times that a user reads its profile in a round.
const PROFILE_READS: usize = 5;

pub(super) struct VirtualUser {
    pub(super) client: Client,
    pub(super) report: Arc<Mutex<LoadReport>>,
    pub(super) pause: Duration,
}

impl VirtualUser {
    /// Registers `login`, logs in, reads the profile, logs out and checks that the token is
    /// invalid. Stops at the first unexpected response.
    pub(super) async fn run_round(&self, login: &str) -> Option<()> {
        let body = credentials(login, PASSWORD);
        let registration = self
            .request(Method::POST, "/api/register", None, Some(&body), &[201])
            .await?;
        let mut report = self.report.lock().await;
        report.registered_logins.push(login.to_owned());
        drop(report);
        let tokens = self
            .request(Method::POST, "/api/login", None, Some(&body), &[200])
            .await?
            .json();
        let token = tokens["access_token"].as_str();
        for _ in 0..PROFILE_READS {
            let profile = self
                .request(Method::GET, "/api/profile", token, None, &[200])
                .await?
                .json();
            if profile["login"] != login || profile["id"] != registration.json()["id"] {
                let contradiction = format!("{login} received the profile {profile}");
                self.report.lock().await.contradictions.push(contradiction);
            }
        }
        // 400 if the response to the first attempt was lost and the request was retried.
        self.request(Method::POST, "/api/logout", token, None, &[200, 400])
            .await?;
        self.request(Method::GET, "/api/profile", token, None, &[401])
            .await?;
        Some(())
    }

    /// Sends a request and records the response. Returns none if its status is not `expected`,
    /// which is a contradiction unless it is an outage.
    async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
        expected: &[u16],
    ) -> Option<Response> {
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
        let response = send(request).await;
        let mut report = self.report.lock().await;
        report.requests += 1;
        report.slowest = report.slowest.max(start.elapsed());
        let Ok(response) = response else {
            report.without_response += 1;
            return None;
        };
        let count = report.responses_by_status.entry(response.status);
        *count.or_default() += 1;
        if expected.contains(&response.status) {
            return Some(response);
        }
        if !OUTAGE_STATUSES.contains(&response.status) {
            let contradiction = format!("{path} returned {}: {}", response.status, response.text);
            report.contradictions.push(contradiction);
        }
        None
    }
}
