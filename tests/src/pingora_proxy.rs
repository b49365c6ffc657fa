//! A plain reverse proxy on Pingora's own `HttpProxy`, without filters: another reading of the requests that the
//! gateway forwards, which uses Pingora for connections alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use pingora_core::server::configuration::ServerConf;
use pingora_core::services::Service;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::address;
use crate::wait;

/// Time after which a body that is shorter than announced is given up.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// A proxy that runs until this is dropped.
#[derive(Debug)]
pub struct PingoraProxy {
    /// Where it accepts cleartext HTTP.
    pub address: SocketAddr,
    task: JoinHandle<()>,
    /// Its end would end the proxy.
    _shutdown: watch::Sender<bool>,
}

impl PingoraProxy {
    /// Starts a proxy that forwards everything to `upstream`.
    ///
    /// # Errors
    /// Returns an error if it does not listen in time.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let address = address::unused_loopback();
        let settings = Arc::new(ServerConf::default());
        let mut service = pingora_proxy::http_proxy_service(&settings, Forwarding { upstream });
        service.add_tcp(&address.to_string());
        let (shutdown, receiver) = watch::channel(false);
        let proxy = Self {
            address,
            task: tokio::spawn(async move { service.start_service(None, receiver, 1).await }),
            _shutdown: shutdown,
        };
        wait::until("Pingora to listen", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await?;
        Ok(proxy)
    }
}

impl Drop for PingoraProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What Pingora asks about each request.
#[derive(Debug)]
struct Forwarding {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Forwarding {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn early_request_filter(
        &self,
        session: &mut Session,
        (): &mut Self::CTX,
    ) -> pingora_core::Result<()> {
        session.set_read_timeout(Some(BODY_TIMEOUT));
        Ok(())
    }

    async fn upstream_peer(
        &self,
        _: &mut Session,
        (): &mut Self::CTX,
    ) -> pingora_core::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}
