//! Counters of the keys for which the [store](super::store) has no slot: a count-min sketch
//! (Cormode and Muthukrishnan, 2005) of one quota.
//!
//! Requests are counted in windows of `duration` since the start of the machine. A fixed window counts the
//! current one. The other algorithms count the last one too, which covers any span of `duration`, and
//! permit no more in both than a burst.
//!
//! The sketch may add requests of other keys to a key's count (with 400 keys in it, the probability is 7 in
//! 10⁵) and never counts too few: when memory is exhausted, a quota gets stricter, never laxer. A key that gets a slot
//! later begins with what the sketch has counted for it.
//!
//! The hash functions are parts of the key, which is a keyed hash already: each selects by 12 bits of its own.

use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::RateLimitAlgorithm;
use crate::features::rate_limit::algorithm::{AlgorithmDecision, QuotaPolicy};
use crate::runtime::clock::Instant;

/// Hash functions, each with a row of counters.
const ROWS: usize = 4;
/// Counters per row.
const COLUMNS: usize = 1 << COLUMN_BITS;
const COLUMN_BITS: usize = 12;
/// Low bits of a key that are not used: all keys of a full bucket have them in common.
const UNUSED_KEY_BITS: usize = 14;
/// Counters of a sketch.
pub(super) const SKETCH_COUNTERS: usize = ROWS * COLUMNS;

/// Sketches of the current and the last window. Their memory is allocated by the first request that
/// they count.
pub(super) struct CountMinSketch {
    algorithm: RateLimitAlgorithm,
    policy: QuotaPolicy,
    windows: Mutex<Option<SketchWindows>>,
    /// Number of the first window in which no counted request is of importance any more.
    unused_from: AtomicU64,
}

struct SketchWindows {
    /// Number of the current window since the start of the machine.
    number: u64,
    current: Sketch,
    last: Sketch,
}

/// Count-min sketch of one window: rows of counters, one after the other.
struct Sketch(Box<[u32]>);

/// Copy of the sketches of a quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SketchCopy {
    pub(super) window: u64,
    /// Counters of the current window and of the last one, [`SKETCH_COUNTERS`] each.
    pub(super) counters: [Box<[u32]>; 2],
}

impl CountMinSketch {
    pub(super) fn new(algorithm: RateLimitAlgorithm, policy: QuotaPolicy) -> Self {
        Self {
            algorithm,
            policy,
            windows: Mutex::default(),
            unused_from: AtomicU64::default(),
        }
    }

    pub(super) fn take(&self, key: u64, now: Instant) -> AlgorithmDecision {
        let (number, window_ns) = (self.window_number(now), self.window_ns());
        // The lock makes reading and counting one step.
        let mut windows = self.windows.lock();
        let windows = windows.get_or_insert_with(|| SketchWindows::new(number));
        windows.advance_to(number);
        let window_end = Instant((windows.number + 1).saturating_mul(window_ns));
        let last = self.count_of_last_window(windows, key);
        let current = windows.current.increment(key);
        let (count, limit) = (current.saturating_add(last), self.limit());
        if count > limit {
            windows.current.decrement(key);
            // The current window becomes the last one, and counts until the next one ends.
            let remaining_windows = u64::from(self.counts_last_window() && current > limit);
            let end = Instant(window_end.0.saturating_add(remaining_windows * window_ns));
            return AlgorithmDecision::Rejected {
                retry_after: end.since(now),
            };
        }
        self.unused_from
            .store(windows.number + self.counted_windows(), Ordering::Relaxed);
        let delay_ns = match self.algorithm {
            RateLimitAlgorithm::LeakyBucket => self
                .policy
                .emission_interval_ns()
                .saturating_mul(u64::from(count - 1)),
            RateLimitAlgorithm::FixedWindow
            | RateLimitAlgorithm::SlidingWindow
            | RateLimitAlgorithm::TokenBucket => 0,
        };
        AlgorithmDecision::Passed {
            remaining: limit - count,
            reset: window_end.since(now),
            delay: Duration::from_nanos(delay_ns),
            expiry: window_end,
        }
    }

    /// Returns an upper bound of the requests of a key that count at `now`. While the sketch is not used,
    /// this costs no lock.
    pub(super) fn count(&self, key: u64, now: Instant) -> u32 {
        let number = self.window_number(now);
        // The requests of a key are ordered by the lock of its bucket in the store.
        if number >= self.unused_from.load(Ordering::Relaxed) {
            return 0;
        }
        let mut windows = self.windows.lock();
        let Some(windows) = windows.as_mut() else {
            return 0;
        };
        windows.advance_to(number);
        let current = windows.current.count(key);
        current.saturating_add(self.count_of_last_window(windows, key))
    }

