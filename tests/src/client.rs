//! HTTP client of the gateway or of auth-api, with connections and a source address of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Version};
use serde_json::{Value, json};

use crate::certificate::Certificate;
use crate::wait;

/// Host name of the gateway in tests, which its certificate is for.
pub const HOST: &str = "localhost";

/// Password of test users, as in the README of the Python service.
pub const PASSWORD: &str = "securepassword123";

/// Password to which a test changes that of a user.
pub const NEW_PASSWORD: &str = "another one 1";

/// HTTP version that a client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The version that ALPN selects: HTTP/2 where the server supports it.
    Negotiated,
    Http1,
    Http2,
}

/// A response with its whole body.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: HeaderMap,
    pub version: Version,
    /// The body as text.
    pub text: String,
}

impl Response {
    /// Returns the body as JSON.
    ///
    /// # Panics
    /// Panics if the body is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| {
            panic!(
                "invalid JSON in a response of status {}: {error}: {}",
                self.status, self.text
            )
        })
    }

    /// Returns a header's value, empty if the header is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }

    /// Returns the access token in the body.
    ///
    /// # Errors
    /// Returns an error if the body contains no access token.
    pub fn access_token(&self) -> Result<String> {
        Ok(self.json()["access_token"]
            .as_str()
            .with_context(|| format!("no access token in {}", self.text))?
            .to_owned())
    }
}

/// A client. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base_url: String,
}

impl Client {
    /// Returns a client of the gateway at `gateway` that trusts only `certificate` and connects
    /// from the address `source`.
    ///
    /// # Errors
    /// Returns an error if the certificate is invalid.
    pub fn new(
        gateway: SocketAddr,
        certificate: &Certificate,
        source: Ipv4Addr,
        protocol: Protocol,
    ) -> Result<Self> {
        let builder = reqwest::Client::builder()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(
                certificate.pem.as_bytes(),
            )?)
            .resolve(HOST, gateway)
            .local_address(Some(source.into()))
            .redirect(Policy::none())
            .no_proxy();
        let builder = match protocol {
            Protocol::Negotiated => builder,
            Protocol::Http1 => builder.http1_only(),
            Protocol::Http2 => builder.http2_prior_knowledge(),
        };
        Ok(Self {
            http: builder.build()?,
            base_url: format!("https://{HOST}:{}", gateway.port()),
        })
    }

    /// Returns a client of the cleartext HTTP listener at `address`, such as an admin listener or
    /// auth-api itself.
    ///
    /// # Errors
    /// Returns an error if the client cannot be built.
    pub fn cleartext(address: SocketAddr) -> Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder().no_proxy().build()?,
            base_url: format!("http://{address}"),
        })
    }

    /// Returns a request for `path` that the caller completes.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base_url))
    }

    /// Sends a GET request.
    ///
    /// # Errors
    /// Returns an error if no complete response arrives.
    pub async fn get(&self, path: &str) -> Result<Response> {
        send(self.request(Method::GET, path)).await
    }

    /// Sends a GET request with an access token.
    ///
    /// # Errors
    /// Returns an error if no complete response arrives.
    pub async fn get_with_token(&self, token: &str, path: &str) -> Result<Response> {
        send(self.request(Method::GET, path).bearer_auth(token)).await
    }

    /// Sends a POST request with a JSON body.
    ///
    /// # Errors
    /// Returns an error if no complete response arrives.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Response> {
        send(self.request(Method::POST, path).json(body)).await
    }

    /// Sends a POST request with an access token and optionally a JSON body.
    ///
    /// # Errors
    /// Returns an error if no complete response arrives.
    pub async fn post_with_token(
        &self,
        token: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response> {
        let request = self.request(Method::POST, path).bearer_auth(token);
        send(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await
    }

    /// Registers `login` with [`PASSWORD`].
    ///
    /// # Errors
    /// Returns an error if no complete response arrives.
    pub async fn register(&self, login: &str) -> Result<Response> {
        self.post("/api/register", &credentials(login, PASSWORD))
            .await
    }

    /// Logs `login` in with [`PASSWORD`].
    ///
    /// # Errors
    /// Returns an error if no complete response arrives.
    pub async fn login(&self, login: &str) -> Result<Response> {
        self.post("/api/login", &credentials(login, PASSWORD)).await
    }

    /// Registers `login`, logs it in and returns the access token.
    ///
    /// # Errors
    /// Returns an error if no complete response arrives, or if the login fails.
    pub async fn register_and_login(&self, login: &str) -> Result<String> {
        self.register(login).await?;
        self.login(login).await?.access_token()
    }

    /// Returns the value of the first sample in `/metrics` that has the name `name` and contains
    /// all of `labels`, none if there is no such sample.
    ///
    /// # Errors
    /// Returns an error if no complete response arrives.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        let text = self.get("/metrics").await?.text;
        let sample = text.lines().find(|line| {
            line.split(['{', ' ']).next() == Some(name)
                && labels.iter().all(|label| line.contains(label))
        });
        Ok(sample.and_then(|line| line.rsplit(' ').next()?.parse().ok()))
    }

    /// Waits until the response to a GET of `path` satisfies `condition`.
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_for_response(
        &self,
        path: &str,
        condition: impl Fn(&Response) -> bool,
    ) -> Result<()> {
        wait::until(
            &format!("the expected response to GET {path}"),
            async || {
                let response = self.get(path).await;
                response.is_ok_and(|response| condition(&response))
            },
        )
        .await
    }

    /// Waits until a GET of `path` returns 200. `ensure_alive` is checked after each failure.
    ///
    /// # Errors
    /// Returns the error of `ensure_alive`, or an error with the last response after
    /// [`wait::TIMEOUT`].
    pub(crate) async fn wait_until_ok(
        &self,
        path: &str,
        mut ensure_alive: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            let response = self.get(path).await;
            if response
                .as_ref()
                .is_ok_and(|response| response.status == 200)
            {
                return Ok(());
            }
            ensure_alive()?;
            if start.elapsed() > wait::TIMEOUT {
                bail!("{path} does not return 200: {response:?}");
            }
            tokio::time::sleep(wait::POLL_INTERVAL).await;
        }
    }
}

/// Returns the body of a registration, login or deletion request.
#[must_use]
pub fn credentials(login: &str, password: &str) -> Value {
    json!({"login": login, "password": password})
}

/// Sends a request and reads the whole response.
///
/// # Errors
/// Returns an error if no complete response arrives.
pub async fn send(request: RequestBuilder) -> Result<Response> {
    let response = request.send().await?;
    Ok(Response {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        version: response.version(),
        text: response.text().await?,
    })
}
