//! A headless Chromium, controlled by the W3C `WebDriver` protocol.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use anyhow::{Context, Result, bail};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::bound_command;
use crate::process::Process;
use crate::{address, wait};

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    // Fields drop in this order: the driver exits before its folder is removed.
    driver: Process,
    driver_address: SocketAddr,
    http: reqwest::Client,
    session_id: String,
    _folder: TempDir,
}

impl Browser {
    /// Starts a browser that accepts any certificate.
    ///
    /// # Errors
    /// Returns an error if Chromium or its driver is not installed or does not start.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("browser-").tempdir()?;
        let port = address::unused_loopback().port();
        let mut command = bound_command("chromedriver");
        command
            .arg(format!("--port={port}"))
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path());
        let driver = Process::start("chromedriver", &mut command, &folder.path().join("log"))?;
        let mut browser = Self {
            driver,
            driver_address: (Ipv4Addr::LOCALHOST, port).into(),
            http: reqwest::Client::builder().no_proxy().build()?,
            session_id: String::new(),
            _folder: folder,
        };
        wait::until("chromedriver", async || {
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
        let session = browser
            .call(Method::POST, "/session", Some(capabilities))
            .await
            .with_context(|| browser.driver.log())?;
        session["sessionId"]
            .as_str()
            .context("the new session has no id")?
            .clone_into(&mut browser.session_id);
        Ok(browser)
    }

    /// Navigates to a page and waits until it is loaded.
    ///
    /// # Errors
    /// Returns an error if the page does not load.
    pub async fn navigate(&self, url: &str) -> Result<()> {
        self.post("url", json!({"url": url})).await.map(drop)
    }

    /// Executes a script on the page and returns its result.
    ///
    /// # Errors
    /// Returns an error if the script throws.
    pub async fn execute_script(&self, script: &str) -> Result<Value> {
        self.post("execute/sync", json!({"script": script, "args": []}))
            .await
    }

    /// Waits until a script returns true.
    ///
    /// # Errors
    /// Returns an error if it does not within [`wait::TIMEOUT`].
    pub async fn wait_until(&self, script: &str) -> Result<()> {
        wait::until(script, async || {
            self.execute_script(script)
                .await
                .is_ok_and(|value| value == json!(true))
        })
        .await
    }

    /// Returns the console messages since the last call, such as failed scripts and violations of
    /// the content security policy.
    ///
    /// # Errors
    /// Returns an error if the driver does not respond.
    pub async fn console_messages(&self) -> Result<Vec<Value>> {
        let log = self.post("se/log", json!({"type": "browser"})).await?;
        Ok(log.as_array().cloned().unwrap_or_default())
    }

    /// Calls a command of the session.
    async fn post(&self, command: &str, body: Value) -> Result<Value> {
        let path = format!("/session/{}/{command}", self.session_id);
        self.call(Method::POST, &path, Some(body)).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let mut request = self
            .http
            .request(method, format!("http://{}{path}", self.driver_address));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response: Value = request.send().await?.json().await?;
        match response["value"].get("error") {
            Some(error) => bail!("{path}: {error}: {}", response["value"]["message"]),
            None => Ok(response["value"].clone()),
        }
    }
}

impl Drop for Browser {
    /// Deletes the session, since Chromium outlives a driver that is killed.
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(self.driver_address) {
            let _ = write!(
                stream,
                "DELETE /session/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                self.session_id
            );
            // The driver sends the response after the browser has exited.
            let _ = stream.set_read_timeout(Some(wait::TIMEOUT));
            let _ = stream.read(&mut [0; 64]);
        }
        let _ = self.driver.terminate();
    }
}
