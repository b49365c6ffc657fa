//! One try of a request: what a client and a replica say is passed on as it comes, both ways at
//! once, until the answer is whole or one of them fails.
//!
//! Neither side is read while the other has too much to take, so that memory stays bounded.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::EXPECT;

use crate::answer::{Answer, Marks};
use crate::downstream::{Appetite, Downstream, FromClient, RequestHead, ResponseHead};
use crate::features::retry;
use crate::features::timeout::{Deadline, LONGEST_SILENCE};
use crate::moment::Moment;
use crate::patience::Patience;
use crate::request::Request;
use crate::upstream::connection::{Broken, Connection, FromReplica};

/// A body that is slower than so many bytes a second, after some grace, ties up a connection.
const LEAST_RATE: u64 = 500;
const GRACE: Duration = Duration::from_secs(10);
/// Bytes of a request's body that are kept for another try.
const MOST_KEPT: usize = 64 * 1024;

/// How a try ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The client has its answer.
    Answered,
    /// Nothing was said to the client yet: another try may go better.
    TryAgain,
    /// Nothing was said to the client yet: this should be.
    Say(Answer),
    /// The answer has begun and cannot be brought to its end.
    Cut,
    /// Nobody listens any more.
    Gone,
}

/// What has come of a request's body, as far as another try can begin with it.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    kept: Vec<Bytes>,
    bytes: usize,
    is_whole: bool,
}

impl Replay {
    fn keep(&mut self, data: Bytes) {
        self.bytes += data.len();
        if self.can_begin_again() {
            self.kept.push(data);
        } else {
            self.kept.clear();
        }
    }

    pub(crate) fn can_begin_again(&self) -> bool {
        self.bytes <= MOST_KEPT
    }
}

/// Whom an exchange waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slow {
    Replica,
    /// To send its request.
    Sender,
    /// To take its answer.
    Reader,
}

/// What happened next.
enum Turn {
    Replica(Result<FromReplica, Broken>),
    Client(FromClient),
    /// One of them can take more, or no more.
    Appetite,
}

/// A client, a replica, and what is between them.
pub(crate) struct Exchange<'e, D> {
    head: &'e RequestHead,
    request: &'e mut Request,
    client: &'e mut D,
    replica: Connection,
    replay: &'e mut Replay,
    patience: &'e mut Patience,
    stage: Stage,
    of_client: Appetite,
    of_replica: Appetite,
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

impl<'e, D: Downstream> Exchange<'e, D> {
    /// An exchange whose request's head has been written to `replica`.
    pub(crate) fn new(
        head: &'e RequestHead,
        request: &'e mut Request,
        client: &'e mut D,
        replica: Connection,
        replay: &'e mut Replay,
        patience: &'e mut Patience,
    ) -> Self {
        Self {
            head,
            request,
            client,
            replica,
            replay,
            patience,
            stage: Stage::Asked,
            of_client: Appetite::Hungry,
            of_replica: Appetite::Hungry,
        }
    }

    /// Runs to the end.
    pub(crate) async fn run(mut self) -> Ended {
        for data in &self.replay.kept {
            self.replica.send(data);
        }
        // A replica may be quicker than the client is asked for a body that there is not.
        self.replay.is_whole |= self.head.framing.is_empty();
        if self.replay.is_whole {
            self.replica.finish();
        }
        loop {
            self.notice_appetites();
            let (limit, slow) = self.limit();
            let (client, replica) = (&mut *self.client, &mut self.replica);
            let (of_client, of_replica) = (self.of_client, self.of_replica);
            let turn = poll_fn(|cx| {
                if let Poll::Ready(event) = replica.poll(cx, of_client) {
                    return Poll::Ready(Turn::Replica(event));
                }
                if let Poll::Ready(event) = client.poll(cx, of_replica) {
                    return Poll::Ready(Turn::Client(event));
                }
                let is_same = of_client == of_client.after(client.waiting())
                    && of_replica == of_replica.after(replica.waiting());
                if is_same {
                    Poll::Pending
                } else {
                    Poll::Ready(Turn::Appetite)
                }
            });
            let ended = match self.patience.within(limit, turn).await {
                Some(Turn::Replica(Ok(event))) => self.heard(event),
                Some(Turn::Replica(Err(broken))) => Some(self.broke(broken)),
                Some(Turn::Client(event)) => self.asked(event),
                Some(Turn::Appetite) => None,
                None => Some(self.waited_for(slow)),
            };
            match ended {
                None => {}
                Some(Ended::Answered) => {
                    if let Some(replica) = self.request.answering() {
                        replica.keep(self.replica, Moment::now());
                    }
                    return Ended::Answered;
                }
                Some(ended) => return ended,
            }
        }
    }

