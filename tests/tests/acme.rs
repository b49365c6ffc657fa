//! Certificates by ACME HTTP-01 (RFC 8555): certbot and a test authority, through the http listener.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tests::certificate::Certificate;
use tests::command::bound_command;
use tests::process::Process;
use tests::{Gateway, MockUpstream, address, wait};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;

/// Name that the certificate is for.
const NAME: &str = "edge.example";

/// Returns true if the test cannot run, since the test authority is not packaged for this system.
fn is_skipped() -> bool {
    std::env::var_os("TEST_ACME").is_some_and(|value| value == "none")
}

/// Starts a DNS server that resolves every name to the IPv4 address of `target` (RFC 1035).
async fn start_dns(target: SocketAddr) -> Result<(SocketAddr, JoinHandle<()>)> {
    const HEADER_LENGTH: usize = 12;
    /// Response, recursion available, no error.
    const FLAGS: [u8; 2] = [0x81, 0x80];
    const TYPE_A: [u8; 2] = [0, 1];
    let SocketAddr::V4(target) = target else {
        anyhow::bail!("{target} is not an IPv4 address");
    };
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let local = socket.local_addr()?;
    let task = tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut query).await {
            let Some(end) = query[HEADER_LENGTH..length]
                .iter()
                .position(|byte| *byte == 0)
            else {
                continue;
            };
            let question = &query[HEADER_LENGTH..(HEADER_LENGTH + end + 5).min(length)];
            let is_address = question[end + 1..].starts_with(&TYPE_A);
            let mut response = query[..2].to_vec();
            response.extend(FLAGS);
            response.extend([0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
            response.extend(question);
            if is_address {
                // A pointer to the name of the question, type, class, 60 seconds, 4 bytes.
                response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                response.extend(target.ip().octets());
            }
            let _ = socket.send_to(&response, peer).await;
        }
    });
    Ok((local, task))
}

/// A running test authority.
struct Authority {
    _process: Process,
    directory_url: String,
    _folder: TempDir,
}

impl Authority {
    /// Starts a test authority that validates at the port of `http`, with its names resolved by `dns`.
    async fn start(http: SocketAddr, dns: SocketAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let certificate = Certificate::generate(folder.path(), "acme", &["127.0.0.1"])?;
        let (listen, management) = (address::unused_loopback(), address::unused_loopback());
        let config = serde_json::json!({"pebble": {
            "listenAddress": listen.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": certificate.cert_file,
            "privateKey": certificate.key_file,
            "httpPort": http.port(),
            "tlsPort": 443,
        }});
        let file = folder.path().join("pebble.json");
        fs::write(&file, config.to_string())?;
        let mut command = bound_command("pebble");
        command
            .arg("-config")
            .arg(&file)
            .args(["-dnsserver", &dns.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "0");
        let process = Process::start("pebble", &mut command, &folder.path().join("pebble.log"))?;
        wait::until("the test authority", async || {
            TcpStream::connect(listen).await.is_ok()
        })
        .await?;
        Ok(Self {
            _process: process,
            directory_url: format!("https://{listen}/dir"),
            _folder: folder,
        })
    }

    /// Runs certbot with its state in `folder`.
    fn certbot(&self, folder: &Path, arguments: &[&str]) -> Result<()> {
        let output = Command::new("certbot")
            .args(arguments)
            .args([
                "--non-interactive",
                "--no-verify-ssl",
                "--server",
                &self.directory_url,
            ])
            .arg("--config-dir")
            .arg(folder.join("config"))
            .arg("--work-dir")
            .arg(folder.join("work"))
            .arg("--logs-dir")
            .arg(folder.join("logs"))
            .output()
            .context("running certbot")?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "certbot {arguments:?}: {text}");
        Ok(())
    }
}

/// Sends a GET request without TLS and without following redirects.
async fn get(client: &reqwest::Client, http: SocketAddr, path: &str) -> Result<(u16, String)> {
    let response = client.get(format!("http://{http}{path}")).send().await?;
    let status = response.status().as_u16();
    Ok((status, response.text().await?))
}

