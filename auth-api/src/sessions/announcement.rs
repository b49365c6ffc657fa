//! Endings, told to every replica and heard by each before they are acknowledged: whoever was told
//! that a session is over must find it over everywhere.
//!
//! An announcement names a channel and a number; a replica that has heard it says that number on
//! that channel. Redis tells how many were listening. One that does not answer holds the others up
//! for [`PATIENCE`], and believes what it remembers for some seconds at most.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use uuid::Uuid;

/// What a replica that is alive needs at the very most, under the worst of loads.
const PATIENCE: Duration = Duration::from_millis(500);

/// This replica's announcements.
#[derive(Debug)]
pub(super) struct Announcements {
    channel: String,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Semaphore>>>,
}

/// One that is on its way.
#[derive(Debug)]
pub(super) struct Announcement<'a> {
    all: &'a Announcements,
    number: u64,
    heard: Arc<Semaphore>,
}

impl Announcements {
    pub(super) fn new() -> Self {
        Self {
            channel: format!("sessions:heard:{}", Uuid::new_v4().simple()),
            next: AtomicU64::new(0),
            open: Mutex::default(),
        }
    }

    /// Where others say that they have heard.
    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    pub(super) fn begin(&self) -> Announcement<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let heard = Arc::new(Semaphore::new(0));
        self.open.lock().insert(number, Arc::clone(&heard));
        Announcement {
            all: self,
            number,
            heard,
        }
    }

    /// A replica has heard.
    pub(super) fn heard(&self, number: &str) {
        let open = self.open.lock();
        let announcement = number.parse().ok().and_then(|number| open.get(&number));
        if let Some(heard) = announcement {
            heard.add_permits(1);
        }
    }
}

impl Announcement<'_> {
    /// What is told before what has ended.
    pub(super) fn head(&self) -> String {
        format!("{} {}", self.all.channel, self.number)
    }

    /// Waits until all have heard.
    pub(super) async fn heard_by(self, replicas: u32) {
        let all = self.heard.acquire_many(replicas);
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::debug!("a replica did not say that it has heard of an ending");
        }
    }
}

impl Drop for Announcement<'_> {
    fn drop(&mut self) {
        self.all.open.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_over_once_all_have_heard() {
        let all = Announcements::new();
        let announcement = all.begin();
        let number = announcement.number.to_string();
        all.heard("nonsense");
        all.heard(&number);
        let mut waiting = Box::pin(announcement.heard_by(2));
        assert!(futures_pending(&mut waiting));
        all.heard(&number);
        waiting.await;
        assert!(all.open.lock().is_empty());
    }

    fn futures_pending(future: &mut (impl Future + Unpin)) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(future).poll(&mut context).is_pending()
    }
}
