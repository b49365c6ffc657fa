//! Request ids.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderName, HeaderValue};

/// Header with the id of a request, towards upstreams and clients.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of a request id that is taken over from a proxy, in bytes. A UUID has 36.
const MAX_RECEIVED_LENGTH: usize = 64;

/// Id of a request in the logs of the gateway and of its upstreams: 32 hexadecimal digits, or the id that a
/// trusted proxy gave the request. Formatted once, read many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId {
    /// Trace id where the request begins a trace (W3C Trace Context, section 3.2.2.3).
    generated: [u8; 32],
    received: Option<ReceivedId>,
}

/// Id of a request that a trusted proxy sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ReceivedId {
    text: [u8; MAX_RECEIVED_LENGTH],
    length: usize,
}

impl ReceivedId {
    /// Returns the id if it has 1 to 64 characters that need no escaping in any log: letters, digits and
    /// those of UUIDs and base64.
    fn parse(value: &[u8]) -> Option<Self> {
        let is_allowed = |byte: &u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+' | b'/' | b'=')
        };
        if value.is_empty() || value.len() > MAX_RECEIVED_LENGTH || !value.iter().all(is_allowed) {
            return None;
        }
        let mut text = [0; MAX_RECEIVED_LENGTH];
        text[..value.len()].copy_from_slice(value);
        Some(Self {
            text,
            length: value.len(),
        })
    }
}

impl RequestId {
    /// Generates an id that is unique in this process: two values of a pseudo-random function (`SipHash` with
    /// a random key of the process) of a counter. No system call is needed, and the count of requests
    /// cannot be computed from an id.
    pub(crate) fn generate() -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        // A trace id or span id of zeros is invalid.
        let [high, low] = [0, 1].map(|half| KEY.hash_one(count << 1 | half).max(1));
        let mut digits = [0; 32];
        for (pair, byte) in digits
            .chunks_exact_mut(2)
            .zip(high.to_be_bytes().into_iter().chain(low.to_be_bytes()))
        {
            pair.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
        Self {
            generated: digits,
            received: None,
        }
    }

    /// Takes over the value of `X-Request-Id` of a trusted proxy, if it is valid.
    pub(crate) fn or_received(self, value: &HeaderValue) -> Self {
        Self {
            received: ReceivedId::parse(value.as_bytes()),
            ..self
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match &self.received {
            Some(id) => &id.text[..id.length],
            None => &self.generated,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("the characters of an id are ASCII")
    }

    /// Returns the value of `X-Request-Id`.
    pub(crate) fn header_value(&self) -> HeaderValue {
        HeaderValue::from_bytes(self.as_bytes()).expect("the characters of an id are printable")
    }

    /// Returns the value of `traceparent` for a request that begins a trace. Its parent id is the
    /// second half of the generated request id.
    pub(crate) fn traceparent(&self) -> [u8; 55] {
        let mut value = [0; 55];
        value[..3].copy_from_slice(b"00-");
        value[3..35].copy_from_slice(&self.generated);
        value[35] = b'-';
        value[36..52].copy_from_slice(&self.generated[16..]);
        value[52..].copy_from_slice(b"-00");
        value
    }
}

fn hex_digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value)]
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn generated_ids_are_unique_and_both_halves_are_independent() {
        let ids: Vec<_> = (0..10_000).map(|_| RequestId::generate()).collect();
        let halves: HashSet<_> = ids
            .iter()
            .flat_map(|id| [&id.generated[..16], &id.generated[16..]])
            .collect();
        assert_eq!(halves.len(), 20_000);
    }

    /// The difference of two ids was once computable: each half was a bijection of the counter whose
    /// inverse is public.
    #[test]
    fn consecutive_ids_are_not_consecutive_inputs_of_a_public_permutation() {
        let unmix = |half: &[u8]| {
            let text = std::str::from_utf8(half).unwrap();
            let invert_shift = |number: u64, shift: u32| {
                number ^ (number >> shift) ^ (number >> (2 * shift).min(63))
            };
            let number = u64::from_str_radix(text, 16).unwrap();
            let number = invert_shift(number, 31).wrapping_mul(0x3196_42b2_d24d_8ec3);
            let number = invert_shift(number, 27).wrapping_mul(0x96de_1b17_3f11_9089);
            invert_shift(number, 30)
        };
        let counts: Vec<_> = (0..8)
            .map(|_| unmix(&RequestId::generate().generated[..16]))
            .collect();
        let is_near = |pair: &[u64]| pair[0] ^ pair[1] < 64;
        assert!(!counts.windows(2).all(is_near), "{counts:x?}");
    }

    #[test]
    fn a_received_id_is_taken_over_if_it_is_valid() {
        let generated = RequestId::generate();
        let received = |value: &str| generated.or_received(&HeaderValue::from_str(value).unwrap());
        let longest = "a".repeat(64);
        for valid in [
            "1",
            "4bf92f35-77b3-4da6-a3ce-929d0e0e4736",
            "aGk+/_.=",
            &longest,
        ] {
            assert_eq!(received(valid).as_str(), valid);
            assert_eq!(received(valid).header_value(), valid);
            assert_eq!(received(valid).traceparent(), generated.traceparent());
        }
        let too_long = "a".repeat(65);
        for invalid in ["", "a b", "a\"b", "a,b", "\u{e4}", &too_long] {
            assert_eq!(received(invalid), generated, "{invalid}");
        }
        let digits = generated.to_string();
        assert!(digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(generated.header_value(), digits.as_str());
    }
}
