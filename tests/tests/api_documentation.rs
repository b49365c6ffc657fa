//! The OpenAPI document and the documentation pages, the latter in a real browser.

use anyhow::Result;
use serde_json::Value;
use tests::browser::Browser;
use tests::{Edge, Store};

#[tokio::test]
async fn the_served_openapi_document_equals_the_printed_one() -> Result<()> {
    let edge = Edge::builder(Store::Embedded).start().await?;
    let served = edge.client()?.get("/openapi.json").await?;
    assert_eq!(served.status, 200);
    let printed = edge.replicas.command("auth-api").arg("openapi").output()?;
    let printed: Value = serde_json::from_slice(&printed.stdout)?;
    assert_eq!(served.json(), printed);
    assert_eq!(printed["openapi"], "3.1.0");
    Ok(())
}

#[tokio::test]
async fn documentation_pages_and_try_it_out_work_offline_under_a_strict_policy() -> Result<()> {
    if std::env::var_os("TEST_BROWSER").is_some_and(|browser| browser == "none") {
        return Ok(());
    }
    let edge = Edge::builder(Store::Embedded).start().await?;
    let client = edge.client()?;
    for path in ["/docs", "/redoc"] {
        let page = client.get(path).await?;
        let policy = page.header("content-security-policy");
        let script_src = policy
            .split(';')
            .find(|directive| directive.trim().starts_with("script-src"));
        assert!(
            script_src.is_some_and(|sources| !sources.contains("unsafe")),
            "{policy}"
        );
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    }

    let browser = Browser::start().await?;
    let base = format!("https://{}", edge.gateway.address);
    browser.navigate(&format!("{base}/docs")).await?;
    let operation_count = "document.querySelectorAll('.opblock').length";
    browser
        .wait_until(&format!("return {operation_count} === 15"))
        .await?;
    let register = "document.querySelector('[id$=post_register]')";
    for (button, next_element) in [
        (".opblock-summary-control", ".try-out__btn"),
        (".try-out__btn", ".execute"),
        (
            ".execute",
            ".live-responses-table .response .response-col_status",
        ),
    ] {
        browser
            .execute_script(&format!("{register}.querySelector('{button}').click()"))
            .await?;
        browser
            .wait_until(&format!(
                "return {register}.querySelector('{next_element}') !== null"
            ))
            .await?;
    }
    let status = format!(
        "{register}.querySelector('.live-responses-table .response .response-col_status').innerText"
    );
    browser
        .wait_until(&format!("return {status}.includes('201')"))
        .await?;
    assert_eq!(
        client.login("alice").await?.status,
        200,
        "the page registered the account"
    );

    browser.navigate(&format!("{base}/redoc")).await?;
    browser
        .wait_until("return document.body.innerText.includes('Renew tokens')")
        .await?;
    let messages = browser.console_messages().await?;
    assert!(messages.is_empty(), "{messages:#?}");
    Ok(())
}
