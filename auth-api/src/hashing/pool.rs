//! Thread pool for bcrypt, with a bounded queue.
//!
//! A hash takes a fifth of a second of a core by design. On the threads that serve requests, many
//! concurrent logins would block everything else, and in an unbounded queue every client would wait
//! until it gives up. So hashing has its own threads, and a job that would wait longer than a limit
//! is rejected with the time after which to retry. Clients share the queue (see [`super::fairness`]).
//! Queued jobs are hashed in batches (see [`super::bcrypt_lanes`]), and dropped when their client
//! disconnects. A job that panics fails alone.
//!
//! A check of a password is one job, whose duration tells nothing about the account: it takes as long as
//! the costliest stored hash that may be verified, whether the stored hash has a lower cost, is none, or
//! there is no account, and however many others are in its batch. Invariant: only a check that succeeds
//! ends earlier, and not before a check of its batch that fails. Another job for the rest of a check would break
//! it, since that job would wait in the queue once more. That a password matched is not known to its client yet: the
//! throttle may have locked the login meanwhile. So a password is hashed anew only after that, as a job of its own.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
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
/// Number of jobs for each thread that the queue has room for, however long they take. With room for one job, a
/// client whose job is in the queue would keep out all others, none of which has a smaller share than that.
const MIN_QUEUED_JOBS_PER_THREAD: u64 = 2;
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
    max_cost: u32,
    /// Client for whom jobs are queued.
    client: ClientKey,
}

/// Hashing settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HashingSettings {
    /// bcrypt cost of new hashes.
    pub(crate) cost: u32,
    /// Highest bcrypt cost of a stored hash that is verified, at least `cost`.
    pub(crate) max_cost: u32,
    pub(crate) threads: NonZeroUsize,
    /// Longest expected time in the queue with which a job is accepted.
    pub(crate) max_wait: Duration,
}

/// Rule for hashing a password anew after a check that succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rehash {
    Never,
    /// If the stored hash is of another cost than the configured one, or not of the normalized password.
    IfOutdated,
}

/// The password is that of the stored hash.
#[derive(Debug)]
pub(crate) struct Match {
    /// Password whose hash should replace the stored one.
    pub(crate) outdated: Option<NewPassword>,
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
    /// bcrypt cost of new hashes.
    cost: u32,
    /// Cost of the hash that a check takes as long as.
    check_duration: AtomicU32,
    /// Moving average of the thread time per job, in nanoseconds.
    job_nanos: AtomicU64,
    metrics: HashingMetrics,
    supervisor: Supervisor,
}

#[derive(Debug)]
struct Job {
    /// Spellings of one password, each hashed in a lane of its own.
    passwords: Vec<Password>,
    salt: [u8; 16],
    cost: u32,
    /// Cost of the hash that the job takes as long as, at least `cost`.
    duration: u32,
    queued_at: Instant,
    client: ClientKey,
    work: Work,
}

/// Purpose of a job, with the channel for its result.
#[derive(Debug)]
enum Work {
    Hash(oneshot::Sender<Result<BcryptDigest, QueueFull>>),
    Check(Check, oneshot::Sender<Result<Option<Match>, QueueFull>>),
}

#[derive(Debug)]
struct Check {
    /// Hash to compare with, `None` if no password may match.
    stored: Option<BcryptHash>,
    rehash: Option<NewPassword>,
}

/// Check that has succeeded, in a batch of which others may fail.
struct PendingMatch {
    found: Match,
    reply: oneshot::Sender<Result<Option<Match>, QueueFull>>,
}

impl Work {
    fn is_cancelled(&self) -> bool {
        match self {
            Self::Hash(reply) => reply.is_closed(),
            Self::Check(_, reply) => reply.is_closed(),
        }
    }

