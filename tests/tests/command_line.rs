//! The commands `gateway check`, `gateway schema` and `gateway healthcheck`.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use anyhow::Result;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use tests::certificate::Certificate;
use tests::command::{bound_command, program_path};
use tests::{Gateway, MockUpstream};

#[tokio::test]
async fn healthcheck_succeeds_whatever_happens_to_the_configuration_files() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    std::fs::write(gateway.config_file(), "premier: {pahts: [}")?;
    std::fs::remove_file(&gateway.certificate.key_file)?;
    let mut healthcheck = gateway.start_second(&["healthcheck"])?;
    assert!(
        healthcheck.wait_for_exit()?.success(),
        "{}",
        healthcheck.log()
    );
    Ok(())
}

#[tokio::test]
async fn healthcheck_fails_when_the_gateway_is_stopped() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    gateway.process.terminate()?;
    let mut healthcheck = gateway.start_second(&["healthcheck"])?;
    assert!(!healthcheck.wait_for_exit()?.success());
    assert!(healthcheck.log().contains("admin listener at"));
    Ok(())
}

#[tokio::test]
async fn healthcheck_ready_fails_without_a_healthy_endpoint() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    gateway
        .wait_for_response("/", |response| response.status == 200)
        .await?;
    let mut healthcheck = gateway.start_second(&["healthcheck", "--ready"])?;
    assert!(
        healthcheck.wait_for_exit()?.success(),
        "{}",
        healthcheck.log()
    );
    drop(upstream);
    gateway
        .wait_for_metric("gateway_replica_up", &[], 0.0)
        .await?;
    let mut healthcheck = gateway.start_second(&["healthcheck", "--ready"])?;
    assert!(!healthcheck.wait_for_exit()?.success());
    let log = healthcheck.log();
    assert!(log.contains("/ready of the gateway at"), "{log}");
    Ok(())
}

#[test]
fn check_warns_of_certificates_outside_their_validity_period() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let key = KeyPair::generate()?;
    std::fs::write(folder.path().join("key.pem"), key.serialize_pem())?;
    let mut yaml = String::from("premier: {tls: {certificates: [");
    for (name, first_year, last_year) in [
        ("past", 2001, 2002),
        ("future", 4001, 4002),
        ("valid", 2001, 4001),
    ] {
        let mut certificate = CertificateParams::new([format!("{name}.example.org")])?;
        certificate.not_before = date_time_ymd(first_year, 1, 1);
        certificate.not_after = date_time_ymd(last_year, 1, 1);
        let pem = certificate.self_signed(&key)?.pem();
        std::fs::write(folder.path().join(name), pem)?;
        write!(yaml, "{{cert: {name}, key: key.pem}}, ")?;
    }
    std::fs::write(folder.path().join("gateway.yml"), yaml + "]}}")?;
    let check = bound_command(program_path("gateway"))
        .arg("check")
        .current_dir(folder.path())
        .output()?;
    let output = String::from_utf8(check.stdout)?;
    assert!(check.status.success(), "{output}");
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(
        lines,
        [
            "gateway.yml: warning: past: has expired",
            "gateway.yml: warning: future: is not valid yet",
            "gateway.yml: valid: 0 paths, 1 servers",
            "gateway.yml: health_check is not set: an endpoint receives requests while it accepts TCP \
             connections; set health_check.path if the servers have a path that tells whether they are ready",
        ]
    );
    Ok(())
}

#[test]
fn an_empty_environment_variable_counts_as_unset() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("gateway.yml"), "premier: {pahts: }")?;
    let check = bound_command(program_path("gateway"))
        .arg("check")
        .env("GATEWAY_CONFIG", "")
        .current_dir(folder.path())
        .output()?;
    let errors = String::from_utf8(check.stderr)?;
    assert!(
        errors.contains("gateway.yml:1:11: premier.pahts"),
        "{errors}"
    );
    Ok(())
}

