//! What operators do with a gateway: check, reload, watch, upgrade, end.

use std::io::Read;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::Result;
use rustix::process::Signal;
use serde_json::json;
use tests::certificate::Certificate;
use tests::client::HOST;
use tests::process::{bound, program};
use tests::raw::{Raw, status};
use tests::{BackEnd, Gateway, Reply, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

fn quota(quota: u32) -> String {
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

#[tokio::test]
async fn a_changed_file_takes_effect_and_unchanged_quotas_go_on() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(&quota(1))
        .start()
        .await?;
    let client = gateway.client()?;
    assert_eq!(client.get("/same").await?.status, 200);
    assert_eq!(client.get("/a").await?.status, 200);
    assert_eq!(client.get("/a").await?.status, 429);

    std::fs::write(gateway.config_file(), quota(2))?;
    wait::until("the new quota", async || {
        client
            .get("/a")
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await?;
    assert_eq!(client.get("/same").await?.status, 200);
    assert_eq!(
        client.get("/same").await?.status,
        429,
        "the first one still counts"
    );
    Ok(())
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_shows() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(&quota(1))
        .start()
        .await?;
    assert_eq!(
        gateway.metric("gateway_last_reload_success", &[]).await?,
        Some(1.0)
    );
    std::fs::write(gateway.config_file(), "premier: {pahts: []}")?;
    gateway.process.signal(Signal::HUP)?;
    wait::until("the failure to show", async || {
        let metric = gateway.metric("gateway_last_reload_success", &[]).await;
        metric.is_ok_and(|value| value == Some(0.0))
    })
    .await?;
    let client = gateway.client()?;
    assert_eq!(client.get("/a").await?.status, 200);
    assert_eq!(client.get("/a").await?.status, 429);
    let told = || {
        let log = gateway.process.log();
        log.matches("did you mean `paths`?").count()
    };
    wait::until("the reason", async || told() == 1).await?;
    gateway.process.signal(Signal::HUP)?;
    wait::until("the reason again, since it was asked for", async || {
        told() == 2
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let mut gateway = Gateway::before(&[back_end.address]).start().await?;
    let open = gateway.client()?;
    assert_eq!(open.get("/").await?.status, 200);
    let folder = gateway.config_file();
    let folder = folder.parent().expect("a file is in a folder");
    gateway.certificate = Certificate::make(folder, "cert", &["localhost", "127.0.0.1"])?;
    wait::until("the new certificate", async || {
        let Ok(client) = gateway.client() else {
            return false;
        };
        client
            .get("/")
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await?;
    assert_eq!(open.get("/").await?.status, 200, "open connections stay");
    Ok(())
}

#[tokio::test]
async fn check_tells_every_mistake_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("bad.yml");
    std::fs::write(&file, "premier:\n  pahts: []\n  keyspace: [1]\n")?;
    let output = bound(program("gateway")).arg("check").arg(&file).output()?;
    let told = String::from_utf8(output.stderr)?;
    assert!(!output.status.success());
    assert!(
        told.contains("bad.yml:2:3: premier.pahts: unknown key"),
        "{told}"
    );
    assert!(
        told.contains("bad.yml:3:13: premier.keyspace: is a list, must be text"),
        "{told}"
    );
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_stops_the_start_with_a_line() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let mut gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut second = gateway.again(&[])?;
    assert!(!second.ended()?.success());
    assert!(
        second.log().contains("premier.listen.https: listening on"),
        "{}",
        second.log()
    );
    Ok(())
}

/// Until the value of `gateway_last_reload_success` is this.
async fn until_last_reload(gateway: &Gateway, success: f64) -> Result<()> {
    wait::until("the reload to show", async || {
        let metric = gateway.metric("gateway_last_reload_success", &[]).await;
        metric.is_ok_and(|value| value == Some(success))
    })
    .await
}

#[tokio::test]
async fn files_that_come_after_they_were_named_take_effect() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let later = tempfile::tempdir()?;
    let (cert, key) = (later.path().join("new.pem"), later.path().join("new.key"));
    let named = format!(
        "premier: {{tls: {{certificates: [{{cert: {}, key: {}}}]}}}}",
        cert.display(),
        key.display()
    );
    std::fs::write(gateway.config_file(), named)?;
    until_last_reload(&gateway, 0.0).await?;
    let other = tempfile::tempdir()?;
    let made = Certificate::make(other.path(), "made", &[HOST])?;
    std::fs::copy(&made.key, &key)?;
    std::fs::copy(&made.cert, &cert)?;
    until_last_reload(&gateway, 1.0).await?;
    Raw::connect_to(&gateway, HOST, &made).await?;
    Ok(())
}

#[tokio::test]
async fn a_file_of_the_same_age_and_length_is_another_one() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(&quota(5))
        .start()
        .await?;
    let place = gateway.config_file();
    let age = std::fs::metadata(&place)?.modified()?;
    let other = place.with_extension("new");
    std::fs::write(&other, quota(7))?;
    std::fs::File::options()
        .write(true)
        .open(&other)?
        .set_modified(age)?;
    std::fs::rename(&other, &place)?;
    wait::until("the other quota", async || {
        let client = gateway.client();
        let answer = async || client?.get("/a").await;
        answer()
            .await
            .is_ok_and(|answer| answer.header("ratelimit-policy").contains("q=7"))
    })
    .await
}

#[tokio::test]
async fn other_servers_and_breakers_take_the_place_of_those_before() -> Result<()> {
    let (before, after) = (
        BackEnd::start(|_| Reply::of(500, "before")).await?,
        BackEnd::start(|_| Reply::of(200, "after")).await?,
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
    let gateway = Gateway::before(&[before.address])
        .config(&config(before.address, "/a*"))
        .start()
        .await?;
    assert_eq!(gateway.client()?.get("/a").await?.status, 500);
    let open = async |pattern: &str| {
        let labels = [pattern, &before.address.to_string()];
        let state = gateway.metric("gateway_circuit_breaker_state", &labels);
        state.await
    };
    assert_eq!(open("/a*").await?, Some(2.0));
    std::fs::write(gateway.config_file(), config(after.address, "/*"))?;
    wait::until("the other server", async || {
        let client = gateway.client();
        let answer = async || client?.get("/a").await;
        answer().await.is_ok_and(|answer| answer.text == "after")
    })
    .await?;
    assert_eq!(open("/a*").await?, None);
    let reloads = gateway
        .metric("gateway_reloads_total", &["success"])
        .await?;
    assert_eq!(reloads, Some(1.0));
    Ok(())
}

#[tokio::test]
async fn the_admin_listener_tells_how_things_are() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let operator = gateway.operator()?;
    wait::until("readiness", async || {
        operator
            .get("/ready")
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await?;
    gateway.client()?.get("/x").await?;
    let status = operator.get("/status").await?.json();
    assert_eq!(status["replicas"][0]["condition"], "up");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let metrics = operator.get("/metrics").await?;
    assert!(metrics.header("content-type").starts_with("text/plain"));
    let counted = gateway
        .metric("gateway_requests_total", &["2xx", "GET"])
        .await?;
    assert_eq!(counted, Some(1.0));
    assert_eq!(operator.get("/none").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn a_request_in_flight_is_finished_at_the_end() -> Result<()> {
    let go_on = Arc::new(Notify::new());
    let told = Arc::clone(&go_on);
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nfinished";
    let back_end = BackEnd::start(move |_| Reply::When(Arc::clone(&told), answer.to_vec())).await?;
    let mut gateway = Gateway::before(&[back_end.address]).start().await?;
    let client = gateway.client()?;
    let request = tokio::spawn(async move { client.get("/").await });
    wait::until("the request to arrive", async || {
        !back_end.received().is_empty()
    })
    .await?;
    gateway.process.signal(Signal::TERM)?;
    wait::until("the end to begin", async || {
        gateway.process.log().contains("ending")
    })
    .await?;
    go_on.notify_one();
    let answer = request.await??;
    assert_eq!((answer.status, answer.text.as_str()), (200, "finished"));
    assert!(gateway.process.ended()?.success());
    Ok(())
}

#[tokio::test]
async fn the_http_listener_leads_to_https() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()?;
    for (public_port, named) in [
        (None, None),
        (Some("443"), Some("")),
        (Some("8443"), Some(":8443")),
    ] {
        let http = tests::address::free();
        let mut gateway =
            Gateway::before(&[back_end.address]).set("GATEWAY_HTTP", &http.to_string());
        if let Some(port) = public_port {
            gateway = gateway.set("GATEWAY_PUBLIC_PORT", port);
        }
        let gateway = gateway.start().await?;
        let answer = client
            .get(format!("http://{http}/a?b=c"))
            .header("host", "example.org")
            .send()
            .await?;
        assert_eq!(answer.status(), 308);
        let own = format!(":{}", gateway.address.port());
        let port = named.unwrap_or(&own);
        assert_eq!(
            answer.headers()["location"].to_str()?,
            format!("https://example.org{port}/a?b=c")
        );
    }
    Ok(())
}

/// What comes of bytes that are sent to a listener without TLS, until it closes.
async fn told(listener: SocketAddr, bytes: &str) -> Result<String> {
    let mut stream = TcpStream::connect(listener).await?;
    stream.write_all(bytes.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // A reset after the answer is as good an end as any.
    let _ = tokio::time::timeout(wait::PATIENCE, read).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn listeners_without_tls_bear_any_client_and_repeat_nothing_of_it() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let http = tests::address::free();
    let gateway = Gateway::before(&[back_end.address])
        .config("premier: {limits: {header_timeout: 0.5, max_connections_per_client: 3}}")
        .set("GATEWAY_HTTP", &http.to_string())
        .start()
        .await?;
    for listener in [http, gateway.admin] {
        let half = "GET / HTTP/1.1\r\nHost: loc";
        assert_eq!(status(&told(listener, half).await?), 408);
        assert_eq!(told(listener, "").await?, "");
        for bad in [
            "POST /api/login HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer SECRET\r\nno field\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\nAuthorization: Bearer SECRET\n\n",
            "\u{16}\u{3}\u{1} SECRET\r\n\r\n",
        ] {
            let answer = told(listener, bad).await?;
            assert_eq!(status(&answer), 400, "{answer}");
            assert!(answer.contains(r#"{"error":""#), "{answer}");
        }
    }
    assert!(!gateway.process.log().contains("SECRET"));
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(TcpStream::connect(http).await?);
    }
    let good = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    wait::until(
        "no more connections of this client to be let in",
        async || told(http, good).await.is_ok_and(|answer| answer.is_empty()),
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_stuck_standard_output_stops_nobody() -> Result<()> {
    let (stuck, output) = std::io::pipe()?;
    let back_end = BackEnd::good().await?;
    let mut gateway = Gateway::before(&[back_end.address])
        .config("premier: {default_features: {monitoring: {log_threshold: 0}}}")
        .printing_to(output)
        .start()
        .await?;
    let client = gateway.client()?;
    // Far more lines than the pipe takes.
    for _ in 0..1000 {
        let answer = tokio::time::timeout(wait::PATIENCE, client.get("/")).await??;
        assert_eq!(answer.status, 200);
    }
    drop(client);
    assert!(gateway.process.stop()?.success());
    drop(stuck);
    Ok(())
}

#[test]
fn the_schema_is_json() -> Result<()> {
    let mut schema = String::new();
    let mut child = bound(program("gateway"))
        .arg("schema")
        .stdout(Stdio::piped())
        .spawn()?;
    child
        .stdout
        .take()
        .expect("it is piped")
        .read_to_string(&mut schema)?;
    assert!(child.wait()?.success());
    let schema: serde_json::Value = serde_json::from_str(&schema)?;
    assert_eq!(schema["required"], json!(["premier"]));
    Ok(())
}
