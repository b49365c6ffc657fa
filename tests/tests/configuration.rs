//! What a configuration file means to a gateway, and what the command line says of it.

use anyhow::Result;
use tests::{BackEnd, Gateway};

#[tokio::test]
async fn a_well_gateway_is_well_whatever_becomes_of_its_files() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let mut gateway = Gateway::before(&[back_end.address]).start().await?;
    std::fs::write(gateway.config_file(), "premier: {pahts: [}")?;
    std::fs::remove_file(&gateway.certificate.key)?;
    let mut healthcheck = gateway.again(&["healthcheck"])?;
    assert!(healthcheck.ended()?.success(), "{}", healthcheck.log());
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_is_gone_is_not_well() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let mut gateway = Gateway::before(&[back_end.address]).start().await?;
    gateway.process.stop()?;
    let mut healthcheck = gateway.again(&["healthcheck"])?;
    assert!(!healthcheck.ended()?.success());
    assert!(healthcheck.log().contains("admin listener at"));
    Ok(())
}