#[tokio::test]
async fn challenges_are_served_from_their_folder_only() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let (http, folder) = (address::unused_loopback(), tempfile::tempdir()?);
    let challenges = folder.path().join(".well-known/acme-challenge");
    fs::create_dir_all(&challenges)?;
    fs::write(challenges.join("token_-1"), "token_-1.thumbprint")?;
    fs::write(folder.path().join("secret"), "secret")?;
    std::os::unix::fs::symlink("../../secret", challenges.join("link"))?;
    let gateway = Gateway::builder(&[upstream.address])
        .set("GATEWAY_HTTP", &http.to_string())
        .start()
        .await?;
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()?;
    let challenge = "/.well-known/acme-challenge/token_-1";
    assert_eq!(get(&client, http, challenge).await?.0, 308);
    // The folder takes effect at a reload.
    let config = format!(
        "premier: {{listen: {{acme_challenges: {}}}}}\n",
        folder.path().display()
    );
    fs::write(gateway.config_file(), config)?;
    wait::until("the folder to take effect", async || {
        let response = get(&client, http, challenge).await;
        response.is_ok_and(|response| response == (200, "token_-1.thumbprint".to_owned()))
    })
    .await?;
    let response = client
        .head(format!("http://{http}{challenge}"))
        .send()
        .await?;
    assert_eq!(response.headers()["content-type"], "text/plain");
    let post = client
        .post(format!("http://{http}{challenge}"))
        .send()
        .await?;
    assert_eq!(post.status(), 404);
    for path in [
        "none",
        "link",
        "",
        "..%2f..%2fsecret",
        "token_-1/",
        "token_-1%00",
        "%74oken_-1",
    ] {
        let path = format!("/.well-known/acme-challenge/{path}");
        assert_eq!(get(&client, http, &path).await?.0, 404, "{path}");
    }
    for path in [
        "/",
        "/secret",
        "/.well-known/acme-challenge",
        "/.well-known/other",
    ] {
        assert_eq!(get(&client, http, path).await?.0, 308, "{path}");
    }
    Ok(())
}

// certbot blocks its thread while the name server has to respond.
#[tokio::test(flavor = "multi_thread")]
async fn certbot_obtains_and_renews_a_certificate_that_the_gateway_serves() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let upstream = MockUpstream::always_ok().await?;
    let (http, folder) = (address::unused_loopback(), tempfile::tempdir()?);
    let webroot = folder.path().join("acme");
    fs::create_dir(&webroot)?;
    let webroot_text = webroot.display().to_string();
    let gateway = Gateway::builder(&[upstream.address])
        .config("premier: {listen: {acme_challenges: '${ACME_FOLDER}'}}\n")
        .set("ACME_FOLDER", &webroot_text)
        .set("GATEWAY_HTTP", &http.to_string())
        .start()
        .await?;
    let (dns, dns_task) = start_dns(http).await?;
    let authority = Authority::start(http, dns).await?;
    let hook = folder.path().join("deploy");
    let hook_text = format!(
        "#!/bin/sh\nset -eu\ninstall -m 600 \"$RENEWED_LINEAGE/privkey.pem\" {0}.new && mv {0}.new {0}\n\
         install -m 644 \"$RENEWED_LINEAGE/fullchain.pem\" {1}.new && mv {1}.new {1}\n",
        gateway.certificate.key_file.display(),
        gateway.certificate.cert_file.display(),
    );
    fs::write(&hook, hook_text)?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    let hook = hook.display().to_string();
    let certbot_folder = folder.path().join("certbot");
    authority.certbot(
        &certbot_folder,
        &[
            "certonly",
            "--webroot",
            "--webroot-path",
            &webroot_text,
            "--domain",
            NAME,
            "--agree-tos",
            "--register-unsafely-without-email",
            "--deploy-hook",
            &hook,
        ],
    )?;
    gateway
        .process
        .wait_for_log("configuration reloaded")
        .await?;
    let live = certbot_folder.join(format!("config/live/{NAME}/fullchain.pem"));
    assert_eq!(fs::read(&live)?, fs::read(&gateway.certificate.cert_file)?);
    let status = gateway.admin_client()?.get("/status").await?.json();
    assert_eq!(
        status["certificates"].as_array().map(Vec::len),
        Some(1),
        "{status}"
    );
    authority.certbot(
        &certbot_folder,
        &["renew", "--dry-run", "--no-random-sleep-on-renew"],
    )?;
    dns_task.abort();
    Ok(())
}
