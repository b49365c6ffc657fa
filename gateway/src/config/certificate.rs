//! Certificate chain and private key, read from PEM files. The key is known to be the one of the
//! certificate.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{InconsistentKeys, SignatureScheme};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Version};

/// Signature schemes of TLS 1.2 and 1.3 that a supported key may have.
const SIGNATURE_SCHEMES: [SignatureScheme; 10] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// Files of a certificate chain and its private key.
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
    /// Host names in lower case, wildcards such as `*.example.org` included, and IP addresses.
    pub(crate) names: Vec<String>,
    /// Start of the validity period, in Unix time.
    pub(crate) not_before: i64,
    /// End of the validity period, in Unix time.
    pub(crate) not_after: i64,
}

/// Reason a certificate is outside its validity period. Its text follows the name of the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValidityError {
    NotYetValid,
    Expired,
}

impl fmt::Display for ValidityError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NotYetValid => "is not valid yet",
            Self::Expired => "has expired",
        })
    }
}

impl Certificate {
    /// Reads a certificate chain and its private key.
    ///
    /// # Errors
    /// Returns the problems of both files, for the operator.
    pub(super) fn load(files: CertificateFiles) -> Result<Self, Vec<String>> {
        let chain = CertificateChain::read(&files.cert)
            .map_err(|problem| problem_of(&files.cert, &problem));
        let key = read_key(&files.key).map_err(|problem| problem_of(&files.key, &problem));
        let (chain, key) = match (chain, key) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => return Err(chain.err().into_iter().chain(key.err()).collect()),
        };
        let key = CertifiedKey::new(chain.certificates, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let problem = format!("is not the private key of {}", files.cert.display());
                return Err(vec![problem_of(&files.key, &problem)]);
            }
            Err(error) => {
                return Err(vec![problem_of(
                    &files.cert,
                    &format!("cannot be used: {error}"),
                )]);
            }
        }
        Ok(Self {
            files,
            key: Arc::new(key),
            names: chain.names,
            not_before: chain.not_before,
            not_after: chain.not_after,
        })
    }

    /// Returns the certificate's file and the end of its validity in Unix time.
    pub(crate) fn expiry(&self) -> (String, i64) {
        (self.files.cert.display().to_string(), self.not_after)
    }

    /// Returns whether a client that supports only `schemes` can use the certificate.
    pub(crate) fn supports_any(&self, schemes: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(schemes).is_some()
    }

    /// Returns whether every client that could be served `self` is served one of `earlier` certificates:
    /// together they have its names, with keys that the same clients support.
    pub(super) fn is_hidden_by(&self, earlier: &[Self]) -> bool {
        let has_same_schemes = |other: &&Self| {
            SIGNATURE_SCHEMES
                .iter()
                .all(|scheme| !self.supports_any(&[*scheme]) || other.supports_any(&[*scheme]))
        };
        self.names.iter().all(|name| {
            earlier
                .iter()
                .filter(has_same_schemes)
                .any(|other| other.names.contains(name))
        })
    }

    /// Returns the reason why clients reject the certificate at `now` (Unix time), `None` if it is
    /// within its validity period.
    pub(crate) fn validity_error(&self, now: i64) -> Option<ValidityError> {
        if now < self.not_before {
            Some(ValidityError::NotYetValid)
        } else if now > self.not_after {
            Some(ValidityError::Expired)
        } else {
            None
        }
    }
}

pub(super) fn problem_of(file: &Path, problem: &str) -> String {
    format!("{}: {problem}", file.display())
}

/// Contents of a certificate file.
struct CertificateChain {
    /// Never empty.
    certificates: Vec<CertificateDer<'static>>,
    names: Vec<String>,
    not_before: i64,
    not_after: i64,
}

