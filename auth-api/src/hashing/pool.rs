//! Thread pool for bcrypt, with a bounded queue.
//!
//! A hash takes a fifth of a second of a core by design. On the threads that serve requests, many
//! concurrent logins would block everything else, and in an unbounded queue every client would wait
//! until it gives up. So hashing has its own threads, and a job that would wait longer than a limit
//! is rejected with the time after which to retry. Clients share the queue (see [`super::fairness`]).
//! Queued jobs are hashed in batches (see [`super::bcrypt_lanes`]), and dropped when their client
//! disconnects. A job that panics fails alone.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use supervision::{Panicked, Supervisor};
use tokio::sync::oneshot;

use super::bcrypt_lanes::{self, LANES, Lane};
use super::fairness::{ClientKey, job_to_displace};
use crate::domain::password::{NewPassword, Password};
use crate::domain::password_hash::{BcryptDigest, BcryptHash, PasswordHash};
use crate::domain::session::ClientInfo;
use crate::telemetry::metrics::HashingMetrics;

/// Nice value of hashing threads: under contention a request thread gets about ten times their CPU time.
const NICENESS: i32 = 10;
/// Divisor of a job's duration that yields the longest wait for further jobs of its batch.
const BATCH_WAIT_DIVISOR: u32 = 4;
/// Assumed duration of a hash of cost 0, until the first measurement.
const INITIAL_ESTIMATE: Duration = Duration::from_micros(60);

/// Name of the threads in the metrics.
const TASK: &str = "hashing";

/// The queue is full: the expected wait exceeds the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hashing queue is full")]
pub(crate) struct QueueFull {
    pub(crate) retry_after: Duration,
}

/// Handle of the thread pool. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Hasher {
    queue: Arc<Queue>,
    cost: u32,
    /// Client for whom jobs are queued.
    client: ClientKey,
}

/// Hashing settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HashingSettings {
    /// bcrypt cost of new hashes.
    pub(crate) cost: u32,
    pub(crate) threads: NonZeroUsize,
    /// Longest expected time in the queue with which a job is accepted.
    pub(crate) max_wait: Duration,
}

#[derive(Debug)]
struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    /// Clients of the jobs that are being hashed. Locked after `jobs`.
    hashing: Mutex<Vec<ClientKey>>,
    /// Notified when a job was added.
    added: Condvar,
    /// Number of threads that are hashing.
    busy_threads: AtomicUsize,
    threads: u64,
    max_wait: Duration,
    /// Moving average of the thread time per job, in nanoseconds.
    job_nanos: AtomicU64,
    metrics: HashingMetrics,
    supervisor: Supervisor,
}

#[derive(Debug)]
struct Job {
    password: Password,
    salt: [u8; 16],
    cost: u32,
    queued_at: Instant,
    client: ClientKey,
    reply: oneshot::Sender<Result<BcryptDigest, QueueFull>>,
}

impl Hasher {
    /// Starts the threads, which run until the process exits and are restarted by `supervisor`.
    pub(crate) fn start(
        settings: HashingSettings,
        metrics: HashingMetrics,
        supervisor: &Supervisor,
    ) -> std::io::Result<Self> {
        let estimate = INITIAL_ESTIMATE.saturating_mul(1 << settings.cost);
        let queue = Arc::new(Queue {
            jobs: Mutex::default(),
            hashing: Mutex::default(),
            added: Condvar::new(),
            busy_threads: AtomicUsize::new(0),
            threads: settings.threads.get() as u64,
            max_wait: settings.max_wait,
            job_nanos: AtomicU64::new(to_nanos(estimate)),
            metrics,
            supervisor: supervisor.clone(),
        });
        for number in 1..=settings.threads.get() {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name(format!("hashing-{number}"))
                .spawn(move || queue.supervisor.run_blocking(TASK, || queue.run_worker()))?;
        }
        Ok(Self {
            queue,
            cost: settings.cost,
            client: ClientKey::Unknown,
        })
    }

    /// Returns a handle whose jobs are counted for `client`.
    pub(crate) fn for_client(&self, client: &ClientInfo) -> Self {
        Self {
            client: ClientKey::from(client.address.as_str()),
            ..self.clone()
        }
    }

