//! Sending at the pace of a script.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::task::yield_now;
use tokio::time::sleep;

use super::history::SharedHistory;
use super::script::Pace;

/// Number of bytes at the start of a message that are sent in small pieces.
pub(super) const PACED_BYTES: usize = 500;
/// Size of the pieces after that.
const LARGE_PIECE: usize = 8 * 1024;

/// Sends a message. Calls `on_sent` with the number of bytes of each write.
pub(super) async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    pace: Pace,
    history: &SharedHistory,
    mut on_sent: impl FnMut(usize),
) -> io::Result<()> {
    let (first, rest) = bytes.split_at(bytes.len().min(PACED_BYTES));
    let pieces = first.chunks(pace.piece).chain(rest.chunks(LARGE_PIECE));
    for (number, mut piece) in pieces.enumerate() {
        // Not after the last one: the next request would wait unread.
        if number > 0 {
            pause(pace.pause, history).await;
        }
        while !piece.is_empty() {
            let sent = stream.write(piece).await?;
            on_sent(sent);
            piece = &piece[sent..];
        }
        // The gateway reads every piece apart.
        yield_now().await;
    }
    Ok(())
}

/// Pauses, which extends the time that the gateway may take.
pub(super) async fn pause(duration: Duration, history: &SharedHistory) {
    if !duration.is_zero() {
        history.lock().pauses += duration;
        sleep(duration).await;
    }
}