impl CertificateChain {
    fn read(file: &Path) -> Result<Self, String> {
        let text = read(file)?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|error| describe_pem_error(&error))?;
        let first = certificates
            .first()
            .ok_or("contains no certificate in PEM format")?;
        let (_, parsed) = X509Certificate::from_der(first)
            .map_err(|error| format!("is not an X.509 certificate: {error}"))?;
        if parsed.version() != X509Version::V3 {
            return Err(
                "is an X.509 certificate of an old version, which clients reject: create one of \
                 version 3, with subjectAltName"
                    .to_owned(),
            );
        }
        let (names, validity) = (names_of(&parsed), parsed.validity());
        let [not_before, not_after] =
            [validity.not_before, validity.not_after].map(|time| time.timestamp());
        Ok(Self {
            certificates,
            names,
            not_before,
            not_after,
        })
    }
}

fn read_key(file: &Path) -> Result<Arc<dyn SigningKey>, String> {
    // PKCS #8 (RFC 5958) and the older format of OpenSSL (RFC 1421).
    const ENCRYPTION_MARKERS: [&[u8]; 2] =
        [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];
    let text = read(file)?;
    if ENCRYPTION_MARKERS
        .iter()
        .any(|marker| memchr::memmem::find(&text, marker).is_some())
    {
        return Err(
            "is encrypted, and the gateway cannot ask for a passphrase: decrypt it with `openssl pkey`"
                .to_owned(),
        );
    }
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => "contains no private key in PEM format".to_owned(),
        other => describe_pem_error(&other),
    })?;
    any_supported_type(&key).map_err(|_| {
        "is not a supported private key: use RSA of 2048 to 8192 bits, ECDSA with P-256, P-384 or \
         P-521, or Ed25519"
            .to_owned()
    })
}

/// Reads a file in PEM format, without byte order marks: a file that is put together from others may have
/// one before each section, and the first line of that section would not be recognised.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, String> {
    const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
    let mut text = std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    while let Some(start) = memchr::memmem::find(&text, BYTE_ORDER_MARK) {
        text.drain(start..start + BYTE_ORDER_MARK.len());
    }
    Ok(text)
}

pub(super) fn describe_pem_error(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "is truncated: a PEM section has no end line".to_owned()
        }
        pem::Error::Base64Decode(_) => "is corrupt: a PEM section is not valid base64".to_owned(),
        pem::Error::IllegalSectionStart { .. } => {
            "is corrupt: a PEM section has a malformed first line".to_owned()
        }
        other => format!("is not a PEM file: {other}"),
    }
}

/// Returns the names of a certificate. Its common name counts only if it has no subjectAltName
/// (RFC 6125, section 6.4.4).
fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let subject_alt_name = certificate.subject_alternative_name().ok().flatten();
    let Some(subject_alt_name) = subject_alt_name else {
        return certificate
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok())
            .map(str::to_ascii_lowercase)
            .collect();
    };
    subject_alt_name
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => {
                parse_address(bytes).map(|address| address.to_string())
            }
            _ => None,
        })
        .collect()
}

