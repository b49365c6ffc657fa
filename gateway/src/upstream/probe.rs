//! Active health checks: the gateway sends each endpoint a request of its own periodically, or connects to it.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use rustix::io::Errno;
use supervision::catch_unwind;
use tokio::net::TcpStream;

use crate::config::{HealthCheckMethod, HealthCheckSettings};
use crate::upstream::endpoint::{ConnectError, Endpoint};
use crate::upstream::health::HealthStatus;

/// Initial capacity for the headers of a health check.
const PROBE_HEADER_CAPACITY: usize = 3;

impl Endpoint {
    /// Probes the endpoint once and updates its health. Returns whether it was unhealthy and is healthy now.
    pub(super) async fn probe(
        &self,
        connector: &Connector,
        settings: &HealthCheckSettings,
    ) -> bool {
        let before = self.health();
        self.update_health(connector, settings).await;
        before == HealthStatus::Unhealthy && self.health() == HealthStatus::Healthy
    }

    async fn update_health(&self, connector: &Connector, settings: &HealthCheckSettings) {
        let probe = pin!(async {
            match &settings.method {
                HealthCheckMethod::Http { path } => {
                    self.send_probe(connector, settings, path).await
                }
                HealthCheckMethod::TcpConnect => connect(self.probe_address(settings)).await,
                HealthCheckMethod::None => Ok(()),
            }
        });
        // One endpoint whose response causes a panic must not end the probes of the others.
        let probe = catch_unwind(probe);
        let result = match tokio::time::timeout(settings.timeout, probe).await {
            Ok(result) => result.unwrap_or_else(|panicked| Err(panicked.into())),
            Err(_) => Err(anyhow!("no response within {:?}", settings.timeout)),
        };
        if let Err(error) = &result
            && error.downcast_ref() == Some(&ConnectError::NoSocket)
        {
            // The failure is the gateway's and does not concern the endpoint.
            tracing::error!("no socket for a health check: too many open files");
            return;
        }
        let status = self.probes.lock().record(result.is_ok(), settings);
        match (status, result) {
            (Some(HealthStatus::Healthy), _) => {
                self.set_health(HealthStatus::Healthy, "health check succeeded");
            }
            (Some(_), Err(error)) => {
                self.set_health(HealthStatus::Unhealthy, &format!("{error:#}"));
            }
            // One failed probe is enough for an endpoint that was never healthy.
            (None, Err(error)) if self.health() == HealthStatus::Unknown => {
                self.set_health(HealthStatus::Unhealthy, &format!("{error:#}"));
            }
            _ => {}
        }
    }

    async fn send_probe(
        &self,
        connector: &Connector,
        settings: &HealthCheckSettings,
        path: &str,
    ) -> Result<()> {
        let mut peer = self.peer(settings.timeout);
        peer._address = self.probe_address(settings).into();
        peer.options.idle_timeout = Some(Duration::ZERO);
        let (mut session, _) = connector.get_http_session(&peer).await.map_err(|error| {
            let reason = format!("connection failed: {}", error.etype().as_str());
            anyhow::Error::new(ConnectError::from(error.etype())).context(reason)
        })?;
        session
            .write_request_header(Box::new(self.probe_request(settings, path)?))
            .await
            .context("sending the health check failed")?;
        session
            .read_response_header()
            .await
            .context("no response to the health check")?;
        let status = session
            .response_header()
            .map(|header| header.status)
            .context("no response headers to the health check")?;
        drop::<HttpSession>(session);
        if !status.is_success() {
            bail!("health check returned status {}", status.as_u16());
        }
        Ok(())
    }

    fn probe_address(&self, settings: &HealthCheckSettings) -> SocketAddr {
        let port = settings.port.unwrap_or(self.address.port());
        SocketAddr::new(self.address.ip(), port)
    }

    fn probe_request(&self, settings: &HealthCheckSettings, path: &str) -> Result<RequestHeader> {
        let path = path.as_bytes();
        let mut request = RequestHeader::build("GET", path, Some(PROBE_HEADER_CAPACITY))?;
        let port = settings.port.unwrap_or(self.server.port);
        request.insert_header("host", &*self.server.authority(port))?;
        request.insert_header("user-agent", "gateway-health-check")?;
        request.insert_header("connection", "close")?;
        Ok(request)
    }
}

/// Establishes a TCP connection and closes it.
async fn connect(address: SocketAddr) -> Result<()> {
    match TcpStream::connect(address).await {
        Ok(_) => Ok(()),
        Err(error) if is_own_limit(&error) => Err(ConnectError::NoSocket.into()),
        Err(error) => Err(anyhow!(error).context("connection failed")),
    }
}

/// Returns whether an error is a limit of the gateway's own process or host.
fn is_own_limit(error: &std::io::Error) -> bool {
    let own_limits = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL];
    let code = error.raw_os_error();
    own_limits
        .iter()
        .any(|limit| code == Some(limit.raw_os_error()))
}
