//! TLS certificates, selected by SNI and the signature schemes of the client, and replaced without a restart; and the TLS configuration: 1.2 and
//! 1.3, AEAD and forward secrecy only, X25519MLKEM768 before X25519 and P-256 (Mozilla's
//! intermediate profile; RFC 9325).

use std::collections::HashMap;
use std::fs;
use std::iter;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Result;
use arc_swap::ArcSwap;
use http::HeaderValue;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme};

use crate::config::{Certificate, wildcard};
use crate::http::syntax::host_name;
use crate::runtime::clock::unix_seconds;

/// Time before the end of a certificate's validity at which warnings begin, in seconds.
const EXPIRY_WARNING_SECONDS: i64 = 14 * 24 * 3600;

/// Certificates that are served now.
#[derive(Debug)]
pub(crate) struct Certificates(ArcSwap<CertificateSet>);

#[derive(Debug)]
struct CertificateSet {
    /// Never empty. The first is for clients that send no server name, or an unknown one.
    all: Vec<Certificate>,
    /// Certificates of each name, in the order of the configuration.
    by_name: HashMap<String, Vec<usize>>,
    /// The first certificate, and the others that share a name with it.
    default: Vec<usize>,
}

impl Certificates {
    /// Creates the set from `all`, which must not be empty.
    pub(crate) fn new(all: &[Certificate]) -> Self {
        log_warnings(all);
        Self(ArcSwap::from_pointee(CertificateSet::new(all)))
    }

    pub(crate) fn replace(&self, all: &[Certificate]) {
        log_warnings(all);
        self.0.store(Arc::new(CertificateSet::new(all)));
    }

    /// Logs a warning for each certificate that expires soon and each key that others may read.
    pub(crate) fn log_warnings(&self) {
        log_warnings(&self.0.load().all);
    }

    /// Returns each certificate's file and the end of its validity in Unix time.
    pub(crate) fn expiries(&self) -> Vec<(String, i64)> {
        let set = self.0.load();
        set.all.iter().map(Certificate::expiry).collect()
    }

    /// Returns the first name of the default certificate that is no wildcard, as a value of `Host`.
    pub(crate) fn default_host(&self) -> Option<HeaderValue> {
        let set = self.0.load();
        let default = set.candidates(None).next()?;
        let mut names = default.names.iter();
        // An IPv6 address would need brackets.
        let name = names.find(|name| !name.contains(['*', ':']))?;
        HeaderValue::from_str(name).ok()
    }

    /// Returns the names of the certificates that are served for `server_name`: several if clients support
    /// different kinds of keys.
    pub(crate) fn names_for(&self, server_name: &str) -> Vec<String> {
        let set = self.0.load();
        let candidates = set.candidates(Some(server_name));
        candidates.flat_map(|one| one.names.clone()).collect()
    }
}

impl CertificateSet {
    fn new(all: &[Certificate]) -> Self {
        let mut by_name = HashMap::<_, Vec<_>>::new();
        for (number, certificate) in all.iter().enumerate() {
            for name in &certificate.names {
                by_name.entry(name.clone()).or_default().push(number);
            }
        }
        let shares_name =
            |one: &Certificate| one.names.iter().any(|name| all[0].names.contains(name));
        let others = (1..all.len()).filter(|number| shares_name(&all[*number]));
        Self {
            default: iter::once(0).chain(others).collect(),
            all: all.to_vec(),
            by_name,
        }
    }

    /// Returns the certificates for a server name: those that have it, then those with a wildcard that covers
    /// it, or the default ones if there are none.
    fn candidates(&self, server_name: Option<&str>) -> impl Iterator<Item = &Certificate> {
        let of_name = |name: &str| self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        let (exact, covering) = server_name.map_or((&[][..], &[][..]), |name| {
            let name = host_name(name).to_ascii_lowercase();
            let wildcard = wildcard(&name);
            (
                of_name(&name),
                wildcard.map_or(&[][..], |name| of_name(&name)),
            )
        });
        let is_unknown = exact.is_empty() && covering.is_empty();
        let default = if is_unknown { &self.default[..] } else { &[] };
        let numbers = exact.iter().chain(covering).chain(default);
        numbers.map(|number| &self.all[*number])
    }

    /// Returns the first certificate for a server name whose key the client supports, or else the first one,
    /// with which the handshake fails.
    fn find(&self, server_name: Option<&str>, schemes: &[SignatureScheme]) -> &Certificate {
        let mut candidates = self.candidates(server_name).peekable();
        let first = candidates.peek().copied().unwrap_or(&self.all[0]);
        candidates
            .find(|one| one.supports_any(schemes))
            .unwrap_or(first)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let set = self.0.load();
        // rustls leaves out the schemes that do not fit the cipher suites of a TLS 1.2 client.
        let certificate = set.find(hello.server_name(), hello.signature_schemes());
        Some(Arc::clone(&certificate.key))
    }
}

/// Returns whether one of a certificate's names covers a host.
pub(crate) fn names_cover(names: &[String], host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let wildcard = wildcard(&host);
    names
        .iter()
        .any(|name| *name == host || Some(name) == wildcard.as_ref())
}

fn log_warnings(certificates: &[Certificate]) {
    let now = unix_seconds(SystemTime::now());
    for certificate in certificates {
        let file = certificate.files.cert.display();
        let remaining = certificate.not_after - now;
        if let Some(error) = certificate.validity_error(now) {
            tracing::warn!(%file, "certificate {error}");
        } else if remaining < EXPIRY_WARNING_SECONDS {
            tracing::warn!(%file, days = remaining / (24 * 3600), "certificate expires soon");
        }
        let key = &certificate.files.key;
        if fs::metadata(key).is_ok_and(|metadata| is_readable_by_others(&metadata)) {
            let file = key.display();
            tracing::warn!(%file, "private key is readable by others: chmod 600");
        }
    }
}

/// Returns whether users other than the owner may read a key. The group may if the owner is root: that
/// is how a key is given to a service that does not run as root.
fn is_readable_by_others(key: &fs::Metadata) -> bool {
    let allowed = if key.uid() == 0 { 0o040 } else { 0 };
    key.mode() & 0o077 & !allowed != 0
}

/// Returns the cryptography provider of clients' connections and of those to endpoints.
pub(crate) fn crypto_provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

/// Installs the process-wide cryptography provider, before a library installs its default.
pub(crate) fn install_crypto_provider() {
    // Fails only if a provider is installed already, which is then this one.
    let _ = crypto_provider().install_default();
}

/// Returns the TLS configuration for client connections.
///
/// # Errors
/// Returns an error if the system provides no random numbers for session tickets.
pub(crate) fn server_config(certificates: &Arc<Certificates>) -> Result<ServerConfig> {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(certificates) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = ["h2", "http/1.1", "http/1.0"].map(Into::into).to_vec();
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    // A second ticket is for clients that open parallel connections; with HTTP/2 they share one.
    config.send_tls13_tickets = 1;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};

    #[test]
    fn a_certificate_covers_its_names_in_any_case() {
        let config = Config::parse(
            "gateway.yml".as_ref(),
            "premier: {}",
            &Environment::for_tests(),
        )
        .unwrap();
        let certificates = Certificates::new(&config.certificates);
        let names = certificates.names_for("anything");
        for host in ["localhost", "LOCALHOST", "a.example.org", "127.0.0.1"] {
            assert!(names_cover(&names, host), "{host}");
        }
        for host in ["example.org", "a.b.example.org", "other", "127.0.0.2"] {
            assert!(!names_cover(&names, host), "{host}");
        }
    }
}
