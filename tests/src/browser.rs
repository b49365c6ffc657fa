//! A headless Chromium, driven as a person would use it (`WebDriver`, W3C).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Process, bound};
use crate::{address, wait};

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    // Ends before its folder goes.
    driver: Process,
    address: SocketAddr,
    http: reqwest::Client,
    session: String,
    _folder: TempDir,
}

impl Browser {
    /// Starts one that accepts any certificate.
    ///
    /// # Errors
    /// When Chromium or its driver is not installed or does not start.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("browser-").tempdir()?;
        let address = address::free();
        let mut command = bound("chromedriver");
        command
            .arg(format!("--port={}", address.port()))
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path());
        let driver = Process::start("chromedriver", &mut command, &folder.path().join("log"))?;
        let mut browser = Self {
            driver,
            address: SocketAddr::from(([127, 0, 0, 1], address.port())),
            http: reqwest::Client::builder().no_proxy().build()?,
            session: String::new(),
            _folder: folder,
        };
        wait::until("chromedriver to answer", async || {
            browser.call(Method::GET, "/status", None).await.is_ok()
        })
        .await?;
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let started = browser
            .call(Method::POST, "/session", Some(capabilities))
            .await;
        let started = started.with_context(|| browser.driver.log())?;
        started["sessionId"]
            .as_str()
            .context("a session")?
            .clone_into(&mut browser.session);
        Ok(browser)
    }

    /// Goes to a page and waits until it is loaded.
    ///
    /// # Errors
    /// When it does not load.
    pub async fn open(&self, url: &str) -> Result<()> {
        self.ask("url", json!({"url": url})).await.map(drop)
    }

    /// What a script on the page returns.
    ///
    /// # Errors
    /// When it throws.
    pub async fn run(&self, script: &str) -> Result<Value> {
        self.ask("execute/sync", json!({"script": script, "args": []}))
            .await
    }

    /// Waits until a script returns true.
    ///
    /// # Errors
    /// When it does not within [`wait::PATIENCE`].
    pub async fn until(&self, script: &str) -> Result<()> {
        wait::until(script, async || {
            self.run(script)
                .await
                .is_ok_and(|value| value == json!(true))
        })
        .await
    }

    /// What the browser has said since it was last asked: scripts that failed, what a policy forbade.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn complaints(&self) -> Result<Vec<Value>> {
        let log = self.ask("se/log", json!({"type": "browser"})).await?;
        Ok(log.as_array().cloned().unwrap_or_default())
    }

    async fn ask(&self, what: &str, body: Value) -> Result<Value> {
        let path = format!("/session/{}/{what}", self.session);
        self.call(Method::POST, &path, Some(body)).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let mut request = self
            .http
            .request(method, format!("http://{}{path}", self.address));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer: Value = request.send().await?.json().await?;
        match answer["value"].get("error") {
            Some(error) => anyhow::bail!("{path}: {error}: {}", answer["value"]["message"]),
            None => Ok(answer["value"].clone()),
        }
    }
}

impl Drop for Browser {
    /// Chromium outlives a driver that is killed: it has to be told.
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(self.address) {
            let _ = write!(
                stream,
                "DELETE /session/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                self.session
            );
            // Its first word comes when the browser has ended.
            let _ = stream.set_read_timeout(Some(wait::PATIENCE));
            let _ = stream.read(&mut [0; 64]);
        }
        let _ = self.driver.stop();
    }
}
