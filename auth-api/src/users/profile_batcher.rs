//! Batching of profile queries.
//!
//! A query costs the server and this program much more than one more row of its result. So profile
//! requests are collected and fetched by up to [`MAX_FETCHERS`] tasks, each on a connection that it
//! keeps while there are requests: all requests that arrive while the fetchers wait for the server
//! share the next query. A row is always read after it was requested, as without batching.
//!
//! Users share a query but no failure that one of them causes: a row that cannot be converted, or whose
//! conversion panics, fails the requests for this user alone. The queue counts its fetchers by guards, so
//! that one that ends by a panic is replaced.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use supervision::{Panicked, Supervisor};
use tokio::sync::{Notify, oneshot};

use crate::domain::user::{AccountSummary, UserId};
use crate::store::postgres::STORE;
use crate::store::unavailable::Unavailable;

/// Maximum number of fetchers: while the server executes one query, the next is on its way.
const MAX_FETCHERS: usize = 2;
/// Idle time after which a fetcher ends and releases its connection.
const FETCHER_IDLE_TIMEOUT: Duration = Duration::from_millis(500);

/// Query for the profiles and standing of several users, with the connection that it holds between runs.
pub(super) trait FetchProfiles: Send + 'static {
    /// Returns the profiles of those `users` that exist, in any order.
    fn fetch(
        &mut self,
        users: &[UserId],
    ) -> impl Future<Output = Result<Vec<FetchedProfile>, Unavailable>> + Send;
}

/// Profile of one user, or the failure to read it.
pub(super) type FetchedProfile = (UserId, Result<AccountSummary, Unavailable>);

type ProfileResult = Result<Option<AccountSummary>, Unavailable>;

/// Name of the fetchers in the metrics.
const TASK: &str = "profile_fetcher";

/// Queue of profile requests and the tasks that serve it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ProfileBatcher(Arc<BatcherShared>);

#[derive(Debug)]
struct BatcherShared {
    queue: Mutex<ProfileQueue>,
    requested: Notify,
    supervisor: Supervisor,
}

#[derive(Debug, Default)]
struct ProfileQueue {
    requests: Vec<ProfileRequest>,
    fetchers: usize,
    idle_fetchers: usize,
}

#[derive(Debug)]
struct ProfileRequest {
    user: UserId,
    reply: oneshot::Sender<ProfileResult>,
}

impl ProfileBatcher {
    pub(super) fn new(supervisor: &Supervisor) -> Self {
        Self(Arc::new(BatcherShared {
            queue: Mutex::default(),
            requested: Notify::new(),
            supervisor: supervisor.clone(),
        }))
    }

    /// Enqueues a request and starts a fetcher with `new_query` if none is idle. The receiver
    /// resolves when the profile was fetched.
    pub(super) fn request<Q: FetchProfiles>(
        &self,
        user: UserId,
        new_query: impl FnOnce() -> Q,
    ) -> oneshot::Receiver<ProfileResult> {
        let (reply, receiver) = oneshot::channel();
        let mut queue = self.0.queue.lock();
        queue.requests.push(ProfileRequest { user, reply });
        if queue.idle_fetchers > 0 {
            self.0.requested.notify_one();
        } else if queue.fetchers < MAX_FETCHERS {
            queue.fetchers += 1;
            let fetcher = Fetcher {
                shared: Arc::clone(&self.0),
                state: FetcherState::Busy,
            };
            tokio::spawn(fetcher.run(new_query()));
        }
        receiver
    }
}

/// Task that serves requests. It is counted in the queue until it is dropped.
struct Fetcher {
    shared: Arc<BatcherShared>,
    state: FetcherState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetcherState {
    Busy,
    /// It is counted among the idle fetchers, too.
    Idle,
    /// It is not counted any more.
    Ended,
}

type FetchedProfiles = HashMap<UserId, Result<AccountSummary, Unavailable>>;

impl Fetcher {
    /// Serves batches until the fetcher has been idle for [`FETCHER_IDLE_TIMEOUT`].
    async fn run(mut self, mut query: impl FetchProfiles) {
        while let Some(requests) = self.next_batch().await {
            let users: Vec<_> = requests.iter().map(|request| request.user).collect();
            let mut profiles = self.fetch(&mut query, &users).await;
            if matches!(profiles, Err(Panicked)) && users.len() > 1 {
                profiles = Ok(self.fetch_one_by_one(&mut query, &users).await);
            }
            let profiles =
                profiles.unwrap_or_else(|panicked| Err(Unavailable::because(STORE, &panicked)));
            for ProfileRequest { user, reply } in requests {
                let profile = match &profiles {
                    Ok(profiles) => profiles.get(&user).cloned().transpose(),
                    Err(unavailable) => Err(*unavailable),
                };
                // Fails if the client disconnected meanwhile.
                let _ = reply.send(profile);
            }
        }
    }

    async fn fetch(
        &self,
        query: &mut impl FetchProfiles,
        users: &[UserId],
    ) -> Result<Result<FetchedProfiles, Unavailable>, Panicked> {
        let fetched = pin!(query.fetch(users));
        let fetched = self.shared.supervisor.catch(TASK, fetched).await?;
        Ok(fetched.map(|profiles| profiles.into_iter().collect()))
    }

