//! Self-signed certificates, generated for one test.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{CertifiedKey, generate_simple_self_signed};

/// A self-signed certificate and its private key, as files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate in PEM, which a client must trust, or several of which it must trust one.
    pub pem: String,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl Certificate {
    /// Generates a certificate for `names` (host names or addresses) in `folder`, as the files
    /// `{stem}.pem` and `{stem}.key`.
    ///
    /// # Errors
    /// Returns an error if a name is invalid or a file cannot be written.
    pub fn generate(folder: &Path, stem: &str, names: &[&str]) -> Result<Self> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names)?;
        let certificate = Self {
            pem: cert.pem(),
            cert_file: folder.join(format!("{stem}.pem")),
            key_file: folder.join(format!("{stem}.key")),
        };
        fs::write(&certificate.cert_file, &certificate.pem)?;
        write_owner_only(&certificate.key_file, &signing_key.serialize_pem())?;
        Ok(certificate)
    }
}

fn write_owner_only(path: &Path, text: &str) -> Result<()> {
    File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())?;
    Ok(())
}
