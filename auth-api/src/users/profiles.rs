//! Profiles that are asked for at the same time, fetched together.
//!
//! A query costs the server and us much more than a row of its answer does. So up to
//! [`MOST_FETCHERS`] tasks fetch, each on a connection that it keeps while there is something to
//! do: whoever asks while all of them wait for the server shares the next query with everybody
//! else who waits. Each row is read after it was asked for, as ever.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::postgres::{DEADLINE, PostgresUsers, STORE};
use crate::domain::user::{Profile, UserId};
use crate::unavailable::Unavailable;

/// While the server answers one query, the next is on its way.
const MOST_FETCHERS: usize = 2;
/// A fetcher that has had nothing to do for so long gives its connection back and ends.
const REST: Duration = Duration::from_millis(500);

type Found = Result<Option<Profile>, Unavailable>;

/// Who waits for a profile. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Profiles(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    asked: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: Vec<Request>,
    fetchers: usize,
    /// Fetchers with nothing to do.
    resting: usize,
}

#[derive(Debug)]
struct Request {
    user: UserId,
    reply: oneshot::Sender<Found>,
}

impl Profiles {
    pub(super) async fn get(&self, users: &PostgresUsers, user: UserId) -> Found {
        let (reply, found) = oneshot::channel();
        self.ask(users, Request { user, reply });
        match tokio::time::timeout(DEADLINE, found).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => Err(Unavailable::because(STORE, &error)),
            Err(late) => Err(Unavailable::because(STORE, &late)),
        }
    }

    fn ask(&self, users: &PostgresUsers, request: Request) {
        let mut waiting = self.0.waiting.lock();
        waiting.requests.push(request);
        if waiting.resting > 0 {
            self.0.asked.notify_one();
        } else if waiting.fetchers < MOST_FETCHERS {
            waiting.fetchers += 1;
            tokio::spawn(self.clone().fetch(users.clone()));
        }
    }

    /// Fetches what is asked for until nobody has asked for a while.
    async fn fetch(self, users: PostgresUsers) {
        let mut connection = None;
        while let Some(requests) = self.next().await {
            let ids: Vec<_> = requests.iter().map(|request| request.user.0).collect();
            let rows = users.profiles(&mut connection, &ids).await.map(by_user);
            for Request { user, reply } in requests {
                let found = rows.as_ref().map(|rows| rows.get(&user).cloned());
                // Whoever has gone needs no answer.
                let _ = reply.send(found.map_err(|away| *away));
            }
        }
    }

    /// Everybody who waits; `None` where nobody has come for [`REST`], which ends a fetcher.
    async fn next(&self) -> Option<Vec<Request>> {
        loop {
            // Requests that came in together with the first get to ask as well.
            tokio::task::yield_now().await;
            if let Some(requests) = self.0.waiting.lock().take() {
                return Some(requests);
            }
            let came = tokio::time::timeout(REST, self.0.asked.notified()).await;
            let mut waiting = self.0.waiting.lock();
            waiting.resting -= 1;
            if came.is_err() && waiting.requests.is_empty() {
                waiting.fetchers -= 1;
                return None;
            }
        }
    }
}

impl Waiting {
    /// Whoever waits; where nobody does, the fetcher rests.
    fn take(&mut self) -> Option<Vec<Request>> {
        self.requests.retain(|request| !request.reply.is_closed());
        if self.requests.is_empty() {
            self.resting += 1;
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
