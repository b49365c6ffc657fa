//! A certificate chain and its private key, read from PEM files and found to fit each other.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Where a certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// A certificate that can be served.
#[derive(Clone)]
pub(crate) struct Certificate {
    pub(crate) files: CertificateFiles,
    pub(crate) key: Arc<CertifiedKey>,
    /// Host names, in lower case, some as `*.example.org`, and IP addresses.
    pub(crate) names: Vec<String>,
    /// The end of its validity, in Unix time.
    pub(crate) expires: i64,
}

impl Certificate {
    /// # Errors
    /// What is wrong with one of the files, for the operator.
    pub(super) fn load(files: CertificateFiles) -> Result<Self, String> {
        let wrong =
            |file: &PathBuf, error: &dyn fmt::Display| format!("{}: {error}", file.display());
        let chain: Vec<_> = CertificateDer::pem_file_iter(&files.cert)
            .and_then(Iterator::collect)
            .map_err(|error| wrong(&files.cert, &readable(&error)))?;
        let Some(first) = chain.first() else {
            return Err(wrong(&files.cert, &"has no certificate in it"));
        };
        let (_, parsed) = X509Certificate::from_der(first)
            .map_err(|error| wrong(&files.cert, &format!("is no X.509 certificate: {error}")))?;
        let (names, expires) = (names_of(&parsed), parsed.validity().not_after.timestamp());
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| wrong(&files.key, &readable(&error)))?;
        let key = any_supported_type(&key)
            .map_err(|_| wrong(&files.key, &"is no RSA, ECDSA or Ed25519 key"))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => {
                let cert = files.cert.display();
                return Err(wrong(&files.key, &format!("is not the key of {cert}")));
            }
        }
        Ok(Self {
            files,
            key: Arc::new(key),
            names,
            expires,
        })
    }
}

fn readable(error: &rustls_pki_types::pem::Error) -> String {
    use rustls_pki_types::pem::Error;
    match error {
        Error::Io(error) => format!("cannot be read: {error}"),
        Error::NoItemsFound => "has nothing of the kind in it, in PEM format".to_owned(),
        other => format!("is no PEM file: {other}"),
    }
}

/// The names that a certificate is for; its common name only where it has no others (RFC 6125).
fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let Some(alternative) = alternative else {
        return certificate
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok())
            .map(str::to_ascii_lowercase)
            .collect();
    };
    alternative
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

fn address(bytes: &[u8]) -> Option<std::net::IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files && self.key.cert == other.key.cert
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Certificate")
            .field("files", &self.files)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}