fn parse_address(bytes: &[u8]) -> Option<std::net::IpAddr> {
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
    use std::slice;

    use super::*;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/fixtures");

    fn load(cert: &Path, key: &Path) -> Result<Certificate, Vec<String>> {
        Certificate::load(CertificateFiles {
            cert: cert.to_owned(),
            key: key.to_owned(),
        })
    }

    #[test]
    fn unusable_files_are_rejected_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let fixture = |name: &str| Path::new(FIXTURES).join(name);
        let truncated = |name: &str, length: usize| {
            let text = std::fs::read_to_string(fixture(name)).unwrap();
            let file = folder.path().join(format!("truncated-{name}"));
            std::fs::write(&file, &text[..length]).unwrap();
            file
        };
        let create = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let pem = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let encrypted = create("encrypted.pem", &pem("ENCRYPTED PRIVATE KEY", "AAAA"));
        let legacy = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,8C\n\nAAAA";
        let legacy = create("legacy.pem", &pem("EC PRIVATE KEY", legacy));
        let corrupt = create("corrupt.pem", &pem("CERTIFICATE", "*"));
        let malformed = create("malformed.pem", "-----BEGIN CERTIFICATE\n");
        let (cert, key) = (fixture("cert.pem"), fixture("key.pem"));
        let problems: Vec<_> = [
            (&fixture("none.pem"), &fixture("nothing.pem")),
            (&key, &cert),
            (&cert, &encrypted),
            (&cert, &legacy),
            (&cert, &fixture("rsa-1024-key.pem")),
            (&fixture("version-1.pem"), &key),
            (&truncated("cert.pem", 300), &truncated("key.pem", 100)),
            (&corrupt, &key),
            (&malformed, &key),
            (&fixture("unknown-critical-extension.pem"), &key),
            (&create("none.der", &pem("CERTIFICATE", "AAAA")), &key),
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
    fn byte_order_marks_hide_no_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let text = |name: &str| std::fs::read_to_string(Path::new(FIXTURES).join(name)).unwrap();
        let create = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let chain = format!(
            "\u{feff}{}\u{feff}{}",
            text("cert.pem"),
            text("rsa-cert.pem")
        );
        let cert = create("cert.pem", &chain);
        let key = create("key.pem", &format!("\u{feff}{}", text("key.pem")));
        assert_eq!(load(&cert, &key).unwrap().key.cert.len(), 2);
    }

    #[test]
    fn a_certificate_is_hidden_by_one_with_its_names_and_kind_of_key() {
        let fixture = |name: &str| Path::new(FIXTURES).join(name);
        let ecdsa = load(&fixture("cert.pem"), &fixture("key.pem")).unwrap();
        let rsa = load(&fixture("rsa-cert.pem"), &fixture("rsa-key.pem")).unwrap();
        assert!(ecdsa.is_hidden_by(slice::from_ref(&ecdsa)));
        assert!(!ecdsa.is_hidden_by(slice::from_ref(&rsa)));
        assert!(!rsa.is_hidden_by(slice::from_ref(&ecdsa)));
        assert!(rsa.is_hidden_by(&[ecdsa, rsa.clone()]));
    }

    #[test]
    fn a_certificate_is_valid_within_its_validity_period() {
        let folder = Path::new(FIXTURES);
        let certificate = load(&folder.join("cert.pem"), &folder.join("key.pem")).unwrap();
        let (not_before, not_after) = (certificate.not_before, certificate.not_after);
        assert_eq!(
            certificate.validity_error(not_before - 1),
            Some(ValidityError::NotYetValid)
        );
        let errors = [ValidityError::NotYetValid, ValidityError::Expired];
        let texts = errors.map(|error| error.to_string());
        assert_eq!(texts, ["is not valid yet", "has expired"]);
        assert_eq!(certificate.validity_error(not_before), None);
        assert_eq!(certificate.validity_error(not_after), None);
        assert_eq!(
            certificate.validity_error(not_after + 1),
            Some(ValidityError::Expired)
        );
    }

    #[test]
    fn the_common_name_counts_without_alternative_names_only() {
        let names = |name: &str| {
            let chain = CertificateChain::read(&Path::new(FIXTURES).join(name));
            chain.unwrap_or_else(|problem| panic!("{problem}")).names
        };
        // It has an address of e-mail too, which is no name of a server.
        assert_eq!(
            names("alternative-names.pem"),
            ["shop.example.org", "2001:db8::1", "192.0.2.1"]
        );
        assert_eq!(names("common-name.pem"), ["old.example.org"]);
    }

    #[test]
    fn an_address_has_4_or_16_bytes() {
        let address = |bytes: &[u8]| parse_address(bytes).map(|address| address.to_string());
        assert_eq!(address(&[192, 0, 2, 1]).as_deref(), Some("192.0.2.1"));
        assert_eq!(address(&[0; 16]).as_deref(), Some("::"));
        for other in [&[][..], &[0; 5], &[0; 17]] {
            assert_eq!(address(other), None);
        }
    }
}