    fn reject(self, queue_full: QueueFull) {
        // Fails if the client disconnected meanwhile.
        match self {
            Self::Hash(reply) => drop(reply.send(Err(queue_full))),
            Self::Check(_, reply) => drop(reply.send(Err(queue_full))),
        }
    }
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
            cost: settings.cost,
            check_duration: AtomicU32::new(settings.cost),
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
            max_cost: settings.max_cost,
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
        let (salt, cost) = (random_salt(), self.queue.cost);
        let (reply, digest) = oneshot::channel();
        self.queue.push(Job {
            passwords: vec![password.as_password().clone()],
            salt,
            cost,
            duration: cost,
            queued_at: Instant::now(),
            client: self.client,
            work: Work::Hash(reply),
        })?;
        Ok(PasswordHash::new(cost, salt, &result_of(digest).await?))
    }

    /// Returns whether `password` is that of the hash `stored`, in one of its normalization forms. Without
    /// a hash, and for one that is not verified, the result is `None` after the same time.
    pub(crate) async fn check(
        &self,
        password: &Password,
        stored: Option<&PasswordHash>,
        rehash: Rehash,
    ) -> Result<Option<Match>, QueueFull> {
        let passwords = password.spellings();
        let stored = stored
            .and_then(PasswordHash::as_bcrypt)
            .filter(|stored| stored.cost <= self.max_cost && !password.contains_nul());
        let rehash = match rehash {
            Rehash::Never => None,
            // A password that violates the current rules keeps its hash.
            Rehash::IfOutdated => password.to_new(),
        };
        let (reply, outcome) = oneshot::channel();
        let cost = stored.map_or(self.queue.cost, |stored| stored.cost);
        // A hash that has become the costliest since that was queried.
        let check_duration = &self.queue.check_duration;
        let previous = check_duration.fetch_max(cost, Ordering::Relaxed);
        let duration = previous.max(cost);
        if duration > previous {
            warn_about_costly_hash(duration);
        }
        self.queue.push(Job {
            passwords,
            salt: stored.map_or([0; 16], |stored| stored.salt),
            cost,
            duration,
            queued_at: Instant::now(),
            client: self.client,
            work: Work::Check(Check { stored, rehash }, reply),
        })?;
        result_of(outcome).await
    }

    /// Sets the highest cost of the stored hashes, `None` without any. From now on every check takes as
    /// long as one of that cost, and at least as one of the configured cost.
    pub(crate) fn set_costliest_hash(&self, cost: Option<u32>) {
        let duration = cost.unwrap_or(0).min(self.max_cost).max(self.queue.cost);
        let check_duration = &self.queue.check_duration;
        let previous = check_duration.swap(duration, Ordering::Relaxed);
        if duration > previous.max(self.queue.cost) {
            warn_about_costly_hash(duration);
        }
    }

    /// Highest cost of a stored hash that is verified.
    pub(crate) fn max_cost(&self) -> u32 {
        self.max_cost
    }
}

fn warn_about_costly_hash(cost: u32) {
    tracing::warn!(
        cost,
        "a stored hash has a higher cost than BCRYPT_COST: until the passwords of such accounts are set \
         or they log in, every failed login takes as long as its verification"
    );
}

fn random_salt() -> [u8; 16] {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).expect("the operating system provides random bytes");
    salt
}

async fn result_of<T>(receiver: oneshot::Receiver<Result<T, QueueFull>>) -> Result<T, QueueFull> {
    match receiver.await {
        Ok(result) => result,
        // A panic of the job is one of the caller. It has been logged.
        Err(_) => std::panic::resume_unwind(Box::new(Panicked)),
    }
}

impl Queue {
    fn push(&self, job: Job) -> Result<(), QueueFull> {
        let mut jobs = self.jobs.lock();
        if self.is_full(jobs.len()) {
            jobs.retain(|job| !job.work.is_cancelled());
        }
        if self.is_full(jobs.len()) {
            self.metrics.rejected.inc();
            let retry_after = self.expected_wait(jobs.len());
            let queue_full = QueueFull { retry_after };
            let clients: Vec<_> = jobs.iter().map(|job| job.client).collect();
            let displaced = job_to_displace(&clients, &self.hashing.lock(), job.client)
                .and_then(|index| jobs.remove(index));
            let Some(displaced) = displaced else {
                return Err(queue_full);
            };
            displaced.work.reject(queue_full);
        }
        jobs.push_back(job);
        self.metrics.queue_depth.set(to_gauge(jobs.len()));
        self.added.notify_one();
        Ok(())
    }

