//! Certificates made for one test.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{CertifiedKey, generate_simple_self_signed};

/// A self-signed certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// PEM, what a client must trust.
    pub pem: String,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one for `names` (host names or addresses) in `folder`, its files called after `stem`.
    ///
    /// # Errors
    /// When a name is none, or the files cannot be written.
    pub fn make(folder: &Path, stem: &str, names: &[&str]) -> Result<Self> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names)?;
        let made = Self {
            pem: cert.pem(),
            cert: folder.join(format!("{stem}.pem")),
            key: folder.join(format!("{stem}.key")),
        };
        std::fs::write(&made.cert, &made.pem)?;
        write_private(&made.key, &signing_key.serialize_pem())?;
        Ok(made)
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())?;
    Ok(())
}
