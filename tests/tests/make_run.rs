//! `make run`, with the service in `demo/` behind the gateway.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::Value;
use tests::make_run::MakeRunFolder;

/// Percent-encoded in the header that the service reads.
const LOGIN: &str = "Zoë";

#[tokio::test]
async fn a_service_without_code_for_tokens_greets_its_users_until_they_log_out() -> Result<()> {
    let folder = MakeRunFolder::new()?;
    let mut run = folder.start().await?;
    let client = folder.client()?;
    let token = client.register_and_login(LOGIN).await?;
    let keys = client.get("/.well-known/jwks.json").await?.json();
    let header = header_of(&token)?;
    assert_eq!(header["alg"], "EdDSA");
    assert_eq!(header["kid"], keys["keys"][0]["kid"]);

    let greeting = client.get_with_token(&token, "/demo/hello").await?;
    assert_eq!(greeting.text, "Hello Zoë, you are user 1.\n");
    let forged = client
        .request(Method::GET, "/demo/hello")
        .bearer_auth(&token)
        .header("X-User-Login", "admin")
        .header("X_User_Login", "admin")
        .send()
        .await?;
    assert_eq!(forged.text().await?, greeting.text);
    assert_eq!(client.get("/demo/hello").await?.status, 401);

    let logout = client.post_with_token(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 200);
    let refused = client.get_with_token(&token, "/demo/hello").await?;
    assert_eq!(refused.status, 401);

    run.interrupt()?;
    assert_eq!(folder.processes()?, []);

    // Another start has the same accounts, keys and certificate.
    let mut run = folder.start().await?;
    let login = folder.client()?.login(LOGIN).await?;
    let kid = &header_of(&login.access_token()?)?["kid"];
    assert_eq!(kid, &header["kid"]);
    run.interrupt()?;
    assert_eq!(folder.processes()?, []);
    Ok(())
}

#[tokio::test]
async fn the_end_of_one_program_stops_all_and_is_reported() -> Result<()> {
    for (program, name) in [
        ("demo/server.py", "demo/server.py exited with status 137"),
        ("/auth-api", "exited with status 137"),
        ("/gateway", "gateway exited with status 137"),
    ] {
        let folder = MakeRunFolder::new()?;
        let mut run = folder.start().await?;
        folder.kill(program)?;
        let status = run.process.wait_for_exit()?;
        let log = run.process.log();
        ensure!(!status.success() && log.contains(name), "{program}: {log}");
        assert_eq!(folder.processes()?, []);
    }
    Ok(())
}

#[tokio::test]
async fn a_second_start_in_the_same_folder_names_the_first() -> Result<()> {
    let folder = MakeRunFolder::new()?;
    let mut run = folder.start().await?;
    let mut second = folder.spawn()?;
    assert!(!second.process.wait_for_exit()?.success());
    let log = second.process.log();
    ensure!(log.contains("another `make run` (process "), "{log}");
    run.process.ensure_running()?;
    Ok(())
}

/// Returns the header of a JWT.
fn header_of(token: &str) -> Result<Value> {
    let header = token.split('.').next().context("a token has a header")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header)?)?)
}
