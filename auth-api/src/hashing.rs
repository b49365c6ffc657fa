//! bcrypt on threads of its own, behind a bounded queue.
//!
//! A hash takes a fifth of a second of a core on purpose. On the threads that answer requests a
//! storm of logins would stop everything else, and in an endless queue every client would wait
//! until it gives up. So hashing has its own threads, and the queue holds no more than is done
//! within a bounded wait; past that a client is told to come back. What waits is hashed several
//! at a time (see [`lanes`]), and dropped when its client has gone.

mod lanes;
mod pi;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

pub(crate) use lanes::Digest;
use lanes::{LANES, Lane};

use crate::domain::password::{Bcrypt, NewPassword, Password, PasswordHash};
use crate::metrics::HashingMetrics;

/// The kernel gives a request thread ten times the time of a hashing thread where both want it.
const NICENESS: i32 = 10;
/// The share of a job's time that it may wait for others to be done in step with.
const COMPANY: u32 = 4;
/// What a hash costs before any was measured, as time for one of cost 0: a guess at a core of today.
const FIRST_GUESS: Duration = Duration::from_micros(60);

/// The queue is as long as the longest wait allows: come back after this many seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hashing queue is full")]
pub(crate) struct QueueFull {
    pub(crate) retry_after: Duration,
}

/// Hands passwords to the hashing threads. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Hasher {
    queue: Arc<Queue>,
    cost: u32,
}

/// How hashing is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// bcrypt's cost for new hashes.
    pub(crate) cost: u32,
    pub(crate) threads: NonZeroUsize,
    /// The longest that a job may expect to wait before it is begun.
    pub(crate) longest_wait: Duration,
}

#[derive(Debug)]
struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    arrived: Condvar,
    /// Threads that hash at this moment.
    at_work: AtomicUsize,
    threads: u64,
    longest_wait: Duration,
    /// Nanoseconds that a thread spends on a job, as measured lately.
    job_nanos: AtomicU64,
    metrics: HashingMetrics,
}

#[derive(Debug)]
struct Job {
    password: Password,
    salt: [u8; 16],
    cost: u32,
    since: Instant,
    reply: oneshot::Sender<Digest>,
}

impl Hasher {
    /// Starts the threads. They end with the process.
    pub(crate) fn start(settings: Settings, metrics: HashingMetrics) -> std::io::Result<Self> {
        let guess = FIRST_GUESS.saturating_mul(1 << settings.cost);
        let queue = Arc::new(Queue {
            jobs: Mutex::default(),
            arrived: Condvar::new(),
            at_work: AtomicUsize::new(0),
            threads: settings.threads.get() as u64,
            longest_wait: settings.longest_wait,
            job_nanos: AtomicU64::new(nanos(guess)),
            metrics,
        });
        for number in 1..=settings.threads.get() {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name(format!("hashing-{number}"))
                .spawn(move || queue.work())?;
        }
        Ok(Self {
            queue,
            cost: settings.cost,
        })
    }

    /// Hashes a new password at the configured cost, with a salt of its own.
    pub(crate) async fn hash(&self, password: &NewPassword) -> Result<PasswordHash, QueueFull> {
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt).expect("the operating system has random bytes");
        let digest = self.digest(password.as_password(), self.cost, salt).await?;
        Ok(PasswordHash::new(self.cost, salt, &digest))
    }

    /// Whether `password` is the one that `stored` was made of. For what is no hash that takes as long.
    pub(crate) async fn verify(
        &self,
        password: &Password,
        stored: &PasswordHash,
    ) -> Result<bool, QueueFull> {
        let Some(bcrypt) = stored.bcrypt() else {
            self.verify_nobody(password).await?;
            return Ok(false);
        };
        let digest = self.digest(password, bcrypt.cost, bcrypt.salt).await?;
        Ok(bcrypt.matches(&digest))
    }

    /// Takes as long as [`Hasher::verify`], for an account that does not exist: the time of an
    /// answer must not tell.
    pub(crate) async fn verify_nobody(&self, password: &Password) -> Result<(), QueueFull> {
        self.digest(password, self.cost, [0; 16]).await.map(drop)
    }

    /// Takes as long as is left when `stored` has been verified, which may have been made at a lower
    /// cost: the costs from that one on up to the present one add up to one hash of the present.
    /// Where the queue is full it is left out: a failure has to be counted before all.
    pub(crate) async fn make_up(&self, password: &Password, stored: &PasswordHash) {
        let Some(Bcrypt { cost: done, .. }) = stored.bcrypt() else {
            return;
        };
        for cost in done..self.cost {
            if self.digest(password, cost, [0; 16]).await.is_err() {
                return;
            }
        }
    }

    /// Whether `stored` was made at another cost than new hashes are.
    pub(crate) fn is_outdated(&self, stored: &PasswordHash) -> bool {
        stored.bcrypt().map(|bcrypt| bcrypt.cost) != Some(self.cost)
    }

    async fn digest(
        &self,
        password: &Password,
        cost: u32,
        salt: [u8; 16],
    ) -> Result<Digest, QueueFull> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job {
            password: password.clone(),
            salt,
            cost,
            since: Instant::now(),
            reply,
        })?;
        Ok(answer
            .await
            .expect("a hashing thread answers every job whose client waits"))
    }
}

