//! What developers read: the OpenAPI document and the pages that show it, in a real browser.

use anyhow::Result;
use serde_json::Value;
use tests::browser::Browser;
use tests::{Edge, Store};

#[tokio::test]
async fn the_document_is_served_as_the_command_prints_it() -> Result<()> {
    let edge = Edge::on(Store::Embedded).start().await?;
    let served = edge.client()?.get("/openapi.json").await?;
    assert_eq!(served.status, 200);
    let printed = edge.replicas.command("auth-api").arg("openapi").output()?;
    let printed: Value = serde_json::from_slice(&printed.stdout)?;
    assert_eq!(served.json(), printed);
    assert_eq!(printed["openapi"], "3.1.0");
    Ok(())
}

#[tokio::test]
async fn pages_work_offline_under_a_strict_policy_and_try_it_out_works() -> Result<()> {
    if std::env::var_os("TEST_BROWSER").is_some_and(|browser| browser == "none") {
        return Ok(());
    }
    let edge = Edge::on(Store::Embedded).start().await?;
    let client = edge.client()?;
    for path in ["/docs", "/redoc"] {
        let page = client.get(path).await?;
        let policy = page.header("content-security-policy");
        let scripts = policy
            .split(';')
            .find(|part| part.trim().starts_with("script-src"));
        assert!(
            scripts.is_some_and(|scripts| !scripts.contains("unsafe")),
            "{policy}"
        );
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    }

    let browser = Browser::start().await?;
    let base = format!("https://{}", edge.gateway.address);
    browser.open(&format!("{base}/docs")).await?;
    let operations = "document.querySelectorAll('.opblock').length";
    browser
        .until(&format!("return {operations} === 11"))
        .await?;
    let register = "document.querySelector('[id$=post_register]')";
    for (button, next) in [
        (".opblock-summary-control", ".try-out__btn"),
        (".try-out__btn", ".execute"),
        (
            ".execute",
            ".live-responses-table .response .response-col_status",
        ),
    ] {
        browser
            .run(&format!("{register}.querySelector('{button}').click()"))
            .await?;
        browser
            .until(&format!(
                "return {register}.querySelector('{next}') !== null"
            ))
            .await?;
    }
    let status = format!(
        "{register}.querySelector('.live-responses-table .response .response-col_status').innerText"
    );
    browser
        .until(&format!("return {status}.includes('201')"))
        .await?;
    assert_eq!(
        client.login("alice").await?.status,
        200,
        "it was registered for real"
    );

    browser.open(&format!("{base}/redoc")).await?;
    browser
        .until("return document.body.innerText.includes('Renew tokens')")
        .await?;
    let complaints = browser.complaints().await?;
    assert!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}
