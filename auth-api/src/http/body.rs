//! Request bodies of every kind: limits of size and time, and the declared media type.

use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};

const MAX_BODY_BYTES: usize = 64 * 1024;
/// Longest time to receive a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason a body was not received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyError {
    TooLarge,
    /// The connection ended within the body.
    Incomplete,
    /// The body was not received in time.
    Timeout,
}

/// Receives a whole body.
pub(super) async fn read(body: Body) -> Result<Bytes, BodyError> {
    read_within(body, BODY_TIMEOUT).await
}

async fn read_within(body: Body, timeout: Duration) -> Result<Bytes, BodyError> {
    let body = Limited::new(body, MAX_BODY_BYTES).collect();
    match tokio::time::timeout(timeout, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge),
        Ok(Err(_)) => Err(BodyError::Incomplete),
        Err(_) => Err(BodyError::Timeout),
    }
}

/// Returns the media type that exactly one `Content-Type` line declares, in lower case and without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let mut lines = headers.get_all(CONTENT_TYPE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return None;
    };
    let media_type = line.to_str().ok()?.split(';').next()?;
    Some(media_type.trim().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use axum::body::HttpBody;
    use hyper::body::Frame;

    use super::*;

    /// Body of which no frame arrives.
    struct PendingBody;

    impl HttpBody for PendingBody {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    /// Body whose connection ends before it is complete.
    struct BrokenBody;

    impl HttpBody for BrokenBody {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            Poll::Ready(Some(Err(std::io::ErrorKind::UnexpectedEof.into())))
        }
    }

    #[tokio::test]
    async fn a_body_is_received_whole_or_not_at_all() {
        let largest = vec![b'a'; MAX_BODY_BYTES];
        assert_eq!(read(Body::from(largest.clone())).await.unwrap(), largest);
        let larger = [&largest[..], b"a"].concat();
        assert_eq!(read(Body::from(larger)).await, Err(BodyError::TooLarge));
        let broken = read(Body::new(BrokenBody)).await;
        assert_eq!(broken, Err(BodyError::Incomplete));
    }

    #[tokio::test]
    async fn a_body_that_does_not_arrive_times_out() {
        assert_eq!(read(Body::from("whole")).await.unwrap(), "whole");
        let result = read_within(Body::new(PendingBody), Duration::from_millis(1)).await;
        assert_eq!(result, Err(BodyError::Timeout));
    }
}
