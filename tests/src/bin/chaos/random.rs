//! Random numbers that a seed determines (`SplitMix64`, Steele and others 2014), so that a run with the same seed has the
//! same schedule of faults.

use std::ops::Range;
use std::time::Duration;

#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a generator with a sequence of its own.
    pub(crate) fn split(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number in `range`, which is not empty.
    pub(crate) fn within(&mut self, range: Range<u32>) -> u32 {
        let length = u64::from(range.end - range.start);
        let offset = u32::try_from(self.next() % length).expect("it is less than a u32");
        range.start + offset
    }

    pub(crate) fn milliseconds(&mut self, range: Range<u32>) -> Duration {
        Duration::from_millis(self.within(range).into())
    }

    /// Returns true with a probability of `percent`.
    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.within(0..100) < percent
    }

    /// Returns one of `values`, which are not empty.
    pub(crate) fn choose<T: Copy>(&mut self, values: &[T]) -> T {
        let count = u32::try_from(values.len()).expect("there are few values");
        values[self.within(0..count) as usize]
    }
}