    /// Copies the sketches, if requests that they have counted are of importance at `now`.
    pub(super) fn copy(&self, now: Instant) -> Option<SketchCopy> {
        let number = self.window_number(now);
        let mut windows = self.windows.lock();
        if number >= self.unused_from.load(Ordering::Relaxed) {
            return None;
        }
        let windows = windows.as_mut()?;
        windows.advance_to(number);
        let counters = [&windows.current, &windows.last].map(|sketch| sketch.0.clone());
        Some(SketchCopy {
            window: windows.number,
            counters,
        })
    }

    /// Replaces the sketches. Those of a window that has not begun or of other sizes are ignored.
    pub(super) fn restore(&self, copy: SketchCopy, now: Instant) {
        let [current, last] = copy.counters;
        let is_valid = copy.window <= self.window_number(now)
            && current.len() == SKETCH_COUNTERS
            && last.len() == SKETCH_COUNTERS;
        if is_valid {
            let mut windows = self.windows.lock();
            *windows = Some(SketchWindows {
                number: copy.window,
                current: Sketch(current),
                last: Sketch(last),
            });
            self.unused_from
                .store(copy.window + self.counted_windows(), Ordering::Relaxed);
        }
    }

    /// Forgets all requests.
    pub(super) fn clear(&self) {
        *self.windows.lock() = None;
        self.unused_from.store(0, Ordering::Relaxed);
    }

    /// Returns the number of windows in which a request counts.
    fn counted_windows(&self) -> u64 {
        if self.counts_last_window() { 2 } else { 1 }
    }

    /// Returns the number of requests that may pass in the counted windows.
    fn limit(&self) -> u32 {
        match self.algorithm {
            RateLimitAlgorithm::FixedWindow | RateLimitAlgorithm::SlidingWindow => {
                self.policy.quota
            }
            RateLimitAlgorithm::TokenBucket | RateLimitAlgorithm::LeakyBucket => {
                self.policy.quota.min(self.policy.bucket_size)
            }
        }
    }

    fn counts_last_window(&self) -> bool {
        self.algorithm != RateLimitAlgorithm::FixedWindow
    }

    fn count_of_last_window(&self, windows: &SketchWindows, key: u64) -> u32 {
        if self.counts_last_window() {
            windows.last.count(key)
        } else {
            0
        }
    }

    fn window_ns(&self) -> u64 {
        self.policy.window_ns.max(1)
    }

    fn window_number(&self, now: Instant) -> u64 {
        now.0 / self.window_ns()
    }
}

impl SketchWindows {
    fn new(number: u64) -> Self {
        Self {
            number,
            current: Sketch::new(),
            last: Sketch::new(),
        }
    }

    /// Begins the window `number`. A request that began before the current window counts in it.
    fn advance_to(&mut self, number: u64) {
        if number <= self.number {
            return;
        }
        mem::swap(&mut self.current, &mut self.last);
        self.current.reset();
        if number - self.number > 1 {
            self.last.reset();
        }
        self.number = number;
    }
}

impl Sketch {
    fn new() -> Self {
        Self(vec![0; SKETCH_COUNTERS].into())
    }

    /// Returns the positions of the counters of a key, one in each row.
    fn positions(key: u64) -> [usize; ROWS] {
        std::array::from_fn(|row| {
            let bits = key >> (UNUSED_KEY_BITS + row * COLUMN_BITS) & (COLUMNS as u64 - 1);
            row * COLUMNS + usize::try_from(bits).expect("it is less than COLUMNS")
        })
    }

    fn count(&self, key: u64) -> u32 {
        let counts = Self::positions(key).map(|position| self.0[position]);
        counts.into_iter().min().expect("there are rows")
    }

    /// Counts a request. Returns the count that includes it.
    fn increment(&mut self, key: u64) -> u32 {
        for position in Self::positions(key) {
            self.0[position] = self.0[position].saturating_add(1);
        }
        self.count(key)
    }

    /// Takes a request back that was counted last.
    fn decrement(&mut self, key: u64) {
        for position in Self::positions(key) {
            self.0[position] = self.0[position].saturating_sub(1);
        }
    }

    fn reset(&mut self) {
        self.0.fill(0);
    }
}

impl fmt::Debug for CountMinSketch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CountMinSketch")
            .finish_non_exhaustive()
    }
}
