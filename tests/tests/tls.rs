//! TLS at the edge: certificates by name, and hosts that they are not for.

use anyhow::Result;
use tests::certificate::Certificate;
use tests::raw::{Raw, status};
use tests::{BackEnd, Gateway};

#[tokio::test]
async fn certificates_are_chosen_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let one = Certificate::make(folder.path(), "one", &["one.example"])?;
    let two = Certificate::make(folder.path(), "two", &["two.example", "*.two.example"])?;
    let config = format!(
        "premier: {{tls: {{certificates: [{{cert: {:?}, key: {:?}}}, {{cert: {:?}, key: {:?}}}]}}}}",
        one.cert, one.key, two.cert, two.key
    );
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config(&config)
        .start()
        .await?;
    for (name, certificate) in [
        ("one.example", &one),
        ("two.example", &two),
        ("www.two.example", &two),
    ] {
        let mut raw = Raw::connect_to(&gateway, name, certificate).await?;
        raw.send(format!(
            "GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
        ))
        .await?;
        assert_eq!(status(&raw.rest().await?), 200, "{name}");
    }
    // The first is for names that nobody has: its own name is not theirs.
    let unknown = Raw::connect_to(&gateway, "other.example", &one).await;
    let told = unknown.expect_err("the name is another").to_string();
    assert!(told.contains("not valid for name"), "{told}");

    let mut astray = Raw::connect_to(&gateway, "one.example", &one).await?;
    astray
        .send("GET / HTTP/1.1\r\nHost: two.example\r\nConnection: close\r\n\r\n")
        .await?;
    assert_eq!(status(&astray.rest().await?), 421);
    Ok(())
}

#[tokio::test]
async fn every_answer_asks_for_tls_from_now_on() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    for path in ["/", "/metrics", "/%00"] {
        let answer = gateway.client()?.get(path).await?;
        let header = answer.header("strict-transport-security");
        assert!(header.starts_with("max-age="), "{path}: {header}");
    }
    Ok(())
}

#[tokio::test]
async fn keys_are_agreed_on_so_that_no_later_computer_can_tell() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address]).start().await?;
    let raw = Raw::connect(&gateway).await?;
    assert_eq!(raw.key_exchange(), "X25519MLKEM768");
    Ok(())
}
