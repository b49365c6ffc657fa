//! One try of a request: what a client and a replica say is passed on as it comes, both ways at
//! once, until the answer is whole or one of them fails.
//!
//! Neither side is read while the other has too much to take, so that memory stays bounded.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::EXPECT;
use http::{Method, StatusCode};

use crate::answer::{Answer, Marks};
use crate::downstream::{Appetite, Downstream, FromClient, RequestHead, ResponseHead};
use crate::features::retry;
use crate::features::timeout::LONGEST_SILENCE;
use crate::moment::Moment;
use crate::patience::Patience;
use crate::request::Request;
use crate::upstream::connection::{Broken, Connection, FromReplica};

/// A body that is slower than so many bytes a second, after some grace, ties up a connection.
const LEAST_RATE: u64 = 500;
const GRACE: Duration = Duration::from_secs(10);
/// Bytes of a request's body that are kept for another try.
const MOST_KEPT: usize = 64 * 1024;

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The client has its answer.
    Answered,
    /// Nothing was said to the client yet: this should be.
    Say(Answer),
    /// The answer has begun and cannot be brought to its end.
    Cut,
    /// Nobody listens any more.
    Gone,
}

/// What came of a try.
#[derive(Debug)]
pub(crate) enum Tried {
    Ended(Ended),
    /// Nothing was said to the client yet, and another try may go better.
    TryAgain,
    /// The connection had ended before it was used: a new one may do.
    Stale,
}

impl From<Ended> for Tried {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

/// What has come of a request's body, and as much of it as another try can begin with.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    /// All of it, or nothing.
    kept: Vec<u8>,
    bytes: u64,
    is_whole: bool,
    /// How long it was waited for.
    waited: Duration,
}

impl Upload {
    fn take(&mut self, data: &[u8], method: &Method) {
        let is_worth_keeping = self.can_begin_again()
            && retry::is_safe(retry::Failure::Unanswered, method)
            && self.kept.len() + data.len() <= MOST_KEPT;
        self.bytes += data.len() as u64;
        if is_worth_keeping {
            self.kept.extend_from_slice(data);
        } else {
            self.kept = Vec::new();
        }
    }

    /// Whether everything that came is still at hand.
    pub(crate) fn can_begin_again(&self) -> bool {
        self.bytes == self.kept.len() as u64
    }

    fn is_too_slow(&self) -> bool {
        self.waited > GRACE && self.bytes / self.waited.as_secs().max(1) < LEAST_RATE
    }
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Replica,
    /// The client, to send its request.
    Sender,
    /// The client, to take its answer.
    Reader,
}

/// A rest of the exchange, until something happens.
#[derive(Debug, Clone, Copy)]
struct Wait {
    awaited: Awaited,
    since: Moment,
    /// The longest that it may last.
    limit: Duration,
}

/// What happened next.
enum Event {
    Replica(Result<FromReplica, Broken>),
    Client(FromClient),
}

/// A client, a replica, and what is between them.
pub(crate) struct Exchange<'e, D> {
    head: &'e RequestHead,
    request: &'e mut Request,
    client: &'e mut D,
    replica: Connection,
    upload: &'e mut Upload,
    patience: &'e mut Patience,
    stage: Stage,
    /// Whether the client was told to go on with its body.
    invitation: Invitation,
    of_client: Appetite,
    of_replica: Appetite,
    wait: Option<Wait>,
}

/// How far the answer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The replica has not answered.
    Asked,
    /// The answer is passed on.
    Answering,
    /// The replica has answered whole.
    Answered,
    /// Both sides have gone over to another protocol.
    Switched,
}

/// Whether a client may be expected to send its body (RFC 9110, section 10.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Invitation {
    /// It waits for one.
    Awaited,
    /// It has one, or needs none.
    Given,
}

impl<'e, D: Downstream> Exchange<'e, D> {
    /// An exchange whose request's head has been written to `replica`.
    pub(crate) fn new(
        head: &'e RequestHead,
        request: &'e mut Request,
        client: &'e mut D,
        replica: Connection,
        upload: &'e mut Upload,
        patience: &'e mut Patience,
    ) -> Self {
        let is_patient = upload.bytes == 0 && head.fields.contains_key(EXPECT);
        Self {
            head,
            request,
            client,
            replica,
            upload,
            patience,
            stage: Stage::Asked,
            invitation: if is_patient {
                Invitation::Awaited
            } else {
                Invitation::Given
            },
            of_client: Appetite::Hungry,
            of_replica: Appetite::Hungry,
            wait: None,
        }
    }

