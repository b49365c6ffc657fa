//! TLS: certificates by SNI, exchanged without a restart.
//!
//! TLS 1.2 and 1.3, AEAD and forward secrecy only, X25519MLKEM768 before X25519 and P-256
//! (Mozilla's intermediate profile; RFC 9325).

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Result;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::Certificate;
use crate::gateway::unix_seconds;

/// From then on the log warns of a certificate's end, in seconds.
const EXPIRY_WARNING: i64 = 14 * 24 * 3600;

/// The certificates that are served now.
#[derive(Debug)]
pub(crate) struct Certificates(ArcSwap<Served>);

#[derive(Debug)]
struct Served {
    /// The first is for clients that name nobody, or nobody we know.
    all: Vec<Certificate>,
    by_name: HashMap<String, usize>,
}

impl Certificates {
    /// `all` is never empty.
    pub(crate) fn new(all: &[Certificate]) -> Self {
        warn_of(all);
        Self(ArcSwap::from_pointee(Served::new(all)))
    }

    pub(crate) fn replace(&self, all: &[Certificate]) {
        warn_of(all);
        self.0.store(Arc::new(Served::new(all)));
    }

    /// Warns of those that end soon.
    pub(crate) fn warn(&self) {
        warn_of(&self.0.load().all);
    }

    /// Each certificate's file and end.
    pub(crate) fn expiries(&self) -> Vec<(String, i64)> {
        let served = self.0.load();
        served
            .all
            .iter()
            .map(|one| (one.files.cert.display().to_string(), one.expires))
            .collect()
    }

    /// The names of the certificate that a client gets who asks for `server_name`.
    pub(crate) fn names_for(&self, server_name: &str) -> Vec<String> {
        self.0.load().find(Some(server_name)).names.clone()
    }
}

impl Served {
    fn new(all: &[Certificate]) -> Self {
        let mut by_name = HashMap::new();
        for (number, certificate) in all.iter().enumerate() {
            for name in &certificate.names {
                by_name.entry(name.clone()).or_insert(number);
            }
        }
        Self {
            all: all.to_vec(),
            by_name,
        }
    }

    fn find(&self, server_name: Option<&str>) -> &Certificate {
        let number = server_name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            self.by_name
                .get(&name)
                .or_else(|| self.by_name.get(&wildcard(&name)?))
        });
        &self.all[number.copied().unwrap_or(0)]
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().find(hello.server_name()).key))
    }
}

/// `*.example.org` for `www.example.org` (RFC 6125, section 6.4.3).
fn wildcard(name: &str) -> Option<String> {
    let (_, parent) = name.split_once('.')?;
    Some(format!("*.{parent}"))
}

/// Whether one of a certificate's names covers a host.
pub(crate) fn covers(names: &[String], host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let wildcard = wildcard(&host);
    names
        .iter()
        .any(|name| *name == host || Some(name) == wildcard.as_ref())
}

fn warn_of(certificates: &[Certificate]) {
    let now = unix_seconds(SystemTime::now());
    for certificate in certificates {
        let file = certificate.files.cert.display();
        let left = certificate.expires - now;
        if let Some(untimely) = certificate.untimely(now) {
            tracing::warn!(%file, "certificate {untimely}");
        } else if left < EXPIRY_WARNING {
            tracing::warn!(%file, days = left / (24 * 3600), "certificate expires soon");
        }
        let key = &certificate.files.key;
        if fs::metadata(key).is_ok_and(|found| is_open(&found)) {
            let file = key.display();
            tracing::warn!(%file, "private key can be read by others: chmod 600");
        }
    }
}

/// Whether others may read a key. A group may, if the key is root's: so a system hands one over to a
/// service that is not root.
fn is_open(key: &fs::Metadata) -> bool {
    let allowed = if key.uid() == 0 { 0o040 } else { 0 };
    key.mode() & 0o077 & !allowed != 0
}

/// Makes our cryptography the process's, before any library takes its own.
pub(crate) fn install_cryptography() {
    let provider = CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    };
    // Refused only where there is one already, which then is this one.
    let _ = provider.install_default();
}

/// How clients are spoken to.
///
/// # Errors
/// When the system has no randomness for session tickets.
pub(crate) fn server_config(certificates: &Arc<Certificates>) -> Result<ServerConfig> {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(certificates) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = ["h2", "http/1.1", "http/1.0"].map(Into::into).to_vec();
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    // A second ticket serves clients that open connections in parallel; ours share one by HTTP/2.
    config.send_tls13_tickets = 1;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};

    #[test]
    fn certificates_are_chosen_by_name() {
        let config = Config::parse(
            "gateway.yml".as_ref(),
            "premier: {}",
            &Environment::for_tests(),
        )
        .unwrap();
        let certificates = Certificates::new(&config.certificates);
        let names = certificates.names_for("anything");
        for host in ["localhost", "LOCALHOST", "a.example.org", "127.0.0.1"] {
            assert!(covers(&names, host), "{host}");
        }
        for host in ["example.org", "a.b.example.org", "other", "127.0.0.2"] {
            assert!(!covers(&names, host), "{host}");
        }
    }
}