    /// Fetches the users of a batch whose conversion panicked, to find those whose rows cause it.
    async fn fetch_one_by_one(
        &self,
        query: &mut impl FetchProfiles,
        users: &[UserId],
    ) -> Result<FetchedProfiles, Unavailable> {
        let mut profiles = HashMap::new();
        for user in users {
            match self.fetch(query, &[*user]).await {
                Ok(fetched) => profiles.extend(fetched?),
                Err(panicked) => {
                    let unavailable = Unavailable::because(STORE, &panicked);
                    profiles.insert(*user, Err(unavailable));
                }
            }
        }
        Ok(profiles)
    }

    /// Returns all waiting requests, or `None` if there was none for [`FETCHER_IDLE_TIMEOUT`].
    async fn next_batch(&mut self) -> Option<Vec<ProfileRequest>> {
        loop {
            // Lets handlers that became ready together with the first one enqueue their requests.
            tokio::task::yield_now().await;
            if let Some(requests) = self.take_or_become_idle() {
                return Some(requests);
            }
            let notified = self.shared.requested.notified();
            let notified = tokio::time::timeout(FETCHER_IDLE_TIMEOUT, notified).await;
            let mut queue = self.shared.queue.lock();
            queue.idle_fetchers -= 1;
            self.state = FetcherState::Busy;
            if notified.is_err() && queue.requests.is_empty() {
                queue.fetchers -= 1;
                self.state = FetcherState::Ended;
                return None;
            }
        }
    }

    /// Takes the requests whose clients still wait. If there is none, the fetcher becomes idle.
    fn take_or_become_idle(&mut self) -> Option<Vec<ProfileRequest>> {
        let mut queue = self.shared.queue.lock();
        queue.requests.retain(|request| !request.reply.is_closed());
        if queue.requests.is_empty() {
            queue.idle_fetchers += 1;
            self.state = FetcherState::Idle;
            return None;
        }
        Some(std::mem::take(&mut queue.requests))
    }
}

/// Uncounts a fetcher that ends by a panic. If it was the last one, the requests fail at once: they would
/// wait until another request starts a fetcher.
impl Drop for Fetcher {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        match self.state {
            FetcherState::Ended => return,
            FetcherState::Idle => queue.idle_fetchers -= 1,
            FetcherState::Busy => {}
        }
        queue.fetchers -= 1;
        if queue.fetchers == 0 {
            queue.requests.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::user::Profile;
    use crate::users::rows::to_standing;

    /// Query that panics for one user.
    #[derive(Clone, Copy)]
    struct PanicsFor(UserId);

    impl FetchProfiles for PanicsFor {
        async fn fetch(&mut self, users: &[UserId]) -> Result<Vec<FetchedProfile>, Unavailable> {
            tokio::task::yield_now().await;
            assert!(!users.contains(&self.0), "a row that cannot be converted");
            Ok(users
                .iter()
                .map(|user| (*user, Ok(profile(*user))))
                .collect())
        }
    }

    /// Query that panics before it returns its future, which ends the fetcher.
    struct EndsFetcher;

    impl FetchProfiles for EndsFetcher {
        fn fetch(
            &mut self,
            users: &[UserId],
        ) -> impl Future<Output = Result<Vec<FetchedProfile>, Unavailable>> + Send {
            assert!(users.is_empty(), "a panic that is not caught");
            std::future::pending()
        }
    }

    const BAD: UserId = UserId(1);
    const GOOD: UserId = UserId(2);

    fn profile(id: UserId) -> AccountSummary {
        AccountSummary {
            profile: Profile {
                id,
                login: id.0.to_string(),
                created_at: None,
                last_login: None,
            },
            standing: to_standing(false, None),
        }
    }

    async fn is_fetched(request: oneshot::Receiver<ProfileResult>) -> bool {
        matches!(request.await, Ok(Ok(Some(_))))
    }

    #[tokio::test]
    async fn a_row_whose_conversion_panics_fails_the_requests_for_its_user_alone() {
        let supervisor = Supervisor::new();
        let batcher = ProfileBatcher::new(&supervisor);
        let request = |user| batcher.request(user, || PanicsFor(BAD));
        for _ in 0..2 * MAX_FETCHERS {
            let (bad, good, other) = (request(BAD), request(GOOD), request(UserId(3)));
            assert!(!is_fetched(bad).await);
            assert!(is_fetched(good).await);
            assert!(is_fetched(other).await);
        }
        assert!(supervisor.restarts(TASK) > 0);
    }

    #[tokio::test]
    async fn fetchers_that_end_by_a_panic_are_replaced() {
        let batcher = ProfileBatcher::new(&Supervisor::new());
        for _ in 0..2 * MAX_FETCHERS {
            let failed = batcher.request(GOOD, || EndsFetcher);
            assert!(failed.await.is_err());
        }
        assert!(is_fetched(batcher.request(GOOD, || PanicsFor(BAD))).await);
        // The idle fetcher is uncounted too if its runtime drops it.
        let queue = batcher.0.queue.lock();
        assert!(queue.fetchers <= 1 && queue.idle_fetchers <= queue.fetchers);
    }
}