    fn notice_appetites(&mut self) {
        self.of_client = self.of_client.after(self.client.waiting());
        self.of_replica = self.of_replica.after(self.replica.waiting());
    }

    /// How long to wait for what comes next, and whose fault it is if that does not come.
    fn limit(&self) -> (Duration, Slow) {
        let limits = &self.request.live.config.limits;
        let (limit, slow) = match self.stage {
            Stage::Switched => return (LONGEST_SILENCE, Slow::Replica),
            Stage::Answered => (limits.idle_timeout, Slow::Reader),
            _ if self.of_client == Appetite::Full => (limits.idle_timeout, Slow::Reader),
            Stage::Asked if self.is_up_to_the_sender() => (limits.header_timeout, Slow::Sender),
            Stage::Asked | Stage::Answering => (LONGEST_SILENCE, Slow::Replica),
        };
        if self.request.deadline == Deadline::NONE {
            return (limit, slow);
        }
        match self.request.deadline.left(Moment::now()) {
            Some(left) if left < limit => (left, Slow::Replica),
            _ => (limit, slow),
        }
    }

    fn is_up_to_the_sender(&self) -> bool {
        let may_send = || self.replay.bytes > 0 || !self.head.fields.contains_key(EXPECT);
        !self.replay.is_whole && self.of_replica == Appetite::Hungry && may_send()
    }

    /// The replica said something.
    fn heard(&mut self, event: FromReplica) -> Option<Ended> {
        match event {
            FromReplica::Interim(head) => self.client.interim(&head),
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
    fn begin(&mut self, mut head: ResponseHead) -> Option<Ended> {
        let now = Moment::now();
        if let Some(attempt) = self.request.end_attempt(now) {
            attempt.answered(head.status, now);
            if retry::is_temporary(head.status) && self.may_try_again() {
                return Some(Ended::TryAgain);
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
            FromClient::Data(data) => return self.pass(data),
            FromClient::End => {
                self.replay.is_whole = true;
                self.replica.finish();
            }
            FromClient::Malformed(refused) => return Some(self.refuse(Answer::malformed(refused))),
            FromClient::Gone => return Some(Ended::Gone),
            FromClient::Finished => return Some(Ended::Answered),
        }
        None
    }

    /// Some of the request's body.
    fn pass(&mut self, data: Bytes) -> Option<Ended> {
        self.replica.send(&data);
        if self.stage == Stage::Switched {
            return None;
        }
        let request = &mut *self.request;
        request.body += data.len() as u64;
        self.replay.keep(data);
        let took = Moment::now().since(request.started);
        if request.body > request.live.config.limits.max_body {
            Some(self.refuse(Answer::body_too_large()))
        } else if took > GRACE && request.body / took.as_secs().max(1) < LEAST_RATE {
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

    fn broke(&mut self, broken: Broken) -> Ended {
        let replica = self.request.upstream.replica;
        tracing::warn!(request_id = %self.request.id, ?replica, reason = %broken, "replica failed");
        let now = Moment::now();
        let Some(attempt) = self.request.end_attempt(now) else {
            return Ended::Cut;
        };
        attempt.in_flight.replica().metrics.broken.inc();
        attempt.failed(now);
        if self.may_try_again() {
            return Ended::TryAgain;
        }
        Ended::Say(Answer::BAD_GATEWAY)
    }

    /// Something did not come in time.
    fn waited_for(&mut self, slow: Slow) -> Ended {
        match slow {
            Slow::Reader => return Ended::Gone,
            Slow::Sender => return self.refuse(Answer::body_too_slow()),
            Slow::Replica => {}
        }
        let replica = self.request.upstream.replica;
        tracing::warn!(request_id = %self.request.id, ?replica, reason = "it took too long", "replica failed");
        let now = Moment::now();
        let Some(attempt) = self.request.end_attempt(now) else {
            return Ended::Cut;
        };
        attempt.in_flight.replica().metrics.timeouts.inc();
        attempt.failed(now);
        if self.may_try_again() {
            return Ended::TryAgain;
        }
        Ended::Say(self.request.time_is_up())
    }

    fn may_try_again(&self) -> bool {
        self.request
            .may_try_again(retry::Failure::Unanswered, self.head, self.replay)
    }
}