    /// Runs to the end.
    pub(crate) async fn run(mut self) -> Tried {
        self.replica.send(&self.upload.kept);
        // A replica may be quicker than the client is asked for a body that there is not.
        self.upload.is_whole |= self.head.framing.is_empty();
        if self.upload.is_whole {
            self.replica.finish();
        }
        let tried = poll_fn(|cx| self.poll(cx)).await;
        if matches!(tried, Tried::Ended(Ended::Answered))
            && let Some(replica) = self.request.answering()
        {
            replica.keep(self.replica, Moment::now());
        }
        tried
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Tried> {
        loop {
            let Poll::Ready(event) = self.next(cx) else {
                return self.rest(cx);
            };
            // Whoever sends on has not taken anything by that.
            if !(matches!(event, Event::Client(_)) && self.awaits(Awaited::Reader)) {
                self.end_wait();
            }
            let tried = match event {
                Event::Replica(Ok(event)) => self.heard(event),
                Event::Replica(Err(broken)) => Some(self.broke(broken)),
                Event::Client(event) => self.asked(event).map(Tried::Ended),
            };
            if let Some(tried) = tried {
                return Poll::Ready(tried);
            }
        }
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            let appetites = self.appetites();
            (self.of_client, self.of_replica) = appetites;
            if let Poll::Ready(event) = self.replica.poll(cx, self.of_client) {
                return Poll::Ready(Event::Replica(event));
            }
            if let Poll::Ready(event) = self.client.poll(cx, self.of_replica) {
                return Poll::Ready(Event::Client(event));
            }
            // What could be sent meanwhile may have made room for more.
            if self.appetites() == appetites {
                return Poll::Pending;
            }
        }
    }

    /// Of the client and of the replica, as much as waits for them.
    fn appetites(&self) -> (Appetite, Appetite) {
        (
            self.of_client.after(self.client.waiting()),
            self.of_replica.after(self.replica.waiting()),
        )
    }

    fn awaits(&self, whom: Awaited) -> bool {
        self.wait.is_some_and(|wait| wait.awaited == whom)
    }

    /// Nothing happens for now, and not for ever.
    fn rest(&mut self, cx: &mut Context<'_>) -> Poll<Tried> {
        let awaited = self.awaited();
        let wait = match self.wait {
            Some(wait) if wait.awaited == awaited => wait,
            _ => {
                self.end_wait();
                let since = Moment::now();
                let limit = self.limit(awaited, since);
                *self.wait.insert(Wait {
                    awaited,
                    since,
                    limit,
                })
            }
        };
        let end = wait.since.instant() + wait.limit;
        ready!(self.patience.poll_until(cx, end));
        Poll::Ready(self.waited_for(awaited))
    }

    /// The time in which it was the client's turn is none of the replica's.
    fn end_wait(&mut self) {
        let Some(wait) = self.wait.take() else { return };
        if wait.awaited == Awaited::Replica {
            return;
        }
        let waited = Moment::now().since(wait.since);
        self.request.deadline = self.request.deadline.later_by(waited);
        if wait.awaited == Awaited::Sender {
            self.upload.waited += waited;
        }
    }

    fn awaited(&self) -> Awaited {
        match self.stage {
            Stage::Switched => Awaited::Replica,
            Stage::Answered => Awaited::Reader,
            _ if self.of_client == Appetite::Full => Awaited::Reader,
            Stage::Asked if self.is_up_to_the_sender() => Awaited::Sender,
            Stage::Asked | Stage::Answering => Awaited::Replica,
        }
    }

    fn is_up_to_the_sender(&self) -> bool {
        !self.upload.is_whole
            && self.of_replica == Appetite::Hungry
            && self.invitation == Invitation::Given
    }

    /// How long to wait for whom it is up to.
    fn limit(&self, awaited: Awaited, now: Moment) -> Duration {
        let limits = &self.request.live.config.limits;
        match awaited {
            Awaited::Sender => limits.header_timeout,
            Awaited::Reader => limits.idle_timeout,
            Awaited::Replica if self.stage == Stage::Switched => LONGEST_SILENCE,
            Awaited::Replica => match self.request.deadline.left(now) {
                Some(left) => left.min(LONGEST_SILENCE),
                None => LONGEST_SILENCE,
            },
        }
    }

    /// The replica said something.
    fn heard(&mut self, event: FromReplica) -> Option<Tried> {
        match event {
            FromReplica::Interim(head) => {
                if head.status == StatusCode::CONTINUE {
                    self.invitation = Invitation::Given;
                }
                self.client.interim(&head);
            }
            FromReplica::Head(head) => return self.begin(head),
            FromReplica::Data(data) => self.client.send(data),
            FromReplica::End => {
                self.stage = Stage::Answered;
                self.client.finish();
            }
        }
        None
    }

    /// The head of the answer: it is passed on, unless another try may bring a better one.
    fn begin(&mut self, mut head: ResponseHead) -> Option<Tried> {
        let now = Moment::now();
        if let Some(mut attempt) = self.request.end_attempt(now) {
            attempt.answered(head.status, now);
            if retry::is_temporary(head.status) && self.may_try_again() {
                return Some(Tried::TryAgain);
            }
            self.request.answered_by(attempt);
        }
        self.stage = match head.status {
            StatusCode::SWITCHING_PROTOCOLS => Stage::Switched,
            _ => Stage::Answering,
        };
        Marks::Of(self.request).put(&mut head.fields);
        self.client.begin(head);
        None
    }

