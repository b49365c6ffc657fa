//! Limits on what a client can have the gateway do for nothing: floods of frames, and streams that are reset.
//!
//! Overhead frames carry no request data: PING, SETTINGS, `WINDOW_UPDATE`, CONTINUATION, empty DATA and
//! the like. A flood of them costs CPU time and no bandwidth (CVE-2019-9512, CVE-2019-9515,
//! CVE-2019-9518, CVE-2024-27316). A token bucket limits them: each takes a token; requests, request
//! data, DATA frames and bytes that are sent to the client, and time add tokens.

use crate::runtime::clock::Instant;

/// Capacity of the token bucket, which is full at first: the largest burst of overhead frames.
const MAX_TOKENS: u64 = 10_000;
const TOKENS_PER_HEADERS_FRAME: u64 = 8;
const TOKENS_PER_DATA_FRAME: u64 = 2;
/// Tokens of a DATA frame that is sent, however small. `HAProxy` acknowledges each by two `WINDOW_UPDATE` frames, and
/// clients that measure the bandwidth send PING frames.
const TOKENS_PER_SENT_DATA_FRAME: u64 = 4;
/// Number of bytes that add a token when they are sent to the client: it acknowledges them with
/// `WINDOW_UPDATE` frames.
const SENT_BYTES_PER_TOKEN: u64 = 256;
const TOKENS_PER_SECOND: u64 = 100;
/// Number of bytes from which on a DATA frame adds tokens, also if its data is discarded.
const MIN_DATA: usize = 32;

/// Number of resets that are tolerated on every connection.
const MIN_TOLERATED_RESETS: u64 = 100;
/// Further resets that are tolerated in each second: clients give up long polls, and browsers leave pages.
const TOLERATED_RESETS_PER_SECOND: u64 = 10;
/// Number of streams of which one may be reset, for a proxy that carries many clients.
const STREAMS_PER_TOLERATED_RESET: u64 = 10;

/// The client exceeds a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flood;

/// Limit on overhead frames.
#[derive(Debug)]
pub(super) struct FrameLimit {
    tokens: u64,
    /// Last time when tokens were added for elapsed time.
    refilled_at: Instant,
    /// Number of bytes that were sent since the last token was added for sent bytes.
    sent_bytes: u64,
}

impl FrameLimit {
    pub(super) fn new() -> Self {
        Self {
            tokens: MAX_TOKENS,
            refilled_at: Instant::now(),
            sent_bytes: 0,
        }
    }

    pub(super) fn record_headers(&mut self) {
        self.add(TOKENS_PER_HEADERS_FRAME);
    }

    /// Records a DATA frame with `length` bytes of data for an exchange. Little data is no overhead: a client may send it as it
    /// comes, and a proxy in front of the gateway sends that of many clients on one connection.
    ///
    /// # Errors
    /// Returns an error if there are too many without data.
    pub(super) fn record_data(&mut self, length: usize) -> Result<(), Flood> {
        match length {
            0 => self.record_overhead(),
            1..MIN_DATA => Ok(()),
            _ => {
                self.add(TOKENS_PER_DATA_FRAME);
                Ok(())
            }
        }
    }

    /// Records a DATA frame with `length` bytes of data that are discarded.
    ///
    /// # Errors
    /// Returns an error if there are too many with no or little data.
    pub(super) fn record_discarded_data(&mut self, length: usize) -> Result<(), Flood> {
        if length < MIN_DATA {
            self.record_overhead()
        } else {
            self.record_data(length)
        }
    }

    /// Records any other frame.
    ///
    /// # Errors
    /// Returns an error if there are too many.
    pub(super) fn record_overhead(&mut self) -> Result<(), Flood> {
        if self.tokens == 0 {
            self.refill(Instant::now());
        }
        self.tokens = self.tokens.checked_sub(1).ok_or(Flood)?;
        Ok(())
    }

    /// Records a DATA frame that the client is sent. One that is shorter only because of the client's windows does not count:
    /// small increments would pay for themselves (CVE-2019-9511).
    pub(super) fn record_sent_data_frame(&mut self) {
        self.add(TOKENS_PER_SENT_DATA_FRAME);
    }