impl Queue {
    fn push(&self, job: Job) -> Result<(), QueueFull> {
        let mut jobs = self.jobs.lock();
        let wait = self.expected_wait(jobs.len());
        if wait > self.longest_wait {
            self.metrics.refused.inc();
            return Err(QueueFull { retry_after: wait });
        }
        jobs.push_back(job);
        self.metrics.depth.set(length(jobs.len()));
        self.arrived.notify_one();
        Ok(())
    }

    fn expected_wait(&self, waiting: usize) -> Duration {
        let each = self.job_nanos.load(Ordering::Relaxed);
        Duration::from_nanos((waiting as u64).saturating_mul(each) / self.threads)
    }

    fn work(&self) {
        // On Linux this is the priority of the thread, not of the process. Without the right to
        // lower it we hash at the usual one.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        loop {
            let batch = self.take();
            self.at_work.fetch_add(1, Ordering::Relaxed);
            self.hash(batch);
            self.at_work.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Waits for work and takes what can be done in one go: jobs of one cost, whose clients still wait.
    fn take(&self) -> Vec<Job> {
        let mut jobs = self.jobs.lock();
        loop {
            while jobs.is_empty() {
                self.arrived.wait(&mut jobs);
            }
            self.wait_for_company(&mut jobs);
            jobs.retain(|job| !job.reply.is_closed());
            let Some(first) = jobs.pop_front() else {
                self.metrics.depth.set(0);
                continue;
            };
            let mut batch = vec![first];
            while batch.len() < LANES && jobs.front().is_some_and(|job| job.cost == batch[0].cost) {
                batch.extend(jobs.pop_front());
            }
            self.metrics.depth.set(length(jobs.len()));
            if !jobs.is_empty() {
                // It was told of them, and takes none of them.
                self.arrived.notify_one();
            }
            return batch;
        }
    }

    /// Where others hash, more jobs are to be expected, and a lane that stays empty costs more than a
    /// moment's wait: a batch that has just ended sends its clients back for the next. A lone job is
    /// begun at once.
    fn wait_for_company(&self, jobs: &mut MutexGuard<'_, VecDeque<Job>>) {
        let job = Duration::from_nanos(self.job_nanos.load(Ordering::Relaxed));
        let end = Instant::now() + job / COMPANY;
        while (1..LANES).contains(&jobs.len()) && self.at_work.load(Ordering::Relaxed) > 0 {
            if self.arrived.wait_until(jobs, end).timed_out() {
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
        let digests = lanes::digest(batch[0].cost, &lanes);
        self.learn(start.elapsed(), batch.len());
        for (job, digest) in batch.into_iter().zip(digests) {
            self.metrics.wait.observe((start - job.since).as_secs_f64());
            // A client that has gone meanwhile needs no answer.
            let _ = job.reply.send(digest);
        }
    }

    /// Follows the time of a job by an eighth of each new measurement.
    fn learn(&self, took: Duration, jobs: usize) {
        let new = nanos(took) / jobs as u64;
        let old = self.job_nanos.load(Ordering::Relaxed);
        self.job_nanos
            .store(old - old / 8 + new / 8, Ordering::Relaxed);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn length(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
