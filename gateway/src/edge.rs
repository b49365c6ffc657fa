//! Connections of clients: admitted, secured, and handed to the version of HTTP that they speak.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use http::Version;
use pingora::apps::ServerApp;
use pingora::listeners::ALPN;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use crate::admission::Admission;
use crate::config::Limits;
use crate::downstream::RequestHead;
use crate::gateway::Gateway;
use crate::handshake::{Handshakes, Peer};
use crate::head::Refused;
use crate::http1::{self, Answers, Http1};
use crate::patience::Patience;
use crate::{http2, proxy};

/// What serves the connections of the https listener.
pub(crate) struct Edge {
    gateway: Arc<Gateway>,
    handshakes: Handshakes,
    admission: Admission,
}

impl Edge {
    /// # Errors
    /// When the system has no randomness for session tickets.
    pub(crate) fn new(gateway: &Arc<Gateway>, admission: &Admission) -> Result<Self> {
        Ok(Self {
            gateway: Arc::clone(gateway),
            handshakes: Handshakes::new(&gateway.certificates, &gateway.metrics)?,
            admission: admission.clone(),
        })
    }
}

#[async_trait]
impl ServerApp for Edge {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let limits = self.gateway.limits();
        let _admitted = self.admission.admit(&stream, limits)?;
        let stream = self
            .handshakes
            .complete(stream, limits.header_timeout)
            .await?;
        let (gateway, peer) = (&*self.gateway, Peer::of(&stream)?);
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            http2::serve(gateway, stream, &peer, limits, shutdown).await;
        } else {
            let peer = &peer;
            http1::serve(&Journeys { gateway, peer }, stream, shutdown).await;
        }
        None
    }
}

/// Each request of a connection goes on its journey.
struct Journeys<'c> {
    gateway: &'c Gateway,
    peer: &'c Peer,
}

impl Answers for Journeys<'_> {
    fn limits(&self) -> Limits {
        self.gateway.limits()
    }

    async fn serve(&self, head: RequestHead, client: &mut Http1, patience: &mut Patience) {
        proxy::serve(self.gateway, self.peer, head, client, patience).await;
    }

    fn refuse(&self, refused: Refused, client: &mut Http1) {
        let (version, unread) = (Version::HTTP_11, http1::unread());
        proxy::refuse(self.gateway, self.peer, refused, &unread, version, client);
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Edge").finish_non_exhaustive()
    }
}