    /// Records bytes that the client was sent.
    pub(super) fn record_sent(&mut self, length: usize) {
        self.sent_bytes += length as u64;
        self.add(self.sent_bytes / SENT_BYTES_PER_TOKEN);
        self.sent_bytes %= SENT_BYTES_PER_TOKEN;
    }

    /// Refills the empty bucket for the time since the last refill.
    fn refill(&mut self, now: Instant) {
        let seconds = now.since(self.refilled_at).as_secs();
        if seconds > 0 {
            self.refilled_at = now;
            self.add(seconds.saturating_mul(TOKENS_PER_SECOND));
        }
    }

    fn add(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_add(tokens).min(MAX_TOKENS);
    }
}

/// Limit on streams that are reset before the client has received their response: by the client (rapid resets,
/// CVE-2023-44487), or by the gateway because of an error of the client (`MadeYouReset`, CVE-2025-8671).
///
/// They are an attack if they exceed [`MIN_TOLERATED_RESETS`], [`TOLERATED_RESETS_PER_SECOND`] and one for
/// each [`STREAMS_PER_TOLERATED_RESET`] streams together. Their share in all streams alone would not do: an
/// attacker would pad them with cheap requests.
#[derive(Debug)]
pub(super) struct ResetLimit {
    resets: u64,
    streams: u64,
    started_at: Instant,
}

impl ResetLimit {
    pub(super) fn new() -> Self {
        Self {
            resets: 0,
            streams: 0,
            started_at: Instant::now(),
        }
    }

    pub(super) fn record_stream(&mut self) {
        self.streams += 1;
    }

    /// Records a reset.
    ///
    /// # Errors
    /// Returns an error if the resets are an attack.
    pub(super) fn record_reset(&mut self) -> Result<(), Flood> {
        self.resets += 1;
        let tolerated_by_streams =
            MIN_TOLERATED_RESETS + self.streams / STREAMS_PER_TOLERATED_RESET;
        let tolerated_by_time =
            || TOLERATED_RESETS_PER_SECOND * Instant::now().since(self.started_at).as_secs();
        if self.resets > tolerated_by_streams
            && self.resets > tolerated_by_streams + tolerated_by_time()
        {
            return Err(Flood);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn overhead_frames_are_limited_in_their_burst_and_their_rate() {
        let mut limit = FrameLimit::new();
        for _ in 0..MAX_TOKENS {
            assert_eq!(limit.record_overhead(), Ok(()));
        }
        let length = MIN_DATA - 1;
        assert_eq!(limit.record_discarded_data(length), Err(Flood));
        limit.record_headers();
        for _ in 0..TOKENS_PER_HEADERS_FRAME {
            assert_eq!(limit.record_overhead(), Ok(()));
        }
        assert_eq!(limit.record_overhead(), Err(Flood));
        limit.record_sent(100);
        limit.record_sent(156);
        assert_eq!(limit.record_data(MIN_DATA - 1), Ok(()));
        assert_eq!(limit.record_data(0), Ok(()));
        assert_eq!(limit.record_overhead(), Err(Flood));
        tokio::time::advance(Duration::from_secs(2)).await;
        for _ in 0..2 * TOKENS_PER_SECOND {
            assert_eq!(limit.record_overhead(), Ok(()));
        }
        assert_eq!(limit.record_overhead(), Err(Flood));
    }

    #[tokio::test(start_paused = true)]
    async fn resets_are_limited_by_number_time_and_share() {
        let mut limit = ResetLimit::new();
        for _ in 0..MIN_TOLERATED_RESETS {
            assert_eq!(limit.record_reset(), Ok(()));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..TOLERATED_RESETS_PER_SECOND {
            assert_eq!(limit.record_reset(), Ok(()));
        }
        assert_eq!(limit.record_reset(), Err(Flood));
        for _ in 0..2 * STREAMS_PER_TOLERATED_RESET {
            limit.record_stream();
        }
        assert_eq!(limit.record_reset(), Ok(()));
        assert_eq!(limit.record_reset(), Err(Flood));
    }
}
