//! Batching of profile queries.
//!
//! A query costs the server and this program much more than one more row of its result. So profile
//! requests are collected and fetched by a task, on a connection that it keeps while there are requests: all
//! requests that arrive while it waits for the server share the next query. If the server takes longer than
//! [`SLOW_QUERY`], another task fetches them meanwhile. A row is always read after it was requested, as without
//! batching.
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

/// Maximum number of fetchers, all but one of which wait for a slow query.
const MAX_FETCHERS: usize = 4;
/// Duration of a query after which requests do not wait for its end.
const SLOW_QUERY: Duration = Duration::from_millis(5);
/// Idle time after which a fetcher ends and releases its connection.
const FETCHER_IDLE_TIMEOUT: Duration = Duration::from_millis(500);

/// Database of profiles.
pub(super) trait ProfileSource: Clone + Send + Sync + 'static {
    type Query: FetchProfiles;

    /// Returns a query that holds no connection yet.
    fn new_query(&self) -> Self::Query;
}

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
pub(super) struct ProfileBatcher<S>(Arc<BatcherShared<S>>);

#[derive(Debug)]
struct BatcherShared<S> {
    source: S,
    queue: Mutex<ProfileQueue>,
    requested: Notify,
    supervisor: Supervisor,
}

/// As long as there are requests, a fetcher takes them after its query, or has been notified, or all
/// [`MAX_FETCHERS`] wait for slow queries.
#[derive(Debug, Default)]
struct ProfileQueue {
    requests: Vec<ProfileRequest>,
    fetchers: usize,
    /// Those of the fetchers that wait for a request.
    idle: usize,
    /// Those of the fetchers that wait for a slow query.
    slow: usize,
}

#[derive(Debug)]
struct ProfileRequest {
    user: UserId,
    reply: oneshot::Sender<ProfileResult>,
}

impl<S: ProfileSource> ProfileBatcher<S> {
    pub(super) fn new(source: S, supervisor: &Supervisor) -> Self {
        Self(Arc::new(BatcherShared {
            source,
            queue: Mutex::default(),
            requested: Notify::new(),
            supervisor: supervisor.clone(),
        }))
    }

    /// Enqueues a request. The receiver resolves when the profile was fetched.
    pub(super) fn request(&self, user: UserId) -> oneshot::Receiver<ProfileResult> {
        let (reply, receiver) = oneshot::channel();
        let mut queue = self.0.queue.lock();
        let was_empty = queue.requests.is_empty();
        queue.requests.push(ProfileRequest { user, reply });
        if was_empty {
            self.0.provide_fetcher(&mut queue);
        }
        receiver
    }
}

impl<S: ProfileSource> BatcherShared<S> {
    /// Notifies or starts a fetcher unless one is about to take the requests.
    fn provide_fetcher(self: &Arc<Self>, queue: &mut ProfileQueue) {
        if queue.fetchers > queue.idle + queue.slow {
            return;
        }
        if queue.idle > 0 {
            self.requested.notify_one();
        } else if queue.fetchers < MAX_FETCHERS {
            queue.fetchers += 1;
            let fetcher = Fetcher {
                shared: Arc::clone(self),
                state: FetcherState::Busy,
            };
            tokio::spawn(fetcher.run());
        }
    }
}

