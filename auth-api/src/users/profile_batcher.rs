//! Batching of profile queries.
//!
//! A query costs the server and this program much more than one more row of its result. So profile
//! requests are collected and fetched by up to [`MAX_FETCHERS`] tasks, each on a connection that it
//! keeps while there are requests: all requests that arrive while the fetchers wait for the server
//! share the next query. A row is always read after it was requested, as without batching.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::domain::user::{Profile, UserId};
use crate::store::unavailable::Unavailable;

/// Maximum number of fetchers: while the server executes one query, the next is on its way.
const MAX_FETCHERS: usize = 2;
/// Idle time after which a fetcher ends and releases its connection.
const FETCHER_IDLE_TIMEOUT: Duration = Duration::from_millis(500);

/// Query for the profiles of several users, with the connection that it holds between runs.
pub(super) trait FetchProfiles: Send + 'static {
    /// Returns the profiles of those `users` that exist, in any order.
    fn fetch(
        &mut self,
        users: &[UserId],
    ) -> impl Future<Output = Result<Vec<Profile>, Unavailable>> + Send;
}

type ProfileResult = Result<Option<Profile>, Unavailable>;

/// Queue of profile requests and the tasks that serve it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct ProfileBatcher(Arc<BatcherShared>);

#[derive(Debug, Default)]
struct BatcherShared {
    queue: Mutex<ProfileQueue>,
    requested: Notify,
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
            tokio::spawn(self.clone().run_fetcher(new_query()));
        }
        receiver
    }

    /// Serves batches until the fetcher has been idle for [`FETCHER_IDLE_TIMEOUT`].
    async fn run_fetcher(self, mut query: impl FetchProfiles) {
        while let Some(requests) = self.next_batch().await {
            let users: Vec<_> = requests.iter().map(|request| request.user).collect();
            let profiles = query.fetch(&users).await.map(by_user);
            for ProfileRequest { user, reply } in requests {
                let profile = profiles
                    .as_ref()
                    .map(|profiles| profiles.get(&user).cloned());
                // Fails if the client disconnected meanwhile.
                let _ = reply.send(profile.map_err(|unavailable| *unavailable));
            }
        }
    }

    /// Returns all waiting requests, or `None` if there was none for [`FETCHER_IDLE_TIMEOUT`].
    async fn next_batch(&self) -> Option<Vec<ProfileRequest>> {
        loop {
            // Lets handlers that became ready together with the first one enqueue their requests.
            tokio::task::yield_now().await;
            if let Some(requests) = self.0.queue.lock().take() {
                return Some(requests);
            }
            let notified =
                tokio::time::timeout(FETCHER_IDLE_TIMEOUT, self.0.requested.notified()).await;
            let mut queue = self.0.queue.lock();
            queue.idle_fetchers -= 1;
            if notified.is_err() && queue.requests.is_empty() {
                queue.fetchers -= 1;
                return None;
            }
        }
    }
}

impl ProfileQueue {
    /// Takes the requests whose clients still wait. If there is none, counts the fetcher as idle.
    fn take(&mut self) -> Option<Vec<ProfileRequest>> {
        self.requests.retain(|request| !request.reply.is_closed());
        if self.requests.is_empty() {
            self.idle_fetchers += 1;
            return None;
        }
        Some(std::mem::take(&mut self.requests))
    }
}

fn by_user(profiles: Vec<Profile>) -> HashMap<UserId, Profile> {
    profiles
        .into_iter()
        .map(|profile| (profile.id, profile))
        .collect()
}
