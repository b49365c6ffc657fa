//! Streams that the `h2` crate resets because their request is malformed. It does not report them, so that they
//! are found in what it sends: `RST_STREAM` frames with `PROTOCOL_ERROR` (RFC 9113, section 8.1.1) for streams
//! that it did not deliver.

use std::collections::VecDeque;

/// Length of a frame header in bytes (RFC 9113, section 4.1).
const FRAME_HEADER_LENGTH: usize = 9;
/// Length of a `RST_STREAM` frame: its header and an error code (RFC 9113, section 6.4).
const RESET_FRAME_LENGTH: usize = FRAME_HEADER_LENGTH + 4;
const RST_STREAM: u8 = 3;
const PROTOCOL_ERROR: u32 = 1;
/// Number of delivered streams that are remembered: more than a connection can have at once, and thus more
/// than can be delivered between the arrival of a malformed request and its reset.
const REMEMBERED_STREAMS: usize = 256;

/// Incremental search for resets in the frames that are sent, independent of how writes split them.
#[derive(Debug, Default)]
pub(super) struct ResetScanner {
    /// Beginning of the current frame, as far as it matters.
    frame: [u8; RESET_FRAME_LENGTH],
    known: usize,
    /// Number of bytes to the end of the current frame that do not matter.
    remaining: usize,
}

impl ResetScanner {
    /// Scans sent bytes, and calls `on_reset` with the id of each stream that was reset as malformed.
    pub(super) fn scan(&mut self, mut bytes: &[u8], mut on_reset: impl FnMut(u32)) {
        while !bytes.is_empty() {
            let skipped = bytes.len().min(self.remaining);
            (self.remaining, bytes) = (self.remaining - skipped, &bytes[skipped..]);
            let wanted = if self.is_reset() {
                RESET_FRAME_LENGTH
            } else {
                FRAME_HEADER_LENGTH
            };
            let taken = bytes.len().min(wanted - self.known);
            self.frame[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            (self.known, bytes) = (self.known + taken, &bytes[taken..]);
            if self.known == RESET_FRAME_LENGTH {
                let [_, _, _, _, _, id_and_code @ ..] = self.frame;
                if let (Some(id), Some(code)) =
                    (id_and_code.first_chunk(), id_and_code.last_chunk())
                    && u32::from_be_bytes(*code) == PROTOCOL_ERROR
                {
                    on_reset(u32::from_be_bytes(*id));
                }
                self.known = 0;
            } else if self.known == FRAME_HEADER_LENGTH && !self.is_reset() {
                let [high, middle, low, ..] = self.frame;
                self.remaining =
                    usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                self.known = 0;
            }
        }
    }

    /// Returns whether the current frame is known to be a `RST_STREAM` frame.
    fn is_reset(&self) -> bool {
        self.known >= FRAME_HEADER_LENGTH && self.frame[3] == RST_STREAM
    }
}

/// Ids of the last streams that `h2` delivered.
#[derive(Debug, Default)]
pub(super) struct DeliveredStreams(VecDeque<u32>);

impl DeliveredStreams {
    pub(super) fn record(&mut self, id: u32) {
        if self.0.len() == REMEMBERED_STREAMS {
            self.0.pop_front();
        }
        self.0.push_back(id);
    }

    /// Returns whether a stream was delivered. Those that are no longer remembered count as delivered.
    pub(super) fn contains(&self, id: u32) -> bool {
        let is_forgotten =
            self.0.len() == REMEMBERED_STREAMS && self.0.front().is_some_and(|first| id < *first);
        is_forgotten || self.0.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(frame_type: u8, stream_id: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        let header = [0, 0, length, frame_type, 0, 0, 0, 0, stream_id];
        [&header[..], payload].concat()
    }

    proptest! {
        #[test]
        fn resets_are_recognised_wherever_writes_split_them(write_size in 1_usize..60) {
            let frames = [
                frame(4, 0, &[]),
                frame(1, 1, &[RST_STREAM; 30]),
                frame(RST_STREAM, 3, &[0, 0, 0, 1]),
                frame(RST_STREAM, 5, &[0, 0, 0, 8]),
                frame(0, 1, &[0; 5]),
                frame(RST_STREAM, 7, &[0, 0, 0, 1]),
            ]
            .concat();
            let (mut scanner, mut resets) = (ResetScanner::default(), Vec::new());
            for written in frames.chunks(write_size) {
                scanner.scan(written, |id| resets.push(id));
            }
            prop_assert_eq!(resets, [3, 7]);
        }
    }

    #[test]
    fn forgotten_streams_count_as_delivered() {
        let mut delivered = DeliveredStreams::default();
        delivered.record(3);
        assert!(delivered.contains(3) && !delivered.contains(1) && !delivered.contains(5));
        for number in 2..300 {
            delivered.record(number * 2 + 1);
        }
        assert!(delivered.contains(1) && delivered.contains(3) && delivered.contains(599));
        assert!(!delivered.contains(601));
    }
}