    /// Returns whether another job would have to wait for too long behind `queued` jobs.
    fn is_full(&self, queued: usize) -> bool {
        queued as u64 >= MIN_QUEUED_JOBS_PER_THREAD * self.threads
            && self.expected_wait(queued) > self.max_wait
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

    /// Waits for jobs and takes a batch: jobs of one duration whose clients still wait.
    fn take_batch(&self) -> (Vec<Job>, HashingGuard<'_>) {
        let mut jobs = self.jobs.lock();
        loop {
            while jobs.is_empty() {
                self.added.wait(&mut jobs);
            }
            self.wait_for_more(&mut jobs);
            jobs.retain(|job| !job.work.is_cancelled());
            let Some(first) = jobs.pop_front() else {
                self.metrics.queue_depth.set(0);
                continue;
            };
            let (duration, mut lanes) = (first.duration, first.passwords.len());
            let mut batch = vec![first];
            while let Some(next) = jobs.pop_front_if(|next| {
                next.duration == duration && lanes + next.passwords.len() <= LANES
            }) {
                lanes += next.passwords.len();
                batch.push(next);
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
        let (start, count) = (Instant::now(), batch.len());
        for job in &batch {
            let wait = start - job.queued_at;
            self.metrics.queue_wait.observe(wait.as_secs_f64());
        }
        let mut batch: Vec<_> = batch.into_iter().map(Some).collect();
        if self.run(&mut batch).is_err() && count > 1 {
            // Each alone: those that do not panic complete.
            for job in batch.iter_mut().filter(|job| job.is_some()) {
                let _ = self.run(std::slice::from_mut(job));
            }
        }
        // The remaining jobs have panicked; dropping their channels tells their callers.
        drop(batch);
        self.update_estimate(start.elapsed(), count);
    }

    /// Hashes all lanes of the jobs together and takes each job out of `batch` when it has its result.
    fn run(&self, batch: &mut [Option<Job>]) -> Result<(), Panicked> {
        let mut matches = Vec::new();
        let mut lanes = Vec::new();
        let mut ranges = Vec::new();
        for job in batch.iter() {
            let first = lanes.len();
            if let Some(job) = job {
                let lane = |password: &Password| Lane::new(password.bytes(), job.salt, job.cost);
                lanes.extend(job.passwords.iter().map(lane));
            }
            ranges.push(first..lanes.len());
        }
        let duration = batch.iter().flatten().map(|job| job.duration).max();
        let mut reached = |digests: &[(usize, BcryptDigest)]| {
            for (slot, lanes) in batch.iter_mut().zip(&ranges) {
                let digests = digests_of(lanes, digests);
                *slot = slot
                    .take()
                    .and_then(|job| self.complete(job, &digests, &mut matches));
            }
            if batch.iter().all(Option::is_none) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let digest = || bcrypt_lanes::digest(&lanes, duration.unwrap_or_default(), &mut reached);
        let result = self.supervisor.catch_blocking(TASK, digest);
        for PendingMatch { found, reply } in matches {
            // Fails if the client disconnected meanwhile.
            let _ = reply.send(Ok(Some(found)));
        }
        result?;
        // Failed checks have taken the whole duration.
        for job in batch.iter_mut().filter_map(Option::take) {
            if let Work::Check(_, reply) = job.work {
                let _ = reply.send(Ok(None));
            }
        }
        Ok(())
    }

    /// Completes a job with the digests of its passwords. Returns a job that has to go on: its digests have
    /// not been reached, or its check has failed.
    fn complete(
        &self,
        job: Job,
        digests: &[BcryptDigest],
        matches: &mut Vec<PendingMatch>,
    ) -> Option<Job> {
        let Some(first) = digests.first() else {
            return Some(job);
        };
        let (check, reply) = match job.work {
            // Fails if the client disconnected meanwhile.
            Work::Hash(reply) => {
                let _ = reply.send(Ok(*first));
                return None;
            }
            Work::Check(check, reply) => (check, reply),
        };
        let Some(spelling) = check.matching(digests) else {
            let work = Work::Check(check, reply);
            return Some(Job { work, ..job });
        };
        // The first spelling is the normalized one.
        let is_current = job.cost == self.cost && spelling == 0;
        let outdated = check.rehash.filter(|_| !is_current);
        let found = Match { outdated };
        matches.push(PendingMatch { found, reply });
        None
    }

    /// Updates the moving average with a weight of 1/8 for the new measurement.
    fn update_estimate(&self, duration: Duration, jobs: usize) {
        let new = to_nanos(duration) / jobs as u64;
        let old = self.job_nanos.load(Ordering::Relaxed);
        self.job_nanos
            .store(old - old / 8 + new / 8, Ordering::Relaxed);
    }
}

impl Check {
    /// Returns the index of the digest that the stored hash has. Compares all of them.
    fn matching(&self, digests: &[BcryptDigest]) -> Option<usize> {
        let stored = self.stored?;
        let matches: Vec<bool> = digests
            .iter()
            .map(|digest| stored.matches(digest))
            .collect();
        matches.iter().position(|matches| *matches)
    }
}

/// Returns the digests of one job's lanes. Its lanes have one cost, so they are all reached or none.
fn digests_of(lanes: &Range<usize>, reached: &[(usize, BcryptDigest)]) -> Vec<BcryptDigest> {
    reached
        .iter()
        .filter(|(lane, _)| lanes.contains(lane))
        .map(|(_, digest)| *digest)
        .collect()
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

    fn start(metrics: &Metrics) -> Hasher {
        let settings = HashingSettings {
            cost: 5,
            max_cost: INVALID_COST,
            threads: NonZeroUsize::MIN,
            max_wait: Duration::from_mins(1),
        };
        Hasher::start(settings, metrics.hashing.clone(), &metrics.supervisor)
            .expect("the threads start")
    }

    fn job(password: &str, cost: u32, duration: u32, stored: Option<BcryptHash>) -> (Job, Verdict) {
        let (reply, verdict) = oneshot::channel();
        let password = Password::presented(password);
        let check = Check {
            stored,
            rehash: password.to_new(),
        };
        let job = Job {
            passwords: password.spellings(),
            salt: stored.map_or([0; 16], |stored| stored.salt),
            cost,
            duration,
            queued_at: Instant::now(),
            client: ClientKey::Unknown,
            work: Work::Check(check, reply),
        };
        (job, verdict)
    }

    type Verdict = oneshot::Receiver<Result<Option<Match>, QueueFull>>;

    fn stored(password: &str, cost: u32) -> BcryptHash {
        let text = bcrypt::hash(password, cost).expect("the cost is valid");
        PasswordHash::from_stored(text)
            .as_bcrypt()
            .expect("the text is a hash")
    }

    #[tokio::test]
    async fn a_job_that_panics_fails_and_the_threads_go_on() {
        let metrics = Metrics::new();
        let hasher = start(&metrics);
        for _ in 0..3 {
            let (job, verdict) = job("a password", INVALID_COST, INVALID_COST, None);
            hasher.queue.push(job).expect("the queue is empty");
            let result = pin!(result_of(verdict));
            assert!(supervision::catch_unwind(result).await.is_err());
        }
        let password = Password::presented("a password");
        let check = hasher.check(&password, None, Rehash::Never).await;
        assert!(check.is_ok_and(|verdict| verdict.is_none()));
        assert_eq!(metrics.supervisor.restarts(TASK), 3);
        assert!(
            metrics
                .encode()
                .contains("auth_api_task_restarts_total{task=\"hashing\"} 3")
        );
    }

    #[tokio::test]
    async fn jobs_in_the_batch_of_one_that_panics_complete() {
        let metrics = Metrics::new();
        let hasher = start(&metrics);
        let valid = |password| job(password, 4, 5, Some(stored("a password", 4)));
        let (right, right_verdict) = valid("a password");
        let (panicking, panicked_verdict) = job("a password", INVALID_COST, 5, None);
        let (wrong, wrong_verdict) = valid("a wrong password");
        hasher.queue.hash(vec![right, panicking, wrong]);
        let found = right_verdict.await.expect("the job completes");
        assert!(found.expect("it was accepted").is_some());
        let missed = wrong_verdict.await.expect("the job completes");
        assert!(missed.expect("it was accepted").is_none());
        assert!(panicked_verdict.await.is_err());
    }

    #[tokio::test]
    async fn a_check_that_succeeds_is_not_reported_before_others_of_its_batch_fail() {
        let metrics = Metrics::new();
        let queue = &start(&metrics).queue;
        let hash = stored("a password", 4);
        let (job, mut verdict) = job("a password", 4, 5, Some(hash));
        let lanes = [Lane::new(job.passwords[0].bytes(), job.salt, job.cost)];
        let mut job = Some(job);
        let mut matches = Vec::new();
        bcrypt_lanes::digest(&lanes, 5, &mut |digests| {
            let digests: Vec<_> = digests.iter().map(|(_, digest)| *digest).collect();
            job = job
                .take()
                .and_then(|job| queue.complete(job, &digests, &mut matches));
            ControlFlow::Continue(())
        });
        assert!(job.is_none() && matches.len() == 1);
        assert!(verdict.try_recv().is_err(), "the client knows already");
    }

    #[tokio::test]
    async fn a_check_that_succeeds_tells_whether_the_hash_is_outdated() {
        let metrics = Metrics::new();
        let hasher = start(&metrics);
        let (nfc, nfd) = ("p\u{e4}ssw\u{f6}rter 1", "pa\u{308}sswo\u{308}rter 1");
        for (presented, hashed, cost, is_outdated) in [
            (nfc, nfc, 5, false),
            (nfd, nfc, 5, false),
            (nfc, nfc, 4, true),
            (nfc, nfc, 6, true),
            (nfd, nfd, 5, true),
            (nfc, nfd, 5, true),
            ("short", "short", 4, false),
        ] {
            let hash = bcrypt::hash(hashed, cost).expect("the cost is valid");
            let stored = PasswordHash::from_stored(hash);
            let password = Password::presented(presented);
            for (rehash, is_expected) in [(Rehash::IfOutdated, is_outdated), (Rehash::Never, false)]
            {
                let found = hasher.check(&password, Some(&stored), rehash).await;
                let found = found.expect("the queue is empty").expect("it matches");
                assert_eq!(
                    found.outdated.is_some(),
                    is_expected,
                    "{presented:?} {cost}"
                );
                if let Some(password) = found.outdated {
                    let new = hasher.hash(&password).await.expect("the queue is empty");
                    assert!(bcrypt::verify(nfc, new.as_str()).is_ok_and(|matches| matches));
                }
            }
        }
    }

    #[tokio::test]
    async fn slow_jobs_leave_room_for_two_of_each_thread() {
        let metrics = Metrics::new();
        let queue = &start(&metrics).queue;
        let hour = u64::try_from(Duration::from_hours(1).as_nanos()).expect("it fits");
        queue.job_nanos.store(hour, Ordering::Relaxed);
        let room = usize::try_from(MIN_QUEUED_JOBS_PER_THREAD * queue.threads).expect("it fits");
        assert!(!queue.is_full(room - 1));
        assert!(queue.is_full(room));
        queue.job_nanos.store(1, Ordering::Relaxed);
        assert!(!queue.is_full(room));
    }

    #[tokio::test]
    async fn a_check_takes_as_long_as_the_costliest_hash() {
        let metrics = Metrics::new();
        let hasher = start(&metrics);
        let duration = || hasher.queue.check_duration.load(Ordering::Relaxed);
        assert_eq!(duration(), 5);
        for (costliest, expected) in [(Some(7), 7), (Some(4), 5), (None, 5), (Some(40), 32)] {
            hasher.set_costliest_hash(costliest);
            assert_eq!(duration(), expected);
        }
        hasher.set_costliest_hash(None);
        let hash = bcrypt::hash("a password", 6).expect("the cost is valid");
        let stored = PasswordHash::from_stored(hash);
        let wrong = Password::presented("a wrong password");
        let verdict = hasher.check(&wrong, Some(&stored), Rehash::Never).await;
        assert!(verdict.is_ok_and(|verdict| verdict.is_none()));
        assert_eq!(duration(), 6, "a hash that was not known");
    }
}