/// Task that serves requests. It is counted in the queue until it is dropped.
struct Fetcher<S> {
    shared: Arc<BatcherShared<S>>,
    state: FetcherState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetcherState {
    Busy,
    /// It is counted among the idle fetchers, too.
    Idle,
    /// It is counted among the slow fetchers, too.
    Slow,
    /// It is not counted any more.
    Ended,
}

type FetchedProfiles = HashMap<UserId, Result<AccountSummary, Unavailable>>;
type FetchOutcome = Result<Result<FetchedProfiles, Unavailable>, Panicked>;

impl<S: ProfileSource> Fetcher<S> {
    /// Serves batches until the fetcher has been idle for [`FETCHER_IDLE_TIMEOUT`].
    async fn run(mut self) {
        let mut query = self.shared.source.new_query();
        while let Some(requests) = self.next_batch().await {
            let users: Vec<_> = requests.iter().map(|request| request.user).collect();
            let profiles = self.fetch_batch(&mut query, &users).await;
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

    /// Fetches a batch. After [`SLOW_QUERY`] another fetcher takes the requests that arrive.
    async fn fetch_batch(&mut self, query: &mut S::Query, users: &[UserId]) -> FetchOutcome {
        let shared = Arc::clone(&self.shared);
        let mut fetch = pin!(shared.fetch_each(query, users));
        if let Ok(outcome) = tokio::time::timeout(SLOW_QUERY, &mut fetch).await {
            return outcome;
        }
        self.become_slow();
        let outcome = fetch.await;
        self.become_busy();
        outcome
    }

    fn become_slow(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.slow += 1;
        self.state = FetcherState::Slow;
        if !queue.requests.is_empty() {
            self.shared.provide_fetcher(&mut queue);
        }
    }

    fn become_busy(&mut self) {
        self.shared.queue.lock().slow -= 1;
        self.state = FetcherState::Busy;
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
            queue.idle -= 1;
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
            queue.idle += 1;
            self.state = FetcherState::Idle;
            return None;
        }
        Some(std::mem::take(&mut queue.requests))
    }
}

impl<S: ProfileSource> BatcherShared<S> {
    /// Fetches the profiles of `users`, one after the other if the conversion of one panics.
    async fn fetch_each(&self, query: &mut S::Query, users: &[UserId]) -> FetchOutcome {
        match self.fetch(query, users).await {
            Err(Panicked) if users.len() > 1 => Ok(self.fetch_one_by_one(query, users).await),
            outcome => outcome,
        }
    }

    async fn fetch(&self, query: &mut S::Query, users: &[UserId]) -> FetchOutcome {
        let fetched = pin!(query.fetch(users));
        let fetched = self.supervisor.catch(TASK, fetched).await?;
        Ok(fetched.map(|profiles| profiles.into_iter().collect()))
    }

    /// Fetches the users of a batch whose conversion panicked, to find those whose rows cause it.
    async fn fetch_one_by_one(
        &self,
        query: &mut S::Query,
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
}

/// Uncounts a fetcher that ends by a panic. If it was the last one, the requests fail at once: they would
/// wait until another request starts a fetcher.
impl<S> Drop for Fetcher<S> {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        match self.state {
            FetcherState::Ended => return,
            FetcherState::Idle => queue.idle -= 1,
            FetcherState::Slow => queue.slow -= 1,
            FetcherState::Busy => {}
        }
        queue.fetchers -= 1;
        if queue.fetchers == 0 {
            queue.requests.clear();
        } else if !queue.requests.is_empty() {
            self.shared.requested.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::domain::user::Profile;
    use crate::users::rows::to_standing;

    const BAD: UserId = UserId(1);
    const GOOD: UserId = UserId(2);
    const SLOW: UserId = UserId(3);
    /// Duration of a query.
    const ROUND_TRIP: Duration = Duration::from_millis(1);

    /// Source whose queries panic for [`BAD`], and do not return for [`SLOW`].
    #[derive(Debug, Clone, Default)]
    struct TestSource {
        queries: Arc<AtomicUsize>,
        /// Fetchers that end by a panic, before all others.
        ending_fetchers: Arc<AtomicUsize>,
    }

    struct TestQuery {
        queries: Arc<AtomicUsize>,
        fetcher: FetcherEnd,
    }

    #[derive(PartialEq, Eq)]
    enum FetcherEnd {
        Never,
        /// The query panics before it returns its future.
        FirstQuery,
    }

    impl ProfileSource for TestSource {
        type Query = TestQuery;

        fn new_query(&self) -> TestQuery {
            let decrement = |left: usize| left.checked_sub(1);
            let ending = &self.ending_fetchers;
            let ends = ending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, decrement);
            TestQuery {
                queries: Arc::clone(&self.queries),
                fetcher: match ends {
                    Ok(_) => FetcherEnd::FirstQuery,
                    Err(_) => FetcherEnd::Never,
                },
            }
        }
    }

