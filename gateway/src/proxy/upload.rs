//! Request body on its way upstream: its progress, and a buffer from which it can be replayed.

use std::time::Duration;

use http::Method;

use crate::features::retry::{self, AttemptFailure};

/// Slowest body that is accepted, in bytes per second: a slower one would occupy a connection
/// (slow-body denial of service).
const MIN_UPLOAD_RATE: u64 = 500;
/// Size of the largest body that is buffered for another attempt, in bytes.
const MAX_REPLAY_BUFFER: usize = 64 * 1024;

/// Progress of a request body, and a copy of it for another attempt.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    /// The whole body received so far, or nothing if it cannot be replayed.
    pub(super) replay_buffer: Vec<u8>,
    pub(super) received_bytes: u64,
    pub(super) is_complete: bool,
    /// Time spent waiting for the client to send the body.
    pub(super) wait_time: Duration,
}

impl Upload {
    /// Counts received data, and buffers it if the request may be repeated.
    pub(super) fn receive(&mut self, data: &[u8], method: &Method) {
        let is_buffered = self.can_replay()
            && retry::is_safe(AttemptFailure::MaybeProcessed, method)
            && self.replay_buffer.len() + data.len() <= MAX_REPLAY_BUFFER;
        self.received_bytes += data.len() as u64;
        if is_buffered {
            self.replay_buffer.extend_from_slice(data);
        } else {
            self.replay_buffer = Vec::new();
        }
    }

    /// Returns true if everything received so far is buffered.
    pub(crate) fn can_replay(&self) -> bool {
        self.received_bytes == self.replay_buffer.len() as u64
    }

    /// Returns whether the body arrives too slowly. The rate is not enforced while the time spent waiting for
    /// the body is at most `body_timeout`.
    pub(super) fn is_too_slow(&self, body_timeout: Duration) -> bool {
        self.wait_time > body_timeout
            && self.received_bytes / self.wait_time.as_secs().max(1) < MIN_UPLOAD_RATE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_of_an_idempotent_request_is_buffered_up_to_the_limit() {
        let mut upload = Upload::default();
        upload.receive(b"ab", &Method::PUT);
        upload.receive(b"c", &Method::PUT);
        assert!(upload.can_replay());
        assert_eq!(upload.replay_buffer, b"abc");
        upload.receive(&vec![b'x'; MAX_REPLAY_BUFFER], &Method::PUT);
        assert!(!upload.can_replay());
        assert_eq!(upload.replay_buffer.capacity(), 0);
        upload.receive(b"d", &Method::PUT);
        assert!(!upload.can_replay());

        let mut not_idempotent = Upload::default();
        assert!(not_idempotent.can_replay(), "no data was received yet");
        not_idempotent.receive(b"ab", &Method::POST);
        assert!(!not_idempotent.can_replay());
    }

    #[test]
    fn the_rate_of_a_body_counts_only_the_time_spent_waiting_for_it() {
        let upload = |received_bytes, seconds| Upload {
            received_bytes,
            wait_time: Duration::from_secs(seconds),
            ..Upload::default()
        };
        let body_timeout = Duration::from_secs(10);
        assert!(!upload(0, 10).is_too_slow(body_timeout));
        assert!(upload(0, 11).is_too_slow(body_timeout));
        assert!(upload(MIN_UPLOAD_RATE * 20 - 1, 20).is_too_slow(body_timeout));
        assert!(!upload(MIN_UPLOAD_RATE * 20, 20).is_too_slow(body_timeout));
    }
}
