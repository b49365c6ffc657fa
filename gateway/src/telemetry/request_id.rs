//! Request ids.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;

/// Id of a request in the logs of the gateway and of its upstreams: 32 hexadecimal digits, which are
/// also the trace id where the request begins a trace (W3C Trace Context, section 3.2.2.3).
/// Formatted once, read many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId([u8; 32]);

impl RequestId {
    /// Generates an id that is unique in this process: a counter, mixed with random keys of the
    /// process, so that no system call is needed.
    pub(crate) fn generate() -> Self {
        static KEYS: LazyLock<[u64; 2]> =
            LazyLock::new(|| [(); 2].map(|()| RandomState::new().hash_one(())));
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        // A trace id or span id of zeros is invalid.
        let [high, low] = KEYS.map(|key| mix(count ^ key).max(1));
        let mut digits = [0; 32];
        for (pair, byte) in digits
            .chunks_exact_mut(2)
            .zip(high.to_be_bytes().into_iter().chain(low.to_be_bytes()))
        {
            pair.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
        Self(digits)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are UTF-8")
    }

    /// Returns the value of `X-Request-Id`.
    pub(crate) fn header_value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.0).expect("hexadecimal digits are a header value")
    }

    /// Returns the value of `traceparent` for a request that begins a trace. Its parent id is the
    /// second half of the request id.
    pub(crate) fn traceparent(&self) -> [u8; 55] {
        let mut value = [0; 55];
        value[..3].copy_from_slice(b"00-");
        value[3..35].copy_from_slice(&self.0);
        value[35] = b'-';
        value[36..52].copy_from_slice(&self.0[16..]);
        value[52..].copy_from_slice(b"-00");
        value
    }
}

/// Maps each number to another one without a visible pattern: the finalizer of `SplitMix64` (Steele,
/// Lea and Flood, "Fast Splittable Pseudorandom Number Generators", figure 15).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn hex_digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value)]
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
