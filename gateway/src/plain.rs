//! Listeners that speak plain HTTP and have an answer to each request at once: the way to https, and
//! what operators ask for.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use serde_json::Value;

use crate::admission::Admission;
use crate::answer::{Answer, JSON, Marks};
use crate::config::Limits;
use crate::downstream::{Downstream, RequestHead, ResponseHead, until_taken};
use crate::framing::Framing;
use crate::gateway::Gateway;
use crate::head::Refused;
use crate::http1::{self, Answers, Http1};
use crate::patience::Patience;

/// What is said to a request.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: StatusCode,
    pub(crate) fields: HeaderMap,
    pub(crate) body: Bytes,
}

impl Said {
    pub(crate) fn new(
        status: StatusCode,
        content_type: HeaderValue,
        body: impl Into<Bytes>,
    ) -> Self {
        let mut fields = HeaderMap::new();
        fields.insert(CONTENT_TYPE, content_type);
        Self {
            status,
            fields,
            body: body.into(),
        }
    }

    pub(crate) fn json(status: StatusCode, body: &Value) -> Self {
        Self::new(status, JSON, body.to_string())
    }
}

/// Knows the answers.
pub(crate) trait Oracle: Send + Sync + 'static {
    fn say(&self, head: &RequestHead) -> Said;
}

/// What serves the connections of such a listener.
pub(crate) struct Plain<O> {
    gateway: Arc<Gateway>,
    oracle: O,
    /// Where clients connect, whom there may be too many of.
    admission: Option<Admission>,
}

impl<O: Oracle> Plain<O> {
    pub(crate) fn for_operators(gateway: &Arc<Gateway>, oracle: O) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            oracle,
            admission: None,
        }
    }

    pub(crate) fn for_clients(gateway: &Arc<Gateway>, oracle: O, admission: &Admission) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            oracle,
            admission: Some(admission.clone()),
        }
    }
}

#[async_trait]
impl<O: Oracle> ServerApp for Plain<O> {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let _admitted = match &self.admission {
            Some(admission) => Some(admission.admit(&stream, self.limits())?),
            None => None,
        };
        http1::serve(&**self, stream, shutdown).await;
        None
    }
}

impl<O: Oracle> Answers for Plain<O> {
    fn limits(&self) -> Limits {
        self.gateway.limits()
    }

    async fn serve(&self, head: RequestHead, client: &mut Http1, patience: &mut Patience) {
        let Said {
            status,
            fields,
            body,
        } = self.oracle.say(&head);
        client.begin(ResponseHead {
            status,
            reason: None,
            fields,
            framing: Framing::Length(body.len() as u64),
        });
        if head.method != Method::HEAD {
            client.send(body);
        }
        client.finish();
        until_taken(client, patience, self.limits().idle_timeout).await;
    }

    fn refuse(&self, refused: Refused, client: &mut Http1) {
        Answer::malformed(refused).say(&http1::unread(), client, Marks::Plain);
    }
}