    /// Hashes a new password at the configured cost, with a random salt.
    pub(crate) async fn hash(&self, password: &NewPassword) -> Result<PasswordHash, QueueFull> {
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt).expect("the operating system provides random bytes");
        let digest = self.digest(password.as_password(), self.cost, salt).await?;
        Ok(PasswordHash::new(self.cost, salt, &digest))
    }

    /// Returns whether `password` matches `stored`. If `stored` is not a bcrypt hash, the result is
    /// `false` after the same time.
    pub(crate) async fn verify(
        &self,
        password: &Password,
        stored: &PasswordHash,
    ) -> Result<bool, QueueFull> {
        let Some(bcrypt) = stored.as_bcrypt() else {
            self.verify_dummy(password).await?;
            return Ok(false);
        };
        let digest = self.digest(password, bcrypt.cost, bcrypt.salt).await?;
        Ok(bcrypt.matches(&digest))
    }

    /// Takes as long as [`Self::verify`], for an account that does not exist: the response time must
    /// not reveal which logins are registered.
    pub(crate) async fn verify_dummy(&self, password: &Password) -> Result<(), QueueFull> {
        self.digest(password, self.cost, [0; 16]).await.map(drop)
    }

    /// Extends a failed verification of `stored` to the duration of one at the configured cost.
    ///
    /// A hash takes 2^cost time units, so hashes of every cost from that of `stored` up to the
    /// configured one, exclusive, take the time that is missing. If the queue is full, the rest is
    /// omitted, because counting the failed login is more important.
    pub(crate) async fn equalize_time(&self, password: &Password, stored: &PasswordHash) {
        let Some(BcryptHash {
            cost: verified_cost,
            ..
        }) = stored.as_bcrypt()
        else {
            return;
        };
        for cost in verified_cost..self.cost {
            if self.digest(password, cost, [0; 16]).await.is_err() {
                return;
            }
        }
    }

    /// Returns whether the cost of `stored` differs from the configured one.
    pub(crate) fn is_outdated(&self, stored: &PasswordHash) -> bool {
        stored.as_bcrypt().map(|bcrypt| bcrypt.cost) != Some(self.cost)
    }

    async fn digest(
        &self,
        password: &Password,
        cost: u32,
        salt: [u8; 16],
    ) -> Result<BcryptDigest, QueueFull> {
        let (reply, digest) = oneshot::channel();
        self.queue.push(Job {
            password: password.clone(),
            salt,
            cost,
            queued_at: Instant::now(),
            client: self.client,
            reply,
        })?;
        match digest.await {
            Ok(result) => result,
            // A panic of the job is one of the caller. It has been logged.
            Err(_) => std::panic::resume_unwind(Box::new(Panicked)),
        }
    }
}

impl Queue {
    fn push(&self, job: Job) -> Result<(), QueueFull> {
        let mut jobs = self.jobs.lock();
        if self.expected_wait(jobs.len()) > self.max_wait {
            jobs.retain(|job| !job.reply.is_closed());
        }
        let wait = self.expected_wait(jobs.len());
        if wait > self.max_wait {
            self.metrics.rejected.inc();
            let queue_full = QueueFull { retry_after: wait };
            let clients: Vec<_> = jobs.iter().map(|job| job.client).collect();
            let displaced = job_to_displace(&clients, &self.hashing.lock(), job.client)
                .and_then(|index| jobs.remove(index));
            let Some(displaced) = displaced else {
                return Err(queue_full);
            };
            // Fails if the client disconnected meanwhile.
            let _ = displaced.reply.send(Err(queue_full));
        }
        jobs.push_back(job);
        self.metrics.queue_depth.set(to_gauge(jobs.len()));
        self.added.notify_one();
        Ok(())
    }

    fn expected_wait(&self, queued: usize) -> Duration {
        let job_nanos = self.job_nanos.load(Ordering::Relaxed);
        Duration::from_nanos((queued as u64).saturating_mul(job_nanos) / self.threads)
    }

