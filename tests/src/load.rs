//! Continuous load: virtual users who register, log in, read their profile and log out, repeatedly,
//! while a test injects faults.
//!
//! Each virtual user checks every response against the earlier ones. A [contradiction] is, for
//! example, another user's profile, a token that is valid after its logout, or a lost account
//! whose registration was acknowledged. A failing store may only cause 503 (or 502 and 504 of a
//! gateway).
//!
//! [contradiction]: LoadReport::contradictions

mod report;
mod virtual_user;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use self::virtual_user::VirtualUser;
use crate::client::Client;

pub use self::report::LoadReport;

/// Number of loads that this process has started, which makes their logins distinct.
static STARTED_LOADS: AtomicU64 = AtomicU64::new(0);

/// A running load.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<LoadReport>>,
    users: JoinSet<()>,
}

impl Load {
    /// Starts one virtual user for each of `clients`, each with a pause before every request.
    #[must_use]
    pub fn start(clients: Vec<Client>, pause: Duration) -> Self {
        let load = STARTED_LOADS.fetch_add(1, Ordering::Relaxed);
        let stop = Arc::new(AtomicBool::new(false));
        let report = Arc::new(Mutex::new(LoadReport::default()));
        let mut users = JoinSet::new();
        for (number, client) in clients.into_iter().enumerate() {
            let user = VirtualUser {
                client,
                report: Arc::clone(&report),
                pause,
            };
            let stop = Arc::clone(&stop);
            users.spawn(async move {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    let login = format!("{} {load}-{number}-{round}", std::process::id());
                    user.run_round(&login).await;
                    round += 1;
                }
            });
        }
        Self {
            stop,
            report,
            users,
        }
    }

    /// Lets every virtual user finish its round and returns the report.
    pub async fn finish(self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        self.users.join_all().await;
        let report = self.report.lock().await;
        report.clone()
    }
}
