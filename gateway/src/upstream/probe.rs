//! Active health checks: the gateway sends each endpoint a request of its own periodically, or connects to it.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;

use anyhow::{Result, anyhow, bail};
use http::Method;
use supervision::catch_unwind;

use crate::config::{HealthCheckMethod, HealthCheckSettings};
use crate::http::downstream::Backpressure;
use crate::http::h1::encode::{put_header, put_request_line};
use crate::http::message::{Framing, Upgrade};
use crate::upstream::connect_error::ConnectError;
use crate::upstream::connection::{Connection, UpstreamEvent};
use crate::upstream::connector::Connector;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::health::HealthStatus;

impl Endpoint {
    /// Probes the endpoint once and updates its health. Returns whether it was unhealthy and is healthy now.
    pub(super) async fn probe(
        &self,
        connector: Connector<'_>,
        settings: &HealthCheckSettings,
    ) -> bool {
        let before = self.health();
        self.update_health(connector, settings).await;
        before == HealthStatus::Unhealthy && self.health() == HealthStatus::Healthy
    }

    async fn update_health(&self, connector: Connector<'_>, settings: &HealthCheckSettings) {
        let probe = pin!(async {
            match &settings.method {
                HealthCheckMethod::Http { path } => {
                    self.send_probe(connector, settings, path).await
                }
                HealthCheckMethod::TcpConnect => {
                    self.open_for_probe(connector, settings).await.map(drop)
                }
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
        connector: Connector<'_>,
        settings: &HealthCheckSettings,
        path: &str,
    ) -> Result<()> {
        let mut connection = self.open_for_probe(connector, settings).await?;
        let output = connection.begin_request(&Method::GET, Framing::Empty, Upgrade::None);
        self.put_probe_request(output, settings, path);
        connection.finish_request();
        let status = loop {
            match poll_fn(|cx| connection.poll(cx, Backpressure::Ready)).await {
                Ok(UpstreamEvent::Interim(_)) => {}
                Ok(UpstreamEvent::Headers(headers)) => break headers.status,
                Ok(event) => bail!("no response headers to the health check: {event:?}"),
                Err(error) => {
                    return Err(anyhow!(error).context("no response to the health check"));
                }
            }
        };
        if !status.is_success() {
            bail!("health check returned status {}", status.as_u16());
        }
        Ok(())
    }

    /// Establishes a connection, TLS included, for a probe.
    async fn open_for_probe(
        &self,
        connector: Connector<'_>,
        settings: &HealthCheckSettings,
    ) -> Result<Connection> {
        let address = self.probe_address(settings);
        connector
            .open(&self.server, address, settings.timeout)
            .await
            .map_err(|error| anyhow!(error).context("connection failed"))
    }

    fn probe_address(&self, settings: &HealthCheckSettings) -> SocketAddr {
        let port = settings.port.unwrap_or(self.address.port());
        SocketAddr::new(self.address.ip(), port)
    }

    fn put_probe_request(&self, output: &mut Vec<u8>, settings: &HealthCheckSettings, path: &str) {
        let port = settings.port.unwrap_or(self.server.port);
        put_request_line(output, &Method::GET, &[path.as_bytes()]);
        put_header(output, b"host", self.server.authority(port).as_bytes());
        put_header(output, b"user-agent", b"gateway-health-check");
        put_header(output, b"connection", b"close");
        output.extend_from_slice(b"\r\n");
    }
}
