//! Reads from a socket whose buffer is small while a connection is idle, and large while much arrives.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncRead;

/// Buffer space for one read. Most requests fit in it, and an idle connection retains as much.
const READ_SIZE: usize = 2 * 1024;
/// Buffer space for one read after a large one.
const LARGE_READ_SIZE: usize = 16 * 1024;

/// Size of reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ReadSize {
    /// Always [`READ_SIZE`].
    Small,
    /// [`LARGE_READ_SIZE`] after a large read.
    #[default]
    Adaptive,
}

/// Reads of one connection.
#[derive(Debug, Default)]
pub(crate) struct AdaptiveRead {
    last_read_bytes: usize,
}

impl AdaptiveRead {
    /// Appends bytes to `input` and returns their number, 0 if the peer has closed the connection.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: Pin<&mut impl AsyncRead>,
        input: &mut BytesMut,
        size: ReadSize,
    ) -> Poll<io::Result<usize>> {
        let size = match size {
            ReadSize::Adaptive if self.last_read_bytes >= READ_SIZE / 2 => LARGE_READ_SIZE,
            ReadSize::Adaptive | ReadSize::Small => READ_SIZE,
        };
        if input.capacity() - input.len() < size / 2 {
            input.reserve(size);
        }
        let read = ready!(tokio_util::io::poll_read_buf(stream, cx, input));
        self.last_read_bytes = *read.as_ref().unwrap_or(&0);
        Poll::Ready(read)
    }
}
