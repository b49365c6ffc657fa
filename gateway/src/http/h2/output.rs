//! Output of a connection that the socket has not taken yet.

/// Maximum capacity that the empty buffer retains.
const MAX_RETAINED: usize = 4 * 1024;
/// Number of sent bytes from which on they are removed from the buffer before all is sent.
const MAX_SENT_PREFIX: usize = 64 * 1024;

/// Bytes that are to be sent.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    /// Number of `bytes` that the socket has taken.
    sent: usize,
    /// True if the socket may have more to send itself, as TLS does.
    is_flush_pending: bool,
}

impl Output {
    /// Returns the buffer, to append to it.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        self.is_flush_pending = true;
        &mut self.bytes
    }

    /// Returns the bytes that the socket has not taken.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Records that the socket has taken bytes.
    pub(super) fn record_sent(&mut self, length: usize) {
        self.sent += length;
        if self.sent == self.bytes.len() {
            self.sent = 0;
            self.bytes.clear();
        } else if self.sent >= MAX_SENT_PREFIX {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Records that the socket has sent everything that it had taken.
    pub(super) fn record_flush(&mut self) {
        if self.bytes.is_empty() {
            self.is_flush_pending = false;
            self.bytes.shrink_to(MAX_RETAINED);
        }
    }

    /// Returns whether everything is sent.
    pub(super) fn is_flushed(&self) -> bool {
        !self.is_flush_pending
    }
}
