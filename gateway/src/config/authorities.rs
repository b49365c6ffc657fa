//! Authorities that issue the certificates of servers, read from a PEM file.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::config::certificate::{describe_pem_error, problem_of, read};

/// Certificates of trusted authorities. Each can be a trust anchor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrustedAuthorities {
    pub(crate) file: PathBuf,
    /// Never empty.
    certificates: Vec<CertificateDer<'static>>,
}

impl TrustedAuthorities {
    /// Reads the certificates of a file.
    ///
    /// # Errors
    /// Returns the problem, for the operator.
    pub(super) fn load(file: &Path) -> Result<Self, String> {
        let certificates = read_certificates(file).map_err(|problem| problem_of(file, &problem))?;
        Ok(Self {
            file: file.to_owned(),
            certificates,
        })
    }

    /// Returns the trust anchors.
    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.certificates.iter().cloned());
        roots
    }
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(file)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| describe_pem_error(&error))?;
    if certificates.is_empty() {
        return Err("contains no certificate in PEM format".to_owned());
    }
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| {
            format!("has a certificate that cannot be that of an authority: {error}")
        })?;
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_names_no_authority_is_rejected_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        for (text, reason) in [
            ("", "contains no certificate in PEM format"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "has a certificate that cannot be that of an authority",
            ),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "is truncated"),
        ] {
            std::fs::write(&file, text).unwrap();
            let problem = TrustedAuthorities::load(&file).unwrap_err();
            assert!(problem.contains(reason), "{problem}");
        }
    }
}
