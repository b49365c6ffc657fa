//! Reloads of the configuration file and of certificates while the gateway runs.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use tests::certificate::Certificate;
use tests::client::HOST;
use tests::raw_connection::RawConnection;
use tests::{Gateway, MockResponse, MockUpstream, wait};

/// Configuration with a quota of `quota` for `/a`, and always the same quota for `/same`.
fn config_with_quota(quota: u32) -> String {
    format!(
        r#"
premier:
  paths:
    - pattern: "/a"
      features: {{rate_limit: {{quota: {quota}, duration: 864000}}}}
    - pattern: "/same"
      features: {{rate_limit: {{quota: 2, duration: 864000}}}}
"#
    )
}

/// Waits until `gateway_last_reload_success` is 1 (successful) or 0 (failed).
async fn wait_for_reload_success(gateway: &Gateway, success: f64) -> Result<()> {
    gateway
        .wait_for_metric("gateway_last_reload_success", &[], success)
        .await
}

#[tokio::test]
async fn a_changed_file_takes_effect_and_unchanged_quotas_keep_counting() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, &config_with_quota(1)).await?;
    let client = gateway.client()?;
    assert_eq!(client.get("/same").await?.status, 200);
    assert_eq!(client.get("/a").await?.status, 200);
    assert_eq!(client.get("/a").await?.status, 429);

    std::fs::write(gateway.config_file(), config_with_quota(2))?;
    client
        .wait_for_response("/a", |response| response.status == 200)
        .await?;
    assert_eq!(client.get("/same").await?.status, 200);
    assert_eq!(
        client.get("/same").await?.status,
        429,
        "the request before the reload is no longer counted"
    );
    Ok(())
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_and_is_reported() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, &config_with_quota(1)).await?;
    assert_eq!(
        gateway.metric("gateway_last_reload_success", &[]).await?,
        Some(1.0)
    );
    std::fs::write(gateway.config_file(), "premier: {pahts: []}")?;
    gateway.process.signal(Signal::HUP)?;
    wait_for_reload_success(&gateway, 0.0).await?;
    let client = gateway.client()?;
    assert_eq!(client.get("/a").await?.status, 200);
    assert_eq!(client.get("/a").await?.status, 429);
    let error_count = || {
        let log = gateway.process.log();
        log.matches("did you mean `paths`?").count()
    };
    wait::until("the error in the log", async || error_count() == 1).await?;
    gateway.process.signal(Signal::HUP)?;
    wait::until("the error again after another SIGHUP", async || {
        error_count() == 2
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let connected = gateway.client()?;
    assert_eq!(connected.get("/").await?.status, 200);
    let config_file = gateway.config_file();
    let folder = config_file.parent().expect("the file is in a folder");
    gateway.certificate = Certificate::generate(folder, "cert", &["localhost", "127.0.0.1"])?;
    gateway
        .wait_for_response("/", |response| response.status == 200)
        .await?;
    assert_eq!(
        connected.get("/").await?.status,
        200,
        "the open connection is broken"
    );
    Ok(())
}

#[tokio::test]
async fn certificate_files_created_after_the_reload_take_effect() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address]).start().await?;
    let folder = tempfile::tempdir()?;
    let cert_file = folder.path().join("new.pem");
    let key_file = folder.path().join("new.key");
    let config = format!(
        "premier: {{tls: {{certificates: [{{cert: {}, key: {}}}]}}}}",
        cert_file.display(),
        key_file.display()
    );
    std::fs::write(gateway.config_file(), config)?;
    wait_for_reload_success(&gateway, 0.0).await?;
    let other_folder = tempfile::tempdir()?;
    let certificate = Certificate::generate(other_folder.path(), "generated", &[HOST])?;
    std::fs::copy(&certificate.key_file, &key_file)?;
    std::fs::copy(&certificate.cert_file, &cert_file)?;
    wait_for_reload_success(&gateway, 1.0).await?;
    RawConnection::connect_with_server_name(&gateway, HOST, &certificate).await?;
    Ok(())
}