    impl FetchProfiles for TestQuery {
        fn fetch(
            &mut self,
            users: &[UserId],
        ) -> impl Future<Output = Result<Vec<FetchedProfile>, Unavailable>> + Send {
            assert!(
                self.fetcher == FetcherEnd::Never,
                "a panic that is not caught"
            );
            self.queries.fetch_add(1, Ordering::Relaxed);
            let users = users.to_vec();
            async move {
                tokio::time::sleep(ROUND_TRIP).await;
                assert!(!users.contains(&BAD), "a row that cannot be converted");
                if users.contains(&SLOW) {
                    return std::future::pending().await;
                }
                let profiles = users.iter().map(|user| (*user, Ok(profile(*user))));
                Ok(profiles.collect())
            }
        }
    }

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

    fn batcher(source: &TestSource, supervisor: &Supervisor) -> ProfileBatcher<TestSource> {
        ProfileBatcher::new(source.clone(), supervisor)
    }

    async fn is_fetched(request: oneshot::Receiver<ProfileResult>) -> bool {
        matches!(request.await, Ok(Ok(Some(_))))
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_arrive_during_a_query_share_the_next_one() {
        let source = TestSource::default();
        let batcher = batcher(&source, &Supervisor::new());
        let first = batcher.request(GOOD);
        tokio::time::sleep(ROUND_TRIP / 2).await;
        let others: Vec<_> = (10..20).map(|user| batcher.request(UserId(user))).collect();
        assert!(is_fetched(first).await);
        for other in others {
            assert!(is_fetched(other).await);
        }
        assert_eq!(source.queries.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn no_request_waits_for_a_slow_query_of_others() {
        let batcher = batcher(&TestSource::default(), &Supervisor::new());
        for _ in 1..MAX_FETCHERS {
            let _slow = batcher.request(SLOW);
            tokio::time::sleep(ROUND_TRIP / 2).await;
            let start = tokio::time::Instant::now();
            // During the query, and after it has become a slow one.
            assert!(is_fetched(batcher.request(GOOD)).await);
            assert!(is_fetched(batcher.request(GOOD)).await);
            assert!(start.elapsed() < SLOW_QUERY + 4 * ROUND_TRIP);
        }
        let queue = batcher.0.queue.lock();
        assert_eq!(
            (queue.fetchers, queue.slow),
            (MAX_FETCHERS, MAX_FETCHERS - 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_whose_conversion_panics_fails_the_requests_for_its_user_alone() {
        let supervisor = Supervisor::new();
        let batcher = batcher(&TestSource::default(), &supervisor);
        for _ in 0..2 * MAX_FETCHERS {
            let (bad, good, other) = (
                batcher.request(BAD),
                batcher.request(GOOD),
                batcher.request(UserId(4)),
            );
            assert!(!is_fetched(bad).await);
            assert!(is_fetched(good).await);
            assert!(is_fetched(other).await);
        }
        assert!(supervisor.restarts(TASK) > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn fetchers_that_end_by_a_panic_are_replaced() {
        let source = TestSource::default();
        source
            .ending_fetchers
            .store(2 * MAX_FETCHERS, Ordering::Relaxed);
        let batcher = batcher(&source, &Supervisor::new());
        for _ in 0..2 * MAX_FETCHERS {
            assert!(batcher.request(GOOD).await.is_err());
        }
        assert!(is_fetched(batcher.request(GOOD)).await);
        // The idle fetcher is uncounted too if its runtime drops it.
        let queue = batcher.0.queue.lock();
        assert!(queue.fetchers <= 1 && queue.idle <= queue.fetchers);
    }
}
