//! Private keys that sign access tokens.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Returns a new Ed25519 key in PEM, made as an operator makes it.
///
/// # Errors
/// Returns an error if OpenSSL fails.
pub fn generate() -> Result<String> {
    let output = Command::new("openssl")
        .args(["genpkey", "-algorithm", "ed25519"])
        .output()
        .context("running openssl")?;
    ensure!(output.status.success(), "openssl genpkey: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