    fn run_worker(&self) -> ! {
        // On Linux this sets the priority of the thread, not of the process. If that is not
        // permitted, the thread keeps the normal one.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        loop {
            let (batch, _clients) = self.take_batch();
            let _busy = BusyGuard::new(&self.busy_threads);
            self.hash(batch);
        }
    }

    /// Waits for jobs and takes a batch: jobs of one cost whose clients still wait.
    fn take_batch(&self) -> (Vec<Job>, HashingGuard<'_>) {
        let mut jobs = self.jobs.lock();
        loop {
            while jobs.is_empty() {
                self.added.wait(&mut jobs);
            }
            self.wait_for_more(&mut jobs);
            jobs.retain(|job| !job.reply.is_closed());
            let Some(first) = jobs.pop_front() else {
                self.metrics.queue_depth.set(0);
                continue;
            };
            let mut batch = vec![first];
            while batch.len() < LANES && jobs.front().is_some_and(|job| job.cost == batch[0].cost) {
                batch.extend(jobs.pop_front());
            }
            self.metrics.queue_depth.set(to_gauge(jobs.len()));
            if !jobs.is_empty() {
                // Notifications for these jobs woke this thread, which leaves them to another.
                self.added.notify_one();
            }
            let clients = HashingGuard::new(&self.hashing, &batch);
            return (batch, clients);
        }
    }

    /// Waits briefly for further jobs while other threads are hashing: an empty lane costs more than
    /// the wait, and clients whose batch has just been completed send their next requests. A lone job
    /// is started at once.
    fn wait_for_more(&self, jobs: &mut MutexGuard<'_, VecDeque<Job>>) {
        let job = Duration::from_nanos(self.job_nanos.load(Ordering::Relaxed));
        let deadline = Instant::now() + job / BATCH_WAIT_DIVISOR;
        while (1..LANES).contains(&jobs.len()) && self.busy_threads.load(Ordering::Relaxed) > 0 {
            if self.added.wait_until(jobs, deadline).timed_out() {
                return;
            }
        }
    }

    fn hash(&self, batch: Vec<Job>) {
        let start = Instant::now();
        let lanes: Vec<_> = batch
            .iter()
            .map(|job| Lane {
                password: job.password.bytes(),
                salt: job.salt,
            })
            .collect();
        let digests = self.digest_each(batch[0].cost, &lanes);
        self.update_estimate(start.elapsed(), batch.len());
        for (job, digest) in batch.into_iter().zip(digests) {
            self.metrics
                .queue_wait
                .observe((start - job.queued_at).as_secs_f64());
            if let Ok(digest) = digest {
                // Fails if the client disconnected meanwhile.
                let _ = job.reply.send(Ok(digest));
            }
        }
    }

    /// Hashes all lanes together. If that panics, hashes each alone: the others complete.
    fn digest_each(&self, cost: u32, lanes: &[Lane]) -> Vec<Result<BcryptDigest, Panicked>> {
        let digest = |lanes| {
            self.supervisor
                .catch_blocking(TASK, || bcrypt_lanes::digest(cost, lanes))
        };
        match (digest(lanes), lanes) {
            (Ok(digests), _) => digests.into_iter().map(Ok).collect(),
            (Err(Panicked), [_]) => vec![Err(Panicked)],
            (Err(Panicked), several) => several
                .chunks(1)
                .map(|lane| digest(lane)?.pop().ok_or(Panicked))
                .collect(),
        }
    }

    /// Updates the moving average with a weight of 1/8 for the new measurement.
    fn update_estimate(&self, duration: Duration, jobs: usize) {
        let new = to_nanos(duration) / jobs as u64;
        let old = self.job_nanos.load(Ordering::Relaxed);
        self.job_nanos
            .store(old - old / 8 + new / 8, Ordering::Relaxed);
    }
}

/// Counts the clients of a batch as being served until it is dropped.
struct HashingGuard<'q> {
    hashing: &'q Mutex<Vec<ClientKey>>,
    clients: Vec<ClientKey>,
}

impl<'q> HashingGuard<'q> {
    fn new(hashing: &'q Mutex<Vec<ClientKey>>, batch: &[Job]) -> Self {
        let clients: Vec<_> = batch.iter().map(|job| job.client).collect();
        hashing.lock().extend(&clients);
        Self { hashing, clients }
    }
}

impl Drop for HashingGuard<'_> {
    fn drop(&mut self) {
        let mut hashing = self.hashing.lock();
        for client in &self.clients {
            if let Some(index) = hashing.iter().position(|other| other == client) {
                hashing.swap_remove(index);
            }
        }
    }
}

/// Counts a thread as busy until it is dropped.
struct BusyGuard<'q>(&'q AtomicUsize);

impl<'q> BusyGuard<'q> {
    fn new(busy_threads: &'q AtomicUsize) -> Self {
        busy_threads.fetch_add(1, Ordering::Relaxed);
        Self(busy_threads)
    }
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn to_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn to_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::telemetry::metrics::Metrics;

    /// Cost for which bcrypt panics.
    const INVALID_COST: u32 = 32;

    #[tokio::test]
    async fn a_job_that_panics_fails_and_the_threads_go_on() {
        let metrics = Metrics::new();
        let settings = HashingSettings {
            cost: 4,
            threads: NonZeroUsize::MIN,
            max_wait: Duration::from_mins(1),
        };
        let hasher = Hasher::start(settings, metrics.hashing.clone(), &metrics.supervisor)
            .expect("the threads start");
        let password = Password::presented("a password");
        for _ in 0..3 {
            let job = pin!(hasher.digest(&password, INVALID_COST, [0; 16]));
            assert!(supervision::catch_unwind(job).await.is_err());
        }
        assert!(hasher.verify_dummy(&password).await.is_ok());
        assert_eq!(metrics.supervisor.restarts(TASK), 3);
        assert!(
            metrics
                .encode()
                .contains("auth_api_task_restarts_total{task=\"hashing\"} 3")
        );
    }
}
