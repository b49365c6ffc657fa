//! What a configuration file means to a gateway, and what the command line says of it.

use std::fmt::Write;

use anyhow::Result;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tests::process::{bound, program};
use tests::{BackEnd, Gateway, address};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;

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

#[tokio::test]
async fn a_health_check_names_the_host_and_port_that_it_asks() -> Result<()> {
    let server = address::free();
    let listener = TcpListener::bind(server).await?;
    let _gateway = Gateway::before(&[server]).start().await?;
    let (stream, _) = listener.accept().await?;
    let mut lines = BufReader::new(stream).lines();
    let mut head = Vec::new();
    while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
        head.push(line.to_lowercase());
    }
    assert_eq!(
        head.first().map(String::as_str),
        Some("get /ready http/1.1")
    );
    assert!(head.contains(&format!("host: {server}")), "{head:?}");
    Ok(())
}

#[test]
fn check_warns_of_certificates_that_clients_refuse_for_their_dates() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let key = KeyPair::generate()?;
    std::fs::write(folder.path().join("key.pem"), key.serialize_pem())?;
    let mut yaml = String::from("premier: {tls: {certificates: [");
    for (name, first, last) in [
        ("past", 2001, 2002),
        ("future", 4001, 4002),
        ("good", 2001, 4001),
    ] {
        let mut made = CertificateParams::new([format!("{name}.example.org")])?;
        made.not_before = date_time_ymd(first, 1, 1);
        made.not_after = date_time_ymd(last, 1, 1);
        std::fs::write(folder.path().join(name), made.self_signed(&key)?.pem())?;
        write!(yaml, "{{cert: {name}, key: key.pem}}, ")?;
    }
    std::fs::write(folder.path().join("gateway.yml"), yaml + "]}}")?;
    let check = bound(program("gateway"))
        .arg("check")
        .current_dir(folder.path())
        .output()?;
    let told = String::from_utf8(check.stdout)?;
    assert!(check.status.success(), "{told}");
    let told: Vec<_> = told.lines().collect();
    assert_eq!(
        told,
        [
            "gateway.yml: warning: past: has expired",
            "gateway.yml: warning: future: is not valid yet",
            "gateway.yml: good: 0 paths, 1 servers",
        ]
    );
    Ok(())
}

#[test]
fn an_empty_variable_is_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("gateway.yml"), "premier: {pahts: }")?;
    let check = bound(program("gateway"))
        .arg("check")
        .env("GATEWAY_CONFIG", "")
        .current_dir(folder.path())
        .output()?;
    let told = String::from_utf8(check.stderr)?;
    assert!(told.contains("gateway.yml:1:11: premier.pahts"), "{told}");
    Ok(())
}
