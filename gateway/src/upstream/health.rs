//! Whether a replica is well: a request of our own to a path of its own, again and again.

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;

use super::{Condition, NotConnected, Replica};
use crate::config::HealthCheck;

/// How the last probes went.
#[derive(Debug, Default)]
pub(super) struct Probes {
    good: u32,
    bad: u32,
}

impl Probes {
    pub(super) fn start_over(&mut self) {
        *self = Self::default();
    }

    /// The condition that a probe leads to, if it settles one.
    fn note(&mut self, is_good: bool, settings: &HealthCheck) -> Option<Condition> {
        let (run, other, needed, condition) = if is_good {
            (
                &mut self.good,
                &mut self.bad,
                settings.healthy_after,
                Condition::Up,
            )
        } else {
            (
                &mut self.bad,
                &mut self.good,
                settings.unhealthy_after,
                Condition::Down,
            )
        };
        *other = 0;
        *run = run.saturating_add(1);
        (*run >= NonZeroU32::get(needed)).then_some(condition)
    }
}

impl Replica {
    /// Probes it once and draws the conclusion.
    pub(super) async fn probe(&self, connector: &Connector, settings: &HealthCheck) {
        let result =
            match tokio::time::timeout(settings.timeout, self.ask(connector, settings)).await {
                Ok(result) => result,
                Err(_) => Err(anyhow::anyhow!("no answer within {:?}", settings.timeout)),
            };
        if let Err(error) = &result
            && error.downcast_ref() == Some(&NotConnected::NoSocket)
        {
            // That says nothing of the replica.
            tracing::error!("no socket for a health check: too many files are open");
            return;
        }
        let settled = self.probes.lock().note(result.is_ok(), settings);
        match (settled, result) {
            (Some(Condition::Up), _) => self.set(Condition::Up, "its health check is answered"),
            (Some(_), Err(error)) => self.set(Condition::Down, &format!("{error:#}")),
            // One bad probe is enough for a replica that never was well.
            (None, Err(error)) if self.condition() == Condition::Unknown => {
                self.set(Condition::Down, &format!("{error:#}"));
            }
            _ => {}
        }
    }

    async fn ask(&self, connector: &Connector, settings: &HealthCheck) -> Result<()> {
        let mut peer = self.peer(settings.timeout);
        if let Some(port) = settings.port {
            let mut address = self.address;
            address.set_port(port);
            peer._address = address.into();
        }
        peer.options.idle_timeout = Some(Duration::ZERO);
        let (mut session, _) = connector.get_http_session(&peer).await.map_err(|error| {
            let reason = format!("cannot be connected: {}", error.etype().as_str());
            anyhow::Error::new(NotConnected::from(error.etype())).context(reason)
        })?;
        session
            .write_request_header(Box::new(self.request(settings)?))
            .await
            .context("the health check could not be sent")?;
        session
            .read_response_header()
            .await
            .context("the health check was not answered")?;
        let status = session
            .response_header()
            .map(|header| header.status)
            .context("the health check was answered by nothing")?;
        drop::<HttpSession>(session);
        if !status.is_success() {
            bail!("its health check was answered {}", status.as_u16());
        }
        Ok(())
    }

    fn request(&self, settings: &HealthCheck) -> Result<RequestHeader> {
        let mut request = RequestHeader::build("GET", settings.path.as_bytes(), Some(3))?;
        let port = settings.port.unwrap_or(self.server.port);
        request.insert_header("host", &*self.server.authority(port))?;
        request.insert_header("user-agent", "gateway-health-check")?;
        request.insert_header("connection", "close")?;
        Ok(request)
    }
}
