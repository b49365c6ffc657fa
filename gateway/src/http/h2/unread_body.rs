//! Request bodies that nothing reads any more, since the response is complete (RFC 9113, section 8.1).
//!
//! A server may reset such a stream at once, and ignores the DATA frames that were on their way. `h2` does so for a
//! limited number of streams, each for a second. It takes other frames for errors of the client, counts them
//! (`too_many_internal_resets`), and closes the connection after 1,024 of them, with all of its other streams: a client
//! whose uploads exceed a quota would lose it. So the rest of a body is received and discarded before the stream is
//! reset, as over HTTP/1.1. The client gets no further window for it: once the window is used up, no frame is on its
//! way, and the reset meets none.

use std::future::poll_fn;
use std::task::Poll;

use h2::RecvStream;

use crate::http::lingering_close::LingeringClose;

/// Receives the rest of a request body, up to `window` bytes, the flow-control window of a stream. Its client has as
/// much time as for a lingering close, which this is for a single stream.
pub(super) async fn discard(mut body: RecvStream, window: u32) {
    let mut lingering_close = LingeringClose::new();
    let mut remaining = usize::try_from(window).unwrap_or(usize::MAX);
    poll_fn(|cx| {
        lingering_close.poll(cx, |cx| {
            if remaining == 0 {
                return Poll::Ready(Ok(0));
            }
            body.poll_data(cx).map(|data| {
                // Empty frames, which `h2` limits, end nothing.
                let Some(Ok(data)) = data else { return Ok(0) };
                remaining = remaining.saturating_sub(data.len());
                Ok(data.len().max(1))
            })
        })
    })
    .await;
}