#[tokio::test]
async fn a_replaced_file_of_the_same_age_and_length_is_reloaded() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, &config_with_quota(5)).await?;
    let config_file = gateway.config_file();
    let modified = std::fs::metadata(&config_file)?.modified()?;
    let replacement = config_file.with_extension("new");
    std::fs::write(&replacement, config_with_quota(7))?;
    File::options()
        .write(true)
        .open(&replacement)?
        .set_modified(modified)?;
    std::fs::rename(&replacement, &config_file)?;
    gateway
        .wait_for_response("/a", |response| {
            response.header("ratelimit-policy").contains("q=7")
        })
        .await
}

#[tokio::test]
async fn a_file_that_is_being_written_does_not_take_effect_in_part() -> Result<()> {
    /// Time between two writes, and their number.
    const PAUSE: Duration = Duration::from_millis(100);
    const PARTS: u32 = 25;
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, &config_with_quota(1)).await?;
    let client = gateway.client()?;
    assert_eq!(client.get("/a").await?.status, 200);
    let config = config_with_quota(2);
    // The file after the first part is a valid configuration without a quota for `/a`.
    let (first, rest) = config.split_at(config.find("    - pattern").expect("it has patterns"));
    let mut file = File::create(gateway.config_file())?;
    file.write_all(first.as_bytes())?;
    for part in 0..PARTS {
        tokio::time::sleep(PAUSE).await;
        assert_eq!(client.get("/a").await?.status, 429, "after part {part}");
        writeln!(file, "    # part {part}")?;
    }
    file.write_all(rest.as_bytes())?;
    client
        .wait_for_response("/a", |response| response.status == 200)
        .await
}

#[tokio::test]
async fn a_reload_replaces_servers_and_circuit_breakers() -> Result<()> {
    let (before, after) = (
        MockUpstream::start(|_| MockResponse::new(500, "before")).await?,
        MockUpstream::start(|_| MockResponse::new(200, "after")).await?,
    );
    let config = |server: SocketAddr, pattern: &str| {
        format!(
            r#"
premier:
  health_check: {{interval: 600}}
  servers: ["http://{server}"]
  paths:
    - pattern: "{pattern}"
      features: {{circuit_breaker: {{failure_threshold: 1, recovery_timeout: 600}}}}
"#
        )
    };
    let gateway = Gateway::start(before.address, &config(before.address, "/a*")).await?;
    assert_eq!(gateway.client()?.get("/a").await?.status, 500);
    let breaker_state = async || {
        let labels = ["/a*", &before.address.to_string()];
        let state = gateway.metric("gateway_circuit_breaker_state", &labels);
        state.await
    };
    assert_eq!(breaker_state().await?, Some(2.0));
    std::fs::write(gateway.config_file(), config(after.address, "/*"))?;
    gateway
        .wait_for_response("/a", |response| response.text == "after")
        .await?;
    assert_eq!(breaker_state().await?, None);
    let reloads = gateway
        .metric("gateway_reloads_total", &["success"])
        .await?;
    assert_eq!(reloads, Some(1.0));
    Ok(())
}

#[tokio::test]
async fn a_setting_that_needs_a_restart_is_compared_with_the_one_in_use() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::start(upstream.address, "premier: {keyspace: used}").await?;
    let log = || gateway.process.log();
    let warnings = || log().matches("takes effect after a restart").count();
    for (reload, (keyspace, expected)) in (1_u32..).zip([("other", 1), ("other", 2), ("used", 2)]) {
        let yaml = format!("premier: {{keyspace: {keyspace}}}");
        std::fs::write(gateway.config_file(), yaml)?;
        gateway.process.signal(Signal::HUP)?;
        gateway
            .wait_for_metric("gateway_reloads_total", &["success"], reload.into())
            .await?;
        let message = "the reload in the log";
        wait::until(message, async || {
            log().matches("configuration reloaded").count() >= usize::try_from(reload).unwrap()
        })
        .await?;
        assert_eq!(warnings(), expected, "{keyspace}: {}", log());
    }
    Ok(())
}