    /// The client said something.
    fn asked(&mut self, event: FromClient) -> Option<Ended> {
        match event {
            FromClient::Data(data) => return self.pass(&data),
            FromClient::End => {
                self.upload.is_whole = true;
                self.replica.finish();
            }
            FromClient::Malformed(refused) => return Some(self.refuse(Answer::malformed(refused))),
            FromClient::Gone => return Some(Ended::Gone),
            FromClient::Finished => return Some(Ended::Answered),
        }
        None
    }

    /// Some of the request's body.
    fn pass(&mut self, data: &[u8]) -> Option<Ended> {
        self.replica.send(data);
        if self.stage == Stage::Switched {
            return None;
        }
        self.invitation = Invitation::Given;
        self.upload.take(data, &self.head.method);
        if self.upload.bytes > self.request.live.config.limits.max_body {
            Some(self.refuse(Answer::body_too_large()))
        } else if self.upload.is_too_slow() {
            Some(self.refuse(Answer::body_too_slow()))
        } else {
            None
        }
    }

    /// The request cannot be gone on with, which is not the replica's fault.
    fn refuse(&mut self, answer: Answer) -> Ended {
        self.request.end_attempt(Moment::now());
        match self.stage {
            Stage::Asked => Ended::Say(answer),
            Stage::Answering | Stage::Answered | Stage::Switched => Ended::Cut,
        }
    }

    fn broke(&mut self, broken: Broken) -> Tried {
        let is_stale = broken == Broken::Connection && self.replica.may_have_been_stale();
        if is_stale && self.may_repeat() {
            return Tried::Stale;
        }
        self.request.warn_of_replica(broken);
        let now = Moment::now();
        let Some(mut attempt) = self.request.end_attempt(now) else {
            return Ended::Cut.into();
        };
        attempt.in_flight.replica().metrics.broken.inc();
        attempt.failed(now);
        if self.may_try_again() {
            return Tried::TryAgain;
        }
        Ended::Say(Answer::BAD_GATEWAY).into()
    }

    /// Something did not come in time.
    fn waited_for(&mut self, awaited: Awaited) -> Tried {
        match awaited {
            Awaited::Reader => return Ended::Gone.into(),
            Awaited::Sender => return self.refuse(Answer::body_too_slow()).into(),
            // Either of them may be silent, and neither is to blame.
            Awaited::Replica if self.stage == Stage::Switched => return Ended::Cut.into(),
            Awaited::Replica => {}
        }
        self.request.warn_of_replica("it took too long");
        let now = Moment::now();
        let Some(mut attempt) = self.request.end_attempt(now) else {
            return Ended::Cut.into();
        };
        attempt.in_flight.replica().metrics.timeouts.inc();
        // A client that waits to be told to go on can have a replica look slow that never says so.
        if self.invitation == Invitation::Given {
            attempt.failed(now);
        }
        if self.may_try_again() {
            return Tried::TryAgain;
        }
        Ended::Say(self.request.time_is_up()).into()
    }

    /// Whether all that was asked can be asked once more without harm.
    fn may_repeat(&self) -> bool {
        retry::is_safe(retry::Failure::Unanswered, &self.head.method)
            && self.upload.can_begin_again()
    }

    fn may_try_again(&self) -> bool {
        self.request
            .may_try_again(retry::Failure::Unanswered, self.head, self.upload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_kept_as_long_as_it_could_be_sent_again() {
        let mut upload = Upload::default();
        upload.take(b"ab", &Method::PUT);
        upload.take(b"c", &Method::PUT);
        assert!(upload.can_begin_again());
        assert_eq!(upload.kept, b"abc");
        upload.take(&vec![b'x'; MOST_KEPT], &Method::PUT);
        assert!(!upload.can_begin_again());
        assert_eq!(upload.kept.capacity(), 0);
        upload.take(b"d", &Method::PUT);
        assert!(!upload.can_begin_again());

        let mut once = Upload::default();
        assert!(once.can_begin_again(), "nothing came yet");
        once.take(b"ab", &Method::POST);
        assert!(!once.can_begin_again());
    }

    #[test]
    fn a_body_is_slow_by_the_time_that_it_was_waited_for() {
        let upload = |bytes, seconds| Upload {
            bytes,
            waited: Duration::from_secs(seconds),
            ..Upload::default()
        };
        assert!(!upload(0, 10).is_too_slow());
        assert!(upload(0, 11).is_too_slow());
        assert!(upload(LEAST_RATE * 20 - 1, 20).is_too_slow());
        assert!(!upload(LEAST_RATE * 20, 20).is_too_slow());
    }
}
