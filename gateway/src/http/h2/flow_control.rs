//! Flow-control windows (RFC 9113, section 5.2) of a stream or of the connection, one for each direction.

use crate::http::h2::frame::{MAX_31_BIT, Reason};

/// Number of bytes that the gateway may send. A change of `SETTINGS_INITIAL_WINDOW_SIZE` can make it negative (RFC 9113,
/// section 6.9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SendWindow(i64);

impl SendWindow {
    pub(super) fn new(size: u32) -> Self {
        Self(size.into())
    }

    /// Returns the number of bytes that may be sent.
    pub(super) fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// Records sent bytes.
    pub(super) fn consume(&mut self, length: usize) {
        self.0 -= i64::try_from(length).unwrap_or(i64::MAX);
    }

    /// Adds the increment of a `WINDOW_UPDATE` frame, or the difference of two initial sizes.
    ///
    /// # Errors
    /// Returns an error if the window gets too large.
    pub(super) fn add(&mut self, increment: i64) -> Result<(), Reason> {
        let size = self.0 + increment;
        if size > MAX_31_BIT.into() {
            return Err(Reason::FlowControlError);
        }
        self.0 = size;
        Ok(())
    }
}

/// Number of bytes that the client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReceiveWindow {
    size: u32,
    remaining: u32,
    /// Number of bytes that were received and may be received again, but not announced yet.
    released: u32,
}

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> Self {
        Self {
            size,
            remaining: size,
            released: 0,
        }
    }

    /// Records received bytes.
    ///
    /// # Errors
    /// Returns an error if the client had to wait for a larger window.
    pub(super) fn receive(&mut self, length: usize) -> Result<(), Reason> {
        let remaining = u32::try_from(length)
            .ok()
            .and_then(|length| self.remaining.checked_sub(length));
        self.remaining = remaining.ok_or(Reason::FlowControlError)?;
        Ok(())
    }

    /// Permits the client to send as many bytes as `length` again. Returns the increment to announce once it is half of the
    /// window, unless the window is large enough for the `expected` bytes that are left to be received.
    pub(super) fn release(&mut self, length: usize, expected: Option<u64>) -> Option<u32> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.released = self.released.saturating_add(length);
        let is_sufficient = expected.is_some_and(|expected| expected <= self.remaining.into());
        if self.released < self.size / 2 || is_sufficient {
            return None;
        }
        let increment = std::mem::take(&mut self.released).min(self.size - self.remaining);
        self.remaining += increment;
        (increment > 0).then_some(increment)
    }

    /// Ends the window: the client may send nothing more.
    pub(super) fn exhaust(&mut self) {
        self.remaining = 0;
    }

    /// Returns whether the client may send nothing.
    pub(super) fn is_exhausted(self) -> bool {
        self.remaining == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_send_window_may_be_negative_and_has_a_maximum() {
        let mut window = SendWindow::new(100);
        window.consume(60);
        assert_eq!(window.available(), 40);
        assert_eq!(window.add(-100), Ok(()));
        assert_eq!(window.available(), 0);
        assert_eq!(window.add(61), Ok(()));
        assert_eq!(window.available(), 1);
        assert_eq!(
            window.add(i64::from(MAX_31_BIT)),
            Err(Reason::FlowControlError)
        );
        assert_eq!(window.add(i64::from(MAX_31_BIT) - 1), Ok(()));
    }

    #[test]
    fn a_window_that_is_large_enough_is_not_updated() {
        let mut window = ReceiveWindow::new(1000);
        assert_eq!(window.receive(600), Ok(()));
        assert_eq!(window.release(600, Some(400)), None);
        // Padding takes a part of the window, so that it is not large enough any more.
        assert_eq!(window.receive(1), Ok(()));
        assert_eq!(window.release(1, Some(400)), Some(601));
    }

    proptest! {
        #[test]
        fn a_receive_window_is_never_larger_than_its_size(
            lengths in prop::collection::vec(0_usize..1000, 0..100),
        ) {
            let mut window = ReceiveWindow::new(1000);
            let (mut sent, mut announced) = (0, 0);
            for length in lengths {
                let is_permitted = sent + length <= 1000 + announced;
                prop_assert_eq!(window.receive(length).is_ok(), is_permitted);
                if is_permitted {
                    sent += length;
                    announced += window.release(length, None).map_or(0, |increment| increment as usize);
                }
                prop_assert!(sent >= announced && sent - announced < 500);
            }
        }
    }
}
