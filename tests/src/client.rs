//! A client of the edge: HTTPS from an address of its own.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::address;
use crate::certificate::Certificate;

/// The name that the gateway's certificate in tests is for.
pub const HOST: &str = "localhost";

/// What one client gets told.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub version: reqwest::Version,
    /// The body as it came.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("{error} in a body of {}: {}", self.status, self.text))
    }

    /// A header's value, empty where there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }
}

/// A client with its own connections and its own address.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

/// How a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// What TLS agrees on: HTTP/2 where the server has it.
    Negotiated,
    Http1,
    Http2,
}

impl Client {
    /// A client of the gateway at `gateway`, that trusts `certificate`, coming from `from`.
    ///
    /// # Errors
    /// When the certificate is none.
    pub fn new(
        gateway: SocketAddr,
        certificate: &Certificate,
        from: Ipv4Addr,
        protocol: Protocol,
    ) -> Result<Self> {
        let builder = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(certificate.pem.as_bytes())?])
            .resolve(HOST, gateway)
            .local_address(Some(from.into()))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        let builder = match protocol {
            Protocol::Negotiated => builder,
            Protocol::Http1 => builder.http1_only(),
            Protocol::Http2 => builder.http2_prior_knowledge(),
        };
        Ok(Self {
            http: builder.build()?,
            base: format!("https://{HOST}:{}", gateway.port()),
        })
    }

    /// A client of plain HTTP at `address`, as Prometheus or the gateway itself is one.
    ///
    /// # Errors
    /// When the library cannot start.
    pub fn plain(address: SocketAddr) -> Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder().no_proxy().build()?,
            base: format!("http://{address}"),
        })
    }

    /// A request to be finished by the caller.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// GET without anything.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        send(self.request(Method::GET, path)).await
    }

    /// GET with an access token.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn get_as(&self, token: &str, path: &str) -> Result<Answer> {
        send(self.request(Method::GET, path).bearer_auth(token)).await
    }

    /// POST of JSON.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        send(self.request(Method::POST, path).json(body)).await
    }

    /// POST with an access token and, where given, JSON.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn post_as(&self, token: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
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
    /// When no answer comes.
    pub async fn register(&self, login: &str) -> Result<Answer> {
        self.post("/api/register", &credentials(login, PASSWORD))
            .await
    }

    /// Logs `login` in with [`PASSWORD`].
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn login(&self, login: &str) -> Result<Answer> {
        self.post("/api/login", &credentials(login, PASSWORD)).await
    }

    /// Registers `login`, logs in and gives the access token.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn token(&self, login: &str) -> Result<String> {
        self.register(login).await?;
        let answer = self.login(login).await?.json();
        Ok(answer["access_token"]
            .as_str()
            .expect("an access token")
            .to_owned())
    }
}

/// The password that the Python service's README registers.
pub const PASSWORD: &str = "securepassword123";

/// The body that register, login and delete take.
#[must_use]
pub fn credentials(login: &str, password: &str) -> Value {
    json!({"login": login, "password": password})
}

/// Sends a request and reads its whole answer.
///
/// # Errors
/// When no answer comes.
pub async fn send(request: RequestBuilder) -> Result<Answer> {
    let response = request.send().await?;
    Ok(Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        version: response.version(),
        text: response.text().await?,
    })
}

/// An address for a new client to come from.
#[must_use]
pub fn new_address() -> Ipv4Addr {
    address::random_loopback()
}
