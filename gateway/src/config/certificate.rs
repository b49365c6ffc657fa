//! A certificate chain and its private key, read from PEM files and found to fit each other.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::InconsistentKeys;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Version};

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
    /// The start of its validity, in Unix time.
    pub(crate) begins: i64,
    /// The end of its validity, in Unix time.
    pub(crate) expires: i64,
}

/// Why a certificate is served in vain. Its `Display` says it after the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Untimely {
    Early,
    Late,
}

impl fmt::Display for Untimely {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Early => "is not valid yet",
            Self::Late => "has expired",
        })
    }
}

impl Certificate {
    /// # Errors
    /// What is wrong with the files, for the operator.
    pub(super) fn load(files: CertificateFiles) -> Result<Self, Vec<String>> {
        let chain = Chain::read(&files.cert).map_err(|problem| told(&files.cert, &problem));
        let key = key(&files.key).map_err(|problem| told(&files.key, &problem));
        let (chain, key) = match (chain, key) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => return Err(chain.err().into_iter().chain(key.err()).collect()),
        };
        let key = CertifiedKey::new(chain.certificates, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let problem = format!("is not the key of {}", files.cert.display());
                return Err(vec![told(&files.key, &problem)]);
            }
            Err(error) => {
                return Err(vec![told(
                    &files.cert,
                    &format!("cannot be served: {error}"),
                )]);
            }
        }
        Ok(Self {
            files,
            key: Arc::new(key),
            names: chain.names,
            begins: chain.begins,
            expires: chain.expires,
        })
    }

    /// Whether clients would refuse it for its dates at a time, in Unix time.
    pub(crate) fn untimely(&self, now: i64) -> Option<Untimely> {
        if now < self.begins {
            Some(Untimely::Early)
        } else if now > self.expires {
            Some(Untimely::Late)
        } else {
            None
        }
    }
}

fn told(file: &Path, problem: &str) -> String {
    format!("{}: {problem}", file.display())
}

/// What a certificate's file has.
struct Chain {
    /// Never empty.
    certificates: Vec<CertificateDer<'static>>,
    names: Vec<String>,
    begins: i64,
    expires: i64,
}

impl Chain {
    fn read(file: &Path) -> Result<Self, String> {
        let text = read(file)?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|error| readable(&error))?;
        let first = certificates
            .first()
            .ok_or("has no certificate in it, in PEM format")?;
        let (_, parsed) = X509Certificate::from_der(first)
            .map_err(|error| format!("is no X.509 certificate: {error}"))?;
        if parsed.version() != X509Version::V3 {
            return Err(
                "is a certificate of an old version, which clients refuse: make one of version 3, \
                 with subjectAltName"
                    .to_owned(),
            );
        }
        let (names, validity) = (names_of(&parsed), parsed.validity());
        let [begins, expires] =
            [validity.not_before, validity.not_after].map(|time| time.timestamp());
        Ok(Self {
            certificates,
            names,
            begins,
            expires,
        })
    }
}

fn key(file: &Path) -> Result<Arc<dyn SigningKey>, String> {
    const MARKS_OF_ENCRYPTION: [&[u8]; 2] =
        [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];
    let text = read(file)?;
    if MARKS_OF_ENCRYPTION
        .iter()
        .any(|mark| memchr::memmem::find(&text, mark).is_some())
    {
        return Err(
            "is encrypted, and nobody could be asked for its passphrase: `openssl pkey` decrypts it"
                .to_owned(),
        );
    }
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => "has no private key in it, in PEM format".to_owned(),
        other => readable(&other),
    })?;
    any_supported_type(&key).map_err(|_| {
        "is no key that TLS can use: RSA of 2048 to 8192 bits, ECDSA with P-256, P-384 or P-521, \
         or Ed25519"
            .to_owned()
    })
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))
}

fn readable(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "is cut off: a PEM section in it has no end".to_owned()
        }
        pem::Error::Base64Decode(_) => "is damaged: a PEM section in it is no base64".to_owned(),
        pem::Error::IllegalSectionStart { .. } => {
            "is damaged: a PEM section in it has a malformed first line".to_owned()
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/fixtures");

    fn load(cert: &Path, key: &Path) -> Result<Certificate, Vec<String>> {
        Certificate::load(CertificateFiles {
            cert: cert.to_owned(),
            key: key.to_owned(),
        })
    }

    #[test]
    fn what_is_wrong_with_the_files_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let fixture = |name: &str| Path::new(FIXTURES).join(name);
        let cut = |name: &str, at: usize| {
            let text = std::fs::read_to_string(fixture(name)).unwrap();
            let file = folder.path().join(format!("cut-{name}"));
            std::fs::write(&file, &text[..at]).unwrap();
            file
        };
        let written = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let pem = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let encrypted = written("encrypted.pem", &pem("ENCRYPTED PRIVATE KEY", "AAAA"));
        let legacy = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,8C\n\nAAAA";
        let legacy = written("legacy.pem", &pem("EC PRIVATE KEY", legacy));
        let damaged = written("damaged.pem", &pem("CERTIFICATE", "*"));
        let (cert, key) = (fixture("cert.pem"), fixture("key.pem"));
        let problems: Vec<_> = [
            (&fixture("none.pem"), &fixture("nothing.pem")),
            (&key, &cert),
            (&cert, &encrypted),
            (&cert, &legacy),
            (&cert, &fixture("rsa-1024-key.pem")),
            (&fixture("version-1.pem"), &key),
            (&cut("cert.pem", 300), &cut("key.pem", 100)),
            (&damaged, &key),
            (&written("none.der", &pem("CERTIFICATE", "AAAA")), &key),
        ]
        .iter()
        .flat_map(|(cert, key)| load(cert, key).unwrap_err())
        .collect();
        let problems = problems
            .join("\n")
            .replace(FIXTURES, "FIXTURES")
            .replace(&folder.path().display().to_string(), "FOLDER");
        insta::assert_snapshot!(problems);
    }

    #[test]
    fn a_certificate_has_its_time() {
        let folder = Path::new(FIXTURES);
        let certificate = load(&folder.join("cert.pem"), &folder.join("key.pem")).unwrap();
        let (begins, expires) = (certificate.begins, certificate.expires);
        assert_eq!(certificate.untimely(begins - 1), Some(Untimely::Early));
        assert_eq!(certificate.untimely(begins), None);
        assert_eq!(certificate.untimely(expires), None);
        assert_eq!(certificate.untimely(expires + 1), Some(Untimely::Late));
    }
}