#[test]
fn check_reports_every_error_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("invalid.yml");
    std::fs::write(&file, "premier:\n  pahts: []\n  keyspace: [1]\n")?;
    let check = bound_command(program_path("gateway"))
        .arg("check")
        .arg(&file)
        .output()?;
    let errors = String::from_utf8(check.stderr)?;
    assert!(!check.status.success());
    assert!(
        errors.contains("invalid.yml:2:3: premier.pahts: unknown key"),
        "{errors}"
    );
    assert!(
        errors.contains("invalid.yml:3:13: premier.keyspace: is a list, must be a string"),
        "{errors}"
    );
    Ok(())
}

#[test]
fn the_schema_command_prints_json() -> Result<()> {
    let output = bound_command(program_path("gateway"))
        .arg("schema")
        .output()?;
    assert!(output.status.success());
    let schema: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(schema["required"], json!(["premier"]));
    Ok(())
}

#[test]
fn check_tells_when_an_endpoint_receives_requests() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificate = Certificate::generate(folder.path(), "cert", &["localhost"])?;
    for (config, expected) in [
        ("premier: {}", "while it accepts TCP connections"),
        (
            "premier: {health_check: {}}",
            "while it responds to GET /ready with 2xx",
        ),
        ("premier: {health_check: null}", "endpoints are not checked"),
    ] {
        let file = folder.path().join("gateway.yml");
        std::fs::write(&file, config)?;
        let check = bound_command(program_path("gateway"))
            .arg("check")
            .arg(&file)
            .env("SSL_CERTFILE", &certificate.cert_file)
            .env("SSL_KEYFILE", &certificate.key_file)
            .output()?;
        let text = String::from_utf8(check.stdout)?;
        assert!(
            check.status.success() && text.contains(expected),
            "{config}: {text}"
        );
    }
    Ok(())
}

#[test]
fn variables_that_are_not_utf8_are_reported_by_name() -> Result<()> {
    const NOT_UTF8: &[u8] = b"caf\xe9";
    let folder = tempfile::tempdir()?;
    Certificate::generate(folder.path(), "cert", &["localhost"])?;
    let yaml = "premier: {keyspace: '${KEYSPACE:-x}', tls: {certificates: [{cert: cert.pem, key: cert.key}]}}";
    std::fs::write(folder.path().join("gateway.yml"), yaml)?;
    for (name, expected_success) in [
        ("KEYSPACE", false),
        ("GATEWAY_SERVERS", false),
        ("UNRELATED", true),
    ] {
        let check = bound_command(program_path("gateway"))
            .arg("check")
            .env(name, OsStr::from_bytes(NOT_UTF8))
            .current_dir(folder.path())
            .output()?;
        assert_eq!(check.status.success(), expected_success, "{name}");
        let errors = String::from_utf8(check.stderr)?;
        let message = format!("the environment variable {name} is not UTF-8");
        assert_eq!(errors.contains(&message), !expected_success, "{errors}");
    }
    Ok(())
}

#[test]
fn check_quotes_only_the_beginning_of_a_file_that_is_no_configuration() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("passwd");
    std::fs::write(&file, "user:secret\n".repeat(100))?;
    let check = bound_command(program_path("gateway"))
        .arg("check")
        .arg(&file)
        .output()?;
    let message = String::from_utf8(check.stderr)? + &String::from_utf8(check.stdout)?;
    assert!(message.contains("must be a mapping"), "{message}");
    assert!(message.len() < 300, "{message}");
    Ok(())
}

#[test]
fn the_gateway_does_not_start_with_too_few_open_files() -> Result<()> {
    let start = bound_command("prlimit")
        .args(["--nofile=150", "--"])
        .arg(program_path("gateway"))
        .output()?;
    let message = String::from_utf8(start.stderr)? + &String::from_utf8(start.stdout)?;
    assert!(!start.status.success());
    assert!(
        message.contains("the limit of open files is 150: raise it to 200 or more"),
        "{message}"
    );
    Ok(())
}
